"""Who the generated population is, when only a batch of it is new: batch, moving average or queue.

FD-loss keeps statistics of many generated features and lets the gradient flow through the newest batch only. Each
estimator offers that population's mean and covariance with gradient (`population`), takes the batch in after the step
(`commit`), starts from features of the untrained generator (`warm_start`), and resumes bit-equal.

Differences from the paper's code: the moments are kept centred, not as sums of ``x x^T``, with the same values; the
window may change during training, since a long one diverges while the generator moves fast.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.gradient import scatter
from diptych.frechet.moments import Moments

MeanAndCovariance: TypeAlias = tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]]
DecaySchedule: TypeAlias = float | Callable[[int], float]
"""A decay, or the decay after so many commits."""
SizeSchedule: TypeAlias = int | Callable[[int], int]
"""Rows of a queue, or the rows after so many commits."""


@runtime_checkable
class PopulationEstimator(Protocol):
    """What `FDLoss` needs of an estimator."""

    def population(self, features: Float[Tensor, "batch dim"]) -> MeanAndCovariance:
        """float64 moments of the population with this batch in it, differentiable in the batch."""

    def commit(self) -> None:
        """Makes the batch last given to `population` part of the population."""

    def warm_start(self, features: Float[Tensor, "num dim"]) -> None:
        """Begins with the population of these features; at least 10 per dimension are wise."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next step; tensors are not copied, as in torch."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another estimator was."""


class BatchOnly:
    """The batch is the population: singular where it has fewer rows than dimensions, and biased where it has few."""

    def __init__(self, *, correction: int = 0) -> None:
        self.correction = correction
        """The covariance is divided by ``batch - correction``."""

    def population(self, features: Float[Tensor, "batch dim"]) -> MeanAndCovariance:
        """See `PopulationEstimator`."""
        if len(features) <= self.correction:
            raise ValueError(f"BatchOnly needs more than {self.correction} features, got {len(features)}.")
        mean, products = _batch_moments(features)
        return mean, products / (len(features) - self.correction)

    def commit(self) -> None:
        """Nothing is kept."""

    def warm_start(self, features: Float[Tensor, "num dim"]) -> None:
        """Nothing is kept."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuses the state of another estimator."""
        _check_keys("BatchOnly", state, set())


class MovingAverage:
    """Exponential moving average of the moments, FD-loss's default with a decay (the paper's beta) of 0.999.

        mean  <- beta mean + (1 - beta) mean_batch,   E[x x^T] <- beta E[x x^T] + (1 - beta) (x^T x / batch)

    so ``covariance <- beta covariance + (1 - beta) covariance_batch + beta (1 - beta) d d^T`` with ``d = mean_batch -
    mean``, all biased. A decay of 0 is `BatchOnly`. About ``batch / (1 - beta)`` features count.
    """

    def __init__(self, dim: int, decay: DecaySchedule, *, device: torch.device | str = "cpu") -> None:
        self.dim = dim
        self.decay = decay
        """May be set at any time."""
        self.device = torch.device(device)
        self.num_commits = 0
        self._moments: MeanAndCovariance | None = None
        self._pending: MeanAndCovariance | None = None
        self._decay_now()

    def population(self, features: Float[Tensor, "batch dim"]) -> MeanAndCovariance:
        """See `PopulationEstimator`."""
        if self._moments is None:
            raise _cold("MovingAverage")
        decay = self._decay_now()
        old_mean, old_covariance = self._moments
        batch_mean, products = _batch_moments(features)
        delta = batch_mean - old_mean
        mean = old_mean + (1 - decay) * delta
        between = (decay * (1 - decay) * delta).outer(delta)
        covariance = torch.add(decay * old_covariance, products, alpha=(1 - decay) / len(features)) + between
        self._pending = (mean.detach(), covariance.detach())
        return mean, covariance

    def commit(self) -> None:
        """See `PopulationEstimator`."""
        self._moments, self._pending = _pending("MovingAverage", self._pending), None
        self.num_commits += 1

    @torch.no_grad()
    def warm_start(self, features: Float[Tensor, "num dim"]) -> None:
        """See `PopulationEstimator`."""
        _check_width("MovingAverage", features, self.dim)
        mean, products = _all_moments(features.to(self.device))
        self._moments, self._pending = (mean, products / len(features)), None

    def state_dict(self) -> dict[str, Any]:
        """See `PopulationEstimator`. A decay that is a number is part of it, a schedule is not."""
        mean, covariance = self._moments or (None, None)
        decay = None if callable(self.decay) else self.decay
        return {"mean": mean, "covariance": covariance, "num_commits": self.num_commits, "decay": decay}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `PopulationEstimator`."""
        _check_keys("MovingAverage", state, set(self.state_dict()))
        if state["mean"] is not None:
            _check_width("MovingAverage", state["covariance"], self.dim)
            self._moments = _own(state["mean"], self.device), _own(state["covariance"], self.device)
        else:
            self._moments = None
        self.num_commits, self._pending = state["num_commits"], None
        if state["decay"] is not None and not callable(self.decay):
            self.decay = state["decay"]

    def _decay_now(self) -> float:
        decay = self.decay(self.num_commits) if callable(self.decay) else self.decay
        if not 0 <= decay < 1:
            raise ValueError(f"MovingAverage.decay must be in [0, 1), got {decay} after {self.num_commits} commits.")
        return decay


class Queue:
    """The newest ``size`` features, of which the batch replaces the oldest (ring buffer); Bessel-corrected.

    Mean and scatter are updated, not recomputed: rows that leave are taken out, the batch is put in. Rounding is wiped
    out once a turn, when the scatter is computed anew from the rows. A queue that is not full grows.
    """

    def __init__(
        self,
        dim: int,
        size: SizeSchedule,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dim = dim
        self.size = size
        """May be set at any time: a smaller queue forgets its oldest rows, a larger one grows."""
        self.num_commits = 0
        self._rows = torch.zeros(0, dim, dtype=dtype, device=device)
        self._next = 0  # where the next row goes; in a full queue, over the oldest
        self._filled = 0
        self._left = 0  # rows that left since the scatter was computed
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._pending: tuple[Tensor, int, int, Tensor, Tensor] | None = None
        self._size_now()

    def population(self, features: Float[Tensor, "batch dim"]) -> MeanAndCovariance:
        """See `PopulationEstimator`."""
        if self._filled == 0:
            raise _cold("Queue")
        batch, size = len(features), self._size_now()
        if batch > size:
            raise ValueError(f"Queue.size must be at least the batch of {batch} features, got {size}.")
        leaving = max(0, self._filled + batch - size)
        kept = self._filled - leaving
        kept_mean, kept_scatter = self._without_oldest(leaving)
        batch_mean, products = _batch_moments(features)
        delta, total = batch_mean - kept_mean, kept + batch
        mean = kept_mean + (batch / total) * delta
        products = kept_scatter + products + (kept * batch / total) * delta.outer(delta)
        self._pending = (features.detach().to(self._rows), size, leaving, mean.detach(), products.detach())
        return mean, products / (total - 1)

    @torch.no_grad()
    def commit(self) -> None:
        """See `PopulationEstimator`."""
        rows, size, leaving, self._mean, self._scatter = _pending("Queue", self._pending)
        self._pending = None
        if size == len(self._rows):
            self._rows[self._places(self._next, len(rows))] = rows
            self._next = (self._next + len(rows)) % size
            self._filled += len(rows) - leaving
            self._left += leaving
            if self._left >= size:
                self._recompute()
        else:
            self._lay_out(torch.cat((self._oldest(self._filled)[leaving:], rows)), size)
        self.num_commits += 1

    @torch.no_grad()
    def warm_start(self, features: Float[Tensor, "num dim"]) -> None:
        """See `PopulationEstimator`; the last ``size`` features stay."""
        _check_width("Queue", features, self.dim)
        self._pending = None
        self._lay_out(features.detach().to(self._rows), self._size_now())

    def state_dict(self) -> dict[str, Any]:
        """See `PopulationEstimator`. A size that is a number is part of it, a schedule is not."""
        return {
            "rows": self._rows,
            "mean": self._mean,
            "scatter": self._scatter,
            "next": self._next,
            "filled": self._filled,
            "left": self._left,
            "num_commits": self.num_commits,
            "size": None if callable(self.size) else self.size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `PopulationEstimator`."""
        _check_keys("Queue", state, set(self.state_dict()))
        _check_width("Queue", state["rows"], self.dim)
        device = self._rows.device
        self._rows, self._mean, self._scatter = (_own(state[name], device) for name in ("rows", "mean", "scatter"))
        self._next, self._filled, self._left = state["next"], state["filled"], state["left"]
        self.num_commits, self._pending = state["num_commits"], None
        if state["size"] is not None and not callable(self.size):
            self.size = state["size"]

    def _size_now(self) -> int:
        size = self.size(self.num_commits) if callable(self.size) else self.size
        if size < 2:
            raise ValueError(f"Queue.size must be at least 2, got {size} after {self.num_commits} commits.")
        return size

    def _places(self, start: int, num: int) -> Tensor:
        return (torch.arange(num, device=self._rows.device) + start) % len(self._rows)

    def _oldest(self, num: int) -> Tensor:
        """The oldest rows, oldest first."""
        return self._rows[self._places(self._next if self._filled == len(self._rows) else 0, num)]

    def _without_oldest(self, leaving: int) -> MeanAndCovariance:
        """Mean and scatter of all rows but the oldest."""
        kept = self._filled - leaving
        if kept == 0:
            return torch.zeros_like(self._mean), torch.zeros_like(self._scatter)
        if leaving == 0:
            return self._mean, self._scatter
        mean, products = _batch_moments(self._oldest(leaving))
        delta = (self._mean - mean) * (self._filled / kept)  # between the mean of the kept and of the leaving
        return mean + delta, self._scatter - products - (kept * leaving / self._filled) * delta.outer(delta)

    def _lay_out(self, rows: Tensor, size: int) -> None:
        """A buffer of ``size`` with the newest of the rows, oldest first."""
        rows = rows[-size:]
        self._rows = torch.zeros(size, self.dim, dtype=self._rows.dtype, device=self._rows.device)
        self._rows[: len(rows)] = rows
        self._filled, self._next = len(rows), len(rows) % size
        self._recompute()

    def _recompute(self) -> None:
        self._mean, self._scatter = _all_moments(self._rows[: self._filled])
        self._left = 0


def _batch_moments(features: Tensor) -> MeanAndCovariance:
    """Mean and scatter in float64."""
    features = features.double()
    mean = features.mean(0)
    return mean, scatter(features - mean)


def _all_moments(features: Tensor) -> MeanAndCovariance:
    """Mean and scatter of many features, converted to float64 in chunks."""
    moments = Moments(features.shape[1], device=features.device)
    moments.update(features)
    return moments.mean, moments.covariance * (len(features) - 1)


def _own(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().to(device, copy=True)


def _pending(name: str, pending: Any) -> Any:
    if pending is None:
        raise ValueError(f"{name}.commit takes in the batch of the last population call, but there was none since.")
    return pending


def _cold(name: str) -> ValueError:
    return ValueError(
        f"{name} has no population yet. Call warm_start with features of the generator before the first step."
    )


def _check_width(name: str, tensor: Tensor, dim: int) -> None:
    if tensor.shape[1] != dim:
        raise ValueError(f"{name} must get features of width {dim}, got {tensor.shape[1]}.")


def _check_keys(name: str, state: Mapping[str, Any], expected: set[str]) -> None:
    if set(state) != expected:
        raise ValueError(f"{name} expects a state of {sorted(expected)}, got {sorted(state)}: of another estimator.")
