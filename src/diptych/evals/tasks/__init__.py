"""Benchmarks of the harness by name; one file each.

A package of one's own adds to them with ``register_task`` when it is imported (``diptych --import PACKAGE``).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from diptych.evals.task import Task
from diptych.evals.tasks.doundo import DoUndo
from diptych.evals.tasks.geneval import OFFICIAL_SAMPLES, Detector, geneval_task, twin_task
from diptych.evals.tasks.gsi import SpatialCompliance
from diptych.evals.tasks.scenes import Editing, MultiReference, Questions
from diptych.evals.tasks.xtc import SAMPLES, CrossTaskConsistency
from diptych.scenes.split import Split

NUM_PER_CATEGORY = 60


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What a user may say about the samples of a task; JSON-able by ``to_dict``."""

    split: Split = "test"
    num_per_category: int | None = None
    """Items of each category; without it 60 of the built-in world, and all of a published benchmark."""
    samples: int | None = None
    """Pictures of each prompt; without it as the benchmark has it."""
    rounds: int = 1
    """How often in a row an edit is done and undone."""
    seed: int = 0
    image_size: tuple[int, int] = (64, 64)
    """(height, width) of the pictures that are shown."""
    mark: str = ""
    """What stands behind the benchmark's name: `` (novel)``."""
    prompts: str = ""
    """File of prompts, where the benchmark has one."""
    rewritten: str = ""
    """The same prompts in other words."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TaskOptions":
        height, width = content["image_size"]
        return cls(**{**content, "image_size": (int(height), int(width))})

    def scene_items(self) -> dict[str, Any]:
        """The arguments of a task of the built-in world."""
        return {
            "split": self.split,
            "num_per_category": self.num_per_category or NUM_PER_CATEGORY,
            "seed": self.seed,
            "image_size": self.image_size,
            "mark": self.mark,
        }


Builder = Callable[[TaskOptions, Detector | None], Task]


@dataclass(frozen=True)
class TaskEntry:
    """What is known of a benchmark before it is built."""

    summary: str
    needs: tuple[str, ...]
    """Capabilities."""
    build: Builder
    files: str = ""
    """What it needs beside the model."""
    has_splits: bool = True
    """Whether it is of the built-in world, with its splits."""


def _geneval(options: TaskOptions, detector: Detector | None) -> Task:
    if not options.prompts:
        raise ValueError(
            "geneval-official needs its prompts: give --prompts evaluation_metadata.jsonl, from GenEval's repository."
        )
    return geneval_task(
        options.prompts,
        rewritten=options.rewritten or None,
        detector=detector,
        num_per_category=options.num_per_category,
        samples=options.samples or OFFICIAL_SAMPLES,
        seed=options.seed,
    )


TASKS: dict[str, TaskEntry] = {
    "geneval": TaskEntry(
        "the twin of GenEval: draw prompts of six categories, judged by the rules of GenEval",
        ("text_to_image",),
        lambda options, _: twin_task(**options.scene_items(), samples=options.samples or 1),
    ),
    "questions": TaskEntry(
        "answer questions about pictures",
        ("image_to_text",),
        lambda options, _: Questions(**options.scene_items()),
    ),
    "editing": TaskEntry(
        "change pictures as told, and nothing else",
        ("image_edit",),
        lambda options, _: Editing(**options.scene_items()),
    ),
    "multi-reference": TaskEntry(
        "compose pictures from several references",
        ("image_edit",),
        lambda options, _: MultiReference(**options.scene_items()),
    ),
    "xtc": TaskEntry(
        "cross-task consistency: does the model draw what it would answer?",
        ("image_to_text", "text_to_image"),
        lambda options, _: CrossTaskConsistency(**options.scene_items(), samples=options.samples or SAMPLES),
    ),
    "do-undo": TaskEntry(
        "do an edit, then take it back from the picture that came out",
        ("image_edit",),
        lambda options, _: DoUndo(**options.scene_items(), rounds=options.rounds),
    ),
    "gsi": TaskEntry(
        "spatial edits told in numbers: move, place, scale and remove by so many per cent",
        ("image_edit",),
        lambda options, _: SpatialCompliance(**options.scene_items()),
    ),
    "geneval-official": TaskEntry(
        "GenEval itself: 553 prompts about photographs, four pictures each",
        ("text_to_image",),
        _geneval,
        files="--prompts evaluation_metadata.jsonl; --detections FILE or --detector GRAPH to judge",
        has_splits=False,
    ),
}
"""By the name that ``--on`` takes."""

SCENE_TASKS = ("geneval", "questions", "editing", "multi-reference")
"""What ``--on scenes`` means."""


def register_task(name: str, entry: TaskEntry) -> None:
    """Adds a benchmark.

    Raises:
        ValueError: the name is taken.
    """
    if name in TASKS:
        raise ValueError(f"there is a benchmark {name!r} already. Choose another name.")
    TASKS[name] = entry


def build_task(name: str, options: TaskOptions, detector: Detector | None = None) -> Task:
    """
    Args:
        detector: judges the pictures of ``geneval-official``; not needed to draw them.

    Raises:
        ValueError: no such benchmark, or one of its files is wrong.
    """
    if name not in TASKS:
        raise ValueError(f"there is no benchmark {name!r}. Known: {', '.join(TASKS)}.")
    return TASKS[name].build(options, detector)
