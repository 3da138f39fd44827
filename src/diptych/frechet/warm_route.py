"""The gradient of the Fréchet distance from step to step, without an eigendecomposition: products of matrices alone.

Between two steps of training ``M = F^T S F`` changes little (``gradient`` has the notation), so its root is followed
from the last exact ``M = V diag(s^2) V^T``. With ``P = F V diag(s)^(-1/2)`` and ``N = P^T S P`` a symmetric X near the
identity solves

    X diag(s) X = N,       tr M^(1/2) = sum_i s_i X_ii,       F M^(-1/2) F^T = P X^(-1) P^T

Newton's method with the derivative of the last exact step (a chord iteration) needs one product a turn:
``X <- X + E`` with ``E_ij = (N - X diag(s) X)_ij / (s_i + s_j)``. Scaled so, small eigenvalues keep their digits in
float32, and its error falls by the factor ``|X - I|`` a turn, which is how far the population has moved.

Every gradient is checked before it is used, in float64, on features of the population's spread. For a vector b let
``r = b - N X^(-1) diag(1/s) X^(-1) b``. Were X off by D, then ``r_i = sum_j D_ij (1 + s_i / s_j) b_j`` (first order, X
near the identity), so where b is zero but for a band of nearly equal s_j, D b is known from r, and with it the error of
the gradient; what rounding moved is the difference between the gradient times a feature and the same in float64. If
twice both together is more than the tolerance, the exact route answers and the next steps start from it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.moments import add_scatter_, mirror_

_NUM_BANDS = 16
_TURNS_BEFORE_CHECK = 2
_SAFETY = 2.0
"""Errors were 0.8 to 2 times the estimate (dim 256 to 2048, moving averages and queues)."""


class RootAndGradient(NamedTuple):
    """What a step needs."""

    trace: Float[Tensor, ""]
    """``tr M^(1/2)``, float64."""
    gradient: Float[Tensor, "dim dim"]
    """``I - F M^(-1/2) F^T``, float64."""


class _Basis(NamedTuple):
    scaled: Float[Tensor, "dim rank"]
    """P, float64."""
    roots: Float[Tensor, " rank"]
    """s, float64."""


class WarmRoute:
    """Follows one population against one reference; a representation of FD-loss has its own.

    ``num_exact`` and ``num_warm`` count the answers of either route, ``last_error`` is the measured relative error of
    the last gradient (0 of an exact one).
    """

    def __init__(self, *, tolerance: float = 1e-4, max_turns: int = 4, dtype: torch.dtype = torch.float32) -> None:
        """Decides when the exact route is asked.

        Args:
            tolerance: relative error of the covariance's share of a feature gradient up to which a step stands.
            max_turns: of the iteration, 2 or more.
            dtype: of the products; float32 reaches about 1e-5 while the distance is above 1e-4 of the variances.

        Raises:
            ValueError: a tolerance that is not positive, fewer than 2 turns.
        """
        if tolerance <= 0:
            raise ValueError(f"WarmRoute.tolerance must be positive, got {tolerance}.")
        if max_turns < _TURNS_BEFORE_CHECK:
            raise ValueError(f"WarmRoute.max_turns must be at least {_TURNS_BEFORE_CHECK}, got {max_turns}.")
        self.tolerance = tolerance
        self.max_turns = max_turns
        self.dtype = dtype
        self.num_exact = 0
        self.num_warm = 0
        self.last_error = 0.0
        self._basis: _Basis | None = None
        self._low: Tensor | None = None  # P in dtype
        self._near_one: Tensor | None = None  # X in dtype

    @classmethod
    def within(cls, tolerance: float | None) -> "WarmRoute | None":
        """A route of a tolerance; None for None."""
        return None if tolerance is None else cls(tolerance=tolerance)

    def follow(self, covariance: Float[Tensor, "dim dim"]) -> RootAndGradient | None:
        """The answer for the population's covariance, or None where the exact route must give it."""
        if self._basis is None or self._near_one is None:
            return None
        basis, near_one = self._basis, self._near_one
        if self._low is None:
            self._low = basis.scaled.to(self.dtype)
        low, roots = self._low, basis.roots.to(self.dtype)
        goal = _upper_product(low, covariance.to(self.dtype) @ low)
        sums = roots[:, None] + roots
        for turn in range(1, self.max_turns + 1):
            rows = roots.sqrt()[:, None] * near_one
            residual = torch.zeros_like(near_one)
            add_scatter_(residual, rows)
            near_one = near_one + mirror_((goal - residual) / sums)
            if turn < _TURNS_BEFORE_CHECK:
                continue
            lower, info = torch.linalg.cholesky_ex(near_one)
            if info != 0:
                break
            gradient = self._gradient(low, lower)
            self.last_error = self._error(gradient, lower.double(), covariance, basis)
            if self.last_error <= self.tolerance:
                self._near_one = near_one
                self.num_warm += 1
                return RootAndGradient((near_one.diagonal().double() * basis.roots).sum(), gradient)
        return None

    def restart(self, scaled: Float[Tensor, "dim rank"], roots: Float[Tensor, " rank"], is_whole: bool) -> None:
        """Takes the exact answer, P and s in float64, as where the next steps start.

        Args:
            is_whole: no eigenvalue was left out. Else a direction that P does not have may come back unseen, so the
                next step is exact too.
        """
        self.num_exact += 1
        self.last_error = 0.0
        self._low = self._basis = self._near_one = None
        if is_whole:
            self._basis = _Basis(scaled, roots)
            self._near_one = torch.eye(len(roots), dtype=self.dtype, device=roots.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next step."""
        scaled, roots = self._basis or (None, None)
        counts = {"num_exact": self.num_exact, "num_warm": self.num_warm}
        return {"scaled": scaled, "roots": roots, "near_one": self._near_one, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another route was."""
        if set(state) != set(self.state_dict()):
            raise ValueError(f"WarmRoute expects a state of {sorted(self.state_dict())}, got {sorted(state)}.")
        self.num_exact, self.num_warm = state["num_exact"], state["num_warm"]
        self._low = None
        self._basis = None if state["scaled"] is None else _Basis(state["scaled"].clone(), state["roots"].clone())
        self._near_one = None if state["near_one"] is None else state["near_one"].clone()

    def _gradient(self, low: Tensor, lower: Tensor) -> Tensor:
        """``I - P X^(-1) P^T`` of ``X = L L^T``."""
        halves = torch.linalg.solve_triangular(lower.T, low, upper=True, left=False)
        outer = low.new_zeros(low.shape[0], low.shape[0])
        add_scatter_(outer, halves.T, -1.0)
        gradient = mirror_(outer).double()
        gradient.diagonal().add_(1)
        return gradient

    def _error(self, gradient: Tensor, lower: Tensor, covariance: Tensor, basis: _Basis) -> float:
        """Relative error of the gradient on features of the population, estimated in float64."""
        roots = basis.roots[:, None]
        bands, tops = self._bands(basis.roots)
        inside = torch.cholesky_solve(torch.cholesky_solve(bands, lower) / roots, lower)
        features = covariance @ (basis.scaled @ inside)
        projected = basis.scaled.T @ features
        wrong = basis.scaled @ torch.cholesky_solve((bands - projected) * (tops / (tops + roots)), lower)
        given = gradient @ features
        rounding = given - features + basis.scaled @ torch.cholesky_solve(projected, lower)
        return (_SAFETY * (wrong.norm() + rounding.norm()) / given.norm()).item()

    def _bands(self, roots: Tensor) -> tuple[Float[Tensor, "rank bands"], Float[Tensor, " bands"]]:
        """Vectors that are zero but for a band, and the largest root of each band."""
        generator = torch.Generator().manual_seed(0)
        order = roots.argsort()
        normal = torch.randn(len(roots), generator=generator, dtype=torch.float64).to(roots.device)
        chunks = order.chunk(_NUM_BANDS)
        bands = roots.new_zeros(len(roots), len(chunks))
        for column, chunk in enumerate(chunks):
            bands[chunk, column] = roots[chunk].sqrt() * normal[chunk]
        return bands, torch.stack([roots[chunk[-1]] for chunk in chunks])


def _upper_product(low: Tensor, product: Tensor, block: int = 256) -> Tensor:
    """The upper block triangle of ``low^T product``, which is symmetric."""
    upper = product.new_zeros(low.shape[1], low.shape[1])
    for start in range(0, low.shape[1], block):
        upper[start : start + block, start:] = low[:, start : start + block].T @ product[:, start:]
    return upper
