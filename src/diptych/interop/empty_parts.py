"""Parts without memory for their weights, filled tensor by tensor: a released model never stands in memory twice."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diptych.models.part import build_part


def build_empty(config: Mapping[str, Any]) -> Any:
    """The part of a ``config_dict()`` on the meta device: shapes and names, no weights."""
    with torch.device("meta"):
        return build_part(config)


def fill(
    part: nn.Module, weights: Iterable[tuple[str, Tensor]], device: torch.device | str, dtype: torch.dtype | None
) -> None:
    """Puts weights into an empty part, each copied to its device and dtype before the next one is read."""
    for name, value in weights:
        kept = value.to(device, dtype if value.is_floating_point() else None, copy=True).contiguous()
        owner, _, leaf = name.rpartition(".")
        module = part.get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(kept)
        else:
            module._buffers[leaf] = kept


def finish(part: nn.Module, device: torch.device | str) -> None:
    """Makes what a part computes for itself and no file holds: rotary tables of transformers' models.

    Raises:
        ValueError: something is still empty.
    """
    for module in part.modules():
        if any(buffer.is_meta for buffer in module._buffers.values() if buffer is not None):
            made: Any = type(module)(module.config) if hasattr(module, "config") else None
            for name, buffer in list(module._buffers.items()):
                if made is not None and buffer is not None and name in made._buffers:
                    module._buffers[name] = made._buffers[name].to(device)
    tensors = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    empty = [name for name, value in tensors.items() if value.is_meta]
    if empty:
        raise ValueError(f"{type(part).__name__}: {len(empty)} tensors were never given, such as {empty[0]!r}.")
