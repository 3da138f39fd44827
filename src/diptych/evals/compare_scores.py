"""Two evaluations side by side: differences over the same items, with intervals and a test that knows they are paired.

What was not asked alike, or not judged by the same judge, is refused: such scores differ for other reasons.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.evals.harness import units_file
from diptych.evals.manifest import EvaluationFolder, read_lines
from diptych.evals.task import Unit
from diptych.scenes.scores import ScoreTable

NUM_DRAWS = 5000
FREE_TO_DIFFER = ("image_size",)
"""Parts of a task's config that do not decide what is asked: a model sees pictures at its own size."""


@dataclass(frozen=True)
class Difference:
    """How much the second run scores above the first, in one benchmark or one category of it."""

    benchmark: str
    category: str
    """Empty for the benchmark as a whole."""
    first: float
    second: float
    value: float
    """``second - first``."""
    low: float
    high: float
    """95 % interval: a bootstrap over the groups that both runs have."""
    p_value: float
    """Of no difference, two-sided: signs of the groups' differences flipped at random."""
    num_units: int
    num_groups: int

    @property
    def is_significant(self) -> bool:
        """At 5 %, without regard to how many differences are looked at."""
        return self.p_value < 0.05


@dataclass(frozen=True)
class JudgedTask:
    """A task of a run that has been judged."""

    benchmark: str
    table: ScoreTable
    judge: Mapping[str, Any]
    version: int
    config: Mapping[str, Any]
    units: tuple[Unit, ...]


def read_judged(path: str | Path) -> dict[str, JudgedTask]:
    """The judged tasks of an evaluation by their benchmark.

    Raises:
        FileNotFoundError: the folder holds no evaluation, or one that has not been judged.
    """
    folder = EvaluationFolder(path)
    entries = {entry["label"]: entry for entry in folder.read_run()["tasks"]}
    results = folder.path / "results.json"
    if not results.exists():
        raise FileNotFoundError(
            f"{path} has not been judged: results.json is missing. `diptych evaluate {path} --phase score` writes it."
        )
    found = {}
    for result in json.loads(results.read_text(encoding="utf-8"))["diptych"]["results"]:
        label = result["table"]["benchmark"]
        if label in entries:
            units = tuple(Unit(**record) for record in read_lines(units_file(folder, label)))
            entry = entries[label]
            table = ScoreTable.from_dict(result["table"])
            found[label] = JudgedTask(label, table, result["judge"], entry["version"], entry["config"], units)
    return found


def check_comparable(first: JudgedTask, second: JudgedTask) -> None:
    """
    Raises:
        ValueError: the two were asked differently, or judged by different judges.
    """
    if first.version != second.version:
        raise ValueError(
            f"{first.benchmark}: version {first.version} and version {second.version} of the benchmark are not "
            "comparable. Evaluate the older run again."
        )
    for name in sorted(set(first.config) | set(second.config)):
        ours, theirs = first.config.get(name), second.config.get(name)
        if ours != theirs and name not in FREE_TO_DIFFER:
            raise ValueError(
                f"{first.benchmark}: the runs were asked differently, {name} is {ours!r} and {theirs!r}. "
                "Evaluate one of them as the other."
            )
    if dict(first.judge) != dict(second.judge):
        raise ValueError(
            f"{first.benchmark}: the runs have different judges, {json.dumps(dict(first.judge), sort_keys=True)} and "
            f"{json.dumps(dict(second.judge), sort_keys=True)}. Judge both by one: diptych evaluate RUN --phase score."
        )


def compare_scores(first: str | Path, second: str | Path, num: int = NUM_DRAWS, seed: int = 0) -> list[Difference]:
    """All differences between two runs in the benchmarks that both have, the whole first and then its categories.

    Raises:
        FileNotFoundError: a folder holds no judged evaluation.
        ValueError: they share no benchmark, or one of those they share is not comparable.
    """
    ours, theirs = read_judged(first), read_judged(second)
    shared = [label for label in ours if label in theirs]
    if not shared:
        raise ValueError(
            f"{first} ({', '.join(ours) or 'nothing judged'}) and {second} ({', '.join(theirs) or 'nothing judged'}) "
            "have no benchmark in common. Evaluate both --on the same tasks."
        )
    differences: list[Difference] = []
    for label in shared:
        check_comparable(ours[label], theirs[label])
        differences += _differences(ours[label], theirs[label], num, seed)
    return differences


def merged_tables(paths: Sequence[str | Path]) -> list[ScoreTable]:
    """The tables of several runs together, under the names of their folders where contenders are called alike.

    Raises:
        ValueError: runs that are not comparable in a benchmark they share.
    """
    runs = [read_judged(path) for path in paths]
    named = [next(iter(run.values())).table.contender if run else "" for run in runs]
    tables = []
    for label in dict.fromkeys(label for run in runs for label in run):
        having = [(index, run[label]) for index, run in enumerate(runs) if label in run]
        for index, judged in having:
            check_comparable(having[0][1], judged)
            unique = named.count(named[index]) == 1
            name = named[index] if unique else f"{named[index]} ({Path(paths[index]).name})"
            tables.append(ScoreTable(label, name, judged.table.overall, judged.table.categories, judged.table.details))
    return tables


def _differences(first: JudgedTask, second: JudgedTask, num: int, seed: int) -> list[Difference]:
    by_id = {unit.id: unit for unit in second.units}
    pairs = [(unit, by_id[unit.id]) for unit in first.units if unit.id in by_id]
    if not pairs:
        raise ValueError(f"{first.benchmark}: the runs have no unit in common. Judge both again.")
    categories = list(dict.fromkeys(unit.category for unit, _ in pairs))
    chosen = {name: [pair for pair in pairs if pair[0].category == name] for name in categories}
    # The overall score is a mean of the categories, unless the benchmark says that it is a mean over everything.
    strata = {"": pairs} if "overall_is" in first.table.details else chosen
    found = [_difference(first.benchmark, "", list(strata.values()), num, seed)]
    if len(categories) > 1:
        found += [_difference(first.benchmark, name, [own], num, seed) for name, own in chosen.items()]
    return found


def _difference(
    benchmark: str, category: str, strata: Sequence[Sequence[tuple[Unit, Unit]]], num: int, seed: int
) -> Difference:
    """The mean over strata of the mean difference within each."""
    rng = np.random.default_rng([seed, *category.encode()])
    draws, flips = np.zeros(num), np.zeros(num)
    first = second = 0.0
    num_groups = 0
    for pairs in strata:
        sums: dict[str, NDArray[np.float64]] = {}
        for one, other in pairs:
            row = np.array([1.0, one.value, other.value])
            sums[one.group] = sums.get(one.group, np.zeros(3)) + row
        table = np.array(sorted(sums.values(), key=lambda row: row.tolist()))
        gaps = table[:, 2] - table[:, 1]
        drawn = rng.integers(len(table), size=(num, len(table)))
        draws += gaps[drawn].sum(axis=1) / table[drawn, 0].sum(axis=1) / len(strata)
        signs = rng.integers(2, size=(num, len(table))) * 2 - 1
        flips += (signs * gaps).sum(axis=1) / table[:, 0].sum() / len(strata)
        first += float(table[:, 1].sum() / table[:, 0].sum()) / len(strata)
        second += float(table[:, 2].sum() / table[:, 0].sum()) / len(strata)
        num_groups += len(table)
    value = second - first
    low, high = np.quantile(draws, (0.025, 0.975)).tolist()
    p_value = (1 + int(np.sum(np.abs(flips) >= abs(value) - 1e-12))) / (num + 1)
    count = sum(len(pairs) for pairs in strata)
    return Difference(benchmark, category, first, second, value, min(low, value), max(high, value), p_value, count,
                      num_groups)  # fmt: skip
