"""WebDataset shards: tars whose files ``KEY.jpg``, ``KEY.txt``, ``KEY.json`` are the columns of record ``KEY``.

Local tars are indexed once and read at random places, so the whole epoch is shuffled. Remote ones (``pipe:``, fsspec
URLs, compressed tars) are copied one after the other into a cache of limited size; their shards come in shuffled order
and their records are shuffled inside a window. Both resume at any record.
"""

import logging
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

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
    decode_json,
    each_image_once,
    read_fields,
)
from diptych.data.sources.protocol import BadRecord, NoUsableRecords
from diptych.data.sources.shard_files import expand_shards, is_local, open_copy
from diptych.data.sources.tar_index import Member, TarIndex, local_index, remote_index, scan_remote

logger = logging.getLogger(__name__)

ValueT = TypeVar("ValueT")

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
WEBDATASET_COLUMNS = Columns(
    image=(*IMAGE_EXTENSIONS, *(f"source.{extension}" for extension in IMAGE_EXTENSIONS)),
    text=("txt", "json.text", "json.caption"),
    target_image=tuple(f"target.{extension}" for extension in IMAGE_EXTENSIONS),
    conversation=("json.conversations", "json.messages"),
    images=("images",),
    metadata=("json",),
)
"""Extensions instead of column names. ``images`` are the files ``KEY.0.jpg``, ``KEY.1.jpg`` ... or else the one
image."""

_NUMBERED_IMAGE = re.compile(rf"(\d+)\.({'|'.join(IMAGE_EXTENSIONS)})")
_MAX_OPEN_SHARDS = 64
_MAX_INDEXES = 512


@dataclass(frozen=True, kw_only=True)
class WebDatasetSource:
    """Records in tar shards."""

    urls: tuple[str, ...]
    """Tar files, folders of them, globs, ``pipe:`` commands or fsspec URLs; ``{000..012}`` is expanded."""
    task: Task = "text_to_image"
    """What is made of a record."""
    columns: Columns = USUAL_COLUMNS
    """Extensions of the files that hold each part; ``json.caption`` is a field of the JSON file. Usual are ``jpg``,
    ``jpeg``, ``png``, ``webp``, with ``source.`` and ``target.`` before them for edits, ``txt``, ``json.text``,
    ``json.caption``."""
    prompt: str = "Describe the image."
    """The user's text when ``image_to_text`` has no column for the question."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Larger images count as broken."""
    cache_dir: str = "~/.cache/diptych"
    """Where indexes and copies of remote shards are kept."""
    cache_gigabytes: float = 50.0
    """Room for copies of remote shards; the ones unused for longest are deleted."""
    shuffle_window: int = 10_000
    """Remote shards only: so many consecutive records are shuffled together."""
    examples_per_shard: int = 0
    """Remote shards only: records of each shard, so that training can begin before all shards were read; 0 counts them
    by reading every shard once."""

    def __post_init__(self) -> None:
        if isinstance(self.urls, str) or not self.urls:
            raise ValueError(f"WebDatasetSource.urls must be a tuple with at least one pattern, got {self.urls!r}.")
        if self.shuffle_window < 1 or self.examples_per_shard < 0 or self.cache_gigabytes <= 0:
            raise ValueError(
                "WebDatasetSource needs shuffle_window >= 1, examples_per_shard >= 0 and cache_gigabytes > 0, got "
                f"{self.shuffle_window}, {self.examples_per_shard} and {self.cache_gigabytes}."
            )
        check_task(self.task)

    def build(self) -> "LocalShards | RemoteShards":
        shards = expand_shards(self.urls)
        reader: LocalShards | RemoteShards = (
            LocalShards(self, shards) if all(map(is_local, shards)) else RemoteShards(self, shards)
        )
        if len(reader) == 0:
            raise NoUsableRecords(f"no record in {len(shards)} shards of {', '.join(self.urls)}.")
        return reader


class LocalShards:
    """Random access to the records of tars on this machine."""

    def __init__(self, config: WebDatasetSource, shards: list[str]) -> None:
        self.config = config
        self.columns = config.columns.or_usual(WEBDATASET_COLUMNS)
        self._rule = ExampleRule(task=config.task, prompt=config.prompt, max_pixels=config.max_pixels)
        self._shards = shards
        self._cache_dir = Path(config.cache_dir).expanduser()
        self._files: _Recent[_Descriptor] = _Recent(_MAX_OPEN_SHARDS)
        self._indexes: _Recent[TarIndex] = _Recent(_MAX_INDEXES)
        self._starts = [0, *accumulate(self._count_records())]

    def __len__(self) -> int:
        return self._starts[-1]

    def example(self, index: int, epoch: int) -> Example:
        return build_example(self.fields(index), self._rule, epoch)

    def images(self) -> Iterator[DecodedImage]:
        """Every sound image once, for encoding them ahead."""
        return each_image_once((partial(self.fields, index) for index in range(len(self))), self._rule)

    def fields(self, index: int) -> Fields:
        """The raw columns of a record."""
        record = self.record(index)
        return read_fields(record, self.columns, self.config.task, record.name, record.name)

    def record(self, index: int) -> "TarRecord":
        """All files of a record, each read when it is asked for."""
        if not 0 <= index < len(self):
            raise IndexError(f"record must be in [0, {len(self)}), got {index}.")
        shard = bisect_right(self._starts, index) - 1
        number = index - self._starts[shard]
        tar_index = self._index_of(shard)
        shard_name = self._shard_name(shard)
        if number >= len(tar_index.key_ends):
            reason = "truncated shard" if tar_index.damage else "missing record"
            raise BadRecord(reason, f"{shard_name}#{number}", tar_index.damage or f"it has {tar_index.num_records}")
        key, members = tar_index.record(number)
        name = f"{shard_name}/{key}"
        if len({member.extension for member in members}) != len(members):
            raise BadRecord("duplicate file", name, ", ".join(member.extension for member in members))
        return TarRecord(key, name, members, self._file_of(shard))

    @property
    def shard_names(self) -> list[str]:
        """Paths or URLs of the shards, in the order of their records."""
        return list(self._shards)

    def _count_records(self) -> list[int]:
        return [self._index_of(shard).num_records for shard in range(len(self._shards))]

    def _shard_name(self, shard: int) -> str:
        return self._shards[shard].rsplit("/", 1)[-1]

    def _file_of(self, shard: int) -> "_Descriptor":
        return self._files.get(shard, lambda: _Descriptor(self._open(shard)))

    def _index_of(self, shard: int) -> TarIndex:
        return self._indexes.get(shard, lambda: self._make_index(shard))

    def _open(self, shard: int) -> int:
        return os.open(self._shards[shard], os.O_RDONLY)

    def _make_index(self, shard: int) -> TarIndex:
        return local_index(Path(self._shards[shard]), self._cache_dir)


class RemoteShards(LocalShards):
    """Shards that are copied to this machine when their turn comes; a ``ShardedSource``."""

    @property
    def shard_sizes(self) -> list[int]:
        return [after - before for before, after in zip(self._starts, self._starts[1:], strict=False)]

    @property
    def shuffle_window(self) -> int:
        return self.config.shuffle_window

    def _count_records(self) -> list[int]:
        if self.config.examples_per_shard:
            return [self.config.examples_per_shard] * len(self._shards)
        unknown = sum(remote_index(shard, self._cache_dir) is None for shard in self._shards)
        if unknown:
            logger.info("reading %d of %d shards once to count their records", unknown, len(self._shards))
        return super()._count_records()

    def _open(self, shard: int) -> int:
        return open_copy(self._shards[shard], self._cache_dir, int(self.config.cache_gigabytes * 1e9))

    def _make_index(self, shard: int) -> TarIndex:
        url, expected = self._shards[shard], self.config.examples_per_shard
        index = remote_index(url, self._cache_dir)
        if index is None:
            with os.fdopen(os.dup(self._file_of(shard).number), "rb") as file:
                index = scan_remote(url, file, self._cache_dir)
        if expected and index.num_records > expected:
            message = "shard %s has %d records, only the first %d are read: raise examples_per_shard."
            logger.warning(message, url, index.num_records, expected)
        return index


class TarRecord(Mapping[str, Any]):
    """Files of a record by extension; JSON comes parsed, everything else as bytes."""

    def __init__(self, key: str, name: str, members: list[Member], descriptor: "_Descriptor") -> None:
        self.key = key
        self.name = name
        self._members = {member.extension: member for member in members}
        self._descriptor = descriptor

    def __getitem__(self, extension: str) -> Any:
        if extension == "images" and extension not in self._members:
            return self._images()
        data = self.read(extension)
        return decode_json(data, f"{self.name}.{extension}") if extension == "json" else data

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, extension: object) -> bool:
        return extension in self._members or extension == "images"

    def read(self, extension: str) -> bytes:
        """The bytes of a file.

        Raises:
            BadRecord: "truncated shard": the tar ends before the file does.
        """
        member = self._members[extension]
        data = os.pread(self._descriptor.number, member.size, member.offset)
        if len(data) != member.size:
            detail = f"{len(data)} of {member.size} bytes"
            raise BadRecord("truncated shard", f"{self.name}.{extension}", detail)
        return data

    def _images(self) -> list[bytes]:
        numbered = sorted(
            (int(match.group(1)), extension)
            for extension in self._members
            if (match := _NUMBERED_IMAGE.fullmatch(extension))
        )
        names = [extension for _, extension in numbered]
        return [self.read(extension) for extension in names or [e for e in IMAGE_EXTENSIONS if e in self._members]]


class _Descriptor:
    """An open file that closes itself. ``os.pread`` on it has no position, so forked workers can share it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class _Recent(Generic[ValueT]):
    """The values of the last ``size`` shards asked for; a copy for another process starts empty."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[int, ValueT] = OrderedDict()

    def get(self, shard: int, make: Callable[[], ValueT]) -> ValueT:
        if shard not in self._values:
            self._values[shard] = make()
            if len(self._values) > self._size:
                self._values.popitem(last=False)
        self._values.move_to_end(shard)
        return self._values[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {"_size": self._size, "_values": OrderedDict()}
