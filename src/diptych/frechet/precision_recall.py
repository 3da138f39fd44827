"""Improved precision and recall (arXiv 1904.06991, section 2): which share of one set lies on the other's manifold.

A manifold is the union of balls around the features of a set, each reaching to its k-th nearest neighbour in the set.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.interval import Estimate, estimate_of_mean
from diptych.frechet.neighbours import check_manifolds, distance_chunks, squared_radii


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Both measures; each error is of the set that is tested, with the other set's manifold as it is."""

    precision: Estimate
    """Share of generated features on the manifold of the real ones."""
    recall: Estimate
    """Share of real features on the manifold of the generated ones."""


def precision_recall(
    generated: Float[Tensor, "num dim"], real: Float[Tensor, "num_real dim"], *, num_neighbours: int = 3
) -> PrecisionRecall:
    """Precision and recall with the paper's k = 3. Both depend on the sizes of the sets: keep these equal to compare.

    Raises:
        ValueError: not more rows than neighbours, or rows that are not finite (named).
    """
    check_manifolds(generated, real, num_neighbours)
    return PrecisionRecall(
        precision=estimate_of_mean(_on_manifold(generated, real, num_neighbours)),
        recall=estimate_of_mean(_on_manifold(real, generated, num_neighbours)),
    )


def _on_manifold(features: Tensor, of: Tensor, num_neighbours: int) -> Tensor:
    """1.0 for each of the features that lies in a ball of ``of``, its border included, else 0.0."""
    radii = squared_radii(of, num_neighbours)
    return torch.cat([(squares <= radii).any(1) for _, squares in distance_chunks(features, of)]).double()
