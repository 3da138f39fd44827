"""What a finished run has cost, read from its folder: parameters, examples, FLOPs, time, memory; and its losses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from diptych.evals.report_data import Number
from diptych.evals.run_folder import read_metrics


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage; FLOPs are those of its first step times its steps, and None where they were not counted."""

    name: str
    num_steps: int
    batch_size: int
    seconds: Number
    """Of its steps alone: no checkpoints, samples or scores."""
    flops_per_step: Number | None

    @property
    def examples(self) -> int:
        return self.num_steps * self.batch_size

    @property
    def flops(self) -> Number | None:
        return None if self.flops_per_step is None else self.flops_per_step * self.num_steps


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """A run, its stages in order."""

    parameters: int
    trained_parameters: int
    stages: tuple[StageCost, ...]
    peak_memory: Number | None
    """Bytes: of tensors on a GPU, of the process on a CPU."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the sums over the stages."""
        return {**asdict(self), "examples": self.examples(), "flops": self.flops(), "seconds": self.seconds()}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "RunCost":
        return cls(
            parameters=entry["parameters"],
            trained_parameters=entry["trained_parameters"],
            stages=tuple(StageCost(**stage) for stage in entry["stages"]),
            peak_memory=entry["peak_memory"],
        )

    def examples(self, without: Sequence[str] = ()) -> int:
        return sum(stage.examples for stage in self.stages if stage.name not in without)

    def seconds(self, without: Sequence[str] = ()) -> float:
        return float(sum(stage.seconds for stage in self.stages if stage.name not in without))

    def flops(self, without: Sequence[str] = ()) -> float | None:
        """None where one stage is not known."""
        counts = [stage.flops for stage in self.stages if stage.name not in without]
        return None if None in counts else float(sum(count or 0 for count in counts))


def read_cost(run_dir: str | Path) -> RunCost:
    """The cost of a run from its recipe, manifest and metrics.

    Raises:
        FileNotFoundError: a file of the run is missing.
    """
    folder = Path(run_dir)
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    parts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["parts"]
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "train"]
    stages = []
    for name, stage in recipe["stages"].items():
        own = [line for line in lines if line["stage"] == name]
        done, seconds = 0, 0.0
        for line in own:
            seconds += line["seconds_per_step"] * (line["stage_step"] - done)
            done = line["stage_step"]
        counted = [line["flops_per_step"] for line in own if line.get("flops_per_step")]
        stages.append(
            StageCost(
                name=name,
                num_steps=done,
                batch_size=stage["batch_size"],
                seconds=seconds,
                flops_per_step=counted[0] if counted else None,
            )
        )
    return RunCost(
        parameters=sum(part["parameters"] for part in parts),
        trained_parameters=sum(part["parameters"] for part in parts if any(part["stages"].values())),
        stages=tuple(stages),
        peak_memory=max((line["peak_memory"] for line in lines if "peak_memory" in line), default=None),
    )


def seconds_per_step(run_dir: str | Path) -> dict[str, float]:
    """By stage: the median over the second half of the log of a short run, since the first steps are slower.

    Raises:
        ValueError: a stage has logged but one line.
    """
    lines = [line for line in read_metrics(Path(run_dir) / "metrics.jsonl") if line["event"] == "train"]
    found = {}
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line["seconds_per_step"] for line in lines if line["stage"] == stage]
        if len(own) < 2:
            raise ValueError(f"{run_dir}: stage {stage!r} has logged once; log every step of two or more to time it.")
        found[stage] = median(own[len(own) // 2 :])
    return found


def read_losses(run_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Every loss term over the examples of the whole run: ``{term: [(examples, loss), ...]}``."""
    folder = Path(run_dir)
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    before, starts = 0, {}
    for name, stage in recipe["stages"].items():
        starts[name] = before
        before += stage["num_steps"] * stage["batch_size"]
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        for key, value in line.items() if line["event"] == "train" else ():
            term = key.removeprefix("loss/")
            if term != key and "/sigma " not in term and value is not None:
                size = recipe["stages"][line["stage"]]["batch_size"]
                found.setdefault(term, []).append((starts[line["stage"]] + line["stage_step"] * size, value))
    return found
