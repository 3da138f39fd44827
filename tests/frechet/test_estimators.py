"""Populations of which a batch is new: values against plain recomputation, schedules, resume, refusals."""

import copy
import io

import pytest
import torch

from diptych.frechet.estimators import BatchOnly, MovingAverage, PopulationEstimator, Queue


def normal(num: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + seed


def double_queue(size, dim: int = 3) -> Queue:
    return Queue(dim, size, dtype=torch.float64)


def plain(rows: torch.Tensor, correction: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.mean(0), torch.cov(rows.T, correction=correction)


def assert_moments(actual, expected) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_batch_only_is_the_batch():
    batch = normal(7, 3, 1)
    assert_moments(BatchOnly().population(batch), plain(batch, 0))
    assert_moments(BatchOnly(correction=1).population(batch), plain(batch, 1))


def test_moving_average_is_that_of_the_first_two_moments():
    """As the card has it: M2 = beta M2 + (1 - beta) F^T F / B, covariance = M2 - mean mean^T."""
    start = normal(20, 3, 0)
    estimator = MovingAverage(3, 0.7)
    estimator.warm_start(start)
    mean, second = start.mean(0), start.T @ start / 20
    for step in range(5):
        batch = normal(4 + step, 3, step)
        mean = 0.7 * mean + 0.3 * batch.mean(0)
        second = 0.7 * second + 0.3 * batch.T @ batch / len(batch)
        assert_moments(estimator.population(batch), (mean, second - mean.outer(mean)))
        estimator.commit()


def test_a_decay_of_zero_is_batch_only():
    estimator = MovingAverage(3, 0.0)
    estimator.warm_start(normal(20, 3, 0))
    batch = normal(7, 3, 1)
    assert_moments(estimator.population(batch), BatchOnly().population(batch))


@pytest.mark.parametrize("batches", [[4, 4, 4, 4, 4, 4], [3, 5, 1, 10, 9, 2, 7]])
@pytest.mark.parametrize("num_start", [10, 6, 30])
def test_a_queue_is_its_newest_rows(batches, num_start):
    queue = double_queue(10)
    rows = normal(num_start, 3, 0)
    queue.warm_start(rows)
    for seed, num in enumerate(batches):
        batch = normal(num, 3, seed)
        rows = torch.cat((rows, batch))[-10:]
        assert_moments(queue.population(batch), plain(rows, 1))
        queue.commit()


def test_a_queue_of_one_batch_is_batch_only():
    queue = double_queue(7)
    queue.warm_start(normal(7, 3, 0))
    batch = normal(7, 3, 1)
    assert_moments(queue.population(batch), BatchOnly(correction=1).population(batch))


def test_rounding_in_a_queue_is_wiped_out_every_turn():
    queue = double_queue(8)
    queue.warm_start(normal(8, 3, 0) * 1e6)  # leaves rounding of 1e-4 behind when taken out of the scatter
    for seed in range(4):
        batch = normal(2, 3, seed) * 1e-3
        queue.population(batch)
        queue.commit()
    rows = torch.cat([normal(2, 3, seed) * 1e-3 for seed in range(4)])
    _, covariance = queue.population(rows[:2])
    expected = torch.cov(torch.cat((rows[2:], rows[:2])).T)
    torch.testing.assert_close(covariance, expected, rtol=1e-10, atol=1e-18)


def test_a_queue_keeps_float32_rows_and_counts_in_float64():
    queue = Queue(3, 6)
    start, batch = normal(6, 3, 0).float(), normal(2, 3, 1).float()
    queue.warm_start(start)
    assert queue.state_dict()["rows"].dtype == torch.float32
    mean, covariance = queue.population(batch)
    assert mean.dtype == covariance.dtype == torch.float64
    assert_moments((mean, covariance), plain(torch.cat((start[2:], batch)).double(), 1))


def test_the_size_of_a_queue_is_a_schedule():
    sizes = [6, 6, 12, 12, 12, 12, 5, 5, 5]
    queue = double_queue(lambda commits: sizes[min(commits, 8)])
    rows = normal(6, 3, 0)
    queue.warm_start(rows)
    for seed in range(9):
        batch = normal(3, 3, seed)
        rows = torch.cat((rows, batch))[-sizes[seed] :]
        assert_moments(queue.population(batch), plain(rows, 1))
        queue.commit()


def test_the_size_of_a_queue_can_be_set():
    queue = double_queue(6)
    rows = normal(6, 3, 0)
    queue.warm_start(rows)
    for seed, size in enumerate([4, 9, 9, 9]):
        queue.size = size
        batch = normal(2, 3, seed)
        rows = torch.cat((rows, batch))[-size:]
        assert_moments(queue.population(batch), plain(rows, 1))
        queue.commit()


def test_the_decay_is_a_schedule_or_set():
    scheduled, by_hand = MovingAverage(3, lambda commits: 1 - 1 / (commits + 2)), MovingAverage(3, 0.5)
    for estimator in (scheduled, by_hand):
        estimator.warm_start(normal(20, 3, 0))
    for step in range(4):
        by_hand.decay = 1 - 1 / (step + 2)
        batch = normal(5, 3, step)
        assert_moments(scheduled.population(batch), by_hand.population(batch))
        scheduled.commit()
        by_hand.commit()


@pytest.mark.parametrize("kind", ["average", "queue"])
def test_only_the_batch_has_a_gradient(kind):
    start, batch = normal(8, 3, 0), normal(3, 3, 1)
    weights = normal(1, 3, 2)[0], normal(3, 3, 3)

    def scalar(features: torch.Tensor) -> torch.Tensor:
        estimator: PopulationEstimator = MovingAverage(3, 0.6) if kind == "average" else double_queue(8)
        estimator.warm_start(start)
        estimator.population(normal(2, 3, 5))
        estimator.commit()
        mean, covariance = estimator.population(features)
        return (mean * weights[0]).sum() + (covariance * weights[1]).sum()

    assert torch.autograd.gradcheck(scalar, (batch.requires_grad_(),))


def test_population_without_commit_changes_nothing():
    for estimator in (MovingAverage(3, 0.6), double_queue(8)):
        estimator.warm_start(normal(8, 3, 0))
        first = estimator.population(normal(3, 3, 1))
        estimator.population(normal(5, 3, 2))
        assert all(torch.equal(a, b) for a, b in zip(first, estimator.population(normal(3, 3, 1)), strict=True))


@pytest.mark.parametrize(
    "make", [lambda: MovingAverage(3, 0.6), lambda: Queue(3, 8), lambda: Queue(3, lambda k: 8 + k), BatchOnly]
)
def test_resume_is_equal_to_the_bit(make):
    straight = make()
    straight.warm_start(normal(8, 3, 0).float())
    for seed in range(3):
        straight.population(normal(3, 3, seed).float())
        straight.commit()
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = make()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(10):
        batch = normal(3, 3, seed).float()
        for ours, theirs in zip(resumed.population(batch), straight.population(batch), strict=True):
            assert torch.equal(ours, theirs)
        resumed.commit()
        straight.commit()


def test_a_loaded_state_is_not_shared_and_brings_what_was_set():
    queue, average = double_queue(8), MovingAverage(3, 0.6)
    for estimator in (queue, average):
        estimator.warm_start(normal(8, 3, 0))
    queue.size, average.decay = 6, 0.9
    state, before = queue.state_dict(), copy.deepcopy(queue.state_dict())
    other, other_average = double_queue(8), MovingAverage(3, 0.6)
    other.load_state_dict(state)
    other_average.load_state_dict(average.state_dict())
    assert (other.size, other_average.decay) == (6, 0.9)
    other.population(normal(3, 3, 1))
    other.commit()
    assert torch.equal(state["rows"], before["rows"]) and torch.equal(state["scatter"], before["scatter"])


def test_refusals():
    average, queue = MovingAverage(3, 0.6), double_queue(4)
    with pytest.raises(ValueError, match=r"MovingAverage has no population yet\. Call warm_start"):
        average.population(normal(3, 3, 0))
    with pytest.raises(ValueError, match=r"Queue has no population yet\. Call warm_start"):
        queue.population(normal(3, 3, 0))
    queue.warm_start(normal(4, 3, 0))
    with pytest.raises(ValueError, match=r"Queue\.commit takes in the batch of the last population call"):
        queue.commit()
    with pytest.raises(ValueError, match=r"Queue\.size must be at least the batch of 5 features, got 4"):
        queue.population(normal(5, 3, 0))
    with pytest.raises(ValueError, match=r"MovingAverage\.decay must be in \[0, 1\), got 1\.0 after 0 commits"):
        MovingAverage(3, 1.0)
    with pytest.raises(ValueError, match=r"Queue\.size must be at least 2, got 1"):
        Queue(3, 1)
    with pytest.raises(ValueError, match="Queue must get features of width 3, got 2"):
        queue.warm_start(normal(4, 2, 0))
    with pytest.raises(ValueError, match="of another estimator"):
        average.load_state_dict(queue.state_dict())
    with pytest.raises(ValueError, match="BatchOnly needs more than 1 features, got 1"):
        BatchOnly(correction=1).population(normal(1, 3, 0))
