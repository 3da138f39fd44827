"""The folder of an evaluation: what was asked, a row for every sample, and the files, addressed by their content.

``run.json`` says what was asked, ``manifest.jsonl`` has a row for each sample that was made, ``failures.jsonl`` one for
each that was not, ``files/`` the pictures under the SHA-256 of their bytes, ``verdicts/`` what judges said of each.

A row is added only when its file is whole, and rows are only ever added, so a process may be killed at any moment: what
has a row is done, what has none is made again. Several processes may write.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.example import ImageIn, ImageOut, Part, Pixels, load_pixels
from diptych.evals.protocol import Earlier, Failure, Kind, Output, Request

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One sample that was made, and everything that led to it."""

    key: str
    task: str
    id: str
    kind: Kind
    parts: Sequence[Sequence[Any]]
    """The request in order: ``["text", role, text, is thought]``, ``["image", role, shape, SHA-256 of its pixels]`` or
    ``["earlier", id]``."""
    seed: int
    settings: Mapping[str, Any]
    contender: str
    fingerprint: str
    """Hash over the contender's identity, which ``run.json`` has in full."""
    rewriter: str
    inputs: Sequence[str]
    """Content of the earlier outputs that this one was made from, in the order of the request's parts."""
    sha256: str
    """Of the file's bytes, the text in UTF-8, or the numbers as JSON."""
    size: Sequence[int] | None = None
    """(height, width) of a picture."""
    text: str | None = None
    log_likelihoods: Sequence[float] | None = None
    seconds: float
    """Share of this sample in the time of its batch."""
    time: str
    """When it was made, UTC, ISO 8601."""


def sample_key(
    task: str, request: Request, settings: Mapping[str, Any], identity: Mapping[str, Any], earlier: Mapping[str, str]
) -> str:
    """32 hexadecimal digits over all that changes an output: request, seed, settings, model, and what it builds on.

    Args:
        settings: complete, as the contender resolved them.
        earlier: keys of the requests of the task that stand before this one, by id.
    """
    asked = {
        "task": task,
        "id": request.id,
        "kind": request.kind,
        "parts": [_described(part, earlier) for part in request.parts],
        "seed": request.seed,
        "choices": list(request.choices),
        "rewriter": request.rewriter,
        "settings": dict(settings),
        "identity": dict(identity),
    }
    return content_hash(asked)[:32]


def request_parts(request: Request) -> list[list[Any]]:
    """The parts of a request as a row tells them."""
    ids = {part.id: part.id for part in request.parts if isinstance(part, Earlier)}
    return [_described(part, ids) for part in request.parts]


def content_hash(value: Any) -> str:
    """SHA-256 of a JSON-able value; the order of keys has no influence."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _described(part: Part | Earlier, earlier: Mapping[str, str]) -> list[Any]:
    if isinstance(part, Earlier):
        return ["earlier", earlier[part.id]]
    if isinstance(part, ImageIn | ImageOut):
        assert part.image is not None
        pixels = load_pixels(part.image)
        return ["image", part.role, list(pixels.shape), hashlib.sha256(pixels.tobytes()).hexdigest()]
    return ["text", part.role, part.text, part.is_thought]


class EvaluationFolder:
    """Reads and writes one folder.

    Args:
        path: made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.jsonl"

    @property
    def failures(self) -> Path:
        return self.path / "failures.jsonl"

    def file(self, sha256: str) -> Path:
        """Where the picture of that content lies."""
        return self.path / "files" / sha256[:2] / f"{sha256}.png"

    # -- run.json --------------------------------------------------------------------------------------------------

    def write_run(self, content: Mapping[str, Any]) -> None:
        """Says what was asked; whole or not at all. What was asked before is replaced, its samples stay."""
        text = json.dumps({"format_version": FORMAT_VERSION, **content}, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.path / "run.json", text.encode())

    def read_run(self) -> dict[str, Any]:
        """
        Raises:
            FileNotFoundError: the folder holds no evaluation.
            ValueError: ``run.json`` is damaged or of a newer format.
        """
        file = self.path / "run.json"
        if not file.exists():
            raise FileNotFoundError(
                f"{self.path} holds no evaluation: run.json is missing. `diptych evaluate` writes it."
            )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            version = content["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is damaged ({error}). Evaluate again; samples that are there are kept.") from None
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{file} has format version {version}; this diptych reads up to {FORMAT_VERSION}. Update it."
            )
        lacking = [name for name in ("contender", "tasks", "about", "skipped") if name not in content]
        if lacking:
            raise ValueError(f"{file} is damaged (it lacks {', '.join(lacking)}). Evaluate again; samples are kept.")
        return dict(content)

    # -- samples ---------------------------------------------------------------------------------------------------

    def rows(self) -> dict[str, SampleRow]:
        """Every row by its key; of a sample that was made again, the last."""
        found = {}
        known = {field.name for field in fields(SampleRow)}
        for record in read_lines(self.manifest):
            try:
                row = SampleRow(**{name: value for name, value in record.items() if name in known})
            except TypeError:  # it lacks a field: as good as no row
                continue
            found[row.key] = row
        return found

    def add(self, rows: Sequence[SampleRow]) -> None:
        """Adds rows; all of them reach the disk before it returns."""
        append_lines(self.manifest, [asdict(row) for row in rows])

    def add_failures(self, records: Sequence[Mapping[str, Any]]) -> None:
        append_lines(self.failures, records)

    def reasons(self) -> dict[str, str]:
        """By key, why a sample could last not be made."""
        return {record["key"]: record["reason"] for record in read_lines(self.failures)}

    def store_picture(self, pixels: Pixels) -> str:
        """Writes a PNG, unless it is there; its address."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        content = buffer.getvalue()
        address = hashlib.sha256(content).hexdigest()
        file = self.file(address)
        if not file.exists() or file.stat().st_size != len(content):
            write_whole(file, content)
        return address

    def output(self, row: SampleRow) -> Output:
        """What a row speaks of; a ``Failure`` where its file is gone, damaged or of another size."""
        if row.text is not None:
            return row.text
        if row.log_likelihoods is not None:
            return tuple(float(value) for value in row.log_likelihoods)
        return self._picture(row)

    def _picture(self, row: SampleRow) -> Output:
        file = self.file(row.sha256)
        try:
            content = file.read_bytes()
        except OSError as error:
            return Failure(f"its file is gone: {file.relative_to(self.path)} ({(error.strerror or '').lower()})")
        try:
            with Image.open(io.BytesIO(content)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return Failure(f"its file cannot be read as a picture: {file.relative_to(self.path)} ({error})")
        if list(pixels.shape[:2]) != list(row.size or ()):
            return Failure(f"its file is {_times(pixels.shape[:2])} pixels, {_times(row.size or ())} were drawn")
        if hashlib.sha256(content).hexdigest() != row.sha256:
            return Failure(f"its file was changed after it was drawn: {file.relative_to(self.path)}")
        return pixels

    def is_whole(self, row: SampleRow) -> bool:
        """Whether the output of a row is still there, byte for byte."""
        if row.size is None:
            return True
        try:
            return hashlib.sha256(self.file(row.sha256).read_bytes()).hexdigest() == row.sha256
        except OSError:
            return False


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def append_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Adds JSON lines at once, under a lock; the half line of a process that was killed is closed first."""
    if not records:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    with path.open("a+b") as file:
        _lock(file.fileno())
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                content = b"\n" + content
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of JSON lines; the half line of a process that was killed is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _lock(descriptor: int) -> None:
    """Waits until no other process writes; released when the file is closed, also by a kill."""
    try:
        import fcntl
    except ImportError:  # no such lock on this system: appending alone must do
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
