"""FD-infinity (arXiv 1911.07023, section 3): the distance as the number of generated images goes to infinity.

The distance of N images is biased by about ``c / N`` with a constant that depends on the generator, so two generators
are not compared fairly at any N. A line through the distances of several N, over 1 / N, ends at the unbiased value.
Differs from the paper's code in that the images are given (no Sobol sequences).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.distance import frechet_distance
from diptych.frechet.interval import Estimate, jackknife_variance
from diptych.frechet.moments import Moments


@dataclass(frozen=True, kw_only=True)
class FDInfinity:
    """The extrapolation and what it was made from."""

    estimate: Estimate
    """The line at 1 / N = 0; the error is a jack-knife over the points, which overlap, so it is somewhat too small."""
    sizes: tuple[int, ...]
    """N."""
    distances: tuple[float, ...]
    """FD of a random subset of each size."""


def fd_infinity(
    features: Float[Tensor, "num dim"],
    reference: Moments,
    generator: torch.Generator,
    *,
    num_points: int = 15,
    min_size: int = 5000,
) -> FDInfinity:
    """Extrapolates the distance of ``features`` to a reference.

    Args:
        num_points: subsets, of sizes at equal steps from ``min_size`` to all features; 15 and 5000 as in the paper.

    Raises:
        ValueError: fewer than three points, or not more features than ``min_size``.
    """
    if num_points < 3:
        raise ValueError(f"fd_infinity.num_points must be at least 3, got {num_points}.")
    if not 2 <= min_size < len(features):
        raise ValueError(
            f"fd_infinity.min_size must be at least 2 and below the {len(features)} features, got {min_size}. "
            "Give more features, or smaller subsets (more than dim)."
        )
    sizes = torch.linspace(min_size, len(features), num_points, dtype=torch.float64).long().tolist()
    distances = []
    for size in sizes:
        order = torch.randperm(len(features), generator=generator, device=generator.device)
        subset = Moments(features.shape[1], network=reference.network, preprocessing=reference.preprocessing)
        subset.update(features[order[:size].to(features.device)])
        distances.append(frechet_distance(subset, reference))
    return FDInfinity(estimate=extrapolate(sizes, distances), sizes=tuple(sizes), distances=tuple(distances))


def extrapolate(sizes: Sequence[int], distances: Sequence[float]) -> Estimate:
    """Where the least-squares line through distances over 1 / N ends, with its jack-knife over the points.

    For distances that were measured at several N elsewhere.

    Raises:
        ValueError: fewer than three points, or not as many distances as sizes.
    """
    if len(sizes) != len(distances) or len(sizes) < 3:
        raise ValueError(
            f"extrapolate needs at least 3 sizes and a distance for each, got {len(sizes)} and {len(distances)}."
        )
    inverse = 1 / torch.tensor(sizes, dtype=torch.float64)
    values = torch.tensor(distances, dtype=torch.float64)
    others = ~torch.eye(len(sizes), dtype=torch.bool)
    left_out = torch.stack([_intercept(inverse[kept], values[kept]) for kept in others])
    return Estimate(value=_intercept(inverse, values).item(), standard_error=jackknife_variance(left_out) ** 0.5)


def _intercept(x: Tensor, y: Tensor) -> Tensor:
    """Of the least-squares line."""
    centred = x - x.mean()
    slope = (centred * y).sum() / centred.square().sum()
    return y.mean() - slope * x.mean()
