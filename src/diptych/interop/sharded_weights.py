"""Weights in one or several files with an index, read shard by shard: names and shapes first, tensors when asked.

Files are mapped into memory, so that reading costs no more than the tensors that are kept and one that is being read.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diptych.interop.weight_files import UNREADABLE

INDEX_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""In the order they are looked for."""
_AGAIN = "Copy or download it again."


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and how large it is."""

    file: Path
    shape: tuple[int, ...]


class ShardedWeights:
    """The weights of a folder, or of one file.

    Attributes:
        tensors: what there is, by key.

    Raises:
        FileNotFoundError: there are no weights, or a shard that the index names is missing.
        ValueError: a shard is damaged or cut, or lacks what the index says it holds.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        source = path
        if path.is_dir():
            found = next((path / name for name in INDEX_NAMES if (path / name).is_file()), None)
            if found is None:
                raise FileNotFoundError(f"{path} holds no weights: it needs one of {', '.join(INDEX_NAMES)}. {_AGAIN}")
            source = found
        self.tensors: dict[str, StoredTensor] = {}
        if source.name.endswith(".index.json"):
            self._read_index(source)
        else:
            self.tensors = {key: StoredTensor(source, shape) for key, shape in _shapes(source).items()}

    def _read_index(self, index: Path) -> None:
        try:
            places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index} is damaged: it has no readable weight_map ({error!r}). {_AGAIN}") from None
        for name in sorted(set(places.values())):
            file = index.parent / name
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing: {index.name} says that weights are in it. {_AGAIN}")
            shapes = _shapes(file)
            keys = [key for key, place in places.items() if place == name]
            lacking = [key for key in keys if key not in shapes]
            if lacking:
                raise ValueError(
                    f"{file} lacks {len(lacking)} weights that {index.name} says are in it, such as {lacking[0]!r}: it "
                    f"belongs to another model. {_AGAIN}"
                )
            self.tensors |= {key: StoredTensor(file, shapes[key]) for key in keys}

    def stream(self, keys: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the given keys, one after the other, shard by shard. They may lie in the mapped file: copy
        what is kept."""
        by_file: dict[Path, list[str]] = defaultdict(list)
        for key in keys:
            by_file[self.tensors[key].file].append(key)
        for file, own in sorted(by_file.items()):
            if file.suffix != ".safetensors":
                saved = _open_torch_file(file)
                yield from ((key, saved[key]) for key in own)
                continue
            with safe_open(file, framework="pt") as opened:
                for key in own:
                    yield key, opened.get_tensor(key)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. {_AGAIN}")
    if file.suffix != ".safetensors":
        return {key: tuple(value.shape) for key, value in _open_torch_file(file).items()}
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut off ({error}). {_AGAIN}") from None


def _open_torch_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` file, mapped into memory; other content is refused."""
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} is no file of tensors, or is damaged or cut off ({reason}). {_AGAIN}") from None
    if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise ValueError(f"{file} must hold tensors by name and nothing else. {_AGAIN}")
    return saved
