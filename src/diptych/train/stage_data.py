"""The data of a stage: each optimizer step's micro-batches with their seeds, collated one step ahead."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diptych.train.recipe import Stage
from diptych.train.task import Stream, TrainingTask, example_seeds, step_key


@dataclass(frozen=True)
class StepInputs:
    """What one process needs for one optimizer step.

    Attributes:
        batches: its micro-batches.
        seeds: one for each micro-batch.
        keys: of the examples, for reports.
        num_examples: in all micro-batches.
        num_tokens: in all micro-batches; 0 where batches do not tell.
        data_state: of the stream after these examples.
    """

    batches: list[Any]
    seeds: list[int]
    keys: list[str]
    num_examples: int
    num_tokens: int
    data_state: dict[str, Any]


def step_inputs(
    task: TrainingTask,
    stream: Stream,
    name: str,
    stage: Stage,
    seed: int,
    rank: int,
    num_processes: int,
    first_step: int,
) -> Iterator[StepInputs]:
    """The inputs of the steps from ``first_step`` to the end of the stage.

    Raises:
        ValueError: the stream ends early, or hands out more examples than this process's share.
    """
    share = stage.batch_size // num_processes
    size = share // stage.gradient_accumulation
    examples_of_steps = iter(stream)
    for step in range(first_step, stage.num_steps):
        examples = next(examples_of_steps, None)
        if not examples:
            raise ValueError(
                f"the data of stage {name!r} ended at step {step} of {stage.num_steps}: a stream must be endless."
            )
        if len(examples) > share:
            raise ValueError(
                f"the stream of stage {name!r} gave {len(examples)} examples, this process's share is {share}."
            )
        state = stream.state_dict()
        seeds = example_seeds(seed, name, step, [rank * share + place for place in range(len(examples))])
        starts = range(0, len(examples), size)
        batches = [task.collate(examples[start : start + size], seeds[start : start + size]) for start in starts]
        yield StepInputs(
            batches=batches,
            seeds=[step_key(seed, name, step, "micro-batch", number) for number in range(len(batches))],
            keys=[example.key for example in examples],
            num_examples=len(examples),
            num_tokens=sum(int(getattr(batch, "num_tokens", 0)) for batch in batches),
            data_state=state,
        )
