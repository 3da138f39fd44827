"""Flow matching on the linear path, for networks that predict velocity, data or noise.

arXiv 2210.02747, section 4.1, example II with sigma_min = 0. Paper -> here: x_0 -> noise, x_1 -> data, t unchanged.
The error is always one of velocities: a network that predicts data is judged by ``(data' - data) / max(1 - t, 0.05)``
(RAEv2, arXiv 2605.18324; the floor stands in prediction and target alike), which weighs the end of the path as velocity
prediction does.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.flow.path import MIN_SIGMA, Prediction, interpolate, path_velocity, to_velocity
from diptych.objectives.loss_term import LossTerm

PredictFn: TypeAlias = Callable[
    [Float[Tensor, " batch *event"], Float[Tensor, " batch"]], Float[Tensor, " batch *event"]
]
"""``(x_t, t) -> output``; the condition is closed over."""


def flow_matching_loss(
    predict: PredictFn,
    data: Float[Tensor, " batch *event"],
    noise: Float[Tensor, " batch *event"],
    t: Float[Tensor, " batch"],
    prediction: Prediction = "velocity",
    floor: float = MIN_SIGMA,
) -> Float[Tensor, " batch"]:
    """Mean squared velocity error of each example, in float32.

    Noise and time are arguments, not drawn here: the function is pure and a test can fix them.

    Args:
        predict: the network.
        data: latents of about unit standard deviation.
        noise: standard normal.
        t: in [0, 1]; 0 is noise, 1 is data.
        prediction: what the network returns.
        floor: smallest divisor ``1 - t`` (data prediction) or ``t`` (noise prediction).

    Raises:
        ValueError: ``data`` and ``noise`` differ in shape.
    """
    data, noise, t = data.float(), noise.float(), t.float()
    x_t = interpolate(data, noise, t)
    output = predict(x_t, t).float()
    if prediction == "velocity":
        target = path_velocity(data, noise)
    else:  # through the same division as the output: beyond the floor it is no longer data - noise
        target = to_velocity({"data": data, "noise": noise}[prediction], prediction, x_t, t, floor, floor)
    error = to_velocity(output, prediction, x_t, t, floor, floor) - target
    return error.square().flatten(1).mean(1)


def flow_term(
    predict: PredictFn,
    data: Float[Tensor, " batch *event"],
    noise: Float[Tensor, " batch *event"],
    t: Float[Tensor, " batch"],
    prediction: Prediction = "velocity",
    floor: float = MIN_SIGMA,
    weights: Float[Tensor, " batch"] | None = None,
) -> LossTerm:
    """`flow_matching_loss` summed over the batch, counted in images, with values by noise level for the run log.

    ``weights`` multiply the losses; the count stays the number of images.
    """
    values = flow_matching_loss(predict, data, noise, t, prediction, floor)
    weighted = values if weights is None else values * weights.to(values)
    count = torch.tensor(float(len(values)), device=values.device)
    return LossTerm(weighted.sum(), count, values=values.detach(), levels=1 - t.float())
