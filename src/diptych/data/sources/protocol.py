"""What every reader of data offers.

A reader is described by a frozen config dataclass (``WebDatasetSource``, ``FolderSource``) whose ``build()`` returns
a ``Source``. A config is what a recipe holds; a source is what a run reads.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from diptych.data.bad_record import BadRecord
from diptych.data.example import Example

__all__ = ["BadRecord", "NoUsableRecords", "ShardedSource", "Source", "SourceConfig"]


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
