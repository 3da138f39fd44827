"""Low-rank adapters on the linear layers of a part (LoRA, arXiv 2106.09685), through ``peft``.

    W x  becomes  W x + alpha / rank * B (A x),   A: rank x in, random;   B: out x rank, zeros at first

(section 4.1 of the paper). W is frozen, A and B learn. The layers are replaced in place, so that a part keeps its
class, its calls and its ``config_dict()``; weights are saved with the adapters added to them, under their own names
(`PlainState`), so that no peft is needed to load them again.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "default"
"""What peft calls the only adapter there is."""
_BASE = ".base_layer."
_READ_DIRECTLY = ("head", "lm_head")
"""Heads whose weight is multiplied by hand (logits of some positions, tied tables): an adapter would have no effect."""


def add_adapters(
    part: nn.Module, *, rank: int, alpha: float, dropout: float = 0.0, layers: tuple[str, ...] = ("*",), where: str
) -> list[str]:
    """Puts adapters on the linear layers of a part; returns the layers' names.

    Args:
        alpha: adapters are added times ``alpha / rank``.
        dropout: probability of it on what adapters read.
        layers: glob patterns on the layers' names, or on how they end (``q_proj``, ``attention.*``).
        where: what errors call the part.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: no layer matches a pattern, or the part has adapters already.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise ModuleNotFoundError(
            "model.lora needs the package peft: pip install 'diptych[peft]'. A merged model needs none.", name="peft"
        ) from None
    if has_adapters(part):
        raise ValueError(f"{where} has adapters already. Merge them first (`diptych merge`), then add new ones.")
    known = [
        name
        for name, layer in part.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] not in _READ_DIRECTLY
    ]
    chosen: list[str] = []
    for pattern in layers:
        found = [name for name in known if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in known})
            raise ValueError(
                f"lora.layers: no linear layer of {where} matches {pattern!r}. Its linear layers end in: "
                f"{', '.join(ends) or '(it has none)'}."
            )
        chosen += [name for name in found if name not in chosen]
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)  # type: ignore[arg-type]
    peft.inject_adapter_in_model(config, part, adapter_name=_NAME)
    return chosen


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter, by its name."""
    return ".lora_A." in name or ".lora_B." in name


def has_adapters(part: nn.Module | nn.Parameter) -> bool:
    """Whether a part, or a module inside, has adapters."""
    return isinstance(part, nn.Module) and any(is_adapter(name) for name, _ in part.named_parameters())


def adapted_layers(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with adapters, by the names they had before: peft's, with ``lora_A``, ``lora_B`` and ``scaling``."""
    for name, module in part.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module


def adapter_tensors(part: nn.Module) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and their factor ``alpha / rank`` of every layer with an adapter."""
    return {
        name: (layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight, float(layer.scaling[_NAME]))
        for name, layer in adapted_layers(part)
    }


def low_rank_sum(weight: Tensor, down: Tensor, up: Tensor, factor: float) -> Tensor:
    """``weight + factor * up @ down``, computed in float32, in the dtype of the weight."""
    added = factor * (up.float() @ down.to(up.device).float())
    return (weight.float() + added.to(weight.device)).to(weight.dtype)


def plain_name(name: str) -> str:
    """A weight's name without what peft put into it."""
    return name.replace(_BASE, ".")


class PlainState:
    """The state of a part as if its adapters had been added to the weights, one tensor at a time.

    Attributes:
        tensors: by plain name; of layers with adapters the weights without them, which have the same shape and dtype.
    """

    def __init__(self, part: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {
            plain_name(name): value for name, value in part.state_dict().items() if not is_adapter(name)
        }
        self._adapters = {f"{name}.weight": tensors for name, tensors in adapter_tensors(part).items()}

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        weight = self.tensors[name]
        return low_rank_sum(weight, *self._adapters[name]) if name in self._adapters else weight
