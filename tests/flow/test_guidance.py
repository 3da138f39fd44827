"""Classifier-free guidance."""

import pytest
import torch

from diptych.flow.guidance import guided_velocity
from diptych.flow.solvers import sample_euler
from diptych.flow.time import time_grid

CONDITION = torch.tensor([[2.0], [5.0], [-1.0]])
JOINT = torch.cat((CONDITION, torch.zeros_like(CONDITION)))


class Network:
    """A nonlinear velocity; keeps the batch size of each call."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x, t, condition):
        self.batches.append(len(x))
        return torch.sin(x + condition) * (1 + t.reshape(-1, 1))


X, T = torch.tensor([[0.3], [0.1], [-0.7]]), torch.full((3,), 0.4)


def test_guidance_is_the_formula_in_one_call():
    network = Network()
    velocity = guided_velocity(network, CONDITION, JOINT, scale=3.0)(X, T)
    conditional, null = torch.sin(X + CONDITION) * 1.4, torch.sin(X) * 1.4
    torch.testing.assert_close(velocity, null + 3 * (conditional - null))
    assert network.batches == [6]


def test_scale_one_is_no_guidance_bit_for_bit_and_costs_nothing():
    network = Network()
    velocity = guided_velocity(network, CONDITION, JOINT, scale=1.0)(X, T)
    assert torch.equal(velocity, network(X, T, CONDITION))
    assert network.batches == [3, 3]


def test_scale_zero_is_the_null_branch():
    velocity = guided_velocity(Network(), CONDITION, JOINT, scale=0.0)(X, T)
    assert torch.equal(velocity, Network()(X, T, torch.zeros_like(CONDITION)))


def test_outside_the_interval_there_is_no_second_branch():
    network = Network()
    velocity = guided_velocity(network, CONDITION, JOINT, scale=3.0, interval=(0.25, 0.6))
    sample_euler(velocity, X, time_grid(8))  # t = 0, 1/8, ..., 7/8; guided at 2/8, 3/8, 4/8
    assert network.batches == [3, 3, 6, 6, 6, 3, 3, 3]
    outside = torch.full((3,), 0.7)
    assert torch.equal(velocity(X, outside), network(X, outside, CONDITION))


def test_rows_do_not_mix():
    velocity = guided_velocity(Network(), CONDITION, JOINT, scale=2.5)(X, T)
    for row in range(3):
        alone = CONDITION[row : row + 1]
        single = guided_velocity(Network(), alone, torch.cat((alone, torch.zeros(1, 1))), scale=2.5)
        torch.testing.assert_close(single(X[row : row + 1], T[:1]), velocity[row : row + 1])


@pytest.mark.parametrize("interval", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.5), (0.8, 0.2)])
def test_bad_intervals_are_refused(interval):
    with pytest.raises(ValueError, match="two times 0 <= low < high <= 1"):
        guided_velocity(Network(), CONDITION, JOINT, scale=2.0, interval=interval)
