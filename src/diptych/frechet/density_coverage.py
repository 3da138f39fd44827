"""Density and coverage (arXiv 2002.09797, equations 4 and 5), which outliers of either set move less.

Balls are around real features only, so both measures need one set of neighbours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.interval import Estimate, estimate_of_mean
from diptych.frechet.neighbours import check_manifolds, distance_chunks, squared_radii


@dataclass(frozen=True, kw_only=True)
class DensityCoverage:
    """Both measures; each error is of the set that is averaged over, with the other set as it is."""

    density: Estimate
    """Mean number of real balls around a generated feature, divided by k; may exceed 1."""
    coverage: Estimate
    """Share of real balls with a generated feature in them."""


def density_coverage(
    generated: Float[Tensor, "num dim"], real: Float[Tensor, "num_real dim"], *, num_neighbours: int = 5
) -> DensityCoverage:
    """Density and coverage with the paper's k = 5; a ball's border does not belong to it, as in the authors' code.

    Raises:
        ValueError: not more rows than neighbours, or rows that are not finite (named).
    """
    check_manifolds(generated, real, num_neighbours)
    radii = squared_radii(real, num_neighbours)
    balls, is_covered = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for _, squares in distance_chunks(generated, real):
        inside = squares < radii
        balls.append(inside.sum(1).double() / num_neighbours)
        is_covered |= inside.any(0)
    return DensityCoverage(density=estimate_of_mean(torch.cat(balls)), coverage=estimate_of_mean(is_covered.double()))
