"""The endless, shuffled, weighted sequence of examples that training reads, one global batch after the other.

What comes when is a function of the seed and of the number of examples drawn so far, and of nothing else:

- *Which source*: the one that is furthest behind its weight, so proportions hold over any stretch of the sequence.
- *Which record*: a source's records come in a keyed permutation, another one each epoch; each exactly once an epoch.
- *Which rank*: the examples of a global batch are shuffled and cut into one equal part per rank.

So the sequence of global batches does not depend on world size and workers, and a run resumes exactly, at any batch
and at another world size, from a few counters.

A broken record is left out: its batch is one example smaller and nothing takes its place, so all other examples stay
where they are on every rank without communication. Losses are normalised by the number of examples that are there. Two
rules keep ranks in step: a rank whose whole part is broken gets one good example of the same global batch with weight
0, and a global batch without any good example is left out by all ranks.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from diptych.data.example import Example
from diptych.data.shuffle import EpochOrder, KeyedPermutation, derive_key
from diptych.data.sources.protocol import BadRecord, NoUsableRecords, Source

logger = logging.getLogger(__name__)

STATE_VERSION = 1
HOPELESS_RUN = 50
"""A source whose first so many records are all broken is given up at once."""
MAX_LISTED = 20


class TooManyBadRecords(RuntimeError):
    """More records of a source are broken than the run allows."""


@dataclass(frozen=True)
class Draw:
    """One place of the sequence: a record of a source in an epoch."""

    source: str
    epoch: int
    index: int


@dataclass(frozen=True)
class _Plan:
    """A global batch before it is read: all its draws, of which this rank owns ``[start, stop)``."""

    draws: tuple[Draw, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class _ReadBatch:
    examples: list[Example]
    seen: Mapping[str, int]
    """Records of this rank's part by source, good and bad."""
    bad: list[tuple[str, BadRecord]]


class MixtureStream:
    """Iterates over this rank's part of each global batch, for ever.

    ``state_dict()`` between two batches describes the place exactly; it is the same on all ranks but for the tallies of
    broken records, which are this rank's own.

    Args:
        sources: by name; a name is part of the shuffling key, so renaming a source changes its order.
        weights: share of each source in the examples drawn, in any unit; sources without a weight are not read.
        seed: decides the order.
        batch_size: examples of a *global* batch, over all ranks.
        num_workers: processes that read ahead (0: read in this process). Does not change what is read.
        max_bad_fraction: of the records of a source, how many may be broken. 0 stops at the first.
        min_seen: records of a source that this rank must have seen before the fraction is judged; a smaller source is
            judged after its first epoch. A source whose first 50 records are all broken stops the run at once.
        prefetch_batches: batches that each worker reads ahead.

    Raises:
        ValueError: weights or sizes make no sense.
        NoUsableRecords: a source has no records.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float],
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        max_bad_fraction: float = 0.01,
        min_seen: int = 1000,
        prefetch_batches: int = 2,
        multiprocessing_context: str | None = None,
    ) -> None:
        _check_arguments(sources, weights, batch_size, rank, world_size, num_workers, max_bad_fraction)
        total = sum(weights.values())
        # Sorted, because ties between sources go to the first and a recipe's order of names must not matter.
        self.weights = {name: weights[name] / total for name in sorted(weights) if weights[name] > 0}
        self.sources = {name: sources[name] for name in self.weights}
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.max_bad_fraction = max_bad_fraction
        self.min_seen = min_seen
        self._prefetch_batches = prefetch_batches
        self._multiprocessing_context = multiprocessing_context
        self._sizes = {name: len(source) for name, source in self.sources.items()}
        for name, size in self._sizes.items():
            if size < 1:
                raise NoUsableRecords(f"data source {name!r} has no records: check its path and its pattern.")
        self._drawn = dict.fromkeys(self.sources, 0)
        self._seen: Counter[str] = Counter()
        self._bad: dict[str, Counter[str]] = {name: Counter() for name in self.sources}
        self._bad_names: dict[str, list[str]] = {name: [] for name in self.sources}
        self._epoch_order = lru_cache(maxsize=4 * len(self.sources))(self._make_epoch_order)

    def __iter__(self) -> Iterator[list[Example]]:
        plans = self._plans()
        for drawn, read in self._read_in_workers(plans) if self.num_workers else self._read_here(plans):
            self._drawn = drawn
            self._count(read)
            if read.examples:
                yield read.examples

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source has been read so far."""
        return {name: drawn / self._sizes[name] for name, drawn in self._drawn.items()}

    @property
    def num_seen(self) -> dict[str, int]:
        """Records this rank has read from each source, broken ones included."""
        return {name: self._seen[name] for name in self.sources}

    @property
    def num_bad(self) -> dict[str, dict[str, int]]:
        """Broken records this rank has met, by source and reason."""
        return {name: dict(counts) for name, counts in self._bad.items()}

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was handed out, JSON-able."""
        return {
            "version": STATE_VERSION,
            "seed": self.seed,
            "weights": dict(self.weights),
            "sizes": dict(self._sizes),
            "drawn": dict(self._drawn),
            "seen": dict(self._seen),
            "bad": self.num_bad,
            "bad_names": {name: list(names) for name, names in self._bad_names.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where ``state`` was taken; an iterator that is already running is not moved.

        World size, batch size and workers may differ from the run that saved the state.

        Raises:
            ValueError: the state is of another seed, other sources, sizes or weights, and would give another sequence.
        """
        if state["version"] != STATE_VERSION:
            raise ValueError(f"data state has version {state['version']}, this version reads {STATE_VERSION}.")
        for name, given in (("seed", self.seed), ("sizes", self._sizes), ("weights", self.weights)):
            if state[name] != given:
                raise ValueError(
                    f"data state was saved with {name} {state[name]}, but this stream has {given}: the sequence would "
                    "not continue. Resume with the data and mix of the saved run, or start a new run."
                )
        self._drawn = {name: int(state["drawn"][name]) for name in self.sources}
        self._seen = Counter(state["seen"])
        self._bad = {name: Counter(state["bad"][name]) for name in self.sources}
        self._bad_names = {name: list(state["bad_names"][name]) for name in self.sources}

    def draws(self) -> Iterator[list[Draw]]:
        """The global batches from here on as places, without reading anything."""
        for _, plan in self._plans():
            yield list(plan.draws)

    def _plans(self) -> Iterator[tuple[dict[str, int], _Plan]]:
        """Global batches and the counters after each."""
        drawn = dict(self._drawn)
        part = self.batch_size // self.world_size
        while True:
            num_before = sum(drawn.values())
            draws = []
            for _ in range(self.batch_size):
                name = self._most_behind(drawn)
                epoch, position = divmod(drawn[name], self._sizes[name])
                draws.append(Draw(name, epoch, self._epoch_order(name, epoch)(position)))
                drawn[name] += 1
            # Without this a periodic mixture could give one rank always the same source.
            place = KeyedPermutation(self.batch_size, derive_key(self.seed, "batch", num_before))
            shuffled = tuple(draws[place(number)] for number in range(self.batch_size))
            yield dict(drawn), _Plan(shuffled, self.rank * part, (self.rank + 1) * part)

    def _most_behind(self, drawn: Mapping[str, int]) -> str:
        num_next = sum(drawn.values()) + 1
        return max(self.weights, key=lambda name: self.weights[name] * num_next - drawn[name])

    def _make_epoch_order(self, name: str, epoch: int) -> EpochOrder:
        return EpochOrder(self.sources[name], derive_key(self.seed, "epoch", name, epoch))

    def _read_here(self, plans: Iterator[tuple[dict[str, int], _Plan]]) -> Iterator[tuple[dict[str, int], _ReadBatch]]:
        read = _BatchReader(self.sources)
        for drawn, plan in plans:
            yield drawn, read[plan]

    def _read_in_workers(
        self, plans: Iterator[tuple[dict[str, int], _Plan]]
    ) -> Iterator[tuple[dict[str, int], _ReadBatch]]:
        import torch
        from torch.utils.data import DataLoader

        counters: list[dict[str, int]] = []

        def requests() -> Iterator[_Plan]:
            for drawn, plan in plans:
                counters.append(drawn)
                yield plan

        loader: DataLoader[Any] = DataLoader(
            _BatchReader(self.sources),  # type: ignore[arg-type]
            batch_size=None,
            sampler=requests(),
            num_workers=self.num_workers,
            collate_fn=_identity,
            prefetch_factor=self._prefetch_batches,
            multiprocessing_context=self._multiprocessing_context,
            # A generator of its own, or the loader would advance torch's global one and change the run.
            generator=torch.Generator(),
        )
        for batch in loader:  # in the order of the requests
            yield counters.pop(0), batch

    def _count(self, read: _ReadBatch) -> None:
        self._seen.update(read.seen)
        for name, error in read.bad:
            logger.warning("data source %r: skipped %s", name, error)
            self._bad[name][error.reason] += 1
            if len(self._bad_names[name]) < MAX_LISTED:
                self._bad_names[name].append(str(error))
        for name in {name for name, _ in read.bad}:
            self._judge(name)

    def _judge(self, name: str) -> None:
        seen, bad = self._seen[name], sum(self._bad[name].values())
        hopeless = bad == seen and seen >= min(HOPELESS_RUN, self._sizes[name])
        enough = seen >= min(self.min_seen, -(-self._sizes[name] // self.world_size)) or self.max_bad_fraction == 0
        if not hopeless and not (enough and bad > self.max_bad_fraction * seen):
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._bad[name].most_common())
        listed = "\n  ".join(self._bad_names[name])
        verdict = (
            "has no usable record so far" if hopeless else f"has more than {self.max_bad_fraction:.2%} broken records"
        )
        raise TooManyBadRecords(
            f"data source {name!r} {verdict}: {bad} of the {seen} read are broken ({reasons}):\n  {listed}\n"
            + (f"  ... and {bad - MAX_LISTED} more\n" if bad > MAX_LISTED else "")
            + "Look at the data with `diptych data check PATH`, repair it, or allow a larger max_bad_fraction."
        )


def read_once(source: Source, rank: int = 0, world_size: int = 1, epoch: int = 0) -> Iterator[Example]:
    """Each usable record of a source once, in order: ``rank``, ``rank + world_size``, ... Broken ones are logged."""
    for index in range(rank, len(source), world_size):
        try:
            yield source.example(index, epoch)
        except BadRecord as error:
            logger.warning("skipped %s", error)


class _BatchReader:
    """Reads a planned batch; the part of the stream that runs in worker processes."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = dict(sources)

    def __getitem__(self, plan: _Plan) -> _ReadBatch:
        examples: list[Example] = []
        bad: list[tuple[str, BadRecord]] = []
        own = plan.draws[plan.start : plan.stop]
        for draw in own:
            try:
                examples.append(self._sources[draw.source].example(draw.index, draw.epoch))
            except BadRecord as error:
                bad.append((draw.source, error))
        if not examples:
            examples = self._weightless(plan.draws[: plan.start] + plan.draws[plan.stop :])
        return _ReadBatch(examples, Counter(draw.source for draw in own), bad)

    def _weightless(self, draws: Sequence[Draw]) -> list[Example]:
        for draw in draws:
            try:
                return [replace(self._sources[draw.source].example(draw.index, draw.epoch), weight=0.0)]
            except BadRecord:  # counted by the rank that owns it
                continue
        return []


def _identity(batch: Any) -> Any:
    return batch


def _check_arguments(
    sources: Mapping[str, Source],
    weights: Mapping[str, float],
    batch_size: int,
    rank: int,
    world_size: int,
    num_workers: int,
    max_bad_fraction: float,
) -> None:
    unknown = sorted(set(weights) - set(sources))
    if unknown:
        raise ValueError(f"the mix names data sources that do not exist: {unknown}; there are {sorted(sources)}.")
    if any(weight < 0 for weight in weights.values()) or sum(weights.values()) <= 0:
        raise ValueError(f"weights of the mix must be at least 0 and not all 0, got {dict(weights)}.")
    if batch_size < 1 or world_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size must be a positive multiple of the number of processes: got {batch_size} and {world_size}. "
            f"Use {max(1, batch_size // max(1, world_size)) * max(1, world_size)}."
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), got {rank}.")
    if num_workers < 0:
        raise ValueError(f"num_workers must be at least 0, got {num_workers}.")
    if not 0 <= max_bad_fraction <= 1:
        raise ValueError(f"max_bad_fraction must be in [0, 1], got {max_bad_fraction}.")
