"""Samplers: from noise at the first time to data at the last by solving ``dx/dt = velocity(x, t)``.

Each is a pure function of a network, a start and a grid of times. The state is kept in float32 (float64 if the noise
is), whatever the network computes in. Model calls a step: Euler 1, multistep 1, Heun 2, midpoint 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

VelocityFn: TypeAlias = Callable[
    [Float[Tensor, " batch *event"], Float[Tensor, " batch"]], Float[Tensor, " batch *event"]
]
"""``(x_t, t) -> velocity``."""


@dataclass(frozen=True)
class SolverStep:
    """What ``on_step`` is told after each step.

    Attributes:
        index: steps done, 1 .. num_steps.
        t: time reached.
        x_t: state at that time.
        data: estimate of the end of the path, from the first velocity of the step.
    """

    index: int
    num_steps: int
    t: float
    x_t: Tensor
    data: Tensor


OnStep: TypeAlias = Callable[[SolverStep], None]


class Sampler(Protocol):
    """The call every solver offers."""

    def __call__(
        self,
        velocity_fn: VelocityFn,
        noise: Float[Tensor, " batch *event"],
        times: Float[Tensor, " times"],
        on_step: OnStep | None = None,
    ) -> Float[Tensor, " batch *event"]: ...


def sample_euler(
    velocity_fn: VelocityFn,
    noise: Float[Tensor, " batch *event"],
    times: Float[Tensor, " times"],
    on_step: OnStep | None = None,
) -> Float[Tensor, " batch *event"]:
    """Euler's method, first order, one model call a step."""

    def step(evaluate: VelocityAt, x: Tensor, start: float, end: float, first: Tensor) -> Tensor:
        return x + (end - start) * first

    return _solve(step, velocity_fn, noise, times, on_step)


def sample_heun(
    velocity_fn: VelocityFn,
    noise: Float[Tensor, " batch *event"],
    times: Float[Tensor, " times"],
    on_step: OnStep | None = None,
) -> Float[Tensor, " batch *event"]:
    """Heun's method (trapezoidal rule), second order, two model calls a step.

    A step that ends at t = 1 is Euler's, one call, as in EDM (arXiv 2206.00364, algorithm 1): a network that predicts
    data or noise has no velocity there. The order stays two.
    """

    def step(evaluate: VelocityAt, x: Tensor, start: float, end: float, first: Tensor) -> Tensor:
        if end >= 1:
            return x + (end - start) * first
        second = evaluate(x + (end - start) * first, end)
        return x + (end - start) / 2 * (first + second)

    return _solve(step, velocity_fn, noise, times, on_step)


def sample_midpoint(
    velocity_fn: VelocityFn,
    noise: Float[Tensor, " batch *event"],
    times: Float[Tensor, " times"],
    on_step: OnStep | None = None,
) -> Float[Tensor, " batch *event"]:
    """The midpoint rule, second order, two model calls a step, none of them at the last time."""

    def step(evaluate: VelocityAt, x: Tensor, start: float, end: float, first: Tensor) -> Tensor:
        middle = evaluate(x + (end - start) / 2 * first, (start + end) / 2)
        return x + (end - start) * middle

    return _solve(step, velocity_fn, noise, times, on_step)


def sample_multistep(
    velocity_fn: VelocityFn,
    noise: Float[Tensor, " batch *event"],
    times: Float[Tensor, " times"],
    on_step: OnStep | None = None,
) -> Float[Tensor, " batch *event"]:
    """Adams-Bashforth of second order for uneven steps, one model call a step; the first step is Euler's.

    It extrapolates over each step from the one before. Where steps grow fast (fewer than ten or so on a grid with shift
    3) that goes too far, and Euler's method is the better one.
    """
    previous: tuple[Tensor, float] | None = None

    def step(evaluate: VelocityAt, x: Tensor, start: float, end: float, first: Tensor) -> Tensor:
        nonlocal previous
        velocity = first
        if previous is not None:
            before, its_step = previous
            velocity = torch.lerp(before, first, 1 + (end - start) / (2 * its_step))
        previous = first, end - start
        return x + (end - start) * velocity

    return _solve(step, velocity_fn, noise, times, on_step)


SolverName: TypeAlias = Literal["euler", "heun", "midpoint", "multistep"]

SOLVERS: dict[SolverName, Sampler] = {
    "euler": sample_euler,
    "heun": sample_heun,
    "midpoint": sample_midpoint,
    "multistep": sample_multistep,
}
"""Solvers by the name a recipe uses."""

VelocityAt: TypeAlias = Callable[[Tensor, float], Tensor]


def _solve(
    step: Callable[[VelocityAt, Tensor, float, float, Tensor], Tensor],
    velocity_fn: VelocityFn,
    noise: Tensor,
    times: Tensor,
    on_step: OnStep | None,
) -> Tensor:
    if len(times) < 2:
        raise ValueError(f"times must hold at least two values, start and end, got {len(times)}.")
    x = noise if noise.dtype == torch.float64 else noise.float()

    def evaluate(x: Tensor, t: float) -> Tensor:
        return velocity_fn(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device)).to(x.dtype)

    values = times.tolist()
    for index, (start, end) in enumerate(pairwise(values), start=1):
        first = evaluate(x, start)
        after = step(evaluate, x, start, end, first)
        if on_step is not None:
            on_step(SolverStep(index, len(values) - 1, end, after, x + (values[-1] - start) * first))
        x = after
    return x
