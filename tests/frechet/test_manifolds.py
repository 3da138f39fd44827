"""Precision, recall, density and coverage against the peers' formulas."""

import numpy as np
import pytest
import torch

from diptych.frechet import neighbours
from diptych.frechet.density_coverage import density_coverage
from diptych.frechet.neighbours import squared_radii
from diptych.frechet.precision_recall import precision_recall


def normal(num: int, dim: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None] - y[None], axis=-1)


def peer_prdc(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """``compute_prdc`` of prdc 0.2: radii are the (k + 1)-th smallest distances, the first being the row's own."""
    real_radii = np.sort(distances(real, real), axis=1)[:, k]
    fake_radii = np.sort(distances(fake, fake), axis=1)[:, k]
    between = distances(real, fake)
    return {
        "precision": float((between < real_radii[:, None]).any(axis=0).mean()),
        "recall": float((between < fake_radii[None]).any(axis=1).mean()),
        "density": float((between < real_radii[:, None]).sum(axis=0).mean() / k),
        "coverage": float((between.min(axis=1) < real_radii).mean()),
    }


@pytest.mark.parametrize("chunk", [1024, 9])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_equal_to_the_peers(chunk, k, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    real, fake = normal(60, 4, 0), normal(45, 4, 1, scale=1.3)
    expected = peer_prdc(real.numpy(), fake.numpy(), k)
    manifold = precision_recall(fake, real, num_neighbours=k)
    balls = density_coverage(fake, real, num_neighbours=k)
    assert manifold.precision.value == pytest.approx(expected["precision"], abs=1e-12)
    assert manifold.recall.value == pytest.approx(expected["recall"], abs=1e-12)
    assert balls.density.value == pytest.approx(expected["density"], abs=1e-12)
    assert balls.coverage.value == pytest.approx(expected["coverage"], abs=1e-12)


def test_by_hand():
    """Real at 0, 1, 3, 10 on a line; with k = 1 the radii are 1, 1, 2, 7."""
    real, fake = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([[0.5], [1.0], [-5.0]])
    assert squared_radii(real, 1).tolist() == [1, 1, 4, 49]
    found = precision_recall(fake, real, num_neighbours=1)
    assert found.precision.value == pytest.approx(2 / 3)  # -5 is in no ball
    assert found.recall.value == pytest.approx(2 / 4)  # fake radii 0.5, 0.5, 5.5: 0 and 1 are inside
    balls = density_coverage(fake, real, num_neighbours=1)
    # open balls: 0.5 lies in those of 0 and 1, 1 in that of 1 (on the borders of 0's and 3's), -5 in none
    assert balls.density.value == pytest.approx(3 / 3)
    assert balls.coverage.value == pytest.approx(2 / 4)


def test_a_set_against_itself():
    features = normal(50, 3, 0)
    found = precision_recall(features, features)
    assert found.precision.value == found.recall.value == 1
    assert found.precision.interval == (1, 1)
    assert density_coverage(features, features).coverage.value == 1


def test_the_error_of_a_share_is_binomial():
    found = precision_recall(normal(200, 3, 0, scale=2.0), normal(200, 3, 1)).precision
    share = found.value
    assert 0.1 < share < 0.9
    assert found.standard_error == pytest.approx((share * (1 - share) / 199) ** 0.5)


def test_refusals():
    with pytest.raises(ValueError, match="at least 1 and below the 3 generated features, got 3"):
        precision_recall(normal(3, 2, 0), normal(9, 2, 0))
    with pytest.raises(ValueError, match="at least 1 and below the 5 real features, got 5"):
        density_coverage(normal(9, 2, 0), normal(5, 2, 0))
    with pytest.raises(ValueError, match="real features must be finite, but rows 0, 1, 2 of 3"):
        precision_recall(normal(9, 2, 0), torch.full((3, 2), torch.nan), num_neighbours=1)
