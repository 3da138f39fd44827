"""Conversations with images: a JSON list or JSON Lines file, pictures by path.

Turns are ``{"from": "human" | "gpt", "value"}`` or ``{"role": "user" | "assistant", "content"}``; text marks the place
of a picture by ``<image>``, a list of contents by ``{"type": "image"}``. Paths stand in the record (``image`` or
``images``, one or a list) or in the content (``image``, ``path``, ``url`` or ``image_url.url``). Pictures of the
assistant are drawn.
"""

from collections.abc import Iterator, Mapping
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
    build_example,
    each_image_once,
    read_fields,
)
from diptych.data.sources.folder import read_image_file
from diptych.data.sources.json_lines import JsonLines
from diptych.data.sources.protocol import NoUsableRecords

CONVERSATION_COLUMNS = Columns(conversation=("conversations", "messages"), images=("images", "image"))


@dataclass(frozen=True, kw_only=True)
class ConversationSource:
    """Conversations with images by path."""

    path: str
    """The ``.json`` or ``.jsonl`` file."""
    image_folder: str = ""
    """What the image paths are relative to; empty: the folder of the file."""
    columns: Columns = USUAL_COLUMNS
    """Columns of a record; only ``conversation``, ``images`` and ``metadata`` are read."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Larger images count as broken."""

    def build(self) -> "ConversationReader":
        return ConversationReader(self)


class ConversationReader:
    """Random access to the conversations of a file.

    Raises:
        FileNotFoundError: no such file.
        NoUsableRecords: the file is empty.
    """

    def __init__(self, config: ConversationSource) -> None:
        self.config = config
        self.columns = config.columns.or_usual(CONVERSATION_COLUMNS)
        self._rule = ExampleRule(task="interleaved", max_pixels=config.max_pixels)
        path = Path(config.path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"ConversationSource.path must be a .json or .jsonl file, got {config.path!r}.")
        self._rows = JsonLines(path)
        self._folder = Path(config.image_folder).expanduser() if config.image_folder else path.parent
        if len(self) == 0:
            raise NoUsableRecords(f"no record in {config.path!r}.")

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int, epoch: int) -> Example:
        return build_example(self.fields(index), self._rule, epoch)

    def images(self) -> Iterator[DecodedImage]:
        """Every sound image once, for encoding them ahead."""
        return each_image_once((partial(self.fields, index) for index in range(len(self))), self._rule)

    def fields(self, index: int) -> Fields:
        """The raw columns of a record, with the bytes of its images."""
        name = self._rows.name(index)
        fields = read_fields(self._rows.row(index), self.columns, "interleaved", f"{index:08d}", name)
        turns = fields.values["conversation"]
        files = _files_in_content(turns) or fields.values["images"]
        images = [read_image_file(self._folder, file, name) for file in files]
        return Fields(fields.key, name, {"conversation": turns, "images": images}, fields.metadata)


def _files_in_content(turns: Any) -> list[Any]:
    """Paths of the images that are named inside the turns, in reading order."""
    files = []
    for turn in turns if isinstance(turns, list) else []:
        content = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        for item in content if isinstance(content, list) else []:
            if not isinstance(item, Mapping) or item.get("type") not in ("image", "image_url"):
                continue
            value = next((item[name] for name in ("image", "path", "url", "image_url") if name in item), None)
            value = value.get("url", value.get("path")) if isinstance(value, Mapping) else value
            if value is not None:
                files.append(value.removeprefix("file://") if isinstance(value, str) else value)
    return files
