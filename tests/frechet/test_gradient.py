"""The closed-form gradient: gradcheck, against autograd, and against 50 digits where autograd gives NaN."""

import mpmath
import pytest
import torch

from diptych.frechet import Moments, frechet_distance
from diptych.frechet.gradient import FrechetReference, frechet_to_reference, scatter


def normal(num: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(features: torch.Tensor) -> Moments:
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments


def batch_moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = features.mean(0)
    return mean, scatter(features - mean) / len(features)


def plain_distance(features: torch.Tensor, reference: Moments) -> torch.Tensor:
    """As in FD-loss: autograd through eigvalsh of S_r^(1/2) S S_r^(1/2), negative eigenvalues clamped."""
    centred = features - features.mean(0)
    covariance = centred.T @ centred / len(features)
    values, vectors = torch.linalg.eigh(reference.covariance)
    root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    inner = root @ covariance @ root
    roots = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt()
    between = (features.mean(0) - reference.mean).square().sum()
    return between + covariance.trace() + reference.covariance.trace() - 2 * roots.sum()


def test_the_value_is_the_distance():
    real, features = moments_of(normal(60, 7, 0) * 2 + 1), normal(40, 7, 1)
    mean, covariance = batch_moments(features)
    value = frechet_to_reference(mean, covariance, FrechetReference.of(real))
    expected = frechet_distance(Moments.from_statistics(mean, covariance), real)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(frechet_to_reference(mean, covariance, FrechetReference.of(real)), value)


@pytest.mark.parametrize("num_real", [40, 4])  # 4: the reference has rank 3 of 5
def test_gradcheck_in_the_moments(num_real):
    reference = FrechetReference.of(moments_of(normal(num_real, 5, 0)))
    mean, covariance = batch_moments(normal(30, 5, 1))
    mean.requires_grad_()
    covariance.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, c: frechet_to_reference(m, c, reference), (mean, covariance))


def test_gradcheck_in_the_features():
    reference = FrechetReference.of(moments_of(normal(40, 4, 0)))
    features = normal(12, 4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: frechet_to_reference(*batch_moments(f), reference), (features,))


def test_gradcheck_of_scatter_of_more_than_one_block():
    rows = normal(2, 3, 0).requires_grad_()
    assert torch.autograd.gradcheck(scatter, (rows,))
    wide = normal(5, 300, 1).requires_grad_()
    weight = normal(300, 300, 2)
    (grad,) = torch.autograd.grad((scatter(wide) * weight).sum(), wide)
    (expected,) = torch.autograd.grad(((wide.T @ wide) * weight).sum(), wide)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_equals_autograd_on_full_rank_problems(spread):
    dim = 24
    scales = torch.logspace(0, -spread, dim, dtype=torch.float64)
    real = moments_of(normal(200, dim, 0) @ normal(dim, dim, 1) * scales)
    features = (normal(100, dim, 2) * scales + 0.3).requires_grad_()
    (plain,) = torch.autograd.grad(plain_distance(features, real), features)
    (ours,) = torch.autograd.grad(frechet_to_reference(*batch_moments(features), FrechetReference.of(real)), features)
    assert (ours - plain).norm() <= 1e-9 * plain.norm()


def kept_gradient(features: torch.Tensor, reference: Moments) -> torch.Tensor:
    """dFD/dfeatures in 50 digits, eigenvalues of zero left out."""
    num, dim = features.shape
    with mpmath.workdps(50):
        rows = mpmath.matrix(features.tolist())
        mean = [mpmath.fsum(rows[i, j] for i in range(num)) / num for j in range(dim)]
        centred = mpmath.matrix(num, dim)
        for i in range(num):
            for j in range(dim):
                centred[i, j] = rows[i, j] - mean[j]
        root = mpmath.cholesky(mpmath.matrix(reference.covariance.tolist()))
        values, vectors = mpmath.eigsy(root.T * (centred.T * centred / num) * root)
        kept = [1 / mpmath.sqrt(value) if value > mpmath.mpf(10) ** -30 else mpmath.mpf(0) for value in values]
        lifted = root * vectors
        by_covariance = mpmath.eye(dim) - lifted * mpmath.diag(kept) * lifted.T
        gradient = 2 * centred * by_covariance / num
        for i in range(num):
            for j in range(dim):
                gradient[i, j] += 2 * (mean[j] - mpmath.mpf(reference.mean[j].item())) / num
        return torch.tensor([[float(gradient[i, j]) for j in range(dim)] for i in range(num)], dtype=torch.float64)


@pytest.mark.parametrize("case", ["dead feature", "fewer rows than dimensions", "dead everywhere"])
def test_singular_populations_have_the_gradient_of_the_kept_subspace(case):
    dim, num = 8, 5 if case == "fewer rows than dimensions" else 20
    real, features = moments_of(normal(50, dim, 0)), normal(num, dim, 1)
    if case == "dead feature":
        features[:, 2] = 0
    if case == "dead everywhere":  # as a ReLU's features may be: three zeros, two equal
        features[:, 2:5] = 0
        features[:, 6] = features[:, 7]
    features.requires_grad_()
    (ours,) = torch.autograd.grad(frechet_to_reference(*batch_moments(features), FrechetReference.of(real)), features)
    assert ours.isfinite().all()
    expected = kept_gradient(features.detach(), real)
    assert (ours - expected).norm() < 1e-9 * expected.norm()


def test_plain_autograd_gives_nan_for_a_dead_feature():
    """Why there is a cut-off: the feature is dead in the reference too, so an eigenvalue is zero.

    Beside other features some LAPACKs find a zero of 1e-20 and no NaN, so autograd is shown the dead one alone.
    """
    real_features, features = normal(50, 4, 0), normal(20, 4, 1)
    real_features[:, 2] = features[:, 2] = 0
    real = moments_of(real_features)
    dead = features[:, 2:3].clone().requires_grad_()
    (plain,) = torch.autograd.grad(plain_distance(dead, moments_of(real_features[:, 2:3])), dead)
    assert plain.isnan().all()
    features.requires_grad_()
    (ours,) = torch.autograd.grad(frechet_to_reference(*batch_moments(features), FrechetReference.of(real)), features)
    assert ours.isfinite().all()
    alive = [0, 1, 3]
    rest = features.detach()[:, alive].requires_grad_()
    (expected,) = torch.autograd.grad(plain_distance(rest, moments_of(real_features[:, alive])), rest)
    torch.testing.assert_close(ours[:, alive], expected, rtol=1e-9, atol=1e-12)
    assert not ours[:, 2].any()


def test_the_decomposition_is_done_once(monkeypatch):
    calls = []
    for name in ("eigh", "eigvalsh"):
        original = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, lambda matrix, n=name, f=original: calls.append(n) or f(matrix))
    reference = FrechetReference.of(moments_of(normal(40, 4, 0)))
    features = normal(12, 4, 1).requires_grad_()
    frechet_to_reference(*batch_moments(features), reference).backward()
    assert calls == ["eigh"]
    with torch.no_grad():
        frechet_to_reference(*batch_moments(features), reference)
    assert calls == ["eigh", "eigvalsh"]


def test_populations_without_any_spread():
    reference = FrechetReference.of(moments_of(normal(40, 3, 0)))
    features = torch.ones(6, 3, dtype=torch.float64, requires_grad=True)
    frechet_to_reference(*batch_moments(features), reference).backward()
    assert features.grad is not None and features.grad.isfinite().all()
    point = FrechetReference.of(moments_of(torch.ones(9, 3, dtype=torch.float64)))
    features = normal(6, 3, 1).requires_grad_()
    value = frechet_to_reference(*batch_moments(features), point)
    expected = (features.mean(0) - 1).square().sum() + features.var(0, correction=0).sum()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    value.backward()
    assert features.grad is not None and features.grad.isfinite().all()
