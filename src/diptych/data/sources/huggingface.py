"""Data sets in the format of the ``datasets`` library: a hub id, or parquet and arrow files on this machine.

Columns are read as they are stored, so that images are decoded here and a broken one is a ``BadRecord`` instead of an
error in the middle of a batch.
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
from diptych.data.sources.protocol import BadRecord, NoUsableRecords

HUGGINGFACE_COLUMNS = Columns(
    image=("image", "jpg", "png", "webp", "source_image"),
    text=("text", "caption", "txt"),
    target_image=("target_image", "edited_image"),
    conversation=("conversations", "messages"),
    images=("images", "image"),
)


@dataclass(frozen=True, kw_only=True)
class HuggingFaceSource:
    """A data set of the hub, or parquet or arrow files."""

    path: str
    """Hub id, a parquet or arrow file, a folder of them, or a folder written by ``save_to_disk``."""
    split: str = "train"
    """Split of the data set; ``train[:1000]`` takes a part."""
    name: str = ""
    """Configuration of a hub data set; empty: its only one."""
    revision: str = "main"
    """Branch, tag or commit of a hub data set; give a commit for a run that can be repeated."""
    task: Task = "text_to_image"
    """What is made of a record."""
    columns: Columns = USUAL_COLUMNS
    """Names of the columns; usual are ``image``, ``text`` or ``caption``, ``target_image``, ``messages``,
    ``images``."""
    prompt: str = "Describe the image."
    """The user's text when ``image_to_text`` has no column for the question."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Larger images count as broken."""

    def __post_init__(self) -> None:
        check_task(self.task)

    def build(self) -> "HuggingFaceReader":
        return HuggingFaceReader(self, open_dataset(self))


class HuggingFaceReader:
    """Random access to the rows of a ``datasets.Dataset``."""

    def __init__(self, config: HuggingFaceSource, dataset: Any) -> None:
        self.config = config
        self.columns = config.columns.or_usual(HUGGINGFACE_COLUMNS)
        self._rule = ExampleRule(task=config.task, prompt=config.prompt, max_pixels=config.max_pixels)
        self._table_columns = tuple(dataset.column_names)
        self._dataset = dataset.with_format("arrow")
        if len(dataset) == 0:
            raise NoUsableRecords(f"no record in split {config.split!r} of {config.path!r}.")

    def __len__(self) -> int:
        return len(self._dataset)

    def example(self, index: int, epoch: int) -> Example:
        return build_example(self.fields(index), self._rule, epoch)

    def images(self) -> Iterator[DecodedImage]:
        """Every sound image once, for encoding them ahead."""
        return each_image_once((partial(self.fields, index) for index in range(len(self))), self._rule)

    def fields(self, index: int) -> Fields:
        """The raw columns of a row, images as encoded bytes."""
        name = f"{self.config.path}[{self.config.split}]#{index}"
        record = self._row(index, name)
        fields = read_fields(record, self.columns, self.config.task, f"{index:08d}", name)
        values = dict(fields.values)
        for column in ("image", "target_image"):
            if column in values:
                values[column] = stored_image(values[column], name)
        if "images" in values:
            values["images"] = [stored_image(value, name) for value in values["images"]]
        return Fields(fields.key, name, values, fields.metadata)

    def _row(self, index: int, name: str) -> dict[str, Any]:
        columns = self.columns
        names = [*columns.for_task(self.config.task).values(), columns.metadata]
        wanted = {column.split(".")[0] for group in names for column in group} & set(self._table_columns)
        table = self._dataset[index : index + 1]
        record = {}
        for column in self._table_columns:
            try:
                # Columns that the task does not need stay unread, but a message can name them.
                record[column] = table.column(column)[0].as_py() if column in wanted else None
            except UnicodeDecodeError as error:
                raise BadRecord("not UTF-8", name, f"column {column}: {error}") from error
        return record


def open_dataset(config: HuggingFaceSource) -> Any:
    """The ``datasets.Dataset`` that the configuration names.

    Raises:
        ImportError: the package is missing.
        FileNotFoundError: a local path that does not exist or holds no parquet or arrow file.
        ValueError: a parquet file that is cut off or none; a saved data set that has no such split.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("HuggingFaceSource needs the package datasets: pip install 'diptych[hf]'.") from error

    path = Path(config.path).expanduser()
    if not path.exists():
        if path.is_absolute() or path.suffix in (".parquet", ".arrow") or config.path.startswith((".", "~")):
            raise FileNotFoundError(f"HuggingFaceSource.path {config.path!r} does not exist.")
        return datasets.load_dataset(config.path, config.name or None, split=config.split, revision=config.revision)
    for file in [path] if path.suffix == ".parquet" else sorted(path.rglob("*.parquet")):
        _check_parquet(file)
    if path.suffix in (".parquet", ".arrow"):
        files = {config.split.split("[")[0]: [str(path)]}
        return datasets.load_dataset(path.suffix[1:], data_files=files, split=config.split)
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _load_saved(datasets.load_from_disk(str(path)), config)
    if any(next(path.rglob(f"*{suffix}"), None) for suffix in (".parquet", ".arrow")):
        return datasets.load_dataset(
            str(path), split=config.split
        )  # files are told apart by their names, as on the hub
    raise FileNotFoundError(f"HuggingFaceSource.path {config.path!r} holds no .parquet or .arrow file.")


def _check_parquet(path: Path) -> None:
    """Refuses a file without the marks that parquet begins and ends with, by name; the library's error has none."""
    with path.open("rb") as file:
        first = file.read(4)
        file.seek(max(0, path.stat().st_size - 4))
        last = file.read(4)
    if (first, last) != (b"PAR1", b"PAR1"):
        what = "is cut off" if first == b"PAR1" else "is no parquet file"
        raise ValueError(f"{path} {what}: parquet begins and ends with PAR1. Download or write it again.")


def _load_saved(saved: Any, config: HuggingFaceSource) -> Any:
    if hasattr(saved, "column_names") and not isinstance(saved, dict):
        return saved
    if config.split not in saved:
        raise ValueError(f"HuggingFaceSource.split must be one of {', '.join(saved)}, got {config.split!r}.")
    return saved[config.split]


def stored_image(value: Any, name: str) -> Any:
    """Bytes of a value of an image column: ``{"bytes", "path"}``, bytes, or a path; other values as they are."""
    if isinstance(value, dict) and value.get("bytes") is not None:
        return value["bytes"]
    path = value.get("path") if isinstance(value, dict) else value
    if isinstance(path, str):
        try:
            return Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise BadRecord("missing file", name, f"{path}: {error}") from error
    return value
