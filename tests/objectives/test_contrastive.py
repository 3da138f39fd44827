"""Contrastive losses against their closed forms."""

import math

import pytest
import torch

from diptych.objectives.contrastive import clip_loss, cosine_logits, siglip_loss

IMAGES = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
TEXTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
LOG_SCALE = torch.tensor(math.log(1 / 0.07))


def test_orthogonal_pairs_by_hand():
    pairs = torch.eye(4) * torch.tensor([[1.0], [2.0], [0.5], [7.0]])  # lengths do not matter
    scale = 3.0
    expected = -math.log(math.exp(scale) / (math.exp(scale) + 3))
    torch.testing.assert_close(clip_loss(pairs, pairs, torch.tensor(math.log(scale))), torch.full((4,), expected))
    softplus = math.log(1 + math.exp(-(scale - 1))) + 3 * math.log(1 + math.exp(-1.0))
    loss = siglip_loss(pairs, pairs, torch.tensor(math.log(scale)), torch.tensor(-1.0))
    torch.testing.assert_close(loss, torch.full((4,), softplus))


def test_logits_are_float32_under_autocast():
    expected = cosine_logits(IMAGES, TEXTS, LOG_SCALE)
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine_logits(IMAGES, TEXTS, LOG_SCALE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_features_that_say_nothing_cost_chance():
    same = torch.ones(5, 8)
    torch.testing.assert_close(clip_loss(same, same, LOG_SCALE), torch.full((5,), math.log(5)))


def test_clip_is_symmetric_and_the_mean_of_both_directions():
    loss = clip_loss(IMAGES, TEXTS, LOG_SCALE)
    torch.testing.assert_close(loss, clip_loss(TEXTS, IMAGES, LOG_SCALE))
    logits = cosine_logits(IMAGES, TEXTS, LOG_SCALE)
    diagonal = torch.arange(6)
    expected = -(logits.log_softmax(1) + logits.log_softmax(0))[diagonal, diagonal] / 2
    torch.testing.assert_close(loss, expected)


def test_the_scale_of_clip_stops_at_one_hundred():
    torch.testing.assert_close(
        clip_loss(IMAGES, TEXTS, torch.tensor(9.0)),
        clip_loss(IMAGES, TEXTS, torch.tensor(math.log(100))),
        rtol=1e-4,
        atol=0,
    )


def test_siglip_starts_near_the_cost_of_the_bias():
    # At log(10) and -10 all pairs are predicted apart: each picture pays about 10 for its own text.
    loss = siglip_loss(IMAGES, TEXTS, torch.tensor(math.log(10)), torch.tensor(-10.0))
    cosines = torch.nn.functional.cosine_similarity(IMAGES, TEXTS)
    torch.testing.assert_close(loss, 10 - 10 * cosines, rtol=0.15, atol=0.5)


def test_explicit_matches_of_the_diagonal_change_nothing():
    matches = torch.eye(6, dtype=torch.bool)
    bias = torch.tensor(-2.0)
    torch.testing.assert_close(clip_loss(IMAGES, TEXTS, LOG_SCALE, matches), clip_loss(IMAGES, TEXTS, LOG_SCALE))
    torch.testing.assert_close(
        siglip_loss(IMAGES, TEXTS, LOG_SCALE, bias, matches), siglip_loss(IMAGES, TEXTS, LOG_SCALE, bias)
    )


def test_a_text_that_occurs_twice_is_no_negative():
    images = torch.eye(3)[[0, 0, 1]]
    matches = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    log_scale = torch.tensor(math.log(50.0))
    assert siglip_loss(images, images, log_scale, torch.tensor(-20.0), matches).max() < 1e-4
    assert siglip_loss(images, images, log_scale, torch.tensor(-20.0)).max() > 25
    # two equally good texts share the probability: log 2, and no loss can be lower
    torch.testing.assert_close(
        clip_loss(images, images, log_scale, matches), torch.tensor([math.log(2), math.log(2), 0.0]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("loss", [clip_loss, lambda a, b, s: siglip_loss(a, b, s, torch.zeros(()))])
def test_gradients_pull_pairs_together_and_reach_the_temperature(loss):
    images, texts = IMAGES.clone().requires_grad_(), TEXTS.clone().requires_grad_()
    log_scale = torch.tensor(0.5, requires_grad=True)
    optimizer = torch.optim.Adam([images, texts, log_scale], lr=0.1)
    first = loss(images, texts, log_scale).mean()
    first.backward()
    assert log_scale.grad.abs() > 1e-4
    for _ in range(60):
        optimizer.step()
        optimizer.zero_grad()
        last = loss(images, texts, log_scale).mean()
        last.backward()
    assert last < first / 10
    assert (cosine_logits(images, texts, log_scale).argmax(1) == torch.arange(6)).all()
