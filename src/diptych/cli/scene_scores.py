"""Scores on the built-in world for every command that wants them, with progress on stderr."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.evals.produce import Progress
    from diptych.evals.scenes import Sample
    from diptych.scenes.scores import ScoreTable
    from diptych.unified import UnifiedModel

TASKS = ("geneval", "questions", "editing", "multi-reference")
SPLITS = ("test", "novel", "train")
NEEDS = {
    "geneval": "text_to_image",
    "questions": "image_to_text",
    "editing": "image_edit",
    "multi-reference": "image_edit",
}
"""What a model must be able to do for each."""


@dataclass(frozen=True)
class Scored:
    """An evaluation over several splits; ``samples`` are those of the first."""

    tables: tuple["ScoreTable", ...]
    samples: tuple["Sample", ...]
    seconds: float


def chosen_names(text: str | None, known: Sequence[str], option: str) -> list[str]:
    """The comma-separated names of an option; ``all`` and ``scenes`` mean all of them.

    Raises:
        ValueError: an unknown name, with the nearest known one.
    """
    from diptych.train.nearest import nearest

    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in known and name not in ("all", "scenes"):
            raise ValueError(f"{option}: there is no {name!r}. {nearest(name, known, count=1)}")
    return list(known) if {"all", "scenes"} & set(names) else list(dict.fromkeys(names))


def score_model(
    model: "UnifiedModel",
    tasks: Sequence[str],
    splits: Sequence[str] = ("test",),
    *,
    num_per_category: int = 60,
    seed: int = 0,
    contender: str = "model",
    batch_size: int = 64,
    references: bool = True,
) -> Scored:
    """Runs the benchmarks on each split, with progress on stderr. Benchmarks of a later split carry its name."""
    from diptych.evals.scenes import evaluate_scenes

    started = time.perf_counter()
    tables: list[ScoreTable] = []
    samples: tuple[Sample, ...] = ()
    with progress_bars(contender) as bars:
        for split in splits:

            def report(task: str, done: int, total: int, split: str = split) -> None:
                bars(f"{task}, {split}", done, total)

            result = evaluate_scenes(
                model,
                tasks,
                num_per_category,
                split,  # type: ignore[arg-type]
                seed,
                contender,
                batch_size,
                references,
                progress=report,
            )
            suffix = "" if split == splits[0] else f" ({split})"
            tables += [replace(table, benchmark=table.benchmark + suffix) for table in result.tables]
            samples = samples or result.samples
    return Scored(tuple(tables), samples, time.perf_counter() - started)


@contextmanager
def progress_bars(name: str) -> Iterator["Progress"]:
    """Bars on stderr with the time left, one a task; nothing where it is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown: dict[str, Any] = {}
    with Bars(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:

        def report(label: str, done: int, total: int) -> None:
            if label not in shown:
                # The rest is what the estimate is about: samples that were there took no time.
                shown[label] = bars.add_task(f"{name}: {label}", total=total, completed=done)
            bars.update(shown[label], completed=done)

        yield report
