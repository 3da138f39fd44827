"""A model's parts: what a stage trains or freezes by name."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from diptych.models.adapters import has_adapters, is_adapter
from diptych.train.nearest import nearest


def parts_of(model: nn.Module) -> dict[str, nn.Module | nn.Parameter]:
    """The direct children of the model, and its own parameters, which count as parts of their own."""
    own = dict(model.named_parameters(recurse=False))
    return {**dict(model.named_children()), **own}


def part_of(parameter_name: str) -> str:
    """The part that a parameter belongs to: ``backbone`` of ``backbone.blocks.0.weight``."""
    return parameter_name.split(".", 1)[0]


def matching_parts(patterns: Sequence[str], parts: Mapping[str, object], where: str) -> set[str]:
    """The parts that any of the glob patterns names.

    Raises:
        ValueError: a pattern names none; the message has the nearest known parts.
    """
    found = set()
    for pattern in patterns:
        names = {name for name in parts if fnmatchcase(name, pattern)}
        if not names:
            raise ValueError(
                f"{where} names the part {pattern!r}, which the model does not have. {nearest(pattern, parts)}"
            )
        found |= names
    return found


def freeze_all_but(model: nn.Module, trainable: set[str]) -> None:
    """Gives gradients to the parameters of ``trainable`` parts only, and puts all other parts in evaluation mode.

    Of a part with adapters the adapters alone get gradients.
    """
    model.train()
    for name, part in parts_of(model).items():
        part.requires_grad_(name in trainable)
        if name in trainable and isinstance(part, nn.Module) and has_adapters(part):
            for own, parameter in part.named_parameters():
                parameter.requires_grad_(is_adapter(own))
        if isinstance(part, nn.Module):
            part.train(name in trainable)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get gradients, by name; a tied parameter once, under its first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
