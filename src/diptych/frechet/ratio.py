"""FDr and FDr^k (arXiv 2604.28190, section "Evaluation metric"): distances in units of a real validation set's.

    FDr = FD(generated, train) / FD(validation, train),    FDr^k = mean of FDr over k representations

so that representations of any scale can be averaged and 1 is what fresh real images have. Beside it: the delete-a-group
jack-knife of a distance (Efron and Stein 1981), whose error is that of the draw of the images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.frechet.distance import frechet_distance
from diptych.frechet.interval import jackknife_variance
from diptych.frechet.moments import Moments

NUM_GROUPS = 10
STUDENT_95 = 2.262157
"""The 97.5 % quantile of Student's t with 9 degrees of freedom, for ten groups."""


@dataclass(frozen=True)
class Normaliser:
    """``FD(validation, train)`` of one representation."""

    value: float
    half_step: float
    """Half of the last digit that is printed: the value is known to within this much."""
    source: str

    @property
    def relative_error(self) -> float:
        """The largest share by which an FDr is off, for this rounding alone."""
        return self.half_step / (self.value - self.half_step)


_SOURCE = "arXiv 2604.28190, official evaluation code: ImageNet 256, 50 000 validation images against the training set"
PAPER_NORMALISERS: dict[str, Normaliser] = {
    "inception": Normaliser(1.68, 0.005, f"{_SOURCE} (statistics of ADM)"),
    "convnextv2": Normaliser(56.87, 0.005, _SOURCE),
    "dinov2": Normaliser(14.19, 0.005, _SOURCE),
    "mae": Normaliser(0.04, 0.005, _SOURCE),
    "siglip2": Normaliser(0.60, 0.005, _SOURCE),
    "clip": Normaliser(5.60, 0.005, _SOURCE),
}
"""The six constants of the paper; MAE's has one digit, so an FDr by it is off by up to 14 %. They hold for ImageNet at
256 pixels with the paper's preprocessing only."""


@dataclass(frozen=True, kw_only=True)
class DistanceEstimate:
    """A distance and its 95 % interval."""

    value: float
    low: float
    high: float
    standard_error: float
    """Of the draw of the images of both sides, as far as they were given as images; NaN where neither was."""


def fdr(distance: float, normaliser: float) -> float:
    """The distance in units of the validation set's.

    Raises:
        ValueError: a normaliser that is not positive.
    """
    if not normaliser > 0:
        raise ValueError(
            f"FDr divides by FD(validation, train), which must be positive, got {normaliser:.4g}. Are the validation "
            "and the training images the same?"
        )
    return distance / normaliser


def fdr_k(ratios: Mapping[str, float]) -> float:
    """The mean over representations.

    Raises:
        ValueError: none are given.
    """
    if not ratios:
        raise ValueError("FDr^k is a mean over representations, got none.")
    return sum(ratios.values()) / len(ratios)


def random_groups(num_rows: int, num_groups: int = NUM_GROUPS) -> list[Tensor]:
    """Row numbers of groups as equal as can be, the same every time.

    Drawn, since images may stand class by class, or class after class in turn: either order would give some groups
    other images than others, and an interval that has nothing to do with the draw of the images.
    """
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))
    return [order[group::num_groups] for group in range(num_groups)]


def merged(groups: Sequence[Moments], without: int | None = None) -> Moments:
    """Moments of all groups, or of all but one."""
    first = groups[0]
    if len(groups) == 1 and without is None:
        return first
    total = Moments(first.dim, network=first.network, preprocessing=first.preprocessing)
    for index, group in enumerate(groups):
        if index != without:
            total.merge(group)
    return total


def distance_estimate(a: Sequence[Moments], b: Sequence[Moments]) -> DistanceEstimate:
    """The distance of two sides, each as moments of groups; a side of one group counts as exactly known.

    Where a side has ten groups, the distance is computed again without each of them. The bias of a distance, which
    falls as one over the number of images, is not in the interval.

    Raises:
        ValueError: see ``frechet_distance``.
    """
    whole_a, whole_b = merged(a), merged(b)
    value = frechet_distance(whole_a, whole_b)
    variance = 0.0
    for groups, distance_to in ((a, whole_b), (b, whole_a)):
        if len(groups) > 1 and min(group.count or 0 for group in groups) > 0:
            left_out = [
                frechet_distance(merged(groups, index), distance_to, is_quiet=True) for index in range(len(groups))
            ]
            variance += jackknife_variance(torch.tensor(left_out, dtype=torch.float64))
    if len(a) == 1 and len(b) == 1:
        return DistanceEstimate(value=value, low=float("nan"), high=float("nan"), standard_error=float("nan"))
    error = variance**0.5
    half = STUDENT_95 * error
    return DistanceEstimate(value=value, low=max(0.0, value - half), high=value + half, standard_error=error)
