"""Reading files of weights, and copying them into a network that must match them exactly."""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError)
"""What ``torch.load`` raises on a file that is damaged, cut, or holds more than tensors and plain values."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, cut short, or another format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}.") from error


def load_exactly(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copies the tensors into the network, in the network's dtype.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape; names the first of each.
    """
    own = network.state_dict()
    problems = []
    # the counters of batch norm steer nothing, and many files leave them out
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    if missing:
        problems.append(f"{len(missing)} tensors are missing (first {missing[0]})")
    unknown = [name for name in tensors if name not in own]
    if unknown:
        problems.append(f"{len(unknown)} are not known (first {unknown[0]})")
    for name, value in own.items():
        if name in tensors and tensors[name].shape != value.shape:
            problems.append(f"{name} has the shape {tuple(tensors[name].shape)} and should have {tuple(value.shape)}")
            break
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}.")
    network.load_state_dict(dict(tensors))


def read_torch_file(path: str | Path) -> Any:
    """What a ``torch.save`` file holds, if that is tensors, plain values and ``argparse.Namespace`` (a script's flags).

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, or reading it would run code.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no file of tensors, or a damaged one: {reason}") from None


def read_checkpoint(path: str | Path, entry: str) -> dict[str, Tensor]:
    """The tensors of a ``torch.save`` file: those under ``entry``, or its own where it holds nothing but tensors.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, reading it would run code, or it has no such entry.
    """
    saved = read_torch_file(path)
    tensors = saved.get(entry, saved) if isinstance(saved, dict) else saved
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        found = f"; it has {', '.join(map(repr, saved))}" if isinstance(saved, dict) else ""
        raise ValueError(f"{path} must hold tensors by name, alone or under {entry!r}{found}.")
    return tensors


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose keys start with the prefix, without it.

    Raises:
        ValueError: there is none.
    """
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    if not given:
        raise ValueError(f"no key starts with {prefix!r}; the first is {next(iter(state_dict), None)!r}.")
    return given


def count_layers(state_dict: Mapping[str, Any], name: str) -> int:
    """Numbered modules below ``name``: 2 for keys ``name.0.*`` and ``name.1.*``."""
    return len({key.removeprefix(f"{name}.").split(".")[0] for key in state_dict if key.startswith(f"{name}.")})
