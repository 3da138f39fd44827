"""A backbone with further tokens behind those it knows."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.models.part import build_part, part_kind


def with_more_tokens(backbone: Any, vocab_size: int, spread: float = 0.0) -> Any:
    """The same backbone with ``vocab_size`` tokens; rows of the new ones are the mean of the old.

    Args:
        spread: standard deviation of the new rows around the mean, in those of the old rows; drawn from torch's global
            generator.

    Raises:
        ValueError: the backbone has more tokens than that.
    """
    if vocab_size < backbone.vocab_size:
        raise ValueError(f"the backbone has {backbone.vocab_size} tokens, more than the {vocab_size} asked for.")
    if vocab_size == backbone.vocab_size:
        return backbone
    config = {**backbone.config_dict(), "kind": part_kind(backbone)}
    if "config" in config:  # of a model of transformers
        config["config"] = {**config["config"], "vocab_size": vocab_size}
    else:
        config["vocab_size"] = vocab_size
    grown: Any = build_part(config)
    state = grown.state_dict()
    for name, value in backbone.state_dict().items():
        is_table = state[name].shape != value.shape
        state[name] = _longer(value, vocab_size, spread) if is_table else value
    grown.load_state_dict(state)
    return grown


def _longer(table: Float[Tensor, "vocab dim"], vocab_size: int, spread: float) -> Float[Tensor, "more dim"]:
    rows = table.mean(0, keepdim=True).expand(vocab_size - len(table), -1)
    return torch.cat([table, rows + spread * table.std(0, keepdim=True) * torch.randn(rows.shape, device=rows.device)])
