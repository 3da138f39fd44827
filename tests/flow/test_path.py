"""The linear path and the conversions between velocity, data and noise."""

import inspect

import pytest
import torch

from diptych.flow.path import interpolate, path_velocity, to_data, to_noise, to_velocity

DATA = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TIMES = torch.tensor([0.07, 0.2, 0.5, 0.6, 0.9, 0.94], dtype=torch.float64)


def test_time_runs_from_noise_to_data():
    assert torch.equal(interpolate(DATA, NOISE, torch.zeros(6)), NOISE)
    assert torch.equal(interpolate(DATA, NOISE, torch.ones(6)), DATA)
    quarter = interpolate(torch.tensor([[8.0]]), torch.tensor([[4.0]]), torch.tensor([0.25]))
    assert quarter.item() == 5.0
    assert path_velocity(torch.tensor([[8.0]]), torch.tensor([[4.0]])).item() == 4.0


def test_velocity_is_the_derivative_of_the_path():
    step = 1e-6
    difference = (interpolate(DATA, NOISE, TIMES + step) - interpolate(DATA, NOISE, TIMES - step)) / (2 * step)
    torch.testing.assert_close(difference, path_velocity(DATA, NOISE), rtol=0, atol=1e-8)


@pytest.mark.parametrize("source", ["velocity", "data", "noise"])
def test_each_prediction_gives_the_other_two(source):
    x_t = interpolate(DATA, NOISE, TIMES)
    truth = {"velocity": DATA - NOISE, "data": DATA, "noise": NOISE}
    output = truth[source]
    for name, convert in {"velocity": to_velocity, "data": to_data, "noise": to_noise}.items():
        torch.testing.assert_close(convert(output, source, x_t, TIMES), truth[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("target", ["data", "noise"])
def test_velocity_survives_the_round_trip(target):
    x_t, velocity = interpolate(DATA, NOISE, TIMES), torch.randn_like(DATA)
    converted = {"data": to_data, "noise": to_noise}[target](velocity, "velocity", x_t, TIMES)
    torch.testing.assert_close(to_velocity(converted, target, x_t, TIMES), velocity, rtol=0, atol=1e-10)


def test_divisors_stop_at_their_floor():
    x_t, output = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    near_data, near_noise = torch.tensor([0.99]), torch.tensor([0.01])
    assert to_velocity(output, "data", x_t, near_data).item() == pytest.approx(2 / 0.05)
    assert to_velocity(output, "data", x_t, near_data, min_sigma=0.001).item() == pytest.approx(2 / 0.01, rel=1e-4)
    assert to_velocity(output, "noise", x_t, near_noise).item() == pytest.approx(-2 / 0.05)
    assert to_velocity(output, "noise", x_t, near_noise, min_t=0.02).item() == pytest.approx(-2 / 0.02)
    assert to_data(output, "noise", x_t, torch.tensor([0.0])).item() == pytest.approx((1 - 3) / 0.05)
    assert to_noise(output, "data", x_t, torch.tensor([1.0])).item() == pytest.approx((1 - 3) / 0.05)
    assert to_data(output, "velocity", x_t, torch.tensor([1.0])).item() == 1.0  # no divisor, no floor


def test_unequal_shapes_are_refused():
    without_type_checks = inspect.unwrap(interpolate)  # they would catch it first, but only in tests
    with pytest.raises(ValueError, match=r"equal shapes, got \(2, 3\) and \(2, 1\)"):
        without_type_checks(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2))
