"""Images packed in one ``.npz`` file: ``data`` holds all encoded images behind each other, ``offset`` their ends.

The record makers below turn such files and their ``.jsonl`` companions into records with the file names of a WebDataset
shard; they are what ``diptych data pack`` writes and ``diptych data check`` reads.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from diptych.data.images import image_extension

EmojiStyle: TypeAlias = Literal["noto", "fluent3d"]
EMOJI_STYLES: tuple[EmojiStyle, ...] = ("noto", "fluent3d")
STYLE_WORDS = {"noto": "flat emoji", "fluent3d": "3D emoji"}
NLVR_ORDERS = 6
"""Each NLVR example is drawn with its three boxes in all six orders; the label holds for all."""


@dataclass(frozen=True)
class PackRecord:
    """A record ready to be written: file contents by extension."""

    key: str
    """Part of a file name: no dots."""
    files: dict[str, bytes]


class BlobNpz:
    """The encoded images of a blob-npz file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no ``data`` and ``offset`` of that form.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            if "data" not in arrays or "offset" not in arrays:
                raise ValueError(f"{path} must hold the arrays data and offset, it has {', '.join(arrays) or 'none'}.")
            self._data = arrays["data"]
            self._offsets = arrays["offset"]
        if self._data.dtype != np.uint8 or len(self._offsets) < 1 or int(self._offsets[-1]) != len(self._data):
            raise ValueError(f"{path}: offset must end at the length of data, which must be uint8.")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def image(self, index: int) -> bytes:
        """The encoded bytes of an image."""
        return self._data[self._offsets[index] : self._offsets[index + 1]].tobytes()


def blob_records(path: Path) -> Iterator[PackRecord]:
    """Images without text."""
    blob = BlobNpz(path)
    for index in range(len(blob)):
        data = blob.image(index)
        yield PackRecord(f"{path.stem}-{index:06d}", {_extension(data): data})


def emoji_records(
    folder: Path, split: str, styles: Sequence[EmojiStyle] = EMOJI_STYLES, caption: Literal["name", "keywords"] = "name"
) -> Iterator[PackRecord]:
    """Emoji with their captions: image, ``txt`` and ``json`` (what is known about the emoji, and its style).

    With more than one style the caption ends in "flat emoji" or "3D emoji", or it would not say what to draw.

    Args:
        folder: with ``captions.jsonl`` and ``noto_128.npz``, ``fluent3d_128.npz``.
        split: "train", "val" or "test"; an emoji and its variants of gender and skin tone are in one split.
        caption: the short name, or the list of keywords.
    """
    rows = _read_rows(folder / "captions.jsonl", split)
    for style in styles:
        blob = BlobNpz(folder / f"{style}_128.npz")
        for row in rows:
            if row[style] is None:
                continue
            data = blob.image(row[style])
            text = row["name"] if caption == "name" else ", ".join(row["keywords"])
            if len(styles) > 1:
                text = f"{text}, {STYLE_WORDS[style]}"
            about = {name: value for name, value in row.items() if name not in EMOJI_STYLES} | {"style": style}
            yield PackRecord(f"{style}-{row['key']}", _files(data, txt=text, json=about))


def emoji_edit_records(folder: Path, split: str, kinds: Sequence[str] = ()) -> Iterator[PackRecord]:
    """Edits of emoji: ``source`` and ``target`` image, ``txt`` and ``json`` with the instruction.

    Args:
        folder: as for ``emoji_records``, with ``edit_pairs.jsonl``.
        split: of the source and, since both are of one family, of the target; a pair that crosses splits is an error.
        kinds: any of "skin_tone", "style", "gender"; empty: all.
    """
    split_of = {row["key"]: row["split"] for row in _read_rows(folder / "captions.jsonl")}
    row_of = {
        (style, row["key"]): row[style] for row in _read_rows(folder / "captions.jsonl") for style in EMOJI_STYLES
    }
    blobs = {style: BlobNpz(folder / f"{style}_128.npz") for style in EMOJI_STYLES}
    for number, pair in enumerate(_read_rows(folder / "edit_pairs.jsonl", split)):
        if kinds and pair["kind"] not in kinds:
            continue
        (source_style, source_key), (target_style, target_key) = pair["src"], pair["dst"]
        if {split_of[source_key], split_of[target_key]} != {split}:
            raise ValueError(f"{folder}: the pair {source_key} -> {target_key} crosses the splits.")
        source = blobs[source_style].image(row_of[source_style, source_key])
        target = blobs[target_style].image(row_of[target_style, target_key])
        files = _text_files(txt=pair["instruction"], json=pair)
        files[f"source.{_extension(source)}"] = source
        files[f"target.{_extension(target)}"] = target
        yield PackRecord(f"{number:06d}-{pair['kind']}-{source_style}-{source_key}", files)


def nlvr_records(folder: Path, split: str, num_orders: int = NLVR_ORDERS) -> Iterator[PackRecord]:
    """Sentences about images with the answer "true" or "false": image, ``txt`` (answer) and ``json`` (with the
    question).

    Args:
        folder: with ``nlvr.jsonl`` and ``nlvr.npz``.
        split: "train" or "test".
        num_orders: how many of the six drawings of each example are taken.
    """
    blob = BlobNpz(folder / "nlvr.npz")
    for number, row in enumerate(_read_rows(folder / "nlvr.jsonl", split)):
        answer = "true" if row["label"] else "false"
        about = {"question": row["sentence"], "answer": answer, "label": row["label"], "id": row["id"]}
        for order in range(num_orders):
            data = blob.image(row["image"] + order)
            yield PackRecord(f"{number:06d}-{order}", _files(data, txt=answer, json=about | {"order": order}))


def eurosat_records(folder: Path, split: str) -> Iterator[PackRecord]:
    """Satellite photographs of ten kinds of land: image, ``txt`` (one caption a class) and ``json`` (with the class).

    The classes come in turn, so that the first records of a pack are of all of them in equal numbers.

    Args:
        folder: with ``eurosat_rgb64.npz`` and ``classes.json``.
        split: "train" or "test".

    Raises:
        FileNotFoundError: no such files.
        ValueError: no such split.
    """
    blob = BlobNpz(folder / "eurosat_rgb64.npz")
    about = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    numbers = {name: int(number) for number, name in about["split"].items()}
    if split not in numbers:
        raise ValueError(f"{folder} has no split {split!r}: choose one of {', '.join(numbers)}.")
    with np.load(folder / "eurosat_rgb64.npz", allow_pickle=False) as arrays:
        labels, splits = arrays["label"], arrays["split"]
    of_class = [
        np.flatnonzero((labels == label) & (splits == numbers[split])) for label in range(len(about["classes"]))
    ]
    for place in range(max(map(len, of_class))):
        for label, rows in enumerate(of_class):
            if place < len(rows):
                name, row = about["classes"][label], int(rows[place])
                known = {"class": name, "label": label, "row": row, "split": split}
                files = _files(blob.image(row), txt=about["captions"][name], json=known)
                yield PackRecord(f"{place:05d}-{name}", files)


def _read_rows(path: Path, split: str = "") -> list[dict[str, Any]]:
    """Rows of a ``.jsonl`` companion, of one split if one is named.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no row of that split.
    """
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if not split:
        return rows
    of_split = [row for row in rows if row["split"] == split]
    if not of_split:
        known = sorted({row["split"] for row in rows})
        raise ValueError(f"{path.name} has no split {split!r}: choose one of {', '.join(known)}.")
    return of_split


def _files(image: bytes, **texts: Any) -> dict[str, bytes]:
    return {_extension(image): image, **_text_files(**texts)}


def _text_files(txt: str, json: Any) -> dict[str, bytes]:
    return {"txt": txt.encode(), "json": _dump_json(json)}


def _dump_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()


def _extension(data: bytes) -> str:
    """By content; a broken image keeps a name that readers look for, so that it is found to be broken."""
    try:
        return image_extension(data)
    except ValueError:
        return "jpg"
