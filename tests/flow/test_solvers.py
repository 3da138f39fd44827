"""Order of convergence of the solvers, on data whose flow is known in closed form."""

import pytest
import torch

from diptych.flow.path import to_velocity
from diptych.flow.solvers import SOLVERS, SolverStep, sample_euler, sample_heun, sample_midpoint, sample_multistep
from diptych.flow.time import time_grid

MEAN, STD = 0.5, 0.3  # data ~ N(mean, std^2): x_t is Gaussian and the flow maps noise to mean + std * noise
NOISE = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1)
EXACT = MEAN + STD * NOISE


class GaussianFlow:
    """The exact velocity of one Gaussian, counting its calls."""

    def __init__(self) -> None:
        self.num_model_calls = 0
        self.times: list[float] = []

    def __call__(self, x, t):
        self.num_model_calls += 1
        self.times.append(t[0].item())
        assert t.shape == (len(x),) and (t == t[0]).all()
        t = t.reshape(-1, 1)
        return MEAN + (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2) * (x - t * MEAN)


def bent_flow(x, t):
    """``dx/dt = -2 t x^2``, so ``x = noise / (1 + noise t^2)``; on a Gaussian the midpoint rule has order 3."""
    return -2 * t.reshape(-1, 1) * x**2


def bent_error(solver, num_steps: int, shift: float) -> float:
    start = NOISE.abs() + 0.5
    return (solver(bent_flow, start, time_grid(num_steps, shift)) - start / (1 + start)).abs().max().item()


def error(solver, num_steps: int, shift: float = 1.0) -> float:
    return (solver(GaussianFlow(), NOISE, time_grid(num_steps, shift)) - EXACT).abs().max().item()


def test_euler_is_first_order():
    assert error(sample_euler, 400) < 0.02
    assert error(sample_euler, 200) / error(sample_euler, 400) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("solver", [sample_heun, sample_midpoint, sample_multistep])
def test_the_others_are_second_order_on_even_and_uneven_grids(solver, shift):
    assert error(solver, 400, shift) < 5e-4
    assert error(solver, 200, shift) / error(solver, 400, shift) > 3.5
    assert bent_error(solver, 400, shift) < 1e-4
    assert bent_error(solver, 200, shift) / bent_error(solver, 400, shift) == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(
    ("solver", "num_model_calls"),
    [(sample_euler, 10), (sample_multistep, 10), (sample_midpoint, 20), (sample_heun, 19)],
)
def test_number_of_model_calls(solver, num_model_calls):
    flow = GaussianFlow()
    solver(flow, NOISE, time_grid(10))
    assert flow.num_model_calls == num_model_calls
    assert max(flow.times) < 1  # no network is asked about pure data


def test_every_solver_is_exact_on_a_straight_path():
    target = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert set(SOLVERS) == {"euler", "heun", "midpoint", "multistep"}
    for solver in SOLVERS.values():
        data = solver(lambda x, t: to_velocity(target, "data", x, t), noise, time_grid(5))
        torch.testing.assert_close(data, target, rtol=0, atol=1e-10)


def test_the_second_order_solvers_beat_euler_at_equal_model_calls():
    euler = error(sample_euler, 20)
    assert error(sample_multistep, 20) < euler / 5
    assert error(sample_midpoint, 10) < euler / 5
    assert error(sample_heun, 10) < euler / 1.5


def test_a_grid_may_run_backwards():
    there = sample_midpoint(GaussianFlow(), NOISE, time_grid(200)[:-20])
    back = sample_midpoint(GaussianFlow(), there, time_grid(200)[:-20].flip(0))
    torch.testing.assert_close(back, NOISE, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS.values())
def test_state_stays_in_float32_when_the_network_computes_in_bfloat16(solver):
    seen = set()

    def velocity(x, t):
        seen.update((x.dtype, t.dtype))
        return torch.full_like(x, 1 / 3, dtype=torch.bfloat16)

    data = solver(velocity, torch.zeros(2, 3, dtype=torch.bfloat16), time_grid(7))
    assert seen == {torch.float32} and data.dtype == torch.float32
    torch.testing.assert_close(data, torch.full((2, 3), torch.tensor(1 / 3).bfloat16().item()))


@pytest.mark.parametrize("solver", SOLVERS.values())
def test_on_step_tells_progress_and_an_estimate_of_the_data(solver):
    steps: list[SolverStep] = []
    target = torch.full_like(NOISE, 2.0)
    data = solver(lambda x, t: to_velocity(target, "data", x, t), NOISE, time_grid(4), steps.append)
    assert [step.index for step in steps] == [1, 2, 3, 4]
    assert {step.num_steps for step in steps} == {4}
    assert [step.t for step in steps] == [0.25, 0.5, 0.75, 1.0]
    for step in steps:
        torch.testing.assert_close(step.data, target)
    assert torch.equal(steps[-1].x_t, data)


def test_a_grid_of_one_time_is_refused():
    with pytest.raises(ValueError, match="at least two values, start and end, got 1"):
        sample_euler(GaussianFlow(), NOISE, torch.zeros(1))
