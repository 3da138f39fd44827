"""What a method hands to the training loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from diptych.data.example import Example, ImageLike
from diptych.data.shuffle import derive_key
from diptych.objectives.loss_term import Objective
from diptych.train.recipe import Stage


@runtime_checkable
class Stream(Protocol):
    """An endless sequence of batches of examples: this process's share of one optimizer step after the other.

    ``state_dict()`` between two batches is the place after the last batch handed out, JSON-able; loading it gives the
    same sequence from there on. ``data.stream.MixtureStream`` is one.
    """

    def __iter__(self) -> Iterator[list[Example]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Companion(Protocol):
    """What an objective keeps from step to step beside the model's weights, as a loss of populations keeps theirs.

    All processes hold the same. Its tensors are saved with the training state.
    """

    def begin_stage(self, name: str, stage: Stage, is_new: bool) -> None:
        """Called in every process, with the model as it is, before the first step; of a stage that goes on
        (``is_new`` False), before ``load_state_dict``. May be ended at any time by a signal."""
        ...

    def after_step(self) -> None:
        """Called after every optimizer step."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Numbers for the run's log."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that decides how it goes on."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A model and everything the loop needs to train it.

    The contract of randomness, which makes one process and many give the same gradients: *all noise of an example is
    drawn from the example's own seed*. For every optimizer step the loop derives one 63-bit seed for each example from
    (recipe seed, stage, step, place in the global batch) and passes them to ``collate``, which keeps them in the batch
    (``Batch.example_seeds``); objectives draw noise, times and dropped conditions from them
    (``objectives.randomness``). The ``generator`` an objective receives is seeded from (recipe seed, stage, step,
    number of the micro-batch); what is drawn from it depends on how the batch is cut up. Torch's global generators
    are seeded at every step too, so dropout needs no state to be saved.

    The place in the global batch of the i-th example of rank r is ``r * batch_size / world_size + i``. (A broken record
    that was left out shifts the seeds of those after it on its rank.)
    """

    model: nn.Module
    """Its direct children are the parts that stages train or freeze."""
    objectives: Mapping[str, Objective]
    """By the names that stages use: those of the loss terms they return (``flow``, also for ``flow/pixels``). A
    function under several names runs once a step; terms that the stage does not name are left out. Parameters of
    frozen parts have ``requires_grad=False``."""
    collate: Callable[[Sequence[Example], Sequence[int]], Any]
    """``(examples, seeds) -> batch``. A batch has ``to(device)`` and may have ``num_tokens``. Beside a
    GPU it is called in a thread of its own, one step ahead."""
    open_stream: Callable[[str, Stage, int, int], Stream]
    """``(stage name, stage, rank, world_size) -> stream``; its batches have ``stage.batch_size // world_size`` examples
    (fewer where records are broken)."""
    save_model_folder: Callable[[Path], None]
    """Writes the model as it is now to a folder that does not exist yet."""
    prepare_stage: Callable[[str, Stage], None] | None = None
    """Called in every process before the stage's data is opened; e.g. fills feature caches. Ctrl-C and SIGTERM end it
    at once, so it must keep nothing that a resumed run could not make again."""
    sample: Callable[[str, int], Sequence[tuple[ImageLike, str]]] | None = None
    """``(stage name, step) -> pictures with captions``: drawn by the model as it is now, for the sample grids."""
    evaluate: Callable[[str], Mapping[str, float]] | None = None
    """``stage name -> scores`` of the model as it is now; called as ``recipe.evaluation`` says, in the main process."""
    companion: Companion | None = None
    """State of the objectives, where they have any."""
    count_terms: Callable[[Any], Mapping[str, float]] | None = None
    """``batch -> count of each loss term``, for stages with gradient accumulation only: with it the counts of a step
    are known without running the objectives once more."""


def step_key(seed: int, stage: str, step: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose in one step of a stage."""
    return derive_key(seed, "step", stage, step, *purpose) >> 1


def example_seeds(seed: int, stage: str, step: int, places: Sequence[int]) -> list[int]:
    """The seeds of the examples at the given places of the global batch of a step."""
    return [step_key(seed, stage, step, "example", place) for place in places]
