"""How much the pictures of one prompt differ from noise to noise.

    D = mean over prompts of the mean over pairs i < j of |f_i - f_j|

with f the features of a picture and the Euclidean norm. A design without noise has 0. Beside it stands the same number
for real pictures that fit the prompts, since more is not better: a picture that ignores the prompt varies most.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from diptych.scenes.scores import Score

NUM_DRAWS = 2000


def pairwise_distances(features: Float[np.ndarray, "prompts noises dim"]) -> Float[np.ndarray, " prompts"]:
    """The mean distance of two pictures of each prompt, in float64.

    Raises:
        ValueError: one picture a prompt, which has nothing to differ from.
    """
    num = features.shape[1]
    if num < 2:
        raise ValueError(f"diversity compares pictures of one prompt: it needs at least 2 of each, got {num}.")
    rows = features.astype(np.float64)
    first, second = np.triu_indices(num, 1)
    distances: Float[np.ndarray, " prompts"] = np.linalg.norm(rows[:, first] - rows[:, second], axis=-1).mean(1)
    return distances


def diversity(features: Float[np.ndarray, "prompts noises dim"], seed: int = 0) -> Score:
    """The mean over prompts, with a 95 % percentile bootstrap over them."""
    own = pairwise_distances(features)
    drawn = np.random.default_rng(seed).integers(len(own), size=(NUM_DRAWS, len(own)))
    low, high = np.quantile(own[drawn].mean(1), (0.025, 0.975)).tolist()
    return Score(float(own.mean()), low, high, features.shape[0] * features.shape[1], len(own))


def mean_over_seeds(scores: Sequence[Score], most: float = math.inf) -> Score:
    """The mean over training seeds, with a 95 % interval for both what training and what the samples draw.

    ``half^2 = (t s / sqrt(S))^2 + (mean half of the samples' intervals)^2``, below and above apart: s is the standard
    deviation over the S seeds, t the quantile of Student's distribution with S - 1 degrees of freedom. All seeds are
    asked the same, so the samples' part is not divided by S; what the samples add to s is counted twice, so the
    interval is rather too wide. With one seed it is the samples' interval, which says nothing about training again.

    Args:
        most: the largest value there can be, 1 for a share; none is below 0.

    Raises:
        ValueError: no score.
    """
    if not scores:
        raise ValueError("a mean over seeds needs at least one score.")
    values = np.array([score.value for score in scores])
    num = len(values)
    between = 0.0 if num == 1 else student_quantile(num - 1) * float(values.std(ddof=1)) / num**0.5
    below = float(np.mean([score.value - score.low for score in scores]))
    above = float(np.mean([score.high - score.value for score in scores]))
    value = float(values.mean())
    return Score(
        value,
        min(max(value - (between**2 + below**2) ** 0.5, 0.0), value),
        max(min(value + (between**2 + above**2) ** 0.5, most), value),
        sum(score.num_items for score in scores),
        scores[0].num_groups,
    )


_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's distribution with 1 to 10 degrees of freedom."""


def student_quantile(degrees: int) -> float:
    """The 97.5 % quantile; beyond ten degrees of freedom by three terms of Abramowitz and Stegun 26.7.5."""
    if degrees <= len(_STUDENT):
        return _STUDENT[degrees - 1]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))
