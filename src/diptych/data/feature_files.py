"""Features of images on disk, found by the image's key: what an encoder made once, for every training that draws it.

    DIR/cache.json                what made the features, their dtype and shape
    DIR/shards/NAME.safetensors   features, ``images channels rows cols``; their keys stand in the file's metadata
    DIR/shards/NAME.json          the keys again, in the order of the rows: the index, which completes a shard

A shard's name is a hash of its keys. Every file is written beside its place and moved there whole, so a kill loses no
more than the shard that was being filled, and several processes may write into one folder.
"""

import hashlib
import json
import os
import socket
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT_VERSION = 1
StoredDtype = Literal["bfloat16", "float32"]
DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_MAX_OPEN = 64


@dataclass(frozen=True)
class CacheMaker:
    """What features depend on beside the image.

    Attributes:
        encoder: SHA-256 of the encoder's configuration and weights.
        preprocessing: how a picture is brought to ``size``.
        size: (height, width) in pixels of the encoded image.
    """

    encoder: str
    preprocessing: str
    size: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        return {"encoder": self.encoder, "preprocessing": self.preprocessing, "size": list(self.size)}


class FeatureFiles:
    """A folder of features, open for reading; pickles as its path and index.

    Args:
        maker: of the model that wants to read; None reads whatever is there.

    Raises:
        FileNotFoundError: the folder holds no cache.
        ValueError: it was made by another encoder, preprocessing or size, or by a newer version, or is damaged.
    """

    def __init__(self, folder: str | Path, maker: CacheMaker | None = None) -> None:
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        if maker is not None:
            check_maker(self.folder, self.header, maker)
        self._places: dict[str, tuple[str, int]] = {}
        for file in sorted((self.folder / "shards").glob("*.json")):
            for row, key in enumerate(_read_json(file)["keys"]):
                self._places.setdefault(key, (file.stem, row))
        self._open: OrderedDict[str, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def get(self, key: str) -> Float[Tensor, "channels rows cols"] | None:
        """The features of an image in float32; None where the cache lacks it.

        Raises:
            ValueError: the shard is missing or damaged.
        """
        place = self._places.get(key)
        if place is None:
            return None
        name, row = place
        path = self.folder / "shards" / f"{name}.safetensors"
        try:
            if name not in self._open:
                self._open[name] = safe_open(path, framework="pt").get_slice("features")
                if len(self._open) > _MAX_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(name)
            features: Tensor = self._open[name][row]
        except (OSError, SafetensorError, IndexError) as error:
            raise ValueError(
                f"{path} of the feature cache cannot be read ({error}). Delete it with its .json and run "
                "`diptych cache` once more, which makes what is missing."
            ) from error
        return features.float()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # open files stay in their process


class FeatureWriter:
    """Adds features to a folder, a shard at a time; ``close`` writes the rest.

    Args:
        dtype: of the stored features.
        shard_size: images of a shard: what a kill can lose.

    Raises:
        ValueError: the folder holds features of another encoder, preprocessing, size or dtype.
    """

    def __init__(self, folder: str | Path, maker: CacheMaker, dtype: StoredDtype, shard_size: int = 1024) -> None:
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        self.folder, self.dtype, self.shard_size = Path(folder), dtype, shard_size
        shards = self.folder / "shards"
        shards.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "cache.json").exists():
            header = {"format_version": FORMAT_VERSION, **maker.to_dict(), "dtype": dtype}
            _write_json(self.folder / "cache.json", header)
        header = read_header(self.folder)
        check_maker(self.folder, header, maker)
        if header["dtype"] != dtype:
            raise ValueError(
                f"the feature cache {self.folder} holds {header['dtype']}, not {dtype}. Choose that dtype, or another "
                "folder with --out."
            )
        _remove_leftovers(shards)
        _complete(shards)
        self._pending: dict[str, Tensor] = {}

    def add(self, keys: Sequence[str], features: Float[Tensor, "images channels rows cols"]) -> None:
        """Keeps the features until a shard is full."""
        rows = features.detach().to("cpu", DTYPES[self.dtype])
        for key, row in zip(keys, rows, strict=True):
            self._pending[key] = row
            if len(self._pending) >= self.shard_size:
                self.close()

    def close(self) -> None:
        """Writes what was added since the last full shard."""
        if not self._pending:
            return
        keys = list(self._pending)
        name = hashlib.blake2b("\0".join(keys).encode(), digest_size=12).hexdigest()
        path = self.folder / "shards" / f"{name}.safetensors"
        temporary = path.with_name(_own_name(path.name))
        save_file({"features": torch.stack(list(self._pending.values()))}, temporary, {"keys": json.dumps(keys)})
        _move(temporary, path)
        _write_json(path.with_suffix(".json"), {"keys": keys})
        self._pending = {}


def read_header(folder: Path) -> dict[str, Any]:
    """``cache.json`` of a folder.

    Raises:
        FileNotFoundError, ValueError: as `FeatureFiles` says.
    """
    file = folder / "cache.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no feature cache: it has no cache.json. Make one with `diptych cache RECIPE --data SOURCE "
            f"--out {folder}`."
        )
    header = _read_json(file)
    if header.get("format_version", 0) > FORMAT_VERSION:
        raise ValueError(
            f"{file} has format {header['format_version']}, but this diptych reads up to {FORMAT_VERSION}. "
            "Upgrade with pip install -U diptych."
        )
    return header


def check_maker(folder: Path, header: Mapping[str, Any], maker: CacheMaker) -> None:
    """Refuses features of another origin.

    Raises:
        ValueError: says which of encoder, preprocessing and size differs, and both values.
    """
    for name, wanted in maker.to_dict().items():
        if header.get(name) != wanted:
            shown = [str(value)[:12] if name == "encoder" else str(value) for value in (header.get(name), wanted)]
            raise ValueError(
                f"the feature cache {folder} was made with another {name}: {shown[0]}, but this model has {shown[1]}. "
                "Its features would be wrong targets. Make one for this model with `diptych cache … --out` and another "
                "folder, or train without model.feature_cache."
            )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it and run `diptych cache` once more.") from None
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_name(_own_name(path.name))
    temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")
    _move(temporary, path)


def _own_name(name: str) -> str:
    """A temporary name that says whose it is."""
    return f".{name}.{socket.gethostname()}.{os.getpid()}.part"


def _move(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def _remove_leftovers(shards: Path) -> None:
    """Halves of files whose processes on this machine have ended."""
    for file in shards.glob(f".*.{socket.gethostname()}.*.part"):
        try:
            os.kill(int(file.name.split(".")[-2]), 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)
        except PermissionError:
            continue


def _complete(shards: Path) -> None:
    """Writes the index of a shard that was killed just before it."""
    for path in shards.glob("*.safetensors"):
        if not path.with_suffix(".json").exists():
            with safe_open(path, framework="pt") as file:
                _write_json(path.with_suffix(".json"), {"keys": json.loads(file.metadata()["keys"])})
