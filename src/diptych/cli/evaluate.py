"""``diptych evaluate``: scores of a model on held-out scenes, with intervals and the rows to read them against."""

import math
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.contenders import ContenderSpec, contender_record
from diptych.cli.judges import chosen_judge
from diptych.cli.models import add_device_options, writable_folder
from diptych.cli.parser import Parser, picture_size, whole_number
from diptych.cli.scene_scores import SPLITS, TASKS, chosen_names, progress_bars
from diptych.cli.task_lists import outlook_table, task_list

if TYPE_CHECKING:
    from diptych.evals.harness import OpenContender, Run
    from diptych.evals.manifest import EvaluationFolder
    from diptych.evals.score import TaskResult
    from diptych.scenes.scores import ScoreTable

DESCRIPTION = """\
Measures a model in two phases. The first makes everything that the tasks ask for and keeps it in a folder; the second
judges what is there, now or later and elsewhere. Run again, it goes on where it was stopped.
Beside the model stand an oracle, chance and, for edits, the unchanged input.

MODEL is a bundled model, a model folder, a checkpoint of a run, a server as URL#NAME (OpenAI-compatible), pictures:DIR
(pictures in the layout of an official scorer), or one of the references oracle, chance, constant and copy-input.
With --phase score it is the folder that is to be judged."""
EXAMPLES = """\
  diptych evaluate diptych-scenes --on geneval,questions,editing
  diptych evaluate runs/mine/checkpoints/step-004800 --num-per-category 300 --out scores/mine
  diptych evaluate diptych-scenes --on xtc --samples 4 --processes 2
  diptych evaluate diptych-scenes --on scenes,xtc --dry-run
  diptych evaluate diptych-scenes --on do-undo,gsi --rounds 3
  diptych evaluate runs/mine --on geneval-official --prompts evaluation_metadata.jsonl --phase produce
  diptych evaluate scores-mine --phase score --detections found.jsonl
  diptych evaluate --list"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="what is measured; see above")
    parser.add_argument(
        "--on",
        metavar="TASKS",
        help=f"of {', '.join(TASKS)}, xtc, do-undo, gsi and official ones (default: the first four, if it can)",
    )
    parser.add_argument("--list", action="store_true", help="list the tasks with what they need, and stop")
    parser.add_argument("--dry-run", action="store_true", help="count samples and estimate the time, and stop")
    parser.add_argument("--phase", choices=("all", "produce", "score"), default="all", help="(default: all)")
    parser.add_argument(
        "--splits", default="test,novel", help="test: unseen combinations; novel: unseen object types (default: both)"
    )
    parser.add_argument(
        "--num-per-category", type=whole_number(1), metavar="N", help="items (default: 60; of geneval-official all)"
    )
    parser.add_argument("--samples", type=whole_number(1), metavar="N", help="pictures a prompt (default: the task's)")
    parser.add_argument("--rounds", type=whole_number(1), default=1, metavar="N", help="of do-undo: times (default: 1)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of items and noise (default: 0)")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=64, metavar="N", help="items at a time (default: 64)"
    )
    parser.add_argument("--processes", type=whole_number(1), default=1, metavar="K", help="share the work (default: 1)")
    parser.add_argument("--steps", type=whole_number(1), metavar="N", help="sampling steps (default: the model's)")
    parser.add_argument("--guidance", type=float, metavar="S", help="guidance scale, 1 is off (default: the model's)")
    parser.add_argument("--size", type=picture_size, metavar="WxH", help="pixels of drawings (default: the model's)")
    parser.add_argument("--generator", metavar="MODEL", help="another model that draws, while MODEL answers")
    parser.add_argument(
        "--prompts", metavar="FILE", help="of an official benchmark: its prompts; --list says which file"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="of do-undo-official: frames; of gsi-official and xtc-official: data"
    )
    parser.add_argument("--include-path", metavar="DIR", help="of lmms:TASK: a folder of further tasks of lmms-eval")
    parser.add_argument(
        "--lmms-tasks", metavar="DIR", help="write the tasks for lmms-eval's --include_path, and stop; needs no MODEL"
    )
    parser.add_argument("--rewritten", metavar="FILE", help="the same prompts in other words")
    parser.add_argument("--detections", metavar="FILE", help="of geneval-official: found objects, as JSON lines")
    parser.add_argument(
        "--detector",
        metavar="WHICH",
        help="of geneval-official: a YOLOX network, NAME.graph.json, or KIND=FOLDER_OR_ID of transformers, with a kind "
        "of owlv2, grounding-dino, mask2former, maskformer, oneformer and detr",
    )
    parser.add_argument(
        "--judge", metavar="JUDGE", help="who looks at pictures: a model, URL#NAME, scenes, MODULE:FUNCTION, or a file"
    )
    parser.add_argument("--export", metavar="DIR", help="also write the pictures as the official scorer reads them")
    parser.add_argument(
        "--verdicts", metavar="PATH", help="results of the official scorer, whose form tells which benchmark it is"
    )
    parser.add_argument(
        "--missing", choices=("wrong", "refuse"), default="wrong", help="what absent samples are (default: wrong)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder of samples, scores and report (default: scores-MODEL)")
    add_device_options(parser)


def run(arguments: Namespace) -> int:
    from diptych.data.picture_files import file_slug
    from diptych.evals.manifest import EvaluationFolder

    if arguments.list:
        print(task_list())
        return 0
    if arguments.lmms_tasks:
        return write_lmms_tasks(arguments)
    if arguments.model is None:
        raise ValueError("evaluate needs a MODEL. `diptych evaluate --help` shows what it can be; --list lists tasks.")
    if arguments.phase == "score":
        return judge(EvaluationFolder(arguments.model), arguments, {})
    names = chosen_tasks(arguments.on)
    splits = chosen_names(arguments.splits, SPLITS, "--splits") or ["test"]
    if arguments.guidance is not None and not math.isfinite(arguments.guidance):
        raise ValueError(f"--guidance must be a finite number, got {arguments.guidance}.")
    name = arguments.model.rstrip("/")
    spec = ContenderSpec(name, arguments.generator, arguments.device, arguments.dtype, arguments.size)
    opened = spec()
    folder = EvaluationFolder(writable_folder(arguments.out or f"scores-{file_slug(Path(name).name or name)}"))
    given = sampling_settings(arguments)
    started = time.perf_counter()
    plan = planned_run(names, splits, opened, given, arguments)
    if arguments.dry_run:
        print(outlook_table(folder, plan, arguments))
        return 0
    about = {
        **contender_record(plan.tasks[0].contender, name),
        "num_per_category": arguments.num_per_category or 60,
        "seed": arguments.seed,
        "command": shlex.join(arguments.words),
    }
    write_plan_and_produce(folder, plan, spec, given, about, arguments)
    about["seconds"] = round(time.perf_counter() - started, 1)
    return 0 if arguments.phase == "produce" else judge(folder, arguments, about)


def write_lmms_tasks(arguments: Namespace) -> int:
    """Writes tasks of this harness as tasks of lmms-eval, in the first split."""
    from diptych.evals.lmms.tasks import write_lmms_task
    from diptych.evals.tasks import TaskOptions, build_task

    splits = chosen_names(arguments.splits, SPLITS, "--splits") or ["test"]
    for name in chosen_tasks(arguments.on) or ["questions"]:
        options = TaskOptions(
            split=splits[0],  # type: ignore[arg-type]
            num_per_category=arguments.num_per_category,
            seed=arguments.seed,
            image_size=arguments.size or (64, 64),
        )
        print(write_lmms_task(build_task(name, options), options.to_dict(), writable_folder(arguments.lmms_tasks)))
    return 0


def chosen_tasks(text: str | None) -> list[str]:
    """Names of tasks; ``scenes`` means the first four, ``all`` those that need no files; empty where none is given.

    Raises:
        ValueError: an unknown name.
    """
    from diptych.evals.tasks import TASKS as KNOWN

    groups = {"scenes": list(TASKS), "all": [name for name, entry in KNOWN.items() if not entry.files]}
    names: list[str] = []
    for name in (word.strip() for word in (text or "").split(",")):
        if name.startswith("lmms:"):
            names.append(name)
            continue
        names += groups.get(name) or chosen_names(name, list(KNOWN), "--on")
    return list(dict.fromkeys(names))


def sampling_settings(arguments: Namespace) -> dict[str, dict[str, Any]]:
    """What the options say about drawing, by kind of request."""
    given = {"num_steps": arguments.steps, "guidance_scale": arguments.guidance, "size": arguments.size}
    return {"image": {name: value for name, value in given.items() if value is not None}}


def planned_run(
    names: Sequence[str],
    splits: Sequence[str],
    opened: "OpenContender",
    given: Mapping[str, Mapping[str, Any]],
    arguments: Namespace,
) -> "Run":
    """Every task in every split it has; without names the first four, as far as the contender can do them."""
    from diptych.evals.harness import Asked, plan_run
    from diptych.evals.tasks import TaskOptions, build_task, task_entry

    size = opened(build_task("questions", TaskOptions(num_per_category=1))).image_size
    asked = []
    for name in names or TASKS:
        for split in splits if task_entry(name).has_splits else [splits[0]]:
            options = TaskOptions(
                split=split,  # type: ignore[arg-type]
                num_per_category=arguments.num_per_category,
                samples=arguments.samples,
                rounds=arguments.rounds,
                seed=arguments.seed,
                image_size=size,
                mark="" if split == splits[0] else f" ({split})",
                prompts=arguments.prompts or "",
                rewritten=arguments.rewritten or "",
                images=str(Path(arguments.images).resolve()) if arguments.images else "",
                include_path=str(Path(arguments.include_path).resolve()) if arguments.include_path else "",
            )
            asked.append(Asked(name, options))
    plan = plan_run(sorted(asked, key=lambda one: splits.index(one.options.split)), opened, given)
    for reason in dict.fromkeys(plan.skipped.values()):
        print(f"Skipped: {reason}.", file=sys.stderr)
    return plan


def write_plan_and_produce(
    folder: "EvaluationFolder",
    plan: "Run",
    spec: ContenderSpec,
    given: Mapping[str, Mapping[str, Any]],
    about: Mapping[str, Any],
    arguments: Namespace,
) -> None:
    """The first phase, with progress on stderr."""
    from diptych.evals.harness import write_plan
    from diptych.evals.processes import produce_in_processes, produce_run

    write_plan(folder, plan, about)
    with progress_bars(plan.tasks[0].contender.name) as report:
        if arguments.processes == 1:
            failed = produce_run(folder, plan, batch_size=arguments.batch_size, progress=report)
        else:
            failed = produce_in_processes(
                folder, plan, spec, arguments.processes, given, batch_size=arguments.batch_size, progress=report
            )
    if failed:
        print(
            f"{failed} samples could not be made; {folder.failures} says why. Run the same command again to try them.",
            file=sys.stderr,
        )


def judge(folder: "EvaluationFolder", arguments: Namespace, about: Mapping[str, Any]) -> int:
    """The second phase: scores.json, results.json, report.md and report.html of a folder.

    Args:
        about: facts about the evaluation; those of ``run.json`` where it is empty.
    """
    from rich.console import Console

    from diptych.cli.score_tables import print_scores
    from diptych.evals.harness import score_run
    from diptych.evals.processes import judge_in_processes
    from diptych.evals.report import write_report
    from diptych.evals.results_file import write_results
    from diptych.evals.scores_file import write_scores

    run = folder.read_run()
    if arguments.export:
        export(folder, run, arguments.export)
    looks = chosen_judge(arguments)
    if arguments.processes > 1 and looks is None:
        with progress_bars("judging") as report:
            judge_in_processes(folder, arguments.processes, report)
    with progress_bars("judging") as report:
        results, references, unjudged = score_run(folder, judge=looks, missing=arguments.missing, progress=report)
    for reason in unjudged.values():
        print(f"Not judged: {reason}.", file=sys.stderr)
    if not results:
        return 0
    tables = in_order([result.table for result in results], references)
    facts = dict(about or run["about"])
    facts.pop("command", None)
    print_scores(tables, Console(highlight=False))
    write_results(folder.path, run, results, references)
    print(write_scores(tables, folder.path / "scores.json", facts))
    data = evaluation_report(folder, run, results, tables, facts, arguments.words)
    print(write_report(data, folder.path / "report.html"))
    return 0


def export(folder: "EvaluationFolder", run: Mapping[str, Any], target: str) -> None:
    """Writes the pictures of official benchmarks for their scorers; of several, each into a folder of its own name.

    Raises:
        ValueError: the folder holds none.
    """
    from diptych.evals.harness import planned_before
    from diptych.evals.official_layout import export_layout
    from diptych.evals.places import WithPlaces
    from diptych.evals.tasks import TASKS as KNOWN
    from diptych.evals.tasks.detections_file import export_pictures
    from diptych.evals.tasks.gedit import write_sources
    from diptych.evals.tasks.geneval import GenEval
    from diptych.evals.tasks.official_results import export_named
    from diptych.evals.tasks.xtc_official import ConsistencyOfficial, export_answers

    official = [name for name, known in KNOWN.items() if not known.has_splits]
    entries = [entry for entry in run["tasks"] if entry["name"] in official]
    if not entries:
        raise ValueError(f"--export: {folder.path} holds none of {', '.join(official)}.")
    for entry in entries:
        task: Any = planned_before(folder, entry).build()
        place = writable_folder(target if len(entries) == 1 else str(Path(target) / entry["name"]))
        write: Any = export_pictures if isinstance(task, GenEval) else export_named
        if isinstance(task, WithPlaces):
            write = export_layout
        print(f"{write(folder, task, entry['keys'], place)} pictures in {place}", file=sys.stderr)
        if entry["name"].startswith("gedit"):
            write_sources(task, place)
        if isinstance(task, ConsistencyOfficial):
            print(f"{export_answers(folder, task, entry['keys'], place)} answers in {place}", file=sys.stderr)


def in_order(own: Sequence["ScoreTable"], references: Sequence["ScoreTable"]) -> list["ScoreTable"]:
    """The model's table of each benchmark, and then those of its references."""
    return [
        table
        for first in own
        for table in (first, *[other for other in references if other.benchmark == first.benchmark])
    ]


def evaluation_report(
    folder: "EvaluationFolder",
    run: Mapping[str, Any],
    results: Sequence["TaskResult"],
    tables: Sequence["ScoreTable"],
    about: Mapping[str, Any],
    words: Sequence[str],
) -> Any:
    """The page of one evaluation."""
    from diptych.evals.harness import planned_before
    from diptych.evals.report_data import FileLink, ReportData
    from diptych.evals.results_file import facts
    from diptych.evals.scenes_report import drawing_gallery, shown_answers, shown_edits
    from diptych.evals.scores_file import headlines_of, score_boards
    from diptych.evals.shown import shown_samples

    contender = run["contender"]["name"]
    entries = {entry["label"]: entry for entry in run["tasks"]}
    first = [result for result in results if "(" not in result.table.benchmark]
    tasks = []
    for result in first:
        entry = entries[result.table.benchmark]
        task = planned_before(folder, entry).build()
        tasks.append((task, entry["keys"], result))
    samples = shown_samples(folder, tasks)
    now = datetime.now()
    environment = {**about, **about.get("versions", {})}
    measured = {f"note {number}": fact for number, fact in enumerate(facts(run, results), start=1)}
    return ReportData(
        title=f"{contender}: scores",
        summary="What was asked, by whom it was judged and what is missing stands under Environment and in report.md.",
        created=f"{now:%A} {now.day} {now:%B %Y, %H:%M}",
        command=shlex.join(words),
        environment={
            **{key.replace("_", " "): str(value) for key, value in environment.items() if key != "versions"},
            **measured,
        },
        headlines=headlines_of([table for table in tables if "(" not in table.benchmark]),
        galleries=drawing_gallery(samples, contender),
        edits=shown_edits(samples),
        answers=shown_answers(samples),
        score_boards=score_boards(tables),
        files=(
            FileLink(path="scores.json", detail="every score with its interval"),
            FileLink(
                path="results.json", detail="the same with the keys of lmms-eval, and everything that was recorded"
            ),
            FileLink(path="report.md", detail="tables and notes as text"),
            FileLink(path="manifest.jsonl", detail="a row for every sample"),
        ),
    )
