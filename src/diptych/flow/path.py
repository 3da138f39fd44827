"""The linear path between noise and data, and the three things a network may predict on it.

Flow matching, arXiv 2210.02747, section 4.1, example II with sigma_min = 0; rectified flow, arXiv 2209.03003.
Paper -> here: x_0 -> noise, x_1 -> data, t unchanged: ``x_t = t * data + (1 - t) * noise`` and
``velocity = data - noise``.

Of velocity, data and noise any one gives the two others, given x_t and t. Towards one end a conversion divides by a
number that goes to zero; the divisor is then held at ``min_sigma`` (data prediction, t -> 1) or ``min_t`` (noise
prediction, t -> 0). Loss, prediction and sampler must use the same floor; RAEv2 (arXiv 2605.18324) uses 0.05.
"""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Prediction: TypeAlias = Literal["velocity", "data", "noise"]
"""What a denoiser returns."""

MIN_SIGMA = 0.05
"""Usual floor of the divisor ``1 - t``."""


def expand_time(t: Float[Tensor, " batch"], like: Float[Tensor, " batch *event"]) -> Float[Tensor, "batch ..."]:
    """``t`` with trailing axes of length one, so that it multiplies ``like``."""
    return t.reshape(-1, *[1] * (like.ndim - 1))


def interpolate(
    data: Float[Tensor, " batch *event"], noise: Float[Tensor, " batch *event"], t: Float[Tensor, " batch"]
) -> Float[Tensor, " batch *event"]:
    """The point of the path at time t: noise at 0, data at 1.

    Raises:
        ValueError: ``data`` and ``noise`` differ in shape.
    """
    if data.shape != noise.shape:
        raise ValueError(f"data and noise must have equal shapes, got {tuple(data.shape)} and {tuple(noise.shape)}.")
    return torch.lerp(noise, data, expand_time(t, data).to(data.dtype))


def path_velocity(
    data: Float[Tensor, " batch *event"], noise: Float[Tensor, " batch *event"]
) -> Float[Tensor, " batch *event"]:
    """``dx_t / dt``, the same at every time of the path."""
    return data - noise


def to_velocity(
    output: Float[Tensor, " batch *event"],
    prediction: Prediction,
    x_t: Float[Tensor, " batch *event"],
    t: Float[Tensor, " batch"],
    min_sigma: float = MIN_SIGMA,
    min_t: float = MIN_SIGMA,
) -> Float[Tensor, " batch *event"]:
    """The velocity that a network output stands for: ``(data - x_t) / (1 - t)`` or ``(x_t - noise) / t``."""
    if prediction == "velocity":
        return output
    time = expand_time(t, x_t)
    if prediction == "data":
        return (output - x_t) / (1 - time).clamp(min=min_sigma)
    return (x_t - output) / time.clamp(min=min_t)


def to_data(
    output: Float[Tensor, " batch *event"],
    prediction: Prediction,
    x_t: Float[Tensor, " batch *event"],
    t: Float[Tensor, " batch"],
    min_t: float = MIN_SIGMA,
) -> Float[Tensor, " batch *event"]:
    """The data that a network output stands for: ``x_t + (1 - t) * velocity`` or ``(x_t - (1 - t) * noise) / t``."""
    if prediction == "data":
        return output
    time = expand_time(t, x_t)
    if prediction == "velocity":
        return x_t + (1 - time) * output
    return (x_t - (1 - time) * output) / time.clamp(min=min_t)


def to_noise(
    output: Float[Tensor, " batch *event"],
    prediction: Prediction,
    x_t: Float[Tensor, " batch *event"],
    t: Float[Tensor, " batch"],
    min_sigma: float = MIN_SIGMA,
) -> Float[Tensor, " batch *event"]:
    """The noise that a network output stands for: ``x_t - t * velocity`` or ``(x_t - t * data) / (1 - t)``."""
    if prediction == "noise":
        return output
    time = expand_time(t, x_t)
    if prediction == "velocity":
        return x_t - time * output
    return (x_t - time * output) / (1 - time).clamp(min=min_sigma)
