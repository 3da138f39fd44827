"""The extrapolation takes the bias of small sets away."""

import numpy as np
import pytest
import torch

from diptych.frechet import Moments, frechet_distance
from diptych.frechet.fd_infinity import fd_infinity


def normal(num: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard(dim: int) -> Moments:
    return Moments.from_statistics(torch.zeros(dim), torch.eye(dim))


def test_the_bias_goes():
    """Generator and reference are equal, so the true distance is 0; that of N features is about dim (dim + 5) / 4 N."""
    biased, extrapolated = [], []
    for seed in range(6):
        features = normal(600, 8, seed)
        found = fd_infinity(features, standard(8), torch.Generator().manual_seed(seed), num_points=10, min_size=100)
        biased.append(found.distances[-1])
        extrapolated.append(found.estimate.value)
    assert min(biased) > 0.02
    assert abs(np.mean(extrapolated)) < 0.2 * np.mean(biased)


def test_the_line_is_that_of_least_squares():
    found = fd_infinity(normal(300, 4, 0), standard(4), torch.Generator().manual_seed(0), num_points=7, min_size=60)
    assert found.sizes == (60, 100, 140, 180, 220, 260, 300)
    _, intercept = np.polyfit(1 / np.array(found.sizes), found.distances, 1)
    assert found.estimate.value == pytest.approx(intercept, rel=1e-9)
    whole = Moments(4)
    whole.update(normal(300, 4, 0))
    assert found.distances[-1] == pytest.approx(frechet_distance(whole, standard(4)), abs=1e-12)
    left = [np.polyfit(1 / np.delete(found.sizes, i), np.delete(found.distances, i), 1)[1] for i in range(7)]
    expected = (6 / 7 * ((np.array(left) - np.mean(left)) ** 2).sum()) ** 0.5
    assert found.estimate.standard_error == pytest.approx(expected, rel=1e-6)


def test_refusals():
    generator = torch.Generator()
    with pytest.raises(ValueError, match=r"num_points must be at least 3, got 2"):
        fd_infinity(normal(9, 2, 0), standard(2), generator, num_points=2)
    with pytest.raises(ValueError, match=r"min_size must be at least 2 and below the 9 features, got 5000"):
        fd_infinity(normal(9, 2, 0), standard(2), generator)
