"""Benchmarks of the harness by name; one file each.

A package of one's own adds to them with ``register_task`` when it is imported (``diptych --import PACKAGE``).
"""

from diptych.evals.task import Task
from diptych.evals.tasks.entries import NUM_PER_CATEGORY, Builder, Judge, TaskEntry, TaskOptions
from diptych.evals.tasks.published_entries import PUBLISHED_ENTRIES
from diptych.evals.tasks.scene_entries import SCENE_ENTRIES

__all__ = [
    "NUM_PER_CATEGORY",
    "SCENE_TASKS",
    "TASKS",
    "Builder",
    "Judge",
    "TaskEntry",
    "TaskOptions",
    "build_task",
    "register_task",
    "task_entry",
]

TASKS: dict[str, TaskEntry] = {**SCENE_ENTRIES, **PUBLISHED_ENTRIES}
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


def build_task(name: str, options: TaskOptions, judge: Judge | None = None) -> Task:
    """
    Args:
        judge: judges the pictures of a published benchmark, if it is of its kind; not needed to draw them.

    Raises:
        ValueError: no such benchmark, or one of its files is wrong.
    """
    return task_entry(name).build(options, judge)


def task_entry(name: str) -> TaskEntry:
    """What is known of a benchmark; ``lmms:TASK`` is one of lmms-eval.

    Raises:
        ValueError: no such benchmark.
    """
    if name.startswith("lmms:"):
        return TaskEntry("a task of lmms-eval", ("image_to_text",), _of_lmms(name), has_splits=False)
    if name not in TASKS:
        raise ValueError(f"there is no benchmark {name!r}. Known: {', '.join(TASKS)}.")
    return TASKS[name]


def _of_lmms(name: str) -> Builder:
    from diptych.evals.lmms.imported import PREFIX, LmmsTask

    return lambda options, _: LmmsTask(
        task=name.removeprefix(PREFIX), include_path=options.include_path, number=options.num_per_category
    )
