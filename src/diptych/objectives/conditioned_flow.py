"""Flow matching of images under conditions, some of which are dropped, at several noise levels for one condition."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diptych.flow.path import MIN_SIGMA, Prediction
from diptych.flow.time import TimeDistribution
from diptych.objectives.flow_matching import flow_matching_loss
from diptych.objectives.randomness import normal_from_seeds, uniform_from_seeds


def conditioned_flow_loss(
    denoise: Callable[..., Tensor],
    prediction: Prediction,
    data: Float[Tensor, "images channels rows cols"],
    condition: Float[Tensor, "images conditions dim"],
    mask: Bool[Tensor, "images conditions"] | None,
    null: Float[Tensor, "1 null_conditions dim"],
    seeds: Int[Tensor, " images"],
    time: TimeDistribution,
    condition_drop: float,
    repeats: int = 1,
    floor: float = MIN_SIGMA,
) -> tuple[Float[Tensor, " items"], Float[Tensor, " items"]]:
    """Squared velocity error of every image at ``repeats`` noise levels, and those levels sigma.

    Time, noise and dropped conditions follow from each image's seed.

    Args:
        denoise: ``(x_t, t, conditions, mask, index)``; the index says which condition each of the batch has, so that
            what is made of a condition alone is made once.
        mask: True where a row of the condition counts.
        null: what a dropped condition is replaced by.
        condition_drop: probability of that.
    """
    shape = (repeats, *data.shape[1:])
    t = time.at(uniform_from_seeds(seeds, (repeats,), "time")).flatten()
    noise = normal_from_seeds(seeds, shape, "noise").flatten(0, 1)
    keep = uniform_from_seeds(seeds, (repeats,), "condition_drop").flatten() >= condition_drop
    conditions, mask = stacked_conditions(condition, mask, null.to(condition.dtype))
    own = torch.arange(len(data), device=data.device).repeat_interleave(repeats, 0)
    index = torch.where(keep, own, len(data))
    data = data.float().repeat_interleave(repeats, 0)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return denoise(x_t, t, conditions, mask, index)

    return flow_matching_loss(predict, data, noise, t, prediction, floor), 1 - t


def one_if_shared(null: Float[Tensor, "images rows dim"]) -> Float[Tensor, "others rows dim"]:
    """One null condition where those of all images are views of the same, so that what follows from it is made once."""
    return null[:1] if null.stride(0) == 0 else null


def with_null_of_each(count: int, num_nulls: int) -> Int[Tensor, " both"]:
    """Rows of a stack of ``count`` conditions and ``num_nulls`` null conditions, a null for every condition."""
    own = torch.arange(count)
    return torch.cat([own, count + own.clamp(max=num_nulls - 1)])


def stacked_conditions(
    condition: Float[Tensor, "images rows dim"],
    mask: Bool[Tensor, "images rows"] | None,
    null: Float[Tensor, "others null_rows dim"],
) -> tuple[Float[Tensor, "both most_rows dim"], Bool[Tensor, "both most_rows"] | None]:
    """Both as one batch, with a mask of the rows that count where some do not."""
    most = max(condition.shape[1], null.shape[1])
    if condition.shape[1] == null.shape[1] and mask is None:
        return torch.cat([condition, null]), None
    if mask is None:
        mask = torch.ones(condition.shape[:2], dtype=torch.bool, device=condition.device)
    all_true = torch.ones(null.shape[:2], dtype=torch.bool, device=null.device)
    padded = [F.pad(rows, (0, 0, 0, most - rows.shape[1])) for rows in (condition, null)]
    return torch.cat(padded), torch.cat([F.pad(own, (0, most - own.shape[1])) for own in (mask, all_true)])
