"""``diptych evaluate``: scores of a model on held-out scenes, with intervals and the rows to read them against."""

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.models import add_device_options, load_model, model_record, writable_folder
from diptych.cli.parser import Parser, whole_number

if TYPE_CHECKING:
    from diptych.evals.scenes import Sample
    from diptych.scenes.scores import ScoreTable
    from diptych.unified import UnifiedModel

DESCRIPTION = """\
Measures a model on the built-in world and writes scores.json and report.html.
Beside the model stand an oracle, chance and, for edits, the unchanged input."""
EXAMPLES = """\
  diptych evaluate diptych-scenes --on geneval,questions,editing
  diptych evaluate runs/mine/checkpoints/step-004800 --num-per-category 300 --out scores/mine
  diptych evaluate diptych-scenes --on geneval --splits test --seed 1"""

TASKS = ("geneval", "questions", "editing", "multi-reference")
SPLITS = ("test", "novel", "train")
_NEEDS = {
    "geneval": "text_to_image",
    "questions": "image_to_text",
    "editing": "image_edit",
    "multi-reference": "image_edit",
}


@dataclass(frozen=True)
class Scored:
    """An evaluation over several splits; ``samples`` are those of the first."""

    tables: tuple["ScoreTable", ...]
    samples: tuple["Sample", ...]
    seconds: float


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="bundled model, model folder, or checkpoint of a run")
    parser.add_argument("--on", metavar="TASKS", help=f"of {', '.join(TASKS)} (default: all that the model can do)")
    parser.add_argument(
        "--splits", default="test,novel", help="test: unseen combinations; novel: unseen object types (default: both)"
    )
    parser.add_argument("--num-per-category", type=whole_number(1), default=60, metavar="N", help="items (default: 60)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of items and noise (default: 0)")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=64, metavar="N", help="items at a time (default: 64)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for scores.json and report.html (default: scores-MODEL)")
    add_device_options(parser)


def run(arguments: Namespace) -> int:
    from rich.console import Console

    from diptych.cli.score_tables import print_scores
    from diptych.data.picture_files import file_slug
    from diptych.evals.report import write_report
    from diptych.evals.scores_file import write_scores

    tasks = chosen_names(arguments.on, TASKS, "--on")
    splits = chosen_names(arguments.splits, SPLITS, "--splits") or ["test"]
    name = arguments.model.rstrip("/")
    contender = Path(name).name or name
    model = load_model(name, arguments)
    folder = writable_folder(arguments.out or f"scores-{file_slug(contender)}")
    tasks = tasks or [task for task in TASKS if _NEEDS[task] in model.capabilities]
    scored = score_model(
        model,
        tasks,
        splits,
        num_per_category=arguments.num_per_category,
        seed=arguments.seed,
        contender=contender,
        batch_size=arguments.batch_size,
    )
    about = {
        **model_record(model, name),
        "num_per_category": arguments.num_per_category,
        "seed": arguments.seed,
        "seconds": round(scored.seconds, 1),
    }
    print_scores(scored.tables, Console(highlight=False))
    print(write_scores(scored.tables, folder / "scores.json", about))
    print(write_report(evaluation_report(contender, scored, about, arguments.words), folder / "report.html"))
    return 0


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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from diptych.evals.scenes import evaluate_scenes

    started = time.perf_counter()
    tables: list[ScoreTable] = []
    samples: tuple[Sample, ...] = ()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        for split in splits:
            shown: dict[str, Any] = {}

            def report(task: str, done: int, total: int, split: str = split, shown: dict[str, Any] = shown) -> None:
                if task not in shown:
                    shown[task] = bars.add_task(f"{contender}: {task}, {split}", total=total)
                bars.update(shown[task], completed=done)

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


def evaluation_report(contender: str, scored: Scored, about: dict[str, Any], words: Sequence[str]) -> Any:
    """The report of one evaluated model."""
    import shlex

    from diptych.evals.report_data import FileLink, ReportData
    from diptych.evals.scenes_report import drawing_gallery, shown_answers, shown_edits
    from diptych.evals.scores_file import headlines_of, score_boards

    now = datetime.now()
    facts = {**about, **about["versions"]}
    return ReportData(
        title=f"{contender}: scores",
        summary="Measured on the built-in world: synthetic pictures, exact scorers, combinations unseen in training.",
        created=f"{now:%A} {now.day} {now:%B %Y, %H:%M}",
        command=shlex.join(words),
        environment={key.replace("_", " "): str(value) for key, value in facts.items() if key != "versions"},
        headlines=headlines_of([table for table in scored.tables if "(" not in table.benchmark]),
        galleries=drawing_gallery(scored.samples, contender),
        edits=shown_edits(scored.samples),
        answers=shown_answers(scored.samples),
        score_boards=score_boards(scored.tables),
        files=(FileLink(path="scores.json", detail="every score with its interval"),),
    )


def chosen_names(text: str | None, known: Sequence[str], option: str) -> list[str]:
    """The comma-separated names of an option; ``all`` and ``scenes`` mean all of them.

    Raises:
        ValueError: an unknown name, with the nearest known one.
    """
    from diptych.train.nearest import nearest

    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in known and name not in ("all", "scenes"):
            raise ValueError(f"{option}: there is no {name!r}. {nearest(name, known)}")
    return list(known) if {"all", "scenes"} & set(names) else list(dict.fromkeys(names))
