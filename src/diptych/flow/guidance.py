"""Classifier-free guidance (arXiv 2207.12598, equation 6) inside an interval of times (arXiv 2404.07724).

Paper -> here: ``w`` with 0 as off -> ``scale - 1``. In sigma, an interval (a, b) is (1 - b, 1 - a) in t.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.flow.solvers import VelocityFn

Condition = TypeVar("Condition")


def guided_velocity(
    predict: Callable[[Tensor, Tensor, Condition], Tensor],
    condition: Condition,
    joint_condition: Condition,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> VelocityFn:
    """The velocity ``null + scale * (conditional - null)``, both branches in one call of twice the batch.

    At scale 1, and at times outside the interval, ``predict`` is called once with ``condition`` alone: bit for bit the
    velocity without guidance, at half the cost.

    Args:
        predict: ``(x_t, t, condition) -> velocity``. Conditions pass through unread, so they may be anything prepared
            once per image, such as the keys and values of `LuminaDiT.encode_condition`.
        condition: of the batch.
        joint_condition: of twice the batch: the rows of ``condition``, then as many rows of the null condition.
        scale: 1 is off.
        interval: first and last time at which guidance acts. An interval other than the default reads t on the host
            once per call.

    Raises:
        ValueError: the interval is empty or leaves [0, 1].
    """
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(f"guidance.interval must be two times 0 <= low < high <= 1, got {interval}.")
    is_always_on = interval == (0.0, 1.0)

    def velocity(x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch"]) -> Float[Tensor, " batch *event"]:
        if scale == 1 or not (is_always_on or low <= t[0].item() <= high):
            return predict(x_t, t, condition)
        conditional, null = predict(torch.cat((x_t, x_t)), torch.cat((t, t)), joint_condition).chunk(2)
        return null + scale * (conditional - null)

    return velocity
