"""Building a part of a model from its configuration alone: ``kind`` is the import path of its class."""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn


def part_kind(part: nn.Module | type[nn.Module]) -> str:
    """``package.module:Class``: what ``build_part`` finds the class by."""
    cls = part if isinstance(part, type) else type(part)
    return f"{cls.__module__}:{cls.__qualname__}"


def build_part(config: Mapping[str, Any]) -> Any:
    """The module that a ``config_dict()`` describes, with fresh weights.

    A configuration may come from a stranger, so nothing outside of diptych is imported for it: a part of another
    package is built only if that package has been imported before, and only subclasses of ``nn.Module`` are.

    Raises:
        ValueError: there is no ``kind``, it names no module class within reach, or the class takes other arguments.
    """
    kind = config.get("kind")
    if not isinstance(kind, str) or kind.count(":") != 1:
        raise ValueError(f"a part's config needs a kind 'package.module:Class', got {kind!r}.")
    module_name, class_name = kind.split(":")
    if module_name.split(".")[0] == "diptych":
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            raise ValueError(f"kind {kind!r}: {error}. It may come from a newer version of diptych.") from error
    elif module_name in sys.modules:
        module = sys.modules[module_name]
    else:
        raise ValueError(
            f"kind {kind!r} is not a part of diptych. Import {module_name} first if you trust it "
            f"(on the command line: --import {module_name})."
        )
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"kind {kind!r} is no nn.Module class of {module_name}.")
    try:
        return cls(**{name: value for name, value in config.items() if name != "kind"})
    except TypeError as error:
        raise ValueError(
            f"{kind} cannot be built from its configuration: {error}. It may come from another version of diptych."
        ) from error
