"""The Fréchet distance against closed forms, mpmath and the peers' matrix root."""

import logging
import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch

from diptych.frechet import Moments, frechet_distance
from diptych.frechet import distance as distance_file
from diptych.frechet.distance import congruence, factor, trace_of_root


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotation(dim: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64))[0]


def decaying(dim: int, digits: float, seed: int) -> torch.Tensor:
    """A covariance with eigenvalues from 1 to ``10 ** -digits``."""
    vectors = rotation(dim, seed)
    covariance = (vectors * torch.logspace(0, -digits, dim, dtype=torch.float64)) @ vectors.T
    return (covariance + covariance.T) / 2


def moments(covariance: torch.Tensor, mean: float = 0.0) -> Moments:
    return Moments.from_statistics(torch.full((len(covariance),), mean, dtype=torch.float64), covariance)


def reference_trace(a: torch.Tensor, b: torch.Tensor) -> mpmath.mpf:
    """tr (a^(1/2) b a^(1/2))^(1/2) of the float64 matrices as they are, in 50 digits."""
    with mpmath.workdps(50):
        values, vectors = mpmath.eigsy(mpmath.matrix(a.tolist()))
        root = vectors * mpmath.diag([mpmath.sqrt(max(value, 0)) for value in values]) * vectors.T
        inner = root * mpmath.matrix(b.tolist()) * root
        squares = mpmath.eigsy((inner + inner.T) / 2, eigvals_only=True)
        return mpmath.fsum(mpmath.sqrt(max(square, 0)) for square in squares)


def relative_error(value: float, exact: mpmath.mpf, a: torch.Tensor, b: torch.Tensor) -> float:
    return abs(float(mpmath.mpf(value) - exact)) / (a.trace() + b.trace()).item()


def test_one_dimension_is_the_distance_of_means_and_deviations():
    a = Moments.from_statistics(torch.tensor([1.0]), torch.tensor([[9.0]]))
    b = Moments.from_statistics(torch.tensor([-1.0]), torch.tensor([[4.0]]))
    assert frechet_distance(a, b) == pytest.approx(2**2 + (3 - 2) ** 2, abs=1e-12)


def test_covariances_with_the_same_axes():
    vectors = rotation(9, 0)
    a, b = torch.linspace(0.1, 2, 9, dtype=torch.float64), torch.linspace(3, 1, 9, dtype=torch.float64)
    expected = 9 * 0.5**2 + (a.sqrt() - b.sqrt()).square().sum().item()
    first = moments(vectors @ a.diag() @ vectors.T)
    second = moments(vectors @ b.diag() @ vectors.T, mean=0.5)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("digits_a", "digits_b"), [(2, 2), (8, 8), (8, 0), (0, 8), (5, 8), (12, 12)])
def test_against_fifty_digits(digits_a, digits_b):
    a, b = decaying(10, digits_a, 1), 7 * decaying(10, digits_b, 2)
    exact = reference_trace(a, b)
    assert relative_error(trace_of_root(a, b).item(), exact, a, b) < 1e-10
    assert relative_error(trace_of_root(b, a).item(), exact, a, b) < 1e-10


@pytest.mark.parametrize("tolerance", [0.0, 1e-9])
def test_both_routes_against_fifty_digits(tolerance, monkeypatch):
    """Singular values only, then eigenvalues where they are off by less than asked."""
    monkeypatch.setattr(distance_file, "TRACE_TOLERANCE", tolerance)
    a, b = decaying(10, 4, 1), decaying(10, 3, 2)
    assert relative_error(trace_of_root(a, b).item(), reference_trace(a, b), a, b) < max(tolerance, 1e-14)


@pytest.mark.parametrize("dim", [1, 7, 300])  # 300 is more than one block
def test_congruence_is_two_matmuls(dim):
    lower = torch.linalg.cholesky(decaying(dim, 1, 0))
    symmetric = decaying(dim, 1, 1)
    torch.testing.assert_close(congruence(lower, symmetric), (lower.T @ symmetric @ lower).tril(), rtol=0, atol=1e-14)


def test_the_estimate_sends_hard_problems_to_singular_values(monkeypatch):
    calls = []
    svdvals = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda matrix: calls.append(matrix.shape) or svdvals(matrix))
    trace_of_root(decaying(10, 2, 1), decaying(10, 2, 2))
    assert calls == []
    trace_of_root(decaying(10, 8, 1), decaying(10, 8, 2))
    assert calls == [(10, 10)]


def test_exact_rank_deficiency_against_fifty_digits():
    """Integer factors: the covariances are exact in float64, and the trace is that of the factors' product."""
    tall = torch.randint(-3, 4, (12, 7), generator=generator(0)).double()
    short = torch.randint(-3, 4, (12, 4), generator=generator(1)).double()
    identity = torch.eye(12, dtype=torch.float64)
    for first, second in ((tall, short), (short, short), (short, identity), (identity, tall)):
        a, b = first @ first.T, second @ second.T
        with mpmath.workdps(50):
            singular = mpmath.svd_r(mpmath.matrix((first.T @ second).tolist()), compute_uv=False)
            exact = mpmath.fsum(singular)
        assert relative_error(trace_of_root(a, b).item(), exact, a, b) < 1e-10
    assert factor(tall @ tall.T).shape == (12, 7)


def test_decay_through_the_cutoff_has_the_stated_error():
    a, b = decaying(24, 16, 1), torch.eye(24, dtype=torch.float64)
    exact = mpmath.fsum(mpmath.sqrt(max(value, 0)) for value in exact_eigenvalues(a))
    assert relative_error(trace_of_root(a, b).item(), exact, a, b) < 1e-8


def exact_eigenvalues(a: torch.Tensor) -> list[mpmath.mpf]:
    with mpmath.workdps(40):
        return list(mpmath.eigsy(mpmath.matrix(a.tolist()), eigvals_only=True))


@pytest.mark.parametrize("num_rows", [3, 30, 400])
def test_of_features_with_themselves_is_zero_and_symmetric(num_rows):
    dim = 40
    first, second = (Moments(dim) for _ in range(2))
    first.update(torch.randn(num_rows, dim, generator=generator(0)))
    second.update(torch.randn(num_rows + 7, dim, generator=generator(1)) * 2)
    scale = (first.covariance.trace() + second.covariance.trace()).item()
    assert abs(frechet_distance(first, first)) < 1e-10 * scale
    forward, backward = frechet_distance(first, second), frechet_distance(second, first)
    assert math.isfinite(forward) and forward > 0
    assert forward == pytest.approx(backward, abs=1e-10 * scale)


def test_equals_the_matrix_root_of_the_peers():
    """pytorch-fid 0.3.0: ``diff @ diff + tr S1 + tr S2 - 2 tr sqrtm(S1 @ S2)``, where that is accurate."""
    first, second = Moments(30), Moments(30)
    first.update(torch.randn(900, 30, generator=generator(0)) @ torch.randn(30, 30, generator=generator(2)) + 0.1)
    second.update(torch.randn(900, 30, generator=generator(1)))
    difference = (first.mean - second.mean).numpy()
    root = scipy.linalg.sqrtm((first.covariance @ second.covariance).numpy())
    traces = first.covariance.trace().item() + second.covariance.trace().item()
    assert np.abs(root.imag).max() < 1e-9
    expected = difference @ difference + traces - 2 * np.trace(root.real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_constant_features():
    constant = Moments(4)
    constant.update(torch.ones(6, 4))
    other = moments(torch.eye(4, dtype=torch.float64))
    assert frechet_distance(constant, constant) == 0
    assert frechet_distance(constant, other) == pytest.approx(4 + 4, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-100, 1e-20, 1e19, 1e100])
def test_features_of_any_size_have_a_distance(scale):
    first, second = (torch.randn(30, 4, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))
    small, large = [Moments(4) for _ in range(2)], [Moments(4) for _ in range(2)]
    for plain, scaled, features in zip(small, large, (first, second * 2), strict=True):
        plain.update(features)
        scaled.update(features * scale)
    assert frechet_distance(*large) / scale**2 == pytest.approx(frechet_distance(*small), rel=1e-10)


def test_an_overflow_is_refused():
    moments = Moments(2)
    moments.update(torch.tensor([[1e200, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"frechet_distance overflows: the features are beyond 1e150"):
        frechet_distance(moments, moments)


def test_a_rotation_of_both_changes_nothing():
    a, b, turn = decaying(12, 3, 0), decaying(12, 2, 1), rotation(12, 2)
    turned = frechet_distance(moments(turn @ a @ turn.T), moments(turn @ b @ turn.T))
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(turned, abs=1e-12)


def test_other_features_are_refused_by_name():
    covariance = torch.eye(3, dtype=torch.float64)
    mean = torch.zeros(3, dtype=torch.float64)
    one = Moments.from_statistics(mean, covariance, network="clip", preprocessing="ab")
    with pytest.raises(ValueError, match="agree in network, got 'clip' and 'mae'"):
        frechet_distance(one, Moments.from_statistics(mean, covariance, network="mae"))
    with pytest.raises(ValueError, match="agree in preprocessing, got 'ab' and 'cd'"):
        frechet_distance(one, Moments.from_statistics(mean, covariance, preprocessing="cd"))
    with pytest.raises(ValueError, match="agree in dim, got 3 and 2"):
        frechet_distance(one, moments(torch.eye(2, dtype=torch.float64)))
    assert frechet_distance(one, moments(covariance)) == pytest.approx(0, abs=1e-12)  # unknown agrees with anything


def test_warnings_of_few_rows_and_of_types(caplog):
    few, many = Moments(5), Moments(5)
    few.update(torch.randn(5, 5, generator=generator(0)))
    many.update(torch.randn(50, 5, generator=generator(1), dtype=torch.float64))
    with caplog.at_level(logging.WARNING):
        frechet_distance(many, few)
    assert "b has 5 rows for 5 dimensions, so its covariance is singular" in caplog.text
    assert "a has float64 features and b float32" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        frechet_distance(many, many)
    assert caplog.text == ""
