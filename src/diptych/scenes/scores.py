"""Scores with confidence intervals: means over verdicts by category, with a bootstrap over prompts (or questions).

Where all verdicts are right, or all wrong, a bootstrap has nothing to draw from and would be certain; there the
interval is Wilson's (1927), and the one of the overall score is put together from those of the categories.

Pure functions over results. The overall score of a benchmark is the unweighted mean of its categories, as in GenEval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BOOTSTRAP = 2000
_Z = 1.959964
"""The standard normal is between -z and z with 95 %."""


@dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval: a percentile bootstrap over groups, or Wilson's where all verdicts agree."""

    value: float
    low: float
    high: float
    num_items: int
    num_groups: int
    """Different prompts (or questions, edits): what the bootstrap draws from."""


@dataclass(frozen=True)
class ScoreTable:
    """The scores of one benchmark for one contender (a model, or a reference row such as chance)."""

    benchmark: str
    contender: str
    overall: Score
    categories: Mapping[str, Score]
    details: Mapping[str, Any] = field(default_factory=dict)
    """Anything JSON-able that belongs to the score: tolerances, settings."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "ScoreTable":
        """What ``to_dict`` gave, after JSON."""
        categories = {name: Score(**score) for name, score in entry["categories"].items()}
        overall, details = Score(**entry["overall"]), entry.get("details", {})
        return cls(entry["benchmark"], entry["contender"], overall, categories, details)


def bootstrap_interval(
    values: Sequence[float | bool], groups: Sequence[str] | None = None, num: int = NUM_BOOTSTRAP, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean when whole groups are drawn with replacement.

    Where all values are 0, or all are 1, it is the Wilson score interval for as many trials as there are groups.

    Args:
        values: one for each item (0 or 1 for a verdict).
        groups: the prompt of each item; pictures of one prompt stay together. Each item is its own group without it.

    Raises:
        ValueError: no values, or not as many groups.
    """
    means = bootstrap_means(values, groups, num, np.random.default_rng(seed))
    return _interval(values, means, len(values) if groups is None else len(set(groups)))


def mean_score(
    values: Sequence[float | bool], groups: Sequence[str] | None = None, num: int = NUM_BOOTSTRAP, seed: int = 0
) -> Score:
    """The mean of values in [0, 1] with its interval, as ``bootstrap_interval`` has it.

    Raises:
        ValueError: no values, or not as many groups.
    """
    low, high = bootstrap_interval(values, groups, num, seed)
    return Score(float(np.mean(values)), low, high, len(values), len(values) if groups is None else len(set(groups)))


def wilson_interval(rate: float, num_trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a probability whose trials succeeded at ``rate``."""
    share = _Z**2 / num_trials
    centre = (rate + share / 2) / (1 + share)
    half = _Z / (1 + share) * (rate * (1 - rate) / num_trials + share / (4 * num_trials)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _interval(values: Sequence[float | bool], means: NDArray[np.float64], num_groups: int) -> tuple[float, float]:
    if _all_agree(values):
        return wilson_interval(float(values[0]), num_groups)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def _all_agree(values: Sequence[float | bool]) -> bool:
    return set(map(float, values)) in ({0.0}, {1.0})


def _mean_interval(scores: Sequence[Score]) -> tuple[float, float]:
    """The interval of the unweighted mean of independent scores, from their own intervals.

    The distances of the limits add up as variances do (MOVER, Zou and Donner 2008, equation 4). Where all scores are 0,
    or all are 1, it is Wilson's for all groups together: no way to spread failures over categories makes it likelier
    that none is seen. A category with more groups than the smallest counts as no more than that.
    """
    value = float(np.mean([score.value for score in scores]))
    if value in (0.0, 1.0):
        return wilson_interval(value, len(scores) * min(score.num_groups for score in scores))
    below = sum((score.value - score.low) ** 2 for score in scores) ** 0.5 / len(scores)
    above = sum((score.high - score.value) ** 2 for score in scores) ** 0.5 / len(scores)
    return max(value - below, 0.0), min(value + above, 1.0)


def bootstrap_means(
    values: Sequence[float | bool], groups: Sequence[str] | None, num: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """``num`` means over groups drawn with replacement. The order of the items has no influence."""
    if len(values) == 0:
        raise ValueError("bootstrap: there are no values to average.")
    names = [str(i) for i in range(len(values))] if groups is None else list(groups)
    if len(names) != len(values):
        raise ValueError(f"bootstrap: {len(values)} values but {len(names)} groups were given.")
    totals: dict[str, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        entry = totals.setdefault(name, [0.0, 0.0])
        entry[0] += float(value)
        entry[1] += 1
    # Sorted by content, so that neither the order nor the names of groups decide what is drawn.
    table = np.array(sorted(totals.values()))
    drawn = rng.integers(len(table), size=(num, len(table)))
    return table[drawn, 0].sum(axis=1) / table[drawn, 1].sum(axis=1)


def score_table(
    benchmark: str,
    contender: str,
    categories: Sequence[str],
    values: Sequence[float | bool],
    groups: Sequence[str] | None = None,
    *,
    num: int = NUM_BOOTSTRAP,
    seed: int = 0,
    details: Mapping[str, Any] | None = None,
) -> ScoreTable:
    """Scores by category and their unweighted mean, whose interval comes from a bootstrap within every category.

    Where the verdicts of a category all agree, it comes from the intervals of the categories instead.

    Args:
        categories: the category of each item; the table lists them in order of first appearance.
        values: the verdict of each item, 0 to 1.
        groups: the prompt of each item; see ``bootstrap_interval``.

    Raises:
        ValueError: no items, or lists of unequal lengths.
    """
    if not values or len(categories) != len(values) or (groups is not None and len(groups) != len(values)):
        raise ValueError(
            f"score_table({benchmark!r}): need equally long, non-empty lists, got {len(categories)} categories, "
            f"{len(values)} values and {'no' if groups is None else len(groups)} groups."
        )
    names = [str(i) for i in range(len(values))] if groups is None else list(groups)
    scores: dict[str, Score] = {}
    means = []
    is_bootstrap = True
    for category in dict.fromkeys(categories):
        chosen = [i for i, name in enumerate(categories) if name == category]
        own_values, own_groups = [float(values[i]) for i in chosen], [names[i] for i in chosen]
        drawn = bootstrap_means(own_values, own_groups, num, np.random.default_rng([seed, *category.encode()]))
        num_groups = len(set(own_groups))
        low, high = _interval(own_values, drawn, num_groups)
        scores[category] = Score(float(np.mean(own_values)), low, high, len(chosen), num_groups)
        means.append(drawn)
        is_bootstrap = is_bootstrap and not _all_agree(own_values)
    if is_bootstrap:
        low, high = np.quantile(np.mean(means, axis=0), (0.025, 0.975)).tolist()
    else:
        low, high = _mean_interval(list(scores.values()))
    overall = float(np.mean([score.value for score in scores.values()]))
    total_groups = sum(score.num_groups for score in scores.values())
    return ScoreTable(
        benchmark, contender, Score(overall, low, high, len(values), total_groups), scores, dict(details or {})
    )
