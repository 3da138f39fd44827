"""What a person wants to know about a data set before training on it (``diptych data check``)."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.example import Pixels
from diptych.data.images import DEFAULT_MAX_PIXELS, decode_image, image_extension
from diptych.data.records import Fields, Task, check_image_bytes, conversation_parts, split_placeholders
from diptych.data.sources.detect import open_fields
from diptych.data.sources.protocol import BadRecord, NoUsableRecords

PERCENTILES = (0, 5, 50, 95, 100)
ASPECT_BOUNDS = (0.25, 0.5, 0.75, 0.95, 1.05, 1.33, 2.0, 4.0)
MAX_LISTED = 10


@dataclass(frozen=True)
class Duplicates:
    """Records that hold the same thing."""

    num_extra: int
    """How many could be left out."""
    groups: tuple[tuple[str, ...], ...]
    """The first groups, by the names of their records."""


@dataclass(frozen=True)
class Report:
    """Findings about a data set; ``to_text`` for people, ``to_dict`` for JSON."""

    path: str
    format: str
    task: str
    num_records: int
    num_checked: int
    num_usable: int
    bad: dict[str, list[str]]
    """Names of the broken records (with what is wrong) by reason."""
    num_images: int
    image_formats: dict[str, int]
    sizes: dict[str, int]
    """Images by "width x height", most frequent first."""
    widths: tuple[int, ...]
    """Percentiles 0, 5, 50, 95, 100."""
    heights: tuple[int, ...]
    aspect_ratios: dict[str, int]
    """Images by range of width / height."""
    kilobytes: tuple[float, ...]
    """Percentiles of the encoded size."""
    num_texts: int
    words: tuple[int, ...]
    """Percentiles of words per text."""
    characters: tuple[int, ...]
    scripts: dict[str, int]
    """Texts by the writing system of most of their letters."""
    same_image: Duplicates
    """Images with equal bytes."""
    similar_image: Duplicates
    """Images that look alike (equal difference hash) but have other bytes."""
    same_text: Duplicates
    """Records whose texts are all equal."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("same_image", "similar_image", "same_text"):
            found = values[name]
            values[name] = {"num_extra": found.num_extra, "groups": [list(group) for group in found.groups]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_text(self) -> str:
        share = f"{self.num_usable / self.num_checked:.2%}"
        lines = [
            f"{self.path}: {self.format}, read as {self.task}",
            f"records      {self.num_records}, checked {self.num_checked}, usable {self.num_usable} ({share})",
        ]
        for reason, names in sorted(self.bad.items(), key=lambda item: -len(item[1])):
            lines.append(f"  broken     {len(names)} {reason}")
            lines += [f"               {name}" for name in names[:MAX_LISTED]]
            lines += [f"               ... and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
        if self.num_images:
            lines += [
                f"images       {self.num_images}: {_shares(self.image_formats, self.num_images)}",
                f"  width      {_spread(self.widths)}",
                f"  height     {_spread(self.heights)}",
                f"  sizes      {_shares(self.sizes, self.num_images)}",
                f"  w/h        {_shares(self.aspect_ratios, self.num_images, limit=len(self.aspect_ratios))}",
                f"  kB         {_spread(self.kilobytes)}",
                f"  same       {_describe(self.same_image)}",
                f"  similar    {_describe(self.similar_image)}",
            ]
        if self.num_texts:
            lines += [
                f"texts        {self.num_texts}",
                f"  words      {_spread(self.words)}",
                f"  characters {_spread(self.characters)}",
                f"  scripts    {_shares(self.scripts, self.num_texts)}",
                f"  same       {_describe(self.same_text)}",
            ]
        return "\n".join(lines)


def check_path(
    path: str,
    task: Task | None = None,
    split: str = "train",
    limit: int = 0,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Report:
    """Reads the records at ``path`` and decodes their images.

    Args:
        path: anything that ``diptych.data.sources.detect`` knows.
        task: what a record means; ``None``: found out from the columns of the first records.
        split: of a data set that has splits.
        limit: check so many records, evenly spread; 0 checks all.

    Raises:
        FileNotFoundError: no such path.
        NoUsableRecords: there is no record, or every one is broken; the message counts the reasons.
    """
    format_name, found_task, reader = open_fields(path, task, split)
    num_checked = min(limit, len(reader)) if limit else len(reader)
    tally = _Tally(max_pixels)
    for number in range(num_checked):
        index = number * len(reader) // num_checked
        try:
            tally.add(reader.fields(index))
        except BadRecord as error:
            tally.bad.setdefault(error.reason, []).append(
                f"{error.name}: {error.detail}" if error.detail else error.name
            )
    if not tally.num_usable:
        reasons = ", ".join(f"{len(names)} {reason}" for reason, names in tally.bad.items())
        first = next(iter(tally.bad.values()))[0]
        raise NoUsableRecords(f"{path}: none of {num_checked} records can be used ({reasons}); the first: {first}.")
    return tally.report(path, format_name, found_task or "images only", len(reader), num_checked)


@dataclass
class _Groups:
    """Names by hash, in the order in which they came."""

    names: dict[bytes, list[str]] = field(default_factory=dict)

    def add(self, data: bytes, name: str) -> None:
        self.names.setdefault(hashlib.blake2b(data, digest_size=16).digest(), []).append(name)

    def duplicates(self) -> Duplicates:
        groups = [tuple(names) for names in self.names.values() if len(names) > 1]
        return Duplicates(sum(len(group) - 1 for group in groups), tuple(groups[:MAX_LISTED]))


class _Tally:
    """What is known after the records seen so far."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self.num_usable = 0
        self.bad: dict[str, list[str]] = {}
        self._formats: Counter[str] = Counter()
        self._sizes: list[tuple[int, int]] = []
        self._num_bytes: list[int] = []
        self._images = _Groups()
        self._looks: dict[int, dict[bytes, str]] = {}
        self._words: list[int] = []
        self._characters: list[int] = []
        self._scripts: Counter[str] = Counter()
        self._texts = _Groups()

    def add(self, fields: Fields) -> None:
        """Counts a record, or raises before anything of it is counted."""
        encoded = [
            (check_image_bytes(value, place.replace("_", " "), fields.name), place)
            for place in ("image", "target_image", "images")
            for value in _as_list(fields.values.get(place))
        ]
        decoded = [
            decode_image(data, f"{fields.name} {place.replace('_', ' ')}", self._max_pixels) for data, place in encoded
        ]
        texts = _texts_of(fields, decoded)
        for (data, place), pixels in zip(encoded, decoded, strict=True):
            self._add_image(data, pixels, fields.name if place == "image" else f"{fields.name} {place}")
        for text in texts:
            self._words.append(len(text.split()))
            self._characters.append(len(text))
            self._scripts[script_of(text)] += 1
        if texts:
            self._texts.add("\n".join(texts).encode(), fields.name)
        self.num_usable += 1

    def _add_image(self, data: bytes, pixels: Pixels, name: str) -> None:
        self._formats[image_extension(data)] += 1
        self._sizes.append((pixels.shape[1], pixels.shape[0]))
        self._num_bytes.append(len(data))
        self._images.add(data, name)
        look = difference_hash(pixels)
        if look is not None:
            self._looks.setdefault(look, {}).setdefault(hashlib.blake2b(data, digest_size=16).digest(), name)

    def report(self, path: str, format_name: str, task: str, num_records: int, num_checked: int) -> Report:
        widths, heights = [width for width, _ in self._sizes], [height for _, height in self._sizes]
        alike = [tuple(names.values()) for names in self._looks.values() if len(names) > 1]
        return Report(
            path=path,
            format=format_name,
            task=task,
            num_records=num_records,
            num_checked=num_checked,
            num_usable=self.num_usable,
            bad=self.bad,
            num_images=len(self._sizes),
            image_formats=dict(self._formats.most_common()),
            sizes=dict(Counter(f"{width}x{height}" for width, height in self._sizes).most_common()),
            widths=_percentiles(widths),
            heights=_percentiles(heights),
            aspect_ratios=_histogram([width / height for width, height in self._sizes]),
            kilobytes=tuple(round(size / 1000, 1) for size in _percentiles(self._num_bytes)),
            num_texts=len(self._words),
            words=_percentiles(self._words),
            characters=_percentiles(self._characters),
            scripts=dict(self._scripts.most_common()),
            same_image=self._images.duplicates(),
            similar_image=Duplicates(sum(len(group) - 1 for group in alike), tuple(alike[:MAX_LISTED])),
            same_text=self._texts.duplicates(),
        )


def difference_hash(pixels: Pixels) -> int | None:
    """64 bits: whether each of 8 x 8 places is brighter than its right neighbour, in a 9 x 8 miniature.

    ``None`` for a picture of one colour, which has nothing to compare.
    """
    small = Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BILINEAR)
    values = np.asarray(small, dtype=np.int16)
    if values.min() == values.max():
        return None
    return int.from_bytes(np.packbits(values[:, :-1] > values[:, 1:]).tobytes(), "big")


def script_of(text: str) -> str:
    """The writing system of most letters of a text ("latin", "cjk", "arabic"), "none" if it has no letters."""
    counts = Counter(_script(character) for character in text if character.isalpha())
    return counts.most_common(1)[0][0] if counts else "none"


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    return unicodedata.name(character, "unknown").split()[0].lower()


def _texts_of(fields: Fields, images: Sequence[Pixels]) -> list[str]:
    if "conversation" in fields.values:
        conversation_parts(fields.values["conversation"], images, fields.name)  # raises when it is not well formed
        return [text for turn in fields.values["conversation"] for text in _texts_of_turn(turn)]
    return [text for name in ("question", "text") for text in _as_list(fields.values.get(name))]


def _texts_of_turn(turn: Mapping[str, Any]) -> list[str]:
    content = turn.get("value", turn.get("content"))
    items = content if isinstance(content, list) else [content]
    texts = [item.get("text") if isinstance(item, Mapping) else item for item in items]
    return [piece for text in texts if isinstance(text, str) for piece in split_placeholders(text) if piece]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _percentiles(values: Sequence[int]) -> tuple[int, ...]:
    if not values:
        return ()
    return tuple(int(value) for value in np.percentile(values, PERCENTILES, method="nearest"))


def _histogram(ratios: Iterable[float]) -> dict[str, int]:
    between = [f"{low} - {high}" for low, high in pairwise(ASPECT_BOUNDS)]
    names = [f"< {ASPECT_BOUNDS[0]}", *between, f">= {ASPECT_BOUNDS[-1]}"]
    counts = Counter(names[int(np.searchsorted(ASPECT_BOUNDS, ratio, side="right"))] for ratio in ratios)
    return {name: counts[name] for name in names if counts[name]}


def _spread(values: Sequence[int | float]) -> str:
    labels = ("min", "5 %", "median", "95 %", "max")
    return "  ".join(f"{label} {value:g}" for label, value in zip(labels, values, strict=True))


def _shares(counts: dict[str, int], total: int, limit: int = 6) -> str:
    shown = [f"{name} {count} ({count / total:.1%})" for name, count in list(counts.items())[:limit]]
    return ", ".join(shown) + (f", {len(counts) - limit} other" if len(counts) > limit else "")


def _describe(found: Duplicates) -> str:
    if not found.num_extra:
        return "no duplicates"
    shown = "; ".join(" = ".join(group[:3]) + (" ..." if len(group) > 3 else "") for group in found.groups[:3])
    return f"{found.num_extra} duplicates, such as {shown}"
