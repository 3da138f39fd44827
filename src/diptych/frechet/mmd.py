"""Squared maximum mean discrepancy between two sets of features (Gretton et al. 2012), in chunks, with a jack-knife.

``kid`` and ``cmmd`` are this with their kernels.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.interval import Estimate, jackknife_variance
from diptych.frechet.moments import check_finite_rows

Kernel: TypeAlias = Callable[[Float[Tensor, "chunk dim"], Float[Tensor, "num dim"]], Float[Tensor, "chunk num"]]
CHUNK = 1024
"""Rows of a kernel matrix that exist at a time."""


def squared_mmd(
    a: Float[Tensor, "num_a dim"], b: Float[Tensor, "num_b dim"], kernel: Kernel, *, is_unbiased: bool
) -> Estimate:
    """``mean k(a, a') + mean k(b, b') - 2 mean k(a, b)`` in float64, in O(chunk * num) memory.

    Unbiased leaves k(a_i, a_i) out of the means (Gretton et al., equation 3; it may be negative), biased takes it in
    (equation 5). The error is the two-sample jack-knife, from row sums of the kernel; where the two distributions are
    equal the statistic is not near normal and the interval only a scale.

    Raises:
        ValueError: fewer than three rows, or rows that are not finite (named).
    """
    for name, features in (("a", a), ("b", b)):
        check_finite_rows(features, f"features {name}")
        if len(features) < 3:
            raise ValueError(f"features {name} must have at least 3 rows for a jack-knife, got {len(features)}.")
    a, b = a.double(), b.double()
    rows_aa, own_a = _within(a, kernel, is_unbiased)
    rows_bb, own_b = _within(b, kernel, is_unbiased)
    rows_ab, rows_ba = _between(a, b, kernel)
    aa, bb, ab = rows_aa.sum(), rows_bb.sum(), rows_ab.sum()
    num_a, num_b = len(a), len(b)

    def pairs(num: int) -> int:
        return num * (num - 1) if is_unbiased else num * num

    value = aa / pairs(num_a) + bb / pairs(num_b) - 2 * ab / (num_a * num_b)
    without_a = (aa - 2 * rows_aa + own_a) / pairs(num_a - 1) - 2 * (ab - rows_ab) / ((num_a - 1) * num_b)
    without_b = (bb - 2 * rows_bb + own_b) / pairs(num_b - 1) - 2 * (ab - rows_ba) / (num_a * (num_b - 1))
    variance = jackknife_variance(without_a) + jackknife_variance(without_b)
    return Estimate(value=value.item(), standard_error=variance**0.5)


def _within(x: Tensor, kernel: Kernel, is_unbiased: bool) -> tuple[Tensor, Tensor]:
    """Sums over each row of k(x, x), and its diagonal; both without the diagonal if unbiased."""
    sums, own = [], []
    for start in range(0, len(x), CHUNK):
        values = kernel(x[start : start + CHUNK], x)
        diagonal = values.diagonal(start)
        sums.append(values.sum(1) - diagonal if is_unbiased else values.sum(1))
        own.append(torch.zeros_like(diagonal) if is_unbiased else diagonal.clone())
    return torch.cat(sums), torch.cat(own)


def _between(a: Tensor, b: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Sums over each row and over each column of k(a, b)."""
    rows, columns = [], b.new_zeros(len(b))
    for start in range(0, len(a), CHUNK):
        values = kernel(a[start : start + CHUNK], b)
        rows.append(values.sum(1))
        columns += values.sum(0)
    return torch.cat(rows), columns
