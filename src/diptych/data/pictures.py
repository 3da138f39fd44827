"""The pictures of a data set without their texts, in a fixed order: what image statistics are made from.

A folder, tars, parquet or a Hugging Face data set, an ``.npz`` of images, or encoded images in an ``.npz``. What an
encoded file was before it became 8-bit RGB is kept, because statistics depend on it.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from diptych.data.images import FORMATS, decode_image
from diptych.data.sources.blob_npz import BlobNpz
from diptych.data.sources.folder import IMAGE_SUFFIXES
from diptych.data.sources.huggingface import HUGGINGFACE_COLUMNS, HuggingFaceSource, open_dataset, stored_image
from diptych.data.sources.protocol import BadRecord
from diptych.data.sources.shard_files import is_url
from diptych.data.sources.webdataset import IMAGE_EXTENSIONS, WebDatasetSource

HUB_PREFIX = "hf:"
_TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz")
_ARRAY_NAMES = ("arr_0", "images", "samples")
"""What an array of images is called in ``.npz`` files; arr_0 is ADM's and numpy's own."""

PictureArray: TypeAlias = UInt8[np.ndarray, "height width 3"] | Float[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Picture:
    """One picture, or why there is none."""

    name: str
    pixels: PictureArray | None
    format: str = "array"
    """``PNG``, ``JPEG`` and so on; ``array`` for pictures that were never encoded."""
    notes: tuple[str, ...] = ()
    """What was done to make it 8-bit RGB: ``16-bit``, ``CMYK``, ``animated``, ``transparent``."""
    fault: str = ""
    """Why there are no pixels."""


@runtime_checkable
class PictureSet(Protocol):
    """Pictures by position."""

    @property
    def identity(self) -> str:
        """A hash that changes if pictures or their order do."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[Picture]:
        """The pictures from ``start`` to ``stop``, broken ones included."""


class EncodedPictures:
    """Pictures behind a function from position to name and encoded bytes, which may raise ``BadRecord``."""

    def __init__(self, length: int, encoded: Callable[[int], tuple[str, bytes]], identity: str) -> None:
        self._length = length
        self._encoded = encoded
        self.identity = identity

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> Iterator[Picture]:
        for index in range(start, stop):
            try:
                name, data = self._encoded(index)
            except BadRecord as error:
                yield Picture(error.name, None, fault=error.reason)
                continue
            yield decode_picture(data, name)


class ArrayPictures:
    """An array ``num height width 3``, uint8 or float."""

    def __init__(self, images: np.ndarray, name: str, identity: str) -> None:
        self._images = images
        self._name = name
        self.identity = identity

    def __len__(self) -> int:
        return len(self._images)

    def read(self, start: int, stop: int) -> Iterator[Picture]:
        for index in range(start, stop):
            yield Picture(f"{self._name}[{index}]", np.ascontiguousarray(self._images[index]))


def decode_picture(data: bytes, name: str) -> Picture:
    """Encoded bytes as a picture; never raises for what is in them."""
    try:
        pixels = decode_image(data, name)
    except BadRecord as error:
        return Picture(name, None, fault=error.reason)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        facts = {
            # Pillow opens 16-bit colours as 8-bit ones; byte 24 of a PNG is its depth
            "16-bit": image.mode.startswith("I") or (image.format == "PNG" and data[24] == 16),
            "CMYK": image.mode == "CMYK",
            "animated": getattr(image, "n_frames", 1) > 1,
            "transparent": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
        }
        return Picture(name, pixels, str(image.format), tuple(note for note, holds in facts.items() if holds))


def open_pictures(path: str, split: str = "train") -> PictureSet:
    """The pictures at a path, or of the hub data set ``hf:OWNER/NAME``.

    Args:
        split: of a data set in the Hugging Face format.

    Raises:
        FileNotFoundError: no such path.
        ValueError: no picture there, or no known format.
    """
    local = Path(path).expanduser()
    if path.startswith(HUB_PREFIX):
        pictures: PictureSet = _dataset_pictures(path.removeprefix(HUB_PREFIX), split)
    elif is_url(path) or path.endswith(_TAR_SUFFIXES) or (local.is_dir() and any(local.glob("*.tar"))):
        pictures = _tar_pictures(path)
    elif not local.exists():
        raise FileNotFoundError(
            f"{path!r} does not exist: give a folder, a tar, a .parquet or .npz file, or {HUB_PREFIX}OWNER/NAME."
        )
    elif local.suffix == ".npz":
        pictures = _npz_pictures(local)
    elif local.suffix in (".parquet", ".arrow") or (local.is_dir() and _holds(local, (".parquet", ".arrow"))):
        pictures = _dataset_pictures(str(local), split)
    elif local.is_dir():
        pictures = _folder_pictures(local)
    else:
        raise ValueError(f"{path!r} is of no known format: give a folder, a tar, a .parquet or .npz file.")
    if len(pictures) == 0:
        raise ValueError(f"no picture in {path!r}.")
    return pictures


def _folder_pictures(folder: Path) -> EncodedPictures:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise ValueError(f"no picture in {str(folder)!r}: it holds no {', '.join(IMAGE_SUFFIXES)}.")
    names = [file.relative_to(folder).as_posix() for file in files]

    def encoded(index: int) -> tuple[str, bytes]:
        try:
            return names[index], files[index].read_bytes()
        except OSError as error:
            raise BadRecord("missing file", names[index], str(error)) from error

    return EncodedPictures(
        len(files), encoded, _hash([f"{name}\0{_stamp(f)}" for name, f in zip(names, files, strict=True)])
    )


def _tar_pictures(path: str) -> EncodedPictures:
    shards = WebDatasetSource(urls=(path,)).build()

    def encoded(index: int) -> tuple[str, bytes]:
        record = shards.record(index)
        found = [name for name in record if name.split(".")[-1].lower() in IMAGE_EXTENSIONS]
        if not found:
            raise BadRecord("missing image", record.name, f"it has {', '.join(record) or 'no file'}")
        return f"{record.name}.{found[0]}", record.read(found[0])

    stamps = [f"{name}\0{_stamp(Path(name))}" if Path(name).exists() else name for name in shards.shard_names]
    return EncodedPictures(len(shards), encoded, _hash([*stamps, str(len(shards))]))


def _dataset_pictures(path: str, split: str) -> EncodedPictures:
    try:
        dataset = open_dataset(HuggingFaceSource(path=path, split=split))
    except ValueError as error:
        raise ValueError(str(error) if path in str(error) else f"{path}: {error}") from None
    column = next((name for name in HUGGINGFACE_COLUMNS.image if name in dataset.column_names), None)
    if column is None:
        raise ValueError(
            f"{path!r} has no column of images: looked for {', '.join(HUGGINGFACE_COLUMNS.image)} among "
            f"{', '.join(dataset.column_names)}."
        )
    table = dataset.with_format("arrow")

    def encoded(index: int) -> tuple[str, bytes]:
        name = f"{path}[{split}]#{index}"
        value: Any = stored_image(table[index : index + 1].column(column)[0].as_py(), name)
        if not isinstance(value, bytes) or not value:
            raise BadRecord("missing image", name, "the image column holds no bytes")
        return name, value

    # the fingerprint of the library covers content and every step that was applied
    return EncodedPictures(len(dataset), encoded, _hash([dataset._fingerprint, split, column]))


def _npz_pictures(path: Path) -> PictureSet:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays)
            name = next((name for name in _ARRAY_NAMES if name in names), None)
            images = arrays[name] if name is not None else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a whole .npz file ({error}).") from None
    identity = _hash([f"{path.name}\0{_stamp(path)}"])
    if {"data", "offset"} <= set(names):
        blob = BlobNpz(path)
        return EncodedPictures(len(blob), lambda index: (f"{path.name}#{index}", blob.image(index)), identity)
    if images is None or images.ndim != 4 or images.shape[3] != 3 or images.dtype.kind not in "uf":
        raise ValueError(
            f"{path} must hold images as {' or '.join(_ARRAY_NAMES)} of shape (num, height, width, 3), uint8 or float, "
            f"or encoded ones as data and offset; it holds {', '.join(names) or 'nothing'}."
        )
    return ArrayPictures(images, path.name, identity)


def _holds(folder: Path, suffixes: Sequence[str]) -> bool:
    return any(next(folder.rglob(f"*{suffix}"), None) is not None for suffix in suffixes)


def _stamp(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size}\0{status.st_mtime_ns}"


def _hash(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
