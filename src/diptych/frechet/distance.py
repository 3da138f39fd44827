"""The Fréchet distance of two Gaussians (Dowson and Landau 1982; as FID, arXiv 1706.08500, equation 6).

    FD = |mean_a - mean_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)

With any factors ``S_a = A A^T`` and ``S_b = B B^T`` the last trace is the sum of the singular values of ``A^T B``:
real and not negative whatever the ranks. The peers take the root of the product ``S_a S_b``, which is not symmetric,
and drop the imaginary part of what comes out.
"""

import logging
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.moments import Moments, check_same_features

logger = logging.getLogger(__name__)

RANK_CUTOFF = torch.finfo(torch.float64).eps
"""Times dim times the largest eigenvalue of a covariance: eigenvalues up to this are rounding and count as zero."""
TRACE_TOLERANCE = 3e-11
"""Of ``tr S_a + tr S_b``: the estimated error up to which the fast route stands."""
_BLOCK = 256
_POWER_STEPS = 5

Factor: TypeAlias = Float[Tensor, "dim rank"]


def frechet_distance(a: Moments, b: Moments, *, is_quiet: bool = False) -> float:
    """The distance of two moments, symmetric, in float64.

    Error, as a share of ``tr S_a + tr S_b``, against 50 digits of mpmath: below 1e-10 for condition numbers of both
    covariances up to 1e8 and for exact rank deficiency, where eigenvalues up to ``dim * RANK_CUTOFF`` of the largest
    count as zero. Where eigenvalues decay through that cut-off without a gap, the roots of those below it are lost:
    measured 3e-9 (dim 24, one covariance of condition 1e16 or 1e20, the other of condition 1), 1e-13 where both
    decay. The result may be negative by as much, and is not cut at zero, since that would hide it.

    Args:
        is_quiet: no warnings, for the many distances of a jack-knife.

    Raises:
        ValueError: moments of other features (named), of fewer than two rows, or not finite.
    """
    check_same_features(a, b)
    if not is_quiet:
        _warn(a, b)
    mean_a, covariance_a, mean_b, covariance_b = a.mean, a.covariance, b.mean, b.covariance
    device = mean_a.device
    mean_b, covariance_b = mean_b.to(device), covariance_b.to(device)
    between = (mean_a - mean_b).square().sum()
    total = covariance_a.trace() + covariance_b.trace()
    if not torch.isfinite(between + total):
        raise ValueError("frechet_distance overflows: the features are beyond 1e150. Divide both sets by a constant.")
    return (between + total - 2 * trace_of_root(covariance_a, covariance_b)).item()


def trace_of_root(a: Float[Tensor, "dim dim"], b: Float[Tensor, "dim dim"]) -> Float[Tensor, ""]:
    """``tr (a b)^(1/2)`` of two covariances in float64.

    The roots of the eigenvalues of a Gram matrix of ``A^T B`` are quick to have, but small ones lose half their digits.
    They stand if their error estimate is below `TRACE_TOLERANCE`; else the singular values are computed.
    """
    trace_a, trace_b = a.trace(), b.trace()
    if trace_a <= 0 or trace_b <= 0:
        return a.new_zeros(())
    # of trace 1 from here: products of covariances stay in range, and 2 = tr a + tr b
    return trace_a.sqrt() * trace_b.sqrt() * _trace_of_root(a / trace_a, b / trace_b, 2 * TRACE_TOLERANCE)


def _trace_of_root(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    lower, info = torch.linalg.cholesky_ex(a)
    if info == 0:  # the Gram matrix L^T b L, without a factor of b
        squares = torch.linalg.eigvalsh(congruence(lower, b))
        if _error_of_roots(squares, _norm(a) * _norm(b)) <= tolerance:
            return squares.sqrt().sum()
    product = factor(a).T @ factor(b)
    if product.shape[0] < product.shape[1]:
        product = product.T
    if product.shape[1] < len(a):  # the Gram matrix of the smaller side has no zero eigenvalues
        squares = torch.linalg.eigvalsh(product.T @ product)
        if _error_of_roots(squares, squares[-1]) <= tolerance:
            return squares.sqrt().sum()
    return torch.linalg.svdvals(product).sum()


def congruence(lower: Float[Tensor, "dim dim"], symmetric: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """``L^T S L`` of a lower triangular L, lower triangle only: a third of the products of two matmuls."""
    dim = len(lower)
    half, whole = torch.empty_like(symmetric), torch.zeros_like(symmetric)
    blocks = [slice(start, start + _BLOCK) for start in range(0, dim, _BLOCK)]
    for block in blocks:
        half[:, block] = symmetric[:, block.start :] @ lower[block.start :, block]
    for block in blocks:
        whole[block, : block.stop] = lower[block.start :, block].T @ half[block.start :, : block.stop]
    return whole.tril_()


def _error_of_roots(squares: Tensor, scale: Tensor) -> Tensor:
    """Of the sum of the roots, if each square is off by eps times ``scale``: that over twice its root."""
    return torch.finfo(squares.dtype).eps * scale * (0.5 / squares.clamp(min=0).sqrt()).sum()


def _norm(symmetric: Tensor) -> Tensor:
    """The largest eigenvalue, by a few power iterations; a little below it."""
    vector = symmetric[:, symmetric.diagonal().argmax()]
    for _ in range(_POWER_STEPS):
        vector = symmetric @ vector
        vector = vector / vector.norm()
    return (symmetric @ vector).norm()


def factor(covariance: Float[Tensor, "dim dim"]) -> Factor:
    """F with ``F F^T = covariance``: Cholesky's where the condition allows it, else from the eigenvectors kept.

    Cholesky's factor stands if it proves that the smallest eigenvalue is well above the cut-off:
    ``1 / |L^-1|_F^2`` is a lower bound of it.
    """
    dim = covariance.shape[0]
    cutoff = dim * RANK_CUTOFF
    lower, info = torch.linalg.cholesky_ex(covariance)
    if info == 0:
        identity = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        smallest = 1 / inverse.square().sum()
        if smallest > 100 * cutoff * covariance.diagonal().max():
            return lower
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > cutoff * values[-1].clamp(min=0)
    return vectors[:, kept] * values[kept].sqrt()


def _warn(*moments: Moments) -> None:
    for name, one in zip("ab", moments, strict=True):
        if one.count is not None and one.count <= one.dim:
            logger.warning(
                "frechet_distance: %s has %d rows for %d dimensions, so its covariance is singular and the distance "
                "biased upwards; give more than %d rows, or see fd_infinity.",
                name,
                one.count,
                one.dim,
                one.dim,
            )
    first, second = (one.feature_dtype for one in moments)
    if first is not None and second is not None and first != second:
        logger.warning("frechet_distance: a has %s features and b %s, which moves small distances.", first, second)
