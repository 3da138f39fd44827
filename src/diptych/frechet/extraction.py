"""Features of a whole picture set, in chunks that are kept on disk as they are done.

A chunk is one file, named by its number in a folder named by everything that decides the features, so a killed
extraction goes on where it was, several processes share the work by the numbers, and a second score of the same
pictures computes nothing. Features are kept, not moments: below ``dim`` rows a chunk they are smaller, and intervals
need them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt64

from diptych.frechet.features import Features
from diptych.frechet.moments import Moments
from diptych.frechet.preprocessing import Outside, unit_images
from diptych.frechet.ratio import random_groups

CHUNK_SIZE = 512
"""Pictures in a file."""


@runtime_checkable
class AnyPicture(Protocol):
    """See ``diptych.data.pictures.Picture``."""

    @property
    def name(self) -> str: ...
    @property
    def pixels(self) -> Any: ...
    @property
    def format(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def fault(self) -> str: ...


@runtime_checkable
class AnyPictureSet(Protocol):
    """See ``diptych.data.pictures.PictureSet``."""

    @property
    def identity(self) -> str: ...
    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> Iterator[Any]: ...


@dataclass(frozen=True, kw_only=True)
class PixelRule:
    """How float pictures become values in [0, 1]; 8-bit ones need none."""

    value_range: tuple[float | int, float | int] | None = None
    outside: Outside = "refuse"
    quantize: bool = False


@dataclass(frozen=True)
class ExtractedSet:
    """All features of a set, with what is known about its pictures."""

    features: Float[np.ndarray, "num dim"]
    digests: UInt64[np.ndarray, " num"]
    """Of the pixels."""
    sizes: dict[tuple[int, int], int]
    """Pictures by (height, width)."""
    formats: dict[str, int]
    notes: dict[str, int]
    pixel_kinds: dict[str, int]
    """Pictures by ``uint8``, ``float``, ``float clamped`` or ``float quantized to 8 bits``."""
    faults: tuple[tuple[str, str], ...] = field(default=())
    """Name and fault of every picture that could not be read."""

    def grouped_moments(self, features: Features, num_groups: int) -> list[Moments]:
        """Moments of groups of rows that are drawn, so that no order of the pictures matters."""
        groups = []
        for rows in random_groups(len(self.features), num_groups):
            moments = features.new_moments()
            moments.update(torch.from_numpy(self.features[rows.numpy()]))
            groups.append(moments)
        return groups


def extraction_folder(cache: Path, pictures: AnyPictureSet, features: Features, rule: PixelRule) -> Path:
    """Where the chunks lie: a hash of network, preprocessing, pictures and pixel rule."""
    about = {
        "network": features.network_id,
        "preprocessing": features.fingerprint,
        "pictures": pictures.identity,
        "pixels": [rule.value_range, rule.outside, rule.quantize],
        "chunk_size": CHUNK_SIZE,
    }
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return cache / f"{features.name.replace('/', '-')}-{name}"


def missing_chunks(folder: Path, num_pictures: int) -> list[int]:
    """Numbers of the chunks that are not done."""
    return [number for number in range(-(-num_pictures // CHUNK_SIZE)) if not _chunk_file(folder, number).exists()]


def extract(
    pictures: AnyPictureSet,
    features: Features,
    folder: Path,
    *,
    rule: PixelRule | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    numbers: Sequence[int] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Computes the chunks that are missing.

    Args:
        numbers: only these chunks, where several processes share the work.
        progress: told the pictures that are done, those of earlier runs included, after every batch.

    Raises:
        ValueError: features that are not finite, or float pictures whose values the rule refuses; names the picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features = features.to(device)
    missing = missing_chunks(folder, len(pictures))
    done = len(pictures) - sum(_chunk_length(number, len(pictures)) for number in missing)
    for number in missing if numbers is None else sorted(set(missing) & set(numbers)):
        start = number * CHUNK_SIZE
        stop = start + _chunk_length(number, len(pictures))
        rows = _Rows(features, rule or PixelRule(), device)
        for picture in pictures.read(start, stop):
            rows.take(picture, batch_size)
            done += 1
            if done % batch_size == 0:
                progress(done)
        _write(_chunk_file(folder, number), rows.arrays(batch_size))
        progress(done)


def read_extracted(folder: Path, num_pictures: int) -> ExtractedSet:
    """What ``extract`` has written, once nothing is missing.

    Raises:
        ValueError: chunks are missing, or not a single picture could be read.
    """
    missing = missing_chunks(folder, num_pictures)
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} chunks (first {missing[0]}): extract them first.")
    chunks = []
    for number in range(-(-num_pictures // CHUNK_SIZE)):
        with np.load(_chunk_file(folder, number), allow_pickle=False) as file:
            chunks.append({name: file[name] for name in file.files})
    joined = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0] if name != "features"}
    faults = tuple(zip(joined["fault_names"].tolist(), joined["faults"].tolist(), strict=True))
    filled = [chunk["features"] for chunk in chunks if len(chunk["features"])]
    if not filled:
        name, fault = faults[0]
        raise ValueError(f"none of the {num_pictures} pictures can be read; the first is {name}: {fault}.")
    sizes = _counted([tuple(size) for size in joined["sizes"].tolist()])
    notes = [note for text in joined["notes"].tolist() for note in text.split(",") if note]
    return ExtractedSet(
        np.concatenate(filled),
        joined["digests"],
        sizes,
        _counted(joined["formats"].tolist()),
        _counted(notes),
        _counted(joined["pixel_kinds"].tolist()),
        faults,
    )


class _Rows:
    """One chunk in the making."""

    def __init__(self, features: Features, rule: PixelRule, device: torch.device | str) -> None:
        self._features = features
        self._rule = rule
        self._device = device
        self._waiting: list[tuple[str, torch.Tensor]] = []
        self._rows: list[torch.Tensor] = []
        self._lists: dict[str, list[Any]] = {
            name: [] for name in ("sizes", "formats", "notes", "digests", "pixel_kinds", "fault_names", "faults")
        }

    def take(self, picture: AnyPicture, batch_size: int) -> None:
        if picture.pixels is None:
            self._lists["fault_names"].append(picture.name)
            self._lists["faults"].append(picture.fault)
            return
        pixels = np.array(picture.pixels, order="C")  # a copy: arrays of images may be read-only
        try:
            unit, kind = unit_images(
                torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self._device),
                None if pixels.dtype == np.uint8 else self._rule.value_range,
                outside=self._rule.outside,
                quantize=self._rule.quantize,
            )
        except ValueError as error:
            raise ValueError(f"{picture.name}: {error}") from None
        self._waiting.append((picture.name, self._features.preprocessing.apply(unit)))
        digest = hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=8).digest()
        for name, value in (
            ("sizes", pixels.shape[:2]),
            ("formats", picture.format),
            ("notes", ",".join(picture.notes)),
            ("digests", int.from_bytes(digest, "little")),
            ("pixel_kinds", kind),
        ):
            self._lists[name].append(value)
        if len(self._waiting) == batch_size:
            self._flush()

    def arrays(self, batch_size: int) -> dict[str, np.ndarray]:
        self._flush()
        dim = self._features.dim
        rows = torch.cat(self._rows) if self._rows else torch.empty(0, dim)
        types: dict[str, Any] = {"sizes": np.int64, "digests": np.uint64}
        arrays = {name: np.array(values, dtype=types.get(name, "U")) for name, values in self._lists.items()}
        return arrays | {"features": rows.numpy(), "sizes": arrays["sizes"].reshape(-1, 2)}

    @torch.no_grad()
    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = self._features.from_prepared(torch.cat([inputs for _, inputs in self._waiting])).cpu()
        wrong = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
        if wrong:
            names = ", ".join(self._waiting[index][0] for index in wrong[:3])
            raise ValueError(
                f"{self._features.name} gives features that are not finite for {len(wrong)} pictures ({names}). "
                "Chunks before them are kept."
            )
        self._rows.append(rows)
        self._waiting = []


def _chunk_file(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06d}.npz"


def _chunk_length(number: int, num_pictures: int) -> int:
    return min(CHUNK_SIZE, num_pictures - number * CHUNK_SIZE)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _counted(values: list[Any]) -> dict[Any, int]:
    return {value: values.count(value) for value in sorted(set(values))}
