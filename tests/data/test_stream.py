"""The shuffled, resumable stream: nothing lost, nothing twice, the same for any number of processes."""

import json
import logging
import random
from collections import Counter
from dataclasses import dataclass
from itertools import islice

import pytest
import torch

from diptych.data.example import Example, Text
from diptych.data.shuffle import EpochOrder, KeyedPermutation, derive_key
from diptych.data.sources.protocol import BadRecord, NoUsableRecords, ShardedSource, Source
from diptych.data.stream import MixtureStream, TooManyBadRecords, read_once

PINNED = [631362475, 786721036, 994573655, 13391488]


@dataclass(frozen=True)
class Numbers:
    """A source whose examples say which record and epoch they are."""

    name: str
    size: int
    bad: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return self.size

    def example(self, index: int, epoch: int) -> Example:
        if index in self.bad:
            raise BadRecord("broken on purpose", f"{self.name}/{index}", "a test")
        return Example((Text(f"{self.name} {index} {epoch}"),), key=f"{self.name}/{index}")


@dataclass(frozen=True)
class ShardedNumbers(Numbers):
    sizes: tuple[int, ...] = ()
    window: int = 8

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        return self.sizes

    @property
    def shuffle_window(self) -> int:
        return self.window


def texts(batch: list[Example]) -> list[str]:
    return [example.parts[0].text for example in batch]


def take(stream: MixtureStream, num_batches: int) -> list[list[str]]:
    return [texts(batch) for batch in islice(iter(stream), num_batches)]


def two_sources(**bad: frozenset[int]) -> dict[str, Source]:
    return {
        "a": Numbers("a", 37, bad.get("a", frozenset())),
        "b": Numbers("b", 11, bad.get("b", frozenset())),
    }


def make_stream(sources: dict[str, Source] | None = None, **changes: object) -> MixtureStream:
    arguments: dict[str, object] = {"weights": {"a": 2.0, "b": 1.0}, "seed": 5, "batch_size": 6} | changes
    return MixtureStream(sources or two_sources(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1025])
def test_keyed_permutation_is_a_bijection(size):
    for key in range(5):
        permutation = KeyedPermutation(size, derive_key("test", key))
        assert sorted(permutation(position) for position in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [3, 7])
def test_keyed_permutation_sends_every_element_everywhere_equally_often(size):
    num_keys = 600
    counts = torch.zeros(size, size)
    for key in range(num_keys):
        permutation = KeyedPermutation(size, derive_key("uniform", key))
        for position in range(size):
            counts[position, permutation(position)] += 1
    expected = num_keys / size
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    freedom = (size - 1) ** 2
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5  # five standard errors of a chi-squared variable


def test_keyed_permutation_is_the_same_for_ever():
    """Resuming a run after an update must not change its order: these numbers may never change."""
    permutation = KeyedPermutation(1_000_000_007, derive_key(0, "epoch", "scenes", 0))
    assert [permutation(position) for position in range(4)] == PINNED
    with pytest.raises(IndexError, match=r"\[0, 1000000007\), got 1000000007"):
        permutation(1_000_000_007)


def test_neighbours_do_not_stay_neighbours():
    permutation = KeyedPermutation(2500, derive_key("distance"))
    order = torch.tensor([permutation(position) for position in range(2500)], dtype=torch.float64)
    steps = (order[1:] - order[:-1]).abs()
    # |x - y| of two independent uniform numbers has mean 1/3 and standard deviation 1/sqrt(18)
    assert abs(steps.mean().item() / 2500 - 1 / 3) < 5 / (18 * 2500) ** 0.5
    assert abs(torch.corrcoef(torch.stack([order[1:], order[:-1]]))[0, 1].item()) < 5 / 50


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (3, 0), (6, 0)])
def test_each_record_comes_exactly_once_an_epoch_over_all_ranks(world_size, num_workers):
    sources = {"a": Numbers("a", 36)}
    seen: Counter[str] = Counter()
    for rank in range(world_size):
        stream = make_stream(sources, weights={"a": 1.0}, rank=rank, world_size=world_size, num_workers=num_workers)
        for batch in take(stream, 12):  # 12 batches of 6 are two epochs of 36
            assert len(batch) == 6 // world_size
            seen.update(batch)
    assert seen == Counter(f"a {index} {epoch}" for epoch in (0, 1) for index in range(36))


def test_epochs_have_different_orders_and_seeds_too():
    sources = {"a": Numbers("a", 36)}
    first = [name.split()[1] for batch in take(make_stream(sources, weights={"a": 1.0}), 6) for name in batch]
    both = [name.split()[1] for batch in take(make_stream(sources, weights={"a": 1.0}), 12) for name in batch]
    other = [name.split()[1] for batch in take(make_stream(sources, weights={"a": 1.0}, seed=6), 6) for name in batch]
    assert first == both[:36] != both[36:]
    assert other != first and sorted(other) == sorted(first)


def test_global_batches_do_not_depend_on_the_number_of_processes():
    expected = take(make_stream(), 20)
    for world_size in (2, 3, 6):
        parts = [take(make_stream(rank=rank, world_size=world_size), 20) for rank in range(world_size)]
        joined = [[name for part in step for name in part] for step in zip(*parts, strict=True)]
        assert joined == expected


def test_mixture_keeps_its_proportions_everywhere():
    sources = {name: Numbers(name, 10_000) for name in ("a", "b", "c")}
    weights = {"a": 0.7, "b": 0.25, "c": 0.05}
    counts: Counter[str] = Counter()
    stream = make_stream(sources, weights=weights, batch_size=10)
    for number, batch in enumerate(islice(stream.draws(), 300), 1):
        counts.update(draw.source for draw in batch)
        for name, weight in weights.items():
            assert abs(counts[name] - weight * 10 * number) <= 2
    assert counts["c"] == pytest.approx(150, abs=2)


def test_a_periodic_mixture_gives_each_rank_all_sources():
    sources = {name: Numbers(name, 10_000) for name in ("a", "b")}
    stream = make_stream(sources, weights={"a": 1.0, "b": 1.0}, batch_size=2, rank=0, world_size=2)
    kinds = Counter(name.split()[0] for batch in take(stream, 400) for name in batch)
    assert abs(kinds["a"] - 200) < 5 * 10  # standard error sqrt(400 / 4)


@pytest.mark.parametrize("bad", [frozenset(), frozenset({3, 20})])
def test_resume_anywhere_equals_the_uninterrupted_run(bad):
    rng = random.Random(0)
    arguments = {"max_bad_fraction": 0.5}
    sources = two_sources(a=bad)
    whole = take(make_stream(sources, **arguments), 20)
    for stop in [0, 1, *rng.sample(range(2, 19), 4)]:
        stream = make_stream(sources, **arguments)
        assert take(stream, stop) == whole[:stop]
        state = json.loads(json.dumps(stream.state_dict()))
        for world_size in (1, 2, 3):
            parts = []
            for rank in range(world_size):
                resumed = make_stream(sources, rank=rank, world_size=world_size, **arguments)
                resumed.load_state_dict(state)
                parts.append(take(resumed, 20 - stop))
            assert [[name for part in step for name in part] for step in zip(*parts, strict=True)] == whole[stop:]


def test_resume_with_another_batch_size_loses_and_repeats_nothing():
    sources = {"a": Numbers("a", 36)}
    stream = make_stream(sources, weights={"a": 1.0}, batch_size=6)
    first = take(stream, 2)
    resumed = make_stream(sources, weights={"a": 1.0}, batch_size=8)
    resumed.load_state_dict(stream.state_dict())
    rest = take(resumed, 3)
    assert sorted(name for batch in first + rest for name in batch) == sorted(f"a {index} 0" for index in range(36))


def test_state_counts_what_was_handed_out_not_what_was_read_ahead():
    stream = make_stream()
    iterator = iter(stream)
    for _ in range(3):
        next(iterator)
    assert sum(stream.state_dict()["drawn"].values()) == 18
    assert stream.epochs == {"a": 12 / 37, "b": 6 / 11}


@pytest.mark.process
def test_workers_change_nothing():
    sources = two_sources(a=frozenset({3, 20}))
    expected_stream = make_stream(sources, max_bad_fraction=0.5)
    expected = take(expected_stream, 14)
    torch.manual_seed(7)
    state_before = torch.get_rng_state()
    for num_workers in (1, 2):
        stream = make_stream(sources, num_workers=num_workers, max_bad_fraction=0.5)
        assert take(stream, 14) == expected
        assert stream.state_dict() == expected_stream.state_dict()
    assert torch.equal(torch.get_rng_state(), state_before)


@pytest.mark.process
def test_resume_with_workers():
    sources = two_sources()
    whole = take(make_stream(sources), 12)
    stream = make_stream(sources, num_workers=2)
    assert take(stream, 5) == whole[:5]
    resumed = make_stream(sources, num_workers=1)
    resumed.load_state_dict(stream.state_dict())
    assert take(resumed, 7) == whole[5:]


@pytest.mark.process
def test_an_error_in_a_worker_reaches_the_run():
    stream = make_stream({"a": Numbers("a", 5, frozenset(range(5)))}, weights={"a": 1.0}, num_workers=1)
    with pytest.raises(TooManyBadRecords, match="no usable record"):
        take(stream, 2)


def test_bad_records_are_left_out_counted_and_named(caplog):
    bad = frozenset({4, 30})
    with caplog.at_level(logging.WARNING, logger="diptych.data.stream"):
        stream = make_stream(two_sources(a=bad), max_bad_fraction=0.5)
        given = take(stream, 9)
    healthy = take(make_stream(), 9)
    assert [[name for name in batch if name.split()[:2] not in (["a", "4"], ["a", "30"])] for batch in healthy] == given
    assert stream.num_bad == {"a": {"broken on purpose": 2}, "b": {}}
    assert sum(stream.num_seen.values()) == 54
    assert "data source 'a': skipped a/4: broken on purpose (a test)" in caplog.messages


def test_a_rank_without_a_good_record_gets_one_without_weight():
    sources = {"a": Numbers("a", 30, frozenset(range(0, 30, 3)))}
    arguments = {"weights": {"a": 1.0}, "batch_size": 3, "max_bad_fraction": 0.9}
    whole = [sorted(batch) for batch in take(make_stream(sources, **arguments), 20)]
    ranks = [list(islice(iter(make_stream(sources, rank=rank, world_size=3, **arguments)), 20)) for rank in range(3)]
    num_weightless = 0
    for step, expected in enumerate(whole):
        examples = [example for rank in ranks for example in rank[step]]
        assert all(len(rank[step]) == 1 for rank in ranks)
        assert sorted(texts([example for example in examples if example.weight == 1])) == expected
        num_weightless += sum(example.weight == 0 for example in examples)
    assert num_weightless == 60 - sum(len(batch) for batch in whole) > 0


def test_a_batch_without_any_good_record_is_left_out_by_all_ranks():
    sources = {"a": Numbers("a", 30, frozenset(range(0, 30, 2)))}
    arguments = {"weights": {"a": 1.0}, "batch_size": 2, "max_bad_fraction": 0.9}
    whole = take(make_stream(sources, **arguments), 11)
    assert all(whole)
    ranks = [list(islice(iter(make_stream(sources, rank=rank, world_size=2, **arguments)), 11)) for rank in range(2)]
    for step, expected in enumerate(whole):
        weighted = [example for rank in ranks for example in rank[step] if example.weight]
        assert sorted(texts(weighted)) == sorted(expected)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2])
def test_too_many_bad_records_stop_the_run(fraction):
    sources = {"a": Numbers("a", 100, frozenset(range(15)))}
    stream = make_stream(sources, weights={"a": 1.0}, batch_size=10, max_bad_fraction=fraction)
    if fraction == 0.2:
        assert len(take(stream, 30)) == 30
        return
    with pytest.raises(TooManyBadRecords) as caught:
        take(stream, 30)
    message = str(caught.value)
    assert f"'a' has more than {fraction:.2%} broken records" in message
    assert "broken on purpose" in message and "a/1" in message and "diptych data check" in message
    # Judged after the first epoch of a small source; a limit of 0 stops at the first batch with a bad record.
    assert stream.num_seen["a"] == 100 if fraction else stream.num_seen["a"] < 100


def test_a_large_source_is_judged_after_min_seen():
    sources = {"a": Numbers("a", 5000, frozenset(range(0, 5000, 20)))}
    stream = make_stream(sources, weights={"a": 1.0}, batch_size=10, min_seen=200)
    with pytest.raises(TooManyBadRecords, match=r"of the 2\d\d read"):
        take(stream, 300)


def test_a_list_of_bad_records_is_cut():
    sources = {"a": Numbers("a", 60, frozenset(range(60)))}
    with pytest.raises(TooManyBadRecords, match=r"no usable record so far: 54 of the 54 .*54 broken on") as caught:
        take(make_stream(sources, weights={"a": 1.0}), 100)
    assert "... and 34 more" in str(caught.value)


def test_sharded_sources_are_read_shard_by_shard_and_completely():
    source = ShardedNumbers("a", 50, sizes=(10, 0, 25, 15), window=8)
    assert isinstance(source, ShardedSource) and not isinstance(Numbers("a", 5), ShardedSource)
    order = EpochOrder(source, derive_key("sharded"))
    records = [order(position) for position in range(50)]
    assert sorted(records) == list(range(50))
    shards = [0 if record < 10 else 2 if record < 35 else 3 for record in records]
    for start in range(0, 48, 8):
        assert len(set(shards[start : start + 8])) <= 2  # a window of 8 touches at most two of these shards
    assert records[:8] != sorted(records[:8])
    assert [EpochOrder(source, derive_key("other"))(position) for position in range(50)] != records
    seen = Counter(
        name for batch in take(make_stream({"a": source}, weights={"a": 1.0}, batch_size=10), 5) for name in batch
    )
    assert seen == Counter(f"a {index} 0" for index in range(50))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"names data sources that do not exist: \['c'\]; there are \['a', 'b'\]"):
        make_stream(weights={"c": 1.0})
    with pytest.raises(ValueError, match="weights of the mix must be at least 0 and not all 0"):
        make_stream(weights={"a": 0.0})
    with pytest.raises(ValueError, match=r"multiple of the number of processes: got 6 and 4\. Use 4"):
        make_stream(world_size=4)
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        make_stream(world_size=2, rank=2)
    with pytest.raises(ValueError, match="num_workers must be at least 0"):
        make_stream(num_workers=-1)
    with pytest.raises(ValueError, match=r"max_bad_fraction must be in \[0, 1\]"):
        make_stream(max_bad_fraction=2.0)
    with pytest.raises(NoUsableRecords, match="data source 'a' has no records"):
        make_stream({"a": Numbers("a", 0)}, weights={"a": 1.0})


def test_a_state_of_another_run_is_refused():
    state = make_stream().state_dict()
    for changes, named in (({"seed": 6}, "seed 5"), ({"weights": {"a": 1.0, "b": 1.0}}, "weights"), ({}, "sizes")):
        sources = two_sources() if changes else {"a": Numbers("a", 38), "b": Numbers("b", 11)}
        with pytest.raises(ValueError, match=f"saved with {named}.*would not continue"):
            make_stream(sources, **changes).load_state_dict(state)
    with pytest.raises(ValueError, match="has version 99"):
        make_stream().load_state_dict(state | {"version": 99})


def test_read_once_reads_each_usable_record_once():
    source = Numbers("a", 10, frozenset({4}))
    parts = [texts(list(read_once(source, rank, 3))) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == [f"a {index} 0" for index in range(10) if index != 4]
