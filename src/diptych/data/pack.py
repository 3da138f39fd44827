"""Writes data of any readable format as WebDataset shards, so that training reads it with ``WebDatasetSource``.

The same input gives the same bytes: times and owners are blank, files are sorted within a record. A pack appears as a
whole or not at all: shards are written to a folder beside the target that is renamed at the end.
"""

import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from diptych.data.images import decode_image, encode_lossless, image_extension
from diptych.data.records import Fields, Task, check_image_bytes, check_task
from diptych.data.sources.blob_npz import (
    EMOJI_STYLES,
    EmojiStyle,
    PackRecord,
    emoji_edit_records,
    emoji_records,
    eurosat_records,
    nlvr_records,
)
from diptych.data.sources.detect import FieldsReader, open_fields
from diptych.data.sources.protocol import BadRecord, NoUsableRecords
from diptych.data.sources.webdataset import IMAGE_EXTENSIONS

PackKind: TypeAlias = Literal["records", "emoji", "emoji_edit", "eurosat", "nlvr"]
PACK_KINDS: tuple[PackKind, ...] = ("records", "emoji", "emoji_edit", "eurosat", "nlvr")
MANIFEST = "pack.json"


@dataclass
class PackReport:
    """What was written."""

    out_dir: Path
    task: Task
    shards: dict[str, int] = field(default_factory=dict)
    """Records by shard."""
    num_bytes: int = 0
    bad: dict[str, list[str]] = field(default_factory=dict)
    """Names of the records that were left out, by reason."""

    @property
    def num_records(self) -> int:
        return sum(self.shards.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; also written as ``pack.json``. It does not say where the pack lies."""
        return {
            "task": self.task,
            "num_records": self.num_records,
            "num_bytes": self.num_bytes,
            "shards": self.shards,
            "bad": self.bad,
        }

    def to_text(self) -> str:
        lines = [
            f"{self.num_records} records of {self.task} in {len(self.shards)} shards "
            f"({self.num_bytes / 1e6:.1f} MB) in {self.out_dir}"
        ]
        for reason, names in sorted(self.bad.items()):
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"left out: {len(names)} {reason} ({shown})")
        return "\n".join(lines)


def pack(
    kind: PackKind,
    source_path: str | Path,
    out_dir: str | Path,
    split: str = "train",
    *,
    task: Task | None = None,
    styles: tuple[EmojiStyle, ...] = EMOJI_STYLES,
    caption: Literal["name", "keywords"] = "name",
    edit_kinds: tuple[str, ...] = (),
    num_orders: int = 6,
    max_records: int = 10_000,
    max_bytes: int = 1_000_000_000,
) -> PackReport:
    """Packs one split of a data set into ``out_dir``, which must be new or empty.

    Args:
        kind: ``records`` takes any format that ``detect_source`` knows; the others are the sets in image-npz files:
            emoji with captions, emoji edits, EuroSAT with a caption a class, NLVR sentences.
        split: which part; ``records`` needs it for Hugging Face data sets only.
        task: what a record means; ``None``: found out from its columns. Only for ``records``.
        styles: emoji styles that are packed.
        caption: emoji caption: name or keywords.
        edit_kinds: kinds of emoji edits; empty: all.
        num_orders: NLVR drawings of each example, of six.
        max_records: of a shard.
        max_bytes: of a shard.

    Raises:
        FileNotFoundError: the source does not exist.
        FileExistsError: ``out_dir`` is not empty.
        NoUsableRecords: nothing could be packed.
    """
    source, target = Path(source_path).expanduser(), Path(out_dir).expanduser()
    if kind not in PACK_KINDS:
        raise ValueError(f"kind must be one of {', '.join(PACK_KINDS)}, got {kind!r}.")
    if max_records < 1 or max_bytes < 1:
        raise ValueError(f"a shard needs room: max_records {max_records} and max_bytes {max_bytes} must be positive.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not empty: give a new folder, or delete the earlier pack first.")
    if kind == "records":
        _, found, reader = open_fields(str(source_path), task, split)
        if found is None:
            raise ValueError(f"{source_path} holds images without text: there is no task to pack them for.")
        check_task(found)
        report = PackReport(target, found)
        records = _records_of(reader, found, report)
    elif kind == "emoji":
        report = PackReport(target, "text_to_image")
        records = emoji_records(source, split, styles, caption)
    elif kind == "emoji_edit":
        report = PackReport(target, "image_edit")
        records = emoji_edit_records(source, split, edit_kinds)
    elif kind == "eurosat":
        report = PackReport(target, "text_to_image")
        records = eurosat_records(source, split)
    else:
        report = PackReport(target, "image_to_text")
        records = nlvr_records(source, split, num_orders)
    _write_pack(records, report, max_records, max_bytes)
    return report


def _write_pack(records: Iterable[PackRecord], report: PackReport, max_records: int, max_bytes: int) -> None:
    target = report.out_dir
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        for path, count in write_shards(records, temporary, max_records, max_bytes):
            report.shards[path.name] = count
            report.num_bytes += path.stat().st_size
        if not report.shards:
            reasons = ", ".join(f"{len(names)} {reason}" for reason, names in report.bad.items()) or "it is empty"
            raise NoUsableRecords(f"nothing to pack into {target}: no usable record in the source ({reasons}).")
        (temporary / MANIFEST).write_text(json.dumps(report.to_dict(), indent=1, sort_keys=True) + "\n")
        temporary.chmod(0o755)  # mkdtemp makes a private folder
        if target.exists():
            target.rmdir()
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_shards(
    records: Iterable[PackRecord], folder: Path, max_records: int = 10_000, max_bytes: int = 1_000_000_000
) -> Iterator[tuple[Path, int]]:
    """Writes ``shard-000000.tar`` and so on; yields each with its number of records when it is complete.

    Raises:
        ValueError: two neighbouring records have one key, or a key holds a dot; readers could not tell them apart.
    """
    rest = iter(records)
    pending = next(rest, None)
    number, last_key = 0, ""
    part = folder / "shard.part"
    while pending is not None:
        with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            count, size = 0, 0
            while pending is not None and (not count or (count < max_records and size + _size(pending) <= max_bytes)):
                if "." in pending.key or "/" in pending.key or not pending.key or pending.key == last_key:
                    raise ValueError(f"keys of records must be new and without dots and slashes, got {pending.key!r}.")
                _add_record(tar, pending)
                count, size, last_key = count + 1, size + _size(pending), pending.key
                pending = next(rest, None)
        path = folder / f"shard-{number:06d}.tar"
        os.replace(part, path)
        yield path, count
        number += 1


def _add_record(tar: tarfile.TarFile, record: PackRecord) -> None:
    for extension in sorted(record.files):
        info = tarfile.TarInfo(f"{record.key}.{extension}")  # its defaults are time 0 and no owner
        info.size = len(record.files[extension])
        tar.addfile(info, io.BytesIO(record.files[extension]))


def _size(record: PackRecord) -> int:
    return sum(len(data) for data in record.files.values())


def _records_of(reader: FieldsReader, task: Task, report: PackReport) -> Iterator[PackRecord]:
    for index in range(len(reader)):
        try:
            fields = reader.fields(index)
            yield PackRecord(f"{index:08d}", _files_of(fields, task))
        except BadRecord as error:
            report.bad.setdefault(error.reason, []).append(error.name)


def _files_of(fields: Fields, task: Task) -> dict[str, bytes]:
    """The record under the file names that ``WEBDATASET_COLUMNS`` looks for."""
    values = fields.values
    files: dict[str, bytes] = {}
    about: dict[str, Any] = dict(fields.metadata)
    prefixes = {"image": "source.", "target_image": "target."} if task == "image_edit" else {"image": ""}
    for column, prefix in prefixes.items():
        if column in values:
            data, extension = _packable(values[column], column.replace("_", " "), fields.name)
            files[prefix + extension] = data
    for number, image in enumerate(values.get("images", ())):
        data, extension = _packable(image, f"image {number}", fields.name)
        files[f"{number}.{extension}"] = data
    if "conversation" in values:
        about["conversations"] = values["conversation"]
    if isinstance(values.get("text"), str):
        files["txt"] = values["text"].encode()
    elif "text" in values:
        about["text"] = values["text"]
    if "question" in values:
        about["question"] = values["question"]
    if about:
        files["json"] = json.dumps(about, ensure_ascii=False, sort_keys=True, default=str).encode()
    return files


def _packable(value: Any, place: str, name: str) -> tuple[bytes, str]:
    """The bytes of a sound image and their extension; formats that shards do not use become PNG."""
    data = check_image_bytes(value, place, name)
    pixels = decode_image(data, f"{name} {place}")
    extension = image_extension(data)
    return (data, extension) if extension in IMAGE_EXTENSIONS else (encode_lossless(pixels), "png")
