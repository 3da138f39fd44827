"""The Inception score in closed form, against the authors' formula, and its error."""

import numpy as np
import pytest
import torch

from diptych.frechet import inception_score as inception_score_file
from diptych.frechet.inception_score import inception_score, inception_score_of_splits


def probabilities(num: int, classes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(num, classes, generator=generator, dtype=torch.float64)).softmax(1)


def peer_scores(rows: np.ndarray, num_splits: int) -> list[float]:
    """openai/improved-gan, inception_score/model.py: ``exp(mean(sum(p (log p - log mean p))))`` of each split."""
    scores = []
    for part in np.split(rows, num_splits):
        divergences = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(float(np.exp(divergences.sum(1).mean())))
    return scores


def test_equal_to_the_authors():
    rows = probabilities(60, 7, 0)
    assert inception_score(rows).value == pytest.approx(peer_scores(rows.numpy(), 1)[0], rel=1e-12)
    found = inception_score_of_splits(torch.cat((rows, rows[:3])), num_splits=10)
    expected = peer_scores(rows.numpy(), 10)
    assert (found.mean, found.std) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-12)


def test_the_ends():
    assert inception_score(torch.eye(5).repeat(4, 1)).value == pytest.approx(5)
    assert inception_score(torch.full((9, 5), 0.2)).value == pytest.approx(1)
    one_each = inception_score(torch.eye(4))  # leaving one out leaves three classes
    assert one_each.standard_error == pytest.approx(0, abs=1e-12)


def test_the_error_is_that_of_leaving_out_one_by_one(monkeypatch):
    monkeypatch.setattr(inception_score_file, "CHUNK", 7)
    rows = probabilities(20, 4, 1)
    left = [inception_score(rows[torch.arange(20) != i]).value for i in range(20)]
    expected = (19 / 20 * ((np.array(left) - np.mean(left)) ** 2).sum()) ** 0.5
    assert inception_score(rows).standard_error == pytest.approx(expected, rel=1e-9)


def test_refusals():
    with pytest.raises(ValueError, match=r"add up to 1, but rows add up to 4 to 4.*Take the softmax"):
        inception_score(torch.ones(3, 4))
    with pytest.raises(ValueError, match="inception_score needs at least 2 rows, got 1"):
        inception_score(torch.eye(1))
    with pytest.raises(ValueError, match="probabilities must be finite, but rows 1 of 2"):
        inception_score(torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]))
