"""Low-rank adapters as files of their own, small beside the model that they were trained on.

    adapters.json          format version, and for every part the factor that its adapters are added times
    adapters.safetensors   PART.LAYER.down, rank x in, and PART.LAYER.up, out x rank, of every layer

Every model folder that a training with adapters saves holds them in ``adapters/``, beside its parts, whose weights have
the adapters added already. `merge_adapters` adds them to the weights of the model they began from, or of another one of
its sizes. Neither reading nor merging needs peft.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych import __version__
from diptych.models.adapters import adapter_tensors, low_rank_sum

FORMAT_VERSION = 1
FOLDER, INDEX, TENSORS = "adapters", "adapters.json", "adapters.safetensors"
_DOWN, _UP = ".down", ".up"


def save_adapters(parts: Mapping[str, nn.Module], folder: Path) -> bool:
    """Writes the adapters of a model's parts into a new folder; False, and nothing written, if it has none."""
    layers = {
        f"{name}.{layer}": found for name, part in parts.items() for layer, found in adapter_tensors(part).items()
    }
    if not layers:
        return False
    folder.mkdir(parents=True)
    tensors = {}
    for name, (down, up, _) in layers.items():
        tensors[name + _DOWN] = down.detach().cpu().contiguous().clone()
        tensors[name + _UP] = up.detach().cpu().contiguous().clone()
    save_file(tensors, folder / TENSORS)
    index = {
        "format_version": FORMAT_VERSION,
        "diptych_version": __version__,
        "layers": {name: {"rank": len(down), "factor": factor} for name, (down, _, factor) in layers.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return True


def find_adapters(path: str | Path) -> Path:
    """The folder of adapters at a path: itself, or that inside a model folder, a checkpoint or a run.

    Raises:
        FileNotFoundError: there is none.
    """
    from diptych.unified.folder import resolve

    folder = Path(path)
    if (folder / INDEX).is_file():
        return folder
    try:
        inside = resolve(path) / FOLDER
    except FileNotFoundError:
        inside = folder / FOLDER
    if not (inside / INDEX).is_file():
        raise FileNotFoundError(
            f"{path} holds no adapters: there is no {INDEX} in it or in {inside}. Give the folder {FOLDER} of a model "
            "that was trained with model.lora, or its run."
        )
    return inside


@torch.no_grad()
def merge_adapters(model: nn.Module, path: str | Path) -> list[str]:
    """Adds saved adapters to the weights of a model, in float32, and returns the layers that changed.

    All layers are checked before the first weight is changed.

    Raises:
        FileNotFoundError: no adapters there.
        ValueError: damaged files, a newer format, or adapters of another model.
    """
    folder = find_adapters(path)
    index = _read_index(folder)
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{folder / TENSORS} is damaged or missing ({error}). Copy it again.") from None
    weights = dict(model.named_parameters())
    for name in index:
        if name + _DOWN not in tensors or name + _UP not in tensors:
            raise ValueError(f"{folder / TENSORS} lacks the adapter of {name}. Copy the folder again, whole.")
        _check_layer(folder, name, weights.get(f"{name}.weight"), tensors[name + _DOWN], tensors[name + _UP])
    for name, entry in index.items():
        weight = weights[f"{name}.weight"]
        weight.copy_(low_rank_sum(weight, tensors[name + _DOWN], tensors[name + _UP], entry["factor"]))
    return list(index)


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        version = index["format_version"]
        if version <= FORMAT_VERSION:
            return {name: {"factor": float(entry["factor"])} for name, entry in index["layers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged: {error!r}. Copy the folder again.") from None
    raise ValueError(
        f"{folder / INDEX} has format version {version}; diptych {__version__} reads up to {FORMAT_VERSION}: "
        "pip install -U diptych."
    )


def _check_layer(folder: Path, name: str, weight: Tensor | None, down: Tensor, up: Tensor) -> None:
    if weight is None:
        raise ValueError(
            f"{folder} adapts the layer {name}, which this model does not have (or has adapters on). Give the model "
            "that they were trained on."
        )
    fits = down.ndim == up.ndim == 2 and (len(up), down.shape[1]) == tuple(weight.shape) and up.shape[1] == len(down)
    if not fits:
        raise ValueError(
            f"{folder}: the adapter of {name} has the shapes {tuple(up.shape)} and {tuple(down.shape)}, the layer "
            f"{tuple(weight.shape)}. Give the model that they were trained on."
        )
