"""What every reader of data offers, and how it reports a record that cannot be used.

A reader is described by a frozen config dataclass (``WebDatasetSource``, ``FolderSource``) whose ``build()`` returns
a ``Source``. A config is what a recipe holds; a source is what a run reads.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from diptych.data.example import Example


class BadRecord(Exception):
    """A record that cannot be used. Streams skip it, count it by ``reason`` and name it in the log.

    Attributes:
        reason: the kind of fault in a few fixed words ("truncated image", "not UTF-8"), the same for every record with
            that fault, so that faults can be counted.
        name: where the record is ("shard-000003.tar/000012.jpg"), so that a person can find it.
        detail: what exactly is wrong, free text.
    """

    def __init__(self, reason: str, name: str, detail: str = "") -> None:
        super().__init__(reason, name, detail)
        self.reason = reason
        self.name = name
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class NoUsableRecords(ValueError):
    """A data set without a single record that can be used."""


@runtime_checkable
class Source(Protocol):
    """Random access to the examples of one data set.

    Picklable and cheap to construct, because worker processes get a copy: files are opened on first use. The same
    (index, epoch) always gives the same example.
    """

    def __len__(self) -> int:
        """Number of records of an epoch, broken ones included."""
        ...

    def example(self, index: int, epoch: int) -> Example:
        """The example at ``index`` in [0, len).

        Args:
            epoch: how often the whole source was read before, from 0. Sources of stored records may ignore it or use it
                to alternate between several captions; procedural sources may draw new scenes in every epoch.

        Raises:
            BadRecord: the record is broken.
        """
        ...


@runtime_checkable
class ShardedSource(Source, Protocol):
    """A source whose records lie in shards that are costly to open, such as files on a remote store.

    A stream then shuffles the order of the shards and the records inside windows of ``shuffle_window`` consecutive
    records, so that only a few shards are in use at a time. Records are numbered shard by shard.
    """

    @property
    def shard_sizes(self) -> Sequence[int]:
        """Records of each shard; they sum to ``len``."""
        ...

    @property
    def shuffle_window(self) -> int:
        """Number of consecutive records that are shuffled together, at least 1."""
        ...


@runtime_checkable
class SourceConfig(Protocol):
    """Configuration of a reader: a frozen dataclass, JSON-able."""

    def build(self) -> Source:
        """Opens the source.

        Raises:
            FileNotFoundError: the path does not exist.
            NoUsableRecords: there is no record at the path.
        """
        ...
