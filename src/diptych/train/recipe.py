"""A recipe: one frozen, typed value that says everything about a run.

Model, data, named stages (what is trained, on which mix, for how long), objectives with weights, sampling, evaluation,
checkpoints and logging. Configuration only, never live objects; nothing here imports torch, so that listing and
overriding recipes is cheap. ``serialization`` turns a recipe into JSON and back, ``override`` changes it by flags.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from diptych.train.nearest import nearest

OptimizerName: TypeAlias = Literal["adamw", "muon"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
ScheduleName: TypeAlias = Literal["constant", "linear", "cosine", "wsd"]
SolverName: TypeAlias = Literal["euler", "heun", "midpoint", "multistep"]
Tracker: TypeAlias = Literal["tensorboard", "wandb"]


@runtime_checkable
class Buildable(Protocol):
    """A config: a frozen dataclass whose ``build()`` makes the live object."""

    def build(self) -> Any: ...


ModelConfigT = TypeVar("ModelConfigT", bound=Buildable)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_at_least(name: str, value: int | float, minimum: int | float) -> None:
    _require(
        math.isfinite(value) and value >= minimum,
        f"{name} must be a finite number of at least {minimum}, got {value}.",
    )


def _check_weights(name: str, weights: Mapping[str, float]) -> None:
    _require(bool(weights), f"{name} is empty: name at least one entry with a positive weight.")
    for key, weight in weights.items():
        _check_at_least(f"{name}.{key}", weight, 0)
    _require(
        any(weight > 0 for weight in weights.values()),
        f"{name}: every weight is 0, give at least one a positive weight.",
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) or Muon with warm-up, schedule, clipping and an optional average of the weights."""

    name: OptimizerName = "adamw"
    """muon: matrices of linear maps take orthogonalised momentum (`diptych.train.muon`), all else AdamW."""
    lr: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    matrix_lr: float = 0.02
    """Peak learning rate of muon's matrices: the spectral norm of an update. It follows the schedule of ``lr``."""
    momentum: float = 0.95
    """Decay of muon's momentum."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moment averages."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled decay, applied to weights of two or more axes only (not to biases, norms and gains)."""
    warmup_steps: int = 0
    """Steps of linear warm-up; step k (from 0) uses (k + 1) / warmup_steps of the peak. A stage that is shorter ends
    before the peak."""
    schedule: ScheduleName = "cosine"
    """Course after the warm-up. wsd: constant, then linear decay over the last ``decay_fraction`` of the stage."""
    decay_fraction: float = 0.2
    """Share of the stage's steps in which wsd decays; the other schedules ignore it."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end of the stage, as a fraction of the peak; constant ignores it."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; None turns clipping off."""
    ema_decay: float | None = None
    """Decay of the exponential moving average of the trained weights; None keeps no average. With an average, the
    averaged weights are what samples, scores and the saved model folder show."""
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    """Learning rate factor by part name or glob; the first entry that matches counts, the rest train at 1."""

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.lr) and self.lr > 0,
            f"optimizer.lr must be positive, got {self.lr}.",
        )
        _require(
            math.isfinite(self.matrix_lr) and self.matrix_lr > 0,
            f"optimizer.matrix_lr must be positive, got {self.matrix_lr}.",
        )
        _require(0 <= self.momentum < 1, f"optimizer.momentum must lie in [0, 1), got {self.momentum}.")
        for beta in self.betas:
            _require(0 <= beta < 1, f"optimizer.betas must lie in [0, 1), got {self.betas}.")
        _require(self.eps > 0, f"optimizer.eps must be positive, got {self.eps}.")
        _check_at_least("optimizer.weight_decay", self.weight_decay, 0)
        _check_at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        _require(0 <= self.min_lr_ratio <= 1, f"optimizer.min_lr_ratio must lie in [0, 1], got {self.min_lr_ratio}.")
        _require(
            0 < self.decay_fraction <= 1, f"optimizer.decay_fraction must lie in (0, 1], got {self.decay_fraction}."
        )
        if self.clip_norm is not None:
            _require(
                self.clip_norm > 0,
                f"optimizer.clip_norm must be positive, got {self.clip_norm}. Use None to turn it off.",
            )
        if self.ema_decay is not None:
            _require(
                0 < self.ema_decay < 1,
                f"optimizer.ema_decay must lie between 0 and 1, got {self.ema_decay}. Use None to keep no average.",
            )
        for name, factor in self.lr_multipliers.items():
            _require(
                math.isfinite(factor) and factor > 0,
                f"optimizer.lr_multipliers.{name} must be positive, got {factor}. "
                "Leave the part out of stage.trainable to freeze it.",
            )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of a run: what is trained, on which mix, for how long."""

    trainable: tuple[str, ...]
    """Names of the model's parts (its direct children) that learn; glob patterns such as ``*`` or ``denoiser*``. All
    other parts are frozen and in evaluation mode."""
    mix: dict[str, float]
    """Weight of each data source, by its name in ``recipe.data``; weights need not sum to 1."""
    objectives: dict[str, float]
    """Weight of each objective, by the names the model offers."""
    num_steps: int
    """Optimizer steps."""
    batch_size: int
    """Examples of one optimizer step, over all processes and micro-batches."""
    gradient_accumulation: int = 1
    """Micro-batches a step is cut into; more of them need less memory and change nothing else."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Fresh for every stage."""

    def __post_init__(self) -> None:
        _require(bool(self.trainable), 'stage.trainable is empty: name at least one part, or "*" for all of them.')
        _check_weights("stage.mix", self.mix)
        _check_weights("stage.objectives", self.objectives)
        _check_at_least("stage.num_steps", self.num_steps, 1)
        _check_at_least("stage.batch_size", self.batch_size, 1)
        _check_at_least("stage.gradient_accumulation", self.gradient_accumulation, 1)
        _require(
            self.batch_size % self.gradient_accumulation == 0,
            f"stage.batch_size must be a multiple of stage.gradient_accumulation: "
            f"got {self.batch_size} and {self.gradient_accumulation}.",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How images are drawn."""

    num_steps: int = 30
    """Steps of the ODE solver."""
    guidance_scale: float = 3.0
    """Scale s of classifier-free guidance, ``null + s * (cond - null)``; 1.0 turns it off."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Times t (0 is noise, 1 is data) between which guidance acts."""
    solver: SolverName = "euler"
    """Rule that steps from noise to data."""
    time_shift: float = 1.0
    """Shift s >= 1 of the time grid, ``t / (s - (s - 1) t)``: more steps near noise; 1 is a uniform grid."""
    think: bool = False
    """The model writes a thought before it draws or answers; it must have been trained to."""
    think_to_answer: bool | None = None
    """Whether it writes one before an answer, where that is not as before an image."""
    think_temperature: float = 0.7
    """Temperature of thoughts before images; 0 takes the likeliest token."""

    def __post_init__(self) -> None:
        _check_at_least("sampling.num_steps", self.num_steps, 1)
        _require(
            math.isfinite(self.guidance_scale), f"sampling.guidance_scale must be finite, got {self.guidance_scale}."
        )
        low, high = self.guidance_interval
        _require(
            0 <= low <= high <= 1,
            f"sampling.guidance_interval must be two times 0 <= start <= end <= 1, got {self.guidance_interval}.",
        )
        _check_at_least("sampling.time_shift", self.time_shift, 1)
        _check_at_least("sampling.think_temperature", self.think_temperature, 0)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What a run is scored on when it ends."""

    scorers: tuple[str, ...] = ()
    """Names of benchmarks; empty scores nothing."""
    num_prompts: int = 60
    """Prompts (or questions) of each category."""
    every_stage: bool = False
    """Score after every stage instead of after the last one only."""
    seed: int = 0
    """Draws the prompts and the images."""

    def __post_init__(self) -> None:
        _check_at_least("evaluation.num_prompts", self.num_prompts, 1)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the training state is saved. A run also saves when a stage ends and when it is interrupted."""

    every_steps: int = 1000
    """Steps between two checkpoints, counted over the whole run."""
    keep: int = 2
    """Latest checkpoints that stay on disk; an older one is deleted only when a newer one is complete."""

    def __post_init__(self) -> None:
        _check_at_least("checkpoints.every_steps", self.every_steps, 1)
        _check_at_least("checkpoints.keep", self.keep, 1)


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What a run writes down about itself; none of it changes the weights."""

    every_steps: int = 10
    """Steps between two lines of metrics.jsonl; losses are averaged over them."""
    sample_every: int = 0
    """Steps between two sample grids; 0 draws them only when a stage ends, -1 never."""
    noise_level_bins: int = 4
    """Equal bins of sigma in [0, 1] by which the flow loss is reported."""
    trackers: tuple[Tracker, ...] = ()
    """Trackers beside metrics.jsonl."""
    cost: bool = False
    """Also log peak memory and the FLOPs of a step; these are counted on the first one of a stage by a second pass."""

    def __post_init__(self) -> None:
        _check_at_least("logging.every_steps", self.every_steps, 1)
        _check_at_least("logging.sample_every", self.sample_every, -1)
        _check_at_least("logging.noise_level_bins", self.noise_level_bins, 1)


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[ModelConfigT]):
    """Everything about a run."""

    name: str
    """Shown in logs and reports, e.g. ``blip3o:tiny``."""
    model: ModelConfigT
    """A frozen dataclass of a method; ``build()`` makes the model."""
    data: dict[str, Any]
    """Source configs by name; ``build()`` makes the source."""
    stages: dict[str, Stage]
    """In the order in which they run."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How images are drawn during the run and, by default, from the saved model."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What the run is scored on."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the training state is saved."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """What is written down."""
    seed: int = 0
    """Decides initial weights, data order and all noise."""
    precision: Precision = "float32"
    """bfloat16: autocast over float32 weights. auto: that where the device is fast at it, float32 elsewhere."""

    def __post_init__(self) -> None:
        _require(bool(self.name), "recipe.name is empty.")
        _require(bool(self.stages), f"recipe {self.name!r} has no stages: give at least one.")
        _require(bool(self.data), f"recipe {self.name!r} has no data: give at least one source.")
        _require(0 <= self.seed < 2**63, f"recipe.seed must lie in [0, 2^63), got {self.seed}.")
        for kind, names in (("stage", self.stages), ("source", self.data)):
            for name in names:
                _require(
                    bool(name) and all(letter.isalnum() or letter in "_-" for letter in name),
                    f"recipe {self.name!r}: a {kind} is named {name!r}; use letters, digits, '_' and '-' only.",
                )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.num_steps for stage in self.stages.values())


def validate(recipe: Recipe[Any]) -> None:
    """Checks across classes: what one config says against another.

    Raises:
        ValueError: a stage mixes a source that the recipe does not have.
    """
    for name, stage in recipe.stages.items():
        for source in stage.mix:
            _require(
                source in recipe.data,
                f"recipe {recipe.name!r}: stages.{name}.mix names the source {source!r}, which is not in recipe.data. "
                f"{nearest(source, recipe.data)}",
            )
