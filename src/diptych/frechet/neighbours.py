"""Distances between rows and to nearest neighbours, in chunks: what the manifold measures are made of."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.moments import check_finite_rows

CHUNK = 1024
"""Rows of a distance matrix that exist at a time."""


def distance_chunks(
    x: Float[Tensor, "num dim"], y: Float[Tensor, "other dim"]
) -> Iterator[tuple[slice, Float[Tensor, "chunk other"]]]:
    """Squared Euclidean distances in float64, chunk by chunk of the rows of x."""
    x, y = x.double(), y.double()
    y_squares = y.square().sum(1)
    for start in range(0, len(x), CHUNK):
        rows = x[start : start + CHUNK]
        squares = torch.addmm(y_squares + rows.square().sum(1)[:, None], rows, y.T, alpha=-2)
        yield slice(start, start + len(rows)), squares.clamp_(min=0)


def squared_radii(features: Float[Tensor, "num dim"], num_neighbours: int) -> Float[Tensor, " num"]:
    """Squared distance of each row to its k-th nearest other row."""
    radii = []
    for rows, squares in distance_chunks(features, features):
        squares.diagonal(rows.start).fill_(torch.inf)
        radii.append(squares.kthvalue(num_neighbours, dim=1).values)
    return torch.cat(radii)


def check_manifolds(
    generated: Float[Tensor, "num dim"], real: Float[Tensor, "num_real dim"], num_neighbours: int
) -> None:
    """Raises ``ValueError`` for sets that have no k-th neighbours, or rows that are not finite (named)."""
    for name, features in (("generated", generated), ("real", real)):
        check_finite_rows(features, f"{name} features")
        if not 1 <= num_neighbours < len(features):
            raise ValueError(
                f"num_neighbours must be at least 1 and below the {len(features)} {name} features, "
                f"got {num_neighbours}."
            )
