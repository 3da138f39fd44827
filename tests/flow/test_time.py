"""Distributions of time, the shift, and the grids."""

import math

import numpy as np
import pytest
import torch

from diptych.flow.time import (
    DiscreteTime,
    LogitNormalTime,
    UniformTime,
    dimension_shift,
    shift_time,
    time_grid,
    truncate_sigma,
)


def draw(distribution: UniformTime | LogitNormalTime | DiscreteTime, batch: int, seed: int = 0) -> torch.Tensor:
    return distribution.sample(batch, torch.Generator().manual_seed(seed))


def test_shift_moves_time_towards_noise_and_keeps_the_ends():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.1, 0.25, 1.0], dtype=torch.float64)  # t / (3 - 2 t)
    torch.testing.assert_close(shift_time(t, 3.0), expected)


def test_shift_in_sigma_is_the_published_one():
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(1 - shift_time(1 - sigma, 8.0), 8 * sigma / (1 + 7 * sigma), rtol=0, atol=1e-12)


def test_shifts_multiply_and_invert():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_time(shift_time(t, 2.0), 3.0), shift_time(t, 6.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(shift_time(shift_time(t, 5.0), 1 / 5), t, rtol=0, atol=1e-12)
    assert torch.equal(shift_time(t, 1.0), t)


def test_dimension_shift_of_published_spaces():
    assert dimension_shift(16 * 16 * 768) == pytest.approx(6.93, abs=0.01)
    assert dimension_shift(16 * 16 * 1024) == 8.0
    assert dimension_shift(4096) == 1.0
    assert dimension_shift(1024) == 1.0
    assert dimension_shift(1024, minimum=0.0) == 0.5
    assert dimension_shift(1024, base=256) == 2.0


def test_uniform_time_has_the_moments_of_a_uniform():
    t = draw(UniformTime(), 40_000)
    assert t.dtype == torch.float32
    assert t.min() >= 0 and t.max() < 1
    standard_error = math.sqrt(1 / 12 / 40_000)
    assert t.mean().item() == pytest.approx(0.5, abs=5 * standard_error)
    assert t.var().item() == pytest.approx(1 / 12, rel=0.03)


def test_shift_is_applied_to_the_draws():
    for kind in (UniformTime, LogitNormalTime, DiscreteTime):
        torch.testing.assert_close(draw(kind(shift=4.0), 100), shift_time(draw(kind(), 100), 4.0))


def test_stratified_time_has_one_draw_in_each_slice():
    t = draw(UniformTime(stratified=True), 64)
    assert sorted((t * 64).long().tolist()) == list(range(64))
    assert (t[1:] < t[:-1]).any()  # in random order
    pooled = torch.stack([draw(UniformTime(stratified=True), 8, seed) for seed in range(4000)])
    first = pooled[:, 0]  # a single place of the batch is uniform all the same
    assert first.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / 4000))
    assert first.var().item() == pytest.approx(1 / 12, rel=0.1)


def test_logit_normal_time_has_the_moments_of_its_logit():
    t = draw(LogitNormalTime(mean=-0.5, std=0.8), 40_000)
    logit = torch.logit(t.double())
    assert logit.mean().item() == pytest.approx(-0.5, abs=5 * 0.8 / 200)
    assert logit.std().item() == pytest.approx(0.8, rel=0.03)
    assert t.mean().item() < 0.5  # a negative mean is more time near noise


def test_discrete_time_has_every_level_of_blip3o_and_never_pure_data():
    t = draw(DiscreteTime(), 40_000)
    levels = ((1 - t.double()) * 1000).round().long()
    assert levels.min() == 1 and levels.max() == 1000
    torch.testing.assert_close(1 - t.double(), levels.double() / 1000, rtol=0, atol=1e-7)
    assert levels.unique().numel() == 1000
    counts = torch.bincount(levels - 1, minlength=1000).double()
    chi_square = ((counts - 40) ** 2 / 40).sum().item()
    assert abs(chi_square - 999) < 5 * math.sqrt(2 * 999)
    assert set(draw(DiscreteTime(num_levels=2), 50).tolist()) == {0.0, 0.5}


@pytest.mark.parametrize(
    "kind", [UniformTime(shift=2.0), LogitNormalTime(mean=0.3, std=0.7), DiscreteTime(num_levels=8)]
)
def test_times_at_given_numbers_are_quantiles(kind):
    numbers = torch.linspace(0, 1 - 2**-24, 1001)
    t = kind.at(numbers.reshape(7, 143)).flatten()
    assert (t[1:] >= t[:-1]).all() and t.min() >= 0 and t.max() < 1 + 1e-7
    drawn = draw(kind, 40_000)
    for share in (0.1, 0.5, 0.9):
        quantile = kind.at(torch.tensor(share)) + 1e-6
        assert (drawn <= quantile).float().mean().item() >= share - 0.01


def test_logit_normal_quantiles_by_hand():
    one_sigma = torch.special.ndtr(torch.tensor(1.0))
    t = LogitNormalTime(mean=0.3, std=0.7).at(torch.stack((torch.tensor(0.5), one_sigma, torch.tensor(0.0))))
    torch.testing.assert_close(t, torch.sigmoid(torch.tensor([0.3, 1.0, -torch.inf])))


def test_same_seed_same_times():
    for kind in (UniformTime(), UniformTime(stratified=True), LogitNormalTime(), DiscreteTime()):
        assert torch.equal(draw(kind, 7, seed=3), draw(kind, 7, seed=3))
        assert not torch.equal(draw(kind, 7, seed=3), draw(kind, 7, seed=4))


def test_grid_is_the_noise_schedule_of_blip3o():
    sigmas = np.append(np.linspace(1.0, 1 / 30, 30), 0.0)
    np.testing.assert_allclose(1 - time_grid(30).numpy(), sigmas, atol=1e-12)


def test_grid_has_its_ends_and_is_shifted():
    assert time_grid(4).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    torch.testing.assert_close(time_grid(4, shift=3.0), shift_time(time_grid(4), 3.0))
    assert time_grid(7, shift=3.0)[[0, -1]].tolist() == [0.0, 1.0]


def test_truncated_sigma_repeats_the_integer_timesteps_of_blip3o():
    for num_steps in range(1, 101):
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps).astype(np.float32)
        timesteps = (torch.from_numpy(sigmas) * 1000).long()
        t = time_grid(num_steps)[:-1].float()
        torch.testing.assert_close(1000 * (1 - truncate_sigma(t)), timesteps.float(), rtol=0, atol=1e-3)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        time_grid(0)
    with pytest.raises(ValueError, match=r"shift must be positive, got -1\.0\. 1 is no shift"):
        time_grid(3, shift=-1.0)
    with pytest.raises(ValueError, match="shift must be positive, got 0"):
        UniformTime(shift=0.0)
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        LogitNormalTime(std=0.0)
    with pytest.raises(ValueError, match="num_levels must be at least 1, got 0"):
        DiscreteTime(num_levels=0)
