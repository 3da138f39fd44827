"""Which reader fits a path, for the tools that look at data of any format. Training says it in its recipe instead."""

from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from diptych.data.records import Columns, Fields, Task, read_fields
from diptych.data.sources.blob_npz import PackRecord, blob_records, emoji_records, nlvr_records
from diptych.data.sources.conversation import ConversationSource
from diptych.data.sources.folder import FOLDER_COLUMNS, IMAGE_SUFFIXES, METADATA_FILE, FolderSource
from diptych.data.sources.huggingface import HUGGINGFACE_COLUMNS, HuggingFaceSource, open_dataset
from diptych.data.sources.json_lines import JsonLines
from diptych.data.sources.protocol import BadRecord, NoUsableRecords
from diptych.data.sources.shard_files import is_url
from diptych.data.sources.webdataset import WEBDATASET_COLUMNS, WebDatasetSource

AnySource: TypeAlias = WebDatasetSource | HuggingFaceSource | FolderSource | ConversationSource

_TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz")
_LOOKED_AT = 20
"""Records that are looked at to find out the task."""


@runtime_checkable
class FieldsReader(Protocol):
    """What the tools need of a reader."""

    def __len__(self) -> int: ...

    def fields(self, index: int) -> Fields: ...


class PackedFields:
    """Records that are made in memory, as a reader."""

    def __init__(self, records: list[PackRecord], task: Task) -> None:
        if not records:
            raise NoUsableRecords("no record.")
        self._records = records
        self._task: Task = task

    def __len__(self) -> int:
        return len(self._records)

    def fields(self, index: int) -> Fields:
        record = self._records[index]
        if "txt" not in record.files:
            return Fields(record.key, record.key, {"image": next(iter(record.files.values()))})
        return read_fields(record.files, WEBDATASET_COLUMNS, self._task, record.key, record.key)


def detect_source(path: str, task: Task | None = None, split: str = "train") -> AnySource:
    """The configuration of the reader that fits ``path``.

    Args:
        task: ``None``: found out from the columns of the first records.
        split: of a data set in the Hugging Face format.

    Raises:
        FileNotFoundError: no such path.
        ValueError: no known format.
    """
    local = Path(path).expanduser()
    if is_url(path) or path.endswith(_TAR_SUFFIXES) or (local.is_dir() and any(local.glob("*.tar"))):
        return _webdataset(path, task)
    if not local.exists():
        raise FileNotFoundError(
            f"{path!r} does not exist: give a tar, a folder, a .json, .jsonl, .parquet or .npz file."
        )
    if local.name == METADATA_FILE:
        return _folder(local.parent, task)
    if local.suffix in (".json", ".jsonl"):
        return ConversationSource(path=str(local))
    if local.suffix in (".parquet", ".arrow") or (local.is_dir() and _has_tables(local)):
        return _huggingface(str(local), task, split)
    if local.is_dir():
        return _folder(local, task)
    raise ValueError(
        f"{path!r} is of no known format: give a tar (or a folder or glob of tars), a folder of images, a conversation "
        ".json or .jsonl, a .parquet or .arrow file, or an image .npz."
    )


def open_fields(path: str, task: Task | None = None, split: str = "train") -> tuple[str, Task | None, FieldsReader]:
    """A reader of the raw records at ``path``: name of the format, task, reader.

    Beside the formats of ``detect_source`` it knows ``.npz`` files of images and the folders of the emoji and NLVR
    sets.

    Raises:
        FileNotFoundError: no such path.
        ValueError: no known format.
    """
    local = Path(path).expanduser()
    if local.suffix == ".npz" and local.exists():
        return "image npz", None, PackedFields(list(blob_records(local)), "text_to_image")
    if (local / "captions.jsonl").exists() and (local / "noto_128.npz").exists():
        return "emoji set", "text_to_image", PackedFields(list(emoji_records(local, split)), "text_to_image")
    if (local / "nlvr.jsonl").exists():
        return "NLVR set", "image_to_text", PackedFields(list(nlvr_records(local, split)), "image_to_text")
    config = detect_source(path, task, split)
    found: Task = "interleaved" if isinstance(config, ConversationSource) else config.task
    return type(config).__name__, found, config.build()


def _webdataset(path: str, task: Task | None) -> WebDatasetSource:
    if task is not None:
        return WebDatasetSource(urls=(path,), task=task)
    reader = WebDatasetSource(urls=(path,)).build()
    for index in range(min(_LOOKED_AT, len(reader))):
        try:
            record = reader.record(index)
            # JSON stays unread unless it is all there is to say what the record means.
            names = set(record)
            about = record["json"] if "json" in names else {}
        except BadRecord:
            continue
        about = about if isinstance(about, dict) else {}
        if "conversations" in about or "messages" in about:
            return WebDatasetSource(urls=(path,), task="interleaved")
        if any(name.startswith("target.") for name in names):
            return WebDatasetSource(urls=(path,), task="image_edit")
        if "question" in about:
            return WebDatasetSource(urls=(path,), task="image_to_text", columns=Columns(question=("json.question",)))
        if names & set(WEBDATASET_COLUMNS.image):
            return WebDatasetSource(urls=(path,), task="text_to_image")
    return WebDatasetSource(urls=(path,), task="text_to_image")


def _huggingface(path: str, task: Task | None, split: str) -> HuggingFaceSource:
    if task is None:
        task = _task_of_columns(
            open_dataset(HuggingFaceSource(path=path, split=split)).column_names, HUGGINGFACE_COLUMNS
        )
    return HuggingFaceSource(path=path, split=split, task=task)


def _folder(folder: Path, task: Task | None) -> FolderSource:
    if task is None and (folder / METADATA_FILE).exists():
        rows = JsonLines(folder / METADATA_FILE)
        for index in range(min(_LOOKED_AT, len(rows))):
            try:
                names = list(rows.row(index))
            except BadRecord:
                continue
            return FolderSource(path=str(folder), task=_task_of_columns(names, FOLDER_COLUMNS))
    if not (folder / METADATA_FILE).exists() and not any(
        file.suffix.lower() in IMAGE_SUFFIXES for file in folder.rglob("*")
    ):
        raise ValueError(f"{str(folder)!r} holds no tar, no parquet or arrow file, no {METADATA_FILE} and no images.")
    return FolderSource(path=str(folder), task=task or "text_to_image")


def _task_of_columns(names: list[str], columns: Columns) -> Task:
    if set(names) & set(columns.conversation):
        return "interleaved"
    return "image_edit" if set(names) & set(columns.target_image) else "text_to_image"


def _has_tables(folder: Path) -> bool:
    return any(next(folder.rglob(f"*{suffix}"), None) is not None for suffix in (".parquet", ".arrow"))
