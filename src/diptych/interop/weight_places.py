"""Where the tensors of a released model belong in our parts, and whether all of them are there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.interop.empty_parts import fill, finish
from diptych.interop.sharded_weights import ShardedWeights, StoredTensor


def as_it_is(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Place:
    """Where a released tensor belongs."""

    part: str
    """A part of the model, or ``eva`` for the tower inside BLIP3-o's generation space."""
    name: str
    """Of the parameter or buffer in it."""
    key: str
    """Without prefix, as the conversion of the value wants it."""
    convert: Callable[[Tensor], Tensor] = as_it_is
    """The tensor as ours."""


def check_keys(
    folder: Path, parts: Mapping[str, nn.Module], found: Mapping[str, Place], tensors: Mapping[str, StoredTensor]
) -> dict[str, Place]:
    """The keys to be read, with their places: every weight that a part lacks has one, of its shape.

    Raises:
        ValueError: a weight is missing, has no place, or another shape.
    """
    shapes = {
        (name, key): value.shape
        for name, part in parts.items()
        for key, value in part.state_dict().items()
        if value.is_meta
    }
    wanted = {key: place for key, place in found.items() if (place.part, place.name) in shapes}
    given = {(place.part, place.name) for place in wanted.values()}
    missing = [f"{part}: {name}" for part, name in shapes if (part, name) not in given]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of the {len(shapes)} weights that config.json asks for "
            f"(first {missing[0]}). Copy or download it again."
        )
    extra = [
        key
        for key, place in found.items()
        if place.part in parts and key not in wanted and key != "lm_head.weight"  # a copy of the embedding where tied
    ]
    if extra:
        raise ValueError(
            f"{folder} holds {len(extra)} weights that config.json leaves no place for, such as {extra[0]!r}: they "
            "belong to two models. Take all files from one of them."
        )
    for key, place in wanted.items():
        with torch.device("meta"):
            shape = place.convert(torch.empty(tensors[key].shape)).shape
        if shape != shapes[place.part, place.name]:
            raise ValueError(
                f"{tensors[key].file}: {key} has the shape {tuple(tensors[key].shape)}, config.json asks for "
                f"{tuple(shapes[place.part, place.name])}. Take all files from one model."
            )
    return wanted


def fill_parts(
    parts: Mapping[str, Any],
    wanted: Mapping[str, Place],
    weights: ShardedWeights,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> None:
    """Reads the weights of every part to its place, one tensor after the other."""
    for name, part in parts.items():
        own = {key: place for key, place in wanted.items() if place.part == name}
        fill(part, ((own[key].name, own[key].convert(value)) for key, value in weights.stream(own)), device, dtype)
        finish(part, device)
        part.to(device)  # what was made when the part was described
