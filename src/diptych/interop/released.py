"""Folders of released models as they are downloaded: which kind one is, and its loader."""

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from diptych.unified import UnifiedModel

Kind = Literal["BLIP3-o", "BLIP3o-NEXT"]


def released_kind(folder: str | Path) -> Kind | None:
    """What a folder is a released model of, by its ``config.json``; None of anything else."""
    from diptych.interop.blip3o_layout import NEXT_FIELD, released_config

    config = released_config(folder)
    return None if config is None else "BLIP3o-NEXT" if NEXT_FIELD in config else "BLIP3-o"


def load_released(
    kind: Kind,
    folder: str | Path,
    device: "torch.device | str",
    dtype: "torch.dtype",
    place: "Callable[[UnifiedModel], None] | None",
    options: Mapping[str, Any],
) -> "UnifiedModel":
    """The model in a released folder.

    Args:
        place: see the loaders.
        options: what the loader of that kind takes besides.

    Raises:
        TypeError: it does not take one of them.
    """
    loader: Any
    if kind == "BLIP3-o":
        from diptych.interop.blip3o import load_blip3o as loader
    else:
        from diptych.interop.blip3o_next_folder import load_blip3o_next as loader
    known = [
        name
        for name, given in signature(loader).parameters.items()
        if given.kind is given.KEYWORD_ONLY and name != "place"
    ]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: {kind}'s released models do not take this, only {', '.join(known)}.")
    return loader(folder, device, dtype, place=place, **options)
