"""What a run measures about itself: ``metrics.jsonl``, one JSON object a line.

Every line has ``step`` (optimizer steps of the whole run so far), ``stage``, ``time`` (seconds of the run so far, over
all sessions), and an ``event``:

- ``train``: means since the previous such line. ``loss`` (weighted sum), ``loss/TERM``, ``loss/TERM/sigma A-B`` (by
  noise level), ``stage_step``, ``lr``, ``grad_norm``, ``examples_per_second``, ``tokens_per_second``, ``mfu``; with
  ``logging.cost`` also ``flops_per_step`` and ``peak_memory`` (bytes).
- ``scores``: what the task's ``evaluate`` returned, as ``score/NAME``.
- ``stage_end``: the stage's end, once everything that belongs to it is done.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.objectives.loss_term import LossTerm
from diptych.train.distributed import Processes
from diptych.train.step import objective_of


class MetricsLog:
    """``metrics.jsonl``: whole lines only, also after a kill, and none from after the step that a run resumes at."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds one line. Numbers that JSON cannot hold (nan, inf) are written as null."""
        text = json.dumps({key: _finite(value) for key, value in line.items()}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")  # one write call: a kill leaves at most a last line that is cut off

    def read(self) -> list[dict[str, Any]]:
        """All lines; a last one that was cut off is left out."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
        return lines

    def truncate_after(self, step: int) -> None:
        """Drops the lines from after ``step`` and a last line that was cut off."""
        kept = [line for line in self.read() if line["step"] <= step]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)


def _finite(value: Any) -> Any:
    is_bad = isinstance(value, float) and (value != value or value in (float("inf"), float("-inf")))
    return None if is_bad else value


class LossMeter:
    """Adds up loss terms on the device, without waiting for it, until they are read.

    Args:
        weights: of the objectives.
        num_bins: equal bins of the noise level sigma in [0, 1].
    """

    def __init__(self, weights: Mapping[str, float], num_bins: int) -> None:
        self._weights = dict(weights)
        self._num_bins = num_bins
        self._sums: dict[str, Tensor] = {}
        self._bins: dict[str, Tensor] = {}
        self._grad_norms: list[Tensor] = []

    def add(self, terms: Sequence[Mapping[str, LossTerm]], grad_norm: Tensor) -> None:
        """Takes in one step: the terms of each micro-batch."""
        self._grad_norms.append(grad_norm)
        for micro_batch in terms:
            for name, term in micro_batch.items():
                pair = torch.stack([term.sum.float(), term.count.to(term.sum.device).float()])
                self._sums[name] = self._sums[name] + pair if name in self._sums else pair
                if term.values is not None and term.levels is not None and len(term.values):
                    binned = self._binned(term.values, term.levels)
                    self._bins[name] = self._bins[name] + binned if name in self._bins else binned

    def _binned(self, values: Tensor, levels: Tensor) -> Tensor:
        """Sum and count of the values in each bin of the level: shape ``2 bins``."""
        index = (levels * self._num_bins).long().clamp(0, self._num_bins - 1)
        binned = torch.zeros(2, self._num_bins, device=values.device)
        binned[0].index_add_(0, index, values.float())
        binned[1].index_add_(0, index, torch.ones_like(values, dtype=torch.float32))
        return binned

    def read(self, processes: Processes) -> dict[str, float]:
        """Means over all processes since the last reading; starts anew."""
        result = {"loss": 0.0}
        totals = _sum_over_processes(self._sums, processes)
        for name, (total, count) in totals.items():
            if count > 0:
                result[f"loss/{name}"] = total / count
                result["loss"] += self._weights[objective_of(name)] * total / count
        for name, values in _sum_over_processes(self._bins, processes).items():
            for index in range(self._num_bins):
                if values[self._num_bins + index] > 0:
                    low, high = index / self._num_bins, (index + 1) / self._num_bins
                    mean = values[index] / values[self._num_bins + index]
                    result[f"loss/{name}/sigma {low:.2f}-{high:.2f}"] = mean
        if self._grad_norms:
            result["grad_norm"] = torch.stack(self._grad_norms).mean().item()
        self._sums, self._bins, self._grad_norms = {}, {}, []
        return result


def _sum_over_processes(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, list[float]]:
    """Flat values summed over all processes, whose names may differ."""
    totals: dict[str, list[float]] = {}
    for own in processes.gather({name: tensor.flatten().tolist() for name, tensor in tensors.items()}):
        for name, values in own.items():
            before = totals.get(name, [0.0] * len(values))
            totals[name] = [a + b for a, b in zip(before, values, strict=True)]
    return dict(sorted(totals.items()))
