"""AdamW over the trained parameters of a stage, and its state as named tensors."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from diptych.train.parts import part_of
from diptych.train.recipe import OptimizerConfig
from diptych.train.sharding import is_sharded, sharded_like


def build_optimizer(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with decay on weights of two or more axes only, and a learning rate factor per part.

    Every parameter group carries its ``lr_multiplier``; ``set_learning_rate`` applies the schedule on top of it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((lr_multiplier(part_of(name), config.lr_multipliers), decay), []).append(parameter)
    # One fused kernel for the whole update; the sharded tensors of FSDP2 take the loop over tensor lists instead.
    return torch.optim.AdamW(
        [
            {"params": members, "lr": config.lr * multiplier, "lr_multiplier": multiplier, "weight_decay": decay}
            for (multiplier, decay), members in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=not any(is_sharded(parameter) for parameter in parameters.values()),
    )


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
