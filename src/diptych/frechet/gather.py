"""Features of all processes, with the true gradient.

Every process computes the same loss of the gathered features, so each already holds the gradient of its own rows: no
second exchange is needed. FD-loss's code leaves it at that and lets DDP average, which applies 1 / processes of the
gradient; here the caller says how parameter gradients are combined.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_features(
    features: Float[Tensor, "batch dim"],
    gradients_are_averaged: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "all_batch dim"]:
    """The rows of all processes, in order of rank; processes may have different numbers of rows.

    Without a process group, the features themselves.

    Args:
        gradients_are_averaged: what is done to the gradients of parameters over processes: DDP and FSDP average them;
            False where they are summed.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return features
    scale = dist.get_world_size(group) if gradients_are_averaged else 1
    gathered: Tensor = _Gather.apply(features, scale, group)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: int, group: dist.ProcessGroup | None) -> Tensor:
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        count = torch.tensor([len(features)], device=features.device)
        counts = [torch.empty_like(count) for _ in range(world)]
        dist.all_gather(counts, count, group=group)
        lengths = [int(length.item()) for length in counts]
        padded = features.new_zeros(max(lengths), features.shape[1])
        padded[: len(features)] = features
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded, group=group)
        ctx.start, ctx.stop, ctx.scale = sum(lengths[:rank]), sum(lengths[: rank + 1]), scale
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.start : ctx.stop] * ctx.scale, None, None
