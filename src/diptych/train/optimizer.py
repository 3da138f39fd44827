"""AdamW or Muon over the trained parameters of a stage, and its state as named tensors."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from diptych.train.muon import Muon
from diptych.train.parts import part_of
from diptych.train.recipe import OptimizerConfig
from diptych.train.sharding import is_sharded, sharded_like


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """AdamW or Muon, with decay on weights of two or more axes only, and a learning rate factor per part.

    Every parameter group carries its ``lr_multiplier``; ``set_learning_rate`` applies the schedule on top of it.

    Args:
        dtype: what the run computes in, and Muon its updates.

    Raises:
        ValueError: Muon over sharded parameters, whose matrices no process has whole.
    """
    is_any_sharded = any(is_sharded(parameter) for parameter in parameters.values())
    if config.name == "muon" and is_any_sharded:
        raise ValueError(
            "optimizer.name muon needs whole matrices, but FSDP2 shards them. Use adamw, or train with DDP."
        )
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        is_matrix = config.name == "muon" and is_hidden_matrix(name, parameter)
        multiplier = lr_multiplier(part_of(name), config.lr_multipliers)
        if is_matrix:
            multiplier *= config.matrix_lr / config.lr
        groups.setdefault((multiplier, decay, is_matrix), []).append(parameter)
    kind = Muon if config.name == "muon" else torch.optim.AdamW
    # One fused kernel for the whole update; the sharded tensors of FSDP2 take the loop over tensor lists instead.
    return kind(
        [
            {
                "params": members,
                "lr": config.lr * multiplier,
                "lr_multiplier": multiplier,
                "weight_decay": decay,
                **({"is_matrix": is_matrix, "momentum": config.momentum, "dtype": dtype} if kind is Muon else {}),
            }
            for (multiplier, decay, is_matrix), members in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=not is_any_sharded,
    )


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is the matrix of a linear map: not a table of embeddings or queries, gain, bias or kernel."""
    return parameter.ndim == 2 and name.endswith(".weight") and "embedding" not in name


def lr_multiplier(part: str, multipliers: Mapping[str, float]) -> float:
    """The factor of the first pattern that names the part, else 1."""
    return next((factor for pattern, factor in multipliers.items() if fnmatchcase(part, pattern)), 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the scheduled learning rate, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The state as ``{"exp_avg/NAME": tensor, ...}``; parameters that have had no gradient yet have none."""
    tensors = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what ``optimizer_tensors`` gave, in place of any present state.

    Raises:
        ValueError: the tensors belong to other parameters.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, name = key.split("/", 1)
        if name not in parameters:
            raise ValueError(f"the optimizer state is of another model: it has {name!r}, which is not trained here.")
        by_name.setdefault(name, {})[kind] = sharded_like(tensor, parameters[name]) if tensor.ndim else tensor
    # The optimizer numbers its parameters group by group; its own loader puts every tensor on the right device.
    packed: dict[str, Any] = optimizer.state_dict()
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed["state"] = {
        index: by_name[names[id(parameter)]]
        for index, parameter in enumerate(ordered)
        if names[id(parameter)] in by_name
    }
    optimizer.load_state_dict(packed)
