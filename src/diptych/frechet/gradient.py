"""The Fréchet distance to a fixed reference, with its gradient in closed form.

With ``S_r = F F^T`` and ``M = F^T S F = V diag(l) V^T``:

    FD          = |mean - mean_r|^2 + tr S + tr S_r - 2 sum sqrt(l)
    dFD / dmean = 2 (mean - mean_r)
    dFD / dS    = I - F V diag(l)^(-1/2) V^T F^T

so one symmetric eigendecomposition gives value and gradient (FD-loss takes autograd through ``eigvalsh`` instead).
Eigenvalues up to ``relative_cutoff`` times the largest are left out of both sums: the value and gradient are those on
the kept subspace, finite where a feature is dead or there are fewer rows than dimensions. Autograd makes 0 * inf of it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from diptych.frechet.distance import congruence, factor
from diptych.frechet.moments import Moments, add_scatter_, mirror_
from diptych.frechet.warm_route import WarmRoute


@dataclass(frozen=True, kw_only=True)
class FrechetReference:
    """What a distance needs of the side that does not change, computed once."""

    mean: Float[Tensor, " dim"]
    """float64."""
    factor: Float[Tensor, "dim rank"]
    """F of ``covariance = F F^T``, float64."""
    trace: Float[Tensor, ""]
    """Of the covariance."""
    is_triangular: bool = False
    """Whether F is lower triangular, which saves products."""

    @classmethod
    def of(cls, moments: Moments, device: torch.device | str = "cpu") -> "FrechetReference":
        """The reference that moments make."""
        covariance = moments.covariance.to(device)
        root = factor(covariance)
        is_triangular = root.shape[0] == root.shape[1] and not bool(root.triu(1).any())
        return cls(mean=moments.mean.to(device), factor=root, trace=covariance.trace(), is_triangular=is_triangular)


def frechet_to_reference(
    mean: Float[Tensor, " dim"],
    covariance: Float[Tensor, "dim dim"],
    reference: FrechetReference,
    relative_cutoff: float = 1e-13,
    route: WarmRoute | None = None,
) -> Float[Tensor, ""]:
    """The distance of float64 moments to the reference, differentiable once in both moments.

    Its value is for training: small roots are off by up to 3e-7 of the largest. For scores see `frechet_distance`.

    Args:
        relative_cutoff: rounding leaves eigenvalues up to 1e-15 of the largest where there should be none (measured,
            dim 64 to 1024); those at the cut-off are known to 1 %.
        route: follows the population from step to step and answers in place of the eigendecomposition where it can.
    """
    distance: Tensor = _FrechetToReference.apply(mean, covariance, reference, relative_cutoff, route)
    return distance


class _FrechetToReference(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        covariance: Tensor,
        reference: FrechetReference,
        relative_cutoff: float,
        route: WarmRoute | None,
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[1]
        found = route.follow(covariance) if needs_gradient and route is not None else None
        trace, gradient = found or _exact(covariance, reference, relative_cutoff, needs_gradient, route)
        difference = mean - reference.mean
        ctx.save_for_backward(difference, gradient)
        return difference.square().sum() + covariance.trace() + reference.trace - 2 * trace

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        difference, gradient = ctx.saved_tensors
        return 2 * grad * difference, None if gradient is None else grad * gradient, None, None, None


def _exact(
    covariance: Tensor,
    reference: FrechetReference,
    relative_cutoff: float,
    needs_gradient: bool,
    route: WarmRoute | None,
) -> tuple[Tensor, Tensor | None]:
    """``tr M^(1/2)`` and the gradient, by the eigenvalues of M."""
    factor = reference.factor
    if reference.is_triangular:
        inner = congruence(factor, (covariance + covariance.T) / 2)
    else:
        inner = factor.T @ covariance @ factor
        inner = (inner + inner.T) / 2
    vectors = None
    if needs_gradient:
        squares, vectors = torch.linalg.eigh(inner)
    else:
        squares = torch.linalg.eigvalsh(inner)
    # at least one stays, unless all are zero
    kept = squares > relative_cutoff * squares.amax().clamp(min=0) if len(squares) else squares.bool()
    roots = squares[kept].sqrt()
    if vectors is None:
        return roots.sum(), None
    halves = factor @ (vectors[:, kept] * roots.rsqrt())
    if route is not None:
        route.restart(halves, roots, is_whole=bool(kept.all()))
    gradient = torch.zeros_like(covariance)
    add_scatter_(gradient, halves.T, -1.0)
    mirror_(gradient).diagonal().add_(1)
    return roots.sum(), gradient


def scatter(rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "dim dim"]:
    """``rows^T rows``, symmetric to the bit, with half the products of a matmul in each direction."""
    products: Tensor = _Scatter.apply(rows)
    return products


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        products = rows.new_zeros(rows.shape[1], rows.shape[1])
        add_scatter_(products, rows)
        return mirror_(products)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        return rows @ (grad + grad.T)
