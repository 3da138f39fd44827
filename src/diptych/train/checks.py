"""What must hold before a run starts, beyond what a recipe can check on its own."""

from importlib.util import find_spec
from typing import Any

from diptych.train.nearest import nearest
from diptych.train.parts import matching_parts, parts_of
from diptych.train.recipe import Recipe, Stage
from diptych.train.task import TrainingTask


def check_task(task: TrainingTask, recipe: Recipe[Any]) -> None:
    """Objectives, learning rate factors and trackers that the recipe names must be there.

    Raises:
        ValueError: one is not; the message has the nearest known names.
    """
    for name, stage in recipe.stages.items():
        for objective in stage.objectives:
            if objective not in task.objectives:
                raise ValueError(
                    f"stages.{name}.objectives names {objective!r}, which the model does not offer. "
                    f"{nearest(objective, task.objectives)}"
                )
        matching_parts(
            tuple(stage.optimizer.lr_multipliers), parts_of(task.model), f"stages.{name}.optimizer.lr_multipliers"
        )
    for tracker in recipe.logging.trackers:
        if find_spec(tracker) is None:
            raise ValueError(
                f"logging.trackers has {tracker!r}, which is not installed. Use `pip install {tracker}`, or leave it "
                "out: metrics.jsonl has the same figures."
            )


def check_batch_sizes(recipe: Recipe[Any], num_processes: int) -> None:
    """Every process must get the same number of examples in each micro-batch.

    Raises:
        ValueError: a stage's batch size cannot be cut up so; the message has the nearest that can.
    """
    for name, stage in recipe.stages.items():
        unit = num_processes * stage.gradient_accumulation
        if stage.batch_size % unit:
            raise ValueError(
                f"stages.{name}.batch_size must be a multiple of processes x gradient_accumulation: got "
                f"{stage.batch_size}, {num_processes} and {stage.gradient_accumulation}. "
                f"Use {max(1, round(stage.batch_size / unit)) * unit}."
            )


def check_whole_batches(name: str, stage: Stage) -> None:
    """For losses of a batch as a whole, which are not sums over micro-batches.

    Raises:
        ValueError: the stage accumulates gradients.
    """
    if stage.gradient_accumulation > 1:
        raise ValueError(
            f"stages.{name}.gradient_accumulation must be 1, got {stage.gradient_accumulation}: its loss is of a batch "
            "as a whole. Use more processes, or model.checkpoint_activations, for batches that do not fit."
        )
