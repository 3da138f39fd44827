"""A folder of images, with a ``.txt`` file beside each image or one ``metadata.jsonl`` for all.

Rows of ``metadata.jsonl`` name their image in ``file_name`` (and the result of an edit in ``target_file_name``),
relative to the folder; the other columns are texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diptych.data.example import Example
from diptych.data.images import DEFAULT_MAX_PIXELS, DecodedImage
from diptych.data.records import (
    USUAL_COLUMNS,
    Columns,
    ExampleRule,
    Fields,
    Task,
    build_example,
    check_task,
    each_image_once,
    read_fields,
)
from diptych.data.sources.json_lines import JsonLines
from diptych.data.sources.protocol import BadRecord, NoUsableRecords

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
METADATA_FILE = "metadata.jsonl"
FOLDER_COLUMNS = Columns(
    image=("file_name",),
    text=("text", "caption"),
    target_image=("target_file_name",),
    conversation=("conversations", "messages"),
    images=("file_names", "file_name"),
)


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Images in a folder."""

    path: str
    """The folder; its subfolders are read too."""
    task: Task = "text_to_image"
    """What is made of a record."""
    columns: Columns = USUAL_COLUMNS
    """Columns of ``metadata.jsonl``; usual are ``file_name``, ``text``, ``target_file_name``. Without that file there
    are the first two."""
    prompt: str = "Describe the image."
    """The user's text when ``image_to_text`` has no column for the question."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Larger images count as broken."""

    def __post_init__(self) -> None:
        check_task(self.task)

    def build(self) -> "FolderReader":
        return FolderReader(self)


class FolderReader:
    """Random access to the images of a folder.

    Raises:
        FileNotFoundError: no such folder.
        NoUsableRecords: there is neither an image nor a row of metadata in it.
    """

    def __init__(self, config: FolderSource) -> None:
        self.config = config
        self.columns = config.columns.or_usual(FOLDER_COLUMNS)
        self._rule = ExampleRule(task=config.task, prompt=config.prompt, max_pixels=config.max_pixels)
        self._folder = Path(config.path).expanduser()
        if not self._folder.is_dir():
            raise FileNotFoundError(f"FolderSource.path must be a folder, got {config.path!r}.")
        metadata = self._folder / METADATA_FILE
        self._metadata = JsonLines(metadata) if metadata.exists() else None
        self._files: list[str] = [] if self._metadata else _list_images(self._folder)
        if len(self) == 0:
            raise NoUsableRecords(
                f"no record in {config.path!r}: it needs images ({', '.join(IMAGE_SUFFIXES)}) or a {METADATA_FILE}."
            )

    def __len__(self) -> int:
        return len(self._files) if self._metadata is None else len(self._metadata)

    def example(self, index: int, epoch: int) -> Example:
        return build_example(self.fields(index), self._rule, epoch)

    def images(self) -> Iterator[DecodedImage]:
        """Every sound image once, for encoding them ahead."""
        return each_image_once((partial(self.fields, index) for index in range(len(self))), self._rule)

    def fields(self, index: int) -> Fields:
        """The raw columns of a record."""
        record, key, name = self._row(index)
        fields = read_fields(record, self.columns, self.config.task, key, name)
        values = dict(fields.values)
        for column in ("image", "target_image"):
            if column in values:
                values[column] = read_image_file(self._folder, values[column], name)
        if "images" in values:
            values["images"] = [read_image_file(self._folder, file, name) for file in values["images"]]
        return Fields(key, name, values, fields.metadata)

    def _row(self, index: int) -> tuple[dict[str, Any], str, str]:
        if self._metadata is not None:
            return self._metadata.row(index), f"{index:08d}", self._metadata.name(index)
        file = self._files[index]
        record: dict[str, Any] = {"file_name": file}
        sidecar = (self._folder / file).with_suffix(".txt")
        if sidecar.exists():
            record["text"] = sidecar.read_bytes()
        return record, file, file


def read_image_file(folder: Path, file: Any, name: str) -> bytes:
    """The bytes of an image named by a record, relative to ``folder``.

    Raises:
        BadRecord: "wrong type" or "missing file".
    """
    if not isinstance(file, str) or not file:
        raise BadRecord("wrong type", name, f"an image must be named by its path, got {str(file)[:80]!r}")
    try:
        return (folder / file).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise BadRecord("missing file", name, f"{file}: {error}") from error


def _list_images(folder: Path) -> list[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(file.as_posix() for file in files if not file.name.startswith("."))
