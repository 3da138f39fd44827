"""From the columns of a record to the parts of an Example.

Readers of all formats deliver a record as a mapping of column names to raw values (encoded image bytes, text). Which
columns mean what is said by the source's ``task`` and ``columns``; this file turns them into parts and says what is
wrong with a record in the same words for all formats.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from diptych.data.bad_record import BadRecord
from diptych.data.example import Example, ImageIn, ImageOut, Part, Role, Text
from diptych.data.images import DEFAULT_MAX_PIXELS, DecodedImage, content_key, decode_keyed

Task: TypeAlias = Literal["text_to_image", "image_to_text", "image_edit", "interleaved", "text"]
"""``text_to_image``: text, then the image that is learnt. ``image_to_text``: image and question (or the fixed
captioning prompt), then the text that is learnt. ``image_edit``: image and instruction, then the target image.
``interleaved``: a conversation with images. ``text``: question (if a column is named) and text that is learnt."""

TASKS: tuple[Task, ...] = ("text_to_image", "image_to_text", "image_edit", "interleaved", "text")

ROLE_NAMES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of a record. Of several names the first that a record has is taken.

    A dot reaches into a structure: ``json.caption`` is the field ``caption`` of the file with extension ``json``.
    Empty: the names that are usual in the format.
    """

    image: tuple[str, ...] = ()
    """The picture; the source picture of an edit."""
    text: tuple[str, ...] = ()
    """Caption, answer or edit instruction. A list of texts is used in turn, one an epoch."""
    question: tuple[str, ...] = ()
    """What is asked about the image; empty: the captioning prompt is used."""
    target_image: tuple[str, ...] = ()
    """The result of an edit."""
    conversation: tuple[str, ...] = ()
    """Turns of a conversation, each with ``from`` and ``value`` or with ``role`` and ``content``."""
    images: tuple[str, ...] = ()
    """Pictures of a conversation in the order of their placeholders: one or a list."""
    metadata: tuple[str, ...] = ()
    """Columns that go to the example's metadata, for scorers; all that a record has, not only the first."""

    def or_usual(self, usual: "Columns") -> "Columns":
        """These columns, with ``usual`` where nothing was said."""
        return Columns(**{item.name: getattr(self, item.name) or getattr(usual, item.name) for item in fields(self)})

    def for_task(self, task: Task) -> dict[str, tuple[str, ...]]:
        """The columns that the task reads, by field name."""
        names = {
            "text_to_image": ("text", "image"),
            "image_to_text": ("image", "question", "text"),
            "image_edit": ("image", "text", "target_image"),
            "interleaved": ("conversation", "images"),
            "text": ("question", "text"),
        }[task]
        return {name: getattr(self, name) for name in names if name != "question" or self.question}


USUAL_COLUMNS = Columns()
"""Nothing said: every format looks for its usual names."""


@dataclass(frozen=True)
class Fields:
    """The raw values of one record under the names of ``Columns``: images as encoded bytes, texts as ``str``."""

    key: str
    """Unique within the source."""
    name: str
    """Where the record is, for messages."""
    values: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExampleRule:
    """How fields become an Example; the part of a source's configuration that is the same for all formats."""

    task: Task
    prompt: str = "Describe the image."
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        check_task(self.task)


def check_task(task: str) -> None:
    """Refuses a task that does not exist.

    Raises:
        ValueError: with the tasks there are.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")


def find_column(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of ``names`` that the record has and that is not null, else ``None``."""
    for name in names:
        if name in record:
            value = record[name]
        else:
            value = record
            for step in name.split("."):
                value = value.get(step) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def read_fields(record: Mapping[str, Any], columns: Columns, task: Task, key: str, name: str) -> Fields:
    """Picks the columns of the task out of a record and checks that the texts are text.

    Image values stay what the reader put there (bytes).

    Raises:
        BadRecord: "missing text" (or another field), "wrong type", "not UTF-8", "empty text".
    """
    values: dict[str, Any] = {}
    for field_name, names in columns.for_task(task).items():
        value = find_column(record, names)
        if value is None:
            if field_name == "images":
                values["images"] = []
                continue
            raise BadRecord(f"missing {field_name.replace('_', ' ')}", name, _describe_columns(record, names))
        if field_name in ("text", "question"):
            value = _check_texts(value, field_name, name)
        elif field_name == "images":
            value = list(value) if isinstance(value, list | tuple) else [value]
        values[field_name] = value
    return Fields(key=key, name=name, values=values, metadata=_read_metadata(record, columns.metadata, name))


def build_example(fields: Fields, rule: ExampleRule, epoch: int = 0) -> Example:
    """Decodes the images and puts the parts in the order of the task.

    Raises:
        BadRecord: an image is broken or the conversation is not well formed.
    """
    values, name = fields.values, fields.name

    def image(value: Any, place: str) -> DecodedImage:
        return decode_keyed(check_image_bytes(value, place, name), f"{name} {place}", rule.max_pixels)

    parts: list[Part]
    if rule.task == "interleaved":
        parts = conversation_parts(
            values["conversation"],
            [image(value, f"image {number}") for number, value in enumerate(values["images"])],
            name,
        )
        return Example(tuple(parts), key=fields.key, metadata=fields.metadata)
    text = pick_text(values["text"], epoch)
    if rule.task == "text_to_image":
        parts = [Text(text), ImageOut(image(values["image"], "image"))]
    elif rule.task == "image_to_text":
        question = pick_text(values.get("question", rule.prompt), epoch)
        parts = [ImageIn(image(values["image"], "image")), Text(question), Text(text, "assistant", is_target=True)]
    elif rule.task == "image_edit":
        target = ImageOut(image(values["target_image"], "target image"))
        parts = [ImageIn(image(values["image"], "image")), Text(text), target]
    else:
        parts = [Text(pick_text(values["question"], epoch))] if "question" in values else []
        parts.append(Text(text, "assistant", is_target=True))
    return Example(tuple(parts), key=fields.key, metadata=fields.metadata)


def each_image_once(records: Iterable[Callable[[], Fields]], rule: ExampleRule) -> Iterator[DecodedImage]:
    """The images of records, equal ones once, without decoding an image twice; broken ones are left out.

    For encoding a whole data set ahead of training. The stream counts and names what is broken.
    """
    met: set[str] = set()
    for read in records:
        with suppress(BadRecord):
            fields = read()
            singles = [fields.values[place] for place in ("image", "target_image") if place in fields.values]
            for value in singles + list(fields.values.get("images", ())):
                data = check_image_bytes(value, "image", fields.name)
                if (key := content_key(data)) not in met:
                    met.add(key)
                    yield decode_keyed(data, fields.name, rule.max_pixels)


def pick_text(value: str | list[str], epoch: int) -> str:
    """One of several texts of a record, another one every epoch."""
    return value if isinstance(value, str) else value[epoch % len(value)]


def check_image_bytes(value: Any, place: str, name: str) -> bytes:
    """The encoded bytes of an image value: bytes, or the ``{"bytes": ...}`` of a ``datasets`` image column.

    Raises:
        BadRecord: "wrong type" or "missing image".
    """
    if isinstance(value, Mapping) and "bytes" in value:
        value = value["bytes"]
        if value is None:
            raise BadRecord(f"missing {place}", name, "the image column holds no bytes")
    if not isinstance(value, bytes | bytearray | memoryview):
        raise BadRecord("wrong type", name, f"{place} must be encoded bytes, got {type(value).__name__}")
    return bytes(value)


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 text without a byte order mark.

    Raises:
        BadRecord: "not UTF-8".
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord("not UTF-8", name, f"byte {error.start} is {data[error.start : error.start + 1]!r}") from error


def check_unicode(text: str, name: str) -> None:
    """Refuses text that JSON escapes can smuggle in but UTF-8, and so every tokenizer, cannot express.

    Raises:
        BadRecord: "not UTF-8".
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord("not UTF-8", name, f"character {error.start} is half of a surrogate pair") from error


def decode_json(data: bytes, name: str) -> Any:
    """A JSON value.

    Raises:
        BadRecord: "not UTF-8" or "broken JSON".
    """
    try:
        return json.loads(decode_text(data, name))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRecord("broken JSON", name, str(error)) from error


def conversation_parts(turns: Any, images: Sequence[Any], name: str) -> list[Part]:
    """Turns of a conversation as parts; assistant texts and assistant images are targets.

    Args:
        turns: a list of ``{"from", "value"}`` or ``{"role", "content"}``. Text may hold ``<image>`` placeholders;
            content may be a list of ``{"type": "text", "text"}`` and ``{"type": "image"}``.
        images: in the order of the placeholders.

    Raises:
        BadRecord: "wrong type", "unknown role", "image placeholder mismatch", "nothing to learn".
    """
    if not isinstance(turns, list) or not turns:
        raise BadRecord("wrong type", name, f"a conversation must be a list of turns, got {type(turns).__name__}")
    rest = list(images)
    parts: list[Part] = []
    num_placeholders = 0
    for turn in turns:
        role, pieces = _read_turn(turn, name)
        for piece in pieces:
            if piece is not None:
                check_unicode(piece, name)
                parts.append(Text(piece, role, is_target=role == "assistant"))
                continue
            num_placeholders += 1
            if rest:
                picture = rest.pop(0)
                parts.append(ImageOut(picture, role) if role == "assistant" else ImageIn(picture, role))
    if num_placeholders != len(images):
        raise BadRecord("image placeholder mismatch", name, f"{num_placeholders} placeholders, {len(images)} images")
    if not any(part.is_target for part in parts):
        raise BadRecord("nothing to learn", name, "no turn of the assistant holds text or an image")
    return parts


def _read_turn(turn: Any, name: str) -> tuple[Role, list[str | None]]:
    """Role and pieces of a turn; ``None`` stands for an image."""
    if not isinstance(turn, Mapping):
        raise BadRecord("wrong type", name, f"a turn must be an object, got {type(turn).__name__}")
    speaker = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    if not isinstance(speaker, str) or speaker.lower() not in ROLE_NAMES:
        raise BadRecord("unknown role", name, f"expected one of {', '.join(ROLE_NAMES)}, got {speaker!r}")
    if isinstance(content, str):
        return ROLE_NAMES[speaker.lower()], split_placeholders(content)
    if not isinstance(content, list):
        raise BadRecord("wrong type", name, f"a turn's content must be text or a list, got {type(content).__name__}")
    pieces: list[str | None] = []
    for item in content:
        if isinstance(item, str):
            pieces += split_placeholders(item)
        elif isinstance(item, Mapping) and isinstance(item.get("text"), str):
            pieces += split_placeholders(item["text"])
        elif isinstance(item, Mapping) and item.get("type") in ("image", "image_url"):
            pieces.append(None)
        else:
            raise BadRecord("wrong type", name, f"content must hold text or images, got {str(item)[:80]!r}")
    return ROLE_NAMES[speaker.lower()], pieces


def split_placeholders(text: str) -> list[str | None]:
    """Text pieces with ``None`` for each ``<image>``; the line breaks around a placeholder belong to it."""
    pieces: list[str | None] = []
    runs = text.split(IMAGE_PLACEHOLDER)
    for number, run in enumerate(runs):
        if number:
            pieces.append(None)
            run = run.lstrip("\n")
        if number < len(runs) - 1:
            run = run.rstrip("\n")
        if run:
            pieces.append(run)
    return pieces


def _read_metadata(record: Mapping[str, Any], names: Sequence[str], name: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for column in names:
        value = find_column(record, (column,))
        if isinstance(value, Mapping):
            metadata.update(value)
        elif value is not None:
            metadata[column] = decode_text(value, name) if isinstance(value, bytes) else value
    return metadata


def _check_texts(value: Any, field_name: str, name: str) -> str | list[str]:
    texts = value if isinstance(value, list) else [value]
    checked = []
    for text in texts:
        if isinstance(text, bytes):
            text = decode_text(text, name)
        if not isinstance(text, str):
            raise BadRecord("wrong type", name, f"{field_name} must be text, got {type(text).__name__}")
        check_unicode(text, name)
        if not text.strip():
            raise BadRecord(f"empty {field_name}", name)
        checked.append(text.strip())
    if not checked:
        raise BadRecord(f"empty {field_name}", name, "an empty list")
    return checked if isinstance(value, list) else checked[0]


def _describe_columns(record: Mapping[str, Any], names: Sequence[str]) -> str:
    return f"looked for {' or '.join(names) or 'no column'}, the record has {', '.join(map(str, record)) or 'nothing'}"
