"""What an objective returns: a sum and the count it is to be divided by.

Losses are divided by the *global* count, so micro-batches, ranks and packing do not change the result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LossTerm:
    """A summed loss and the number of things summed (tokens, images), both scalar float32 tensors.

    ``values`` and ``levels``, when given, are the detached loss of each item and its noise level sigma in [0, 1]: the
    run log draws the loss by noise level from them.
    """

    sum: Float[Tensor, ""]
    count: Float[Tensor, ""]
    values: Float[Tensor, " items"] | None = None
    levels: Float[Tensor, " items"] | None = None

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The local mean; 0 where nothing was counted."""
        return self.sum / self.count.clamp(min=1e-12)


def weighted_term(
    values: Float[Tensor, " items"], weights: Float[Tensor, " items"], levels: Float[Tensor, " items"] | None = None
) -> LossTerm:
    """Losses of items, each times its weight, counted as so many items whatever their weights."""
    count = torch.tensor(float(len(values)), device=values.device)
    return LossTerm((values * weights.to(values)).sum(), count, values=values.detach(), levels=levels)


Objective: TypeAlias = Callable[[Any, Any, torch.Generator], Mapping[str, LossTerm]]
"""``(model, batch, generator) -> {name: LossTerm}``; the generator is on the CPU."""
