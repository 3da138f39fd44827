"""KID and CMMD against the peers' formulas, and their errors against plain leaving-out."""

import numpy as np
import pytest
import torch

from diptych.frechet import mmd
from diptych.frechet.cmmd import cmmd, gaussian_kernel
from diptych.frechet.kid import kid, kid_of_subsets, polynomial_kernel
from diptych.frechet.mmd import squared_mmd


def normal(num: int, dim: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def peer_kid(x: np.ndarray, y: np.ndarray) -> float:
    """``mmd2`` with ``unbiased=True`` of torch-fidelity 0.3.0: equal sizes, diagonals left out."""
    num, dim = x.shape
    k_xx, k_yy, k_xy = ((p @ q.T / dim + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    off_diagonal = k_xx.sum() - np.trace(k_xx) + k_yy.sum() - np.trace(k_yy)
    return off_diagonal / (num * (num - 1)) - 2 * k_xy.sum() / num**2


def peer_cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """``mmd`` of google-research/cmmd (distance.py): biased, gamma = 1 / (2 * 10^2), times 1000."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    gamma = 1 / (2 * 10**2)

    def mean(p: np.ndarray, q: np.ndarray) -> float:
        squares = ((p[:, None] - q[None]) ** 2).sum(-1)
        return np.exp(-gamma * squares).mean()

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.fixture(params=[1024, 7])
def chunk(request, monkeypatch):
    monkeypatch.setattr(mmd, "CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
def test_kid_and_cmmd_are_those_of_the_peers():
    a, b = normal(40, 6, 0), normal(40, 6, 1, shift=0.3)
    assert kid(a, b).value == pytest.approx(peer_kid(a.numpy(), b.numpy()), rel=1e-10)
    assert cmmd(a, b).value == pytest.approx(peer_cmmd(a.numpy(), b.numpy()), rel=1e-8)  # differences of ones
    unit = torch.nn.functional.normalize(a, dim=1), torch.nn.functional.normalize(b, dim=1)
    assert cmmd(*unit, normalize=False).value == pytest.approx(cmmd(a, b).value, rel=1e-9)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("kernel", "is_unbiased"), [(polynomial_kernel, True), (gaussian_kernel, False)])
def test_the_error_is_that_of_leaving_out_one_by_one(kernel, is_unbiased):
    a, b = normal(12, 3, 0), normal(17, 3, 1, shift=0.5)

    def value(x: torch.Tensor, y: torch.Tensor) -> float:
        return squared_mmd(x, y, kernel, is_unbiased=is_unbiased).value

    variance = 0.0
    for first in (True, False):
        num = len(a if first else b)
        left = []
        for i in range(num):
            kept = torch.arange(num) != i
            left.append(value(a[kept], b) if first else value(a, b[kept]))
        variance += (num - 1) / num * ((np.array(left) - np.mean(left)) ** 2).sum()
    found = squared_mmd(a, b, kernel, is_unbiased=is_unbiased)
    assert found.standard_error == pytest.approx(variance**0.5, rel=1e-6)
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.959964 * found.standard_error)


def test_the_interval_holds_the_true_kid_as_often_as_it_says():
    """For one dimension the kernel's expectations are polynomials in the moments: the true value is known."""
    shift = 0.7
    first, second, third = (
        shift,
        1 + shift**2,
        shift**3 + 3 * shift,
    )  # moments of N(shift, 1); those of N(0, 1): 0, 1, 0
    # E (xy + 1)^3 = m3^2 + 3 m2^2 + 3 m1^2 + 1 for independent x, y of one distribution; products of moments across two
    true = (third**2 + 3 * second**2 + 3 * first**2 + 1) + (3 + 1) - 2 * (3 * second + 1)
    hits = 0
    for seed in range(200):
        low, high = kid(normal(80, 1, seed, shift=shift), normal(80, 1, 1000 + seed)).interval
        hits += low <= true <= high
    assert hits > 200 * 0.95 - 5 * (200 * 0.95 * 0.05) ** 0.5


def test_kid_is_unbiased_and_cmmd_never_negative():
    values = [kid(normal(20, 3, seed), normal(20, 3, 500 + seed)).value for seed in range(300)]
    assert abs(np.mean(values)) < 5 * np.std(values) / 300**0.5
    assert min(values) < 0
    assert cmmd(normal(20, 3, 0), normal(20, 3, 0)).value == pytest.approx(0, abs=1e-10)
    assert cmmd(normal(20, 3, 0), normal(20, 3, 1)).value > 0


def test_kid_of_subsets():
    a, b = normal(50, 6, 0), normal(60, 6, 1, shift=0.3)
    of_all = kid_of_subsets(a, b[:50], torch.Generator().manual_seed(0), num_subsets=3, subset_size=50)
    assert of_all.mean == pytest.approx(kid(a, b[:50]).value)  # a subset of all rows is all rows
    assert of_all.std == pytest.approx(0, abs=1e-12)
    of_few = kid_of_subsets(a, b, torch.Generator().manual_seed(0), num_subsets=200, subset_size=10)
    assert of_few.mean == pytest.approx(kid(a, b).value, abs=5 * of_few.std / 200**0.5)
    again = kid_of_subsets(a, b, torch.Generator().manual_seed(0), num_subsets=200, subset_size=10)
    assert again == of_few
    with pytest.raises(ValueError, match=r"kid\.subset_size must be at most the smaller set's 50 rows, got 1000"):
        kid_of_subsets(a, b, torch.Generator())


def test_refusals():
    with pytest.raises(ValueError, match="features b must have at least 3 rows for a jack-knife, got 2"):
        kid(normal(9, 2, 0), normal(2, 2, 0))
    bad = normal(9, 2, 0)
    bad[4, 1] = torch.inf
    with pytest.raises(ValueError, match="features a must be finite, but rows 4 of 9"):
        cmmd(bad, normal(9, 2, 0))
