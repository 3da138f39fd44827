"""``diptych demo``: a model draws, edits and answers; another is trained before your eyes; both are scored.

Everything lands in one report, whose path is printed last.
"""

import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.main import INTERRUPTED
from diptych.cli.models import DEFAULT_MODEL, load_model, model_record, writable_folder
from diptych.cli.parser import Parser, positive_number, whole_number
from diptych.cli.processes import default_processes, on_gpu, train_in_processes
from diptych.cli.scene_scores import TASKS, Scored, chosen_names, score_model
from diptych.cli.train import train_recipe

if TYPE_CHECKING:
    from PIL.Image import Image

    from diptych.evals.report_data import Answer, Edit, ReportData
    from diptych.train.recipe import Recipe
    from diptych.unified import UnifiedModel

DESCRIPTION = """\
First the bundled model draws, edits a picture and answers questions (seconds). Then a small BLIP3-o is trained from
scratch (minutes). Then both are scored. The path of the report is printed last."""
EXAMPLES = """\
  diptych demo
  diptych demo --minutes 30 --out runs/demo --num-per-category 100
  diptych demo --recipe blip3o:tiny"""

DEMO_RECIPE = "blip3o:demo"
NUM_TIMED_STEPS = 20
"""Of every stage, before the training; the first half warms up."""
DEMO_MINUTES = 8
"""The training then leaves a few minutes of a quarter of an hour for set-up and scores, however fast the machine is."""

PROMPTS = (
    "a red circle above a blue square",
    "three blue stars",
    "a purple heart and a yellow diamond",
    "a large orange ring",
    "a red cross left of a brown triangle",
    "two blue hearts",
    "a yellow star below a red square",
    "a photo of a green ring and a purple circle",
)
"""What the bundled model draws first."""

EDIT = "make the red circle green"
"""What is then done to the first picture."""

QUESTIONS = (
    (0, "What color is the square?"),
    (0, "Where is the circle relative to the square?"),
    (1, "How many stars are there?"),
    (2, "Is there a heart?"),
    (3, "What shape is the orange object?"),
    (6, "Is the star above the square?"),
)
"""Index of the picture and what is asked about it."""

GOALS = {"geneval-twin": 0.60, "question-answering": 0.80}
"""What the model trained by ``blip3o:demo`` is to reach."""

_LEARNT_FROM = {"editing": {"image_edit", "interleaved"}, "multi-reference": {"multi_reference"}}
"""Tasks of the built-in world without which a benchmark is not learnt."""

BUNDLED_GOALS = {"geneval-twin": 0.92, "question-answering": 0.97, "editing": 0.80}
"""What ``diptych-scenes`` is to reach."""


@dataclass(frozen=True)
class Opening:
    """What the bundled model did at the beginning."""

    images: tuple["Image", ...]
    edit: "Edit"
    answers: tuple["Answer", ...]
    seconds: float


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder for everything (default: runs/demo)")
    parser.add_argument("--recipe", default=DEMO_RECIPE, help=f"what is trained (default: {DEMO_RECIPE})")
    parser.add_argument(
        "--minutes",
        type=positive_number,
        metavar="M",
        help=f"steps that fit into this time on this CPU (default: {DEMO_MINUTES} for {DEMO_RECIPE}; other recipes and "
        "all on a GPU keep their own)",
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"what draws first (default: {DEFAULT_MODEL})")
    parser.add_argument(
        "--num-per-category", type=whole_number(1), default=60, metavar="N", help="scored items (default: 60)"
    )
    parser.add_argument(
        "--on",
        default="geneval,questions,editing",
        metavar="TASKS",
        help=f"what both are scored on, of {', '.join(TASKS)} (default: all but the last)",
    )
    parser.add_argument(
        "--processes", type=whole_number(1), metavar="N", help="of the training (default: 2 on a CPU, 1 on a GPU)"
    )
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto takes a GPU where there is one")
    parser.add_argument("--dtype", default="auto", help="of the models when they draw (default: auto)")


def run(arguments: Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape

    from diptych.cli.score_tables import print_scores
    from diptych.evals.report import write_report
    from diptych.evals.scores_file import write_scores
    from diptych.loading import load
    from diptych.train.presets import load_preset

    console = Console(highlight=False)
    tasks = chosen_names(arguments.on, TASKS, "--on")
    name = Path(arguments.model).name
    recipe = load_preset(arguments.recipe)
    folder = _free_folder(writable_folder(arguments.out))
    run_dir = folder / "run"

    _announce(console, 1, f"{name} draws, edits and answers")
    bundled = load_model(arguments.model, arguments, "image_edit")
    opening = open_demo(bundled, arguments.model, folder / "pictures")
    for path in sorted((folder / "pictures").iterdir()):
        console.print(f"  {path}", soft_wrap=True)
    for answer in opening.answers:
        console.print(f"  {answer.question}  [bold]{escape(answer.answer)}[/bold]")

    minutes = arguments.minutes or (DEMO_MINUTES if recipe.name == DEMO_RECIPE else None)
    if minutes is not None and not on_gpu(arguments.device):
        console.print("\nA few steps of every stage tell how fast this machine is.")
        recipe, code = within_minutes(recipe, minutes, folder / "speed", arguments)
        if code:
            return code
    _announce(console, 2, f"{recipe.name} is trained from scratch, {recipe.num_steps:,} steps")
    # Both models are scored alike at the end, so the run need not score itself.
    unscored = replace(recipe, evaluation=replace(recipe.evaluation, scorers=()))
    code = train_for_demo(unscored, folder, run_dir, arguments)
    if code == INTERRUPTED:
        console.print(f"Stopped. `diptych resume {run_dir}` goes on with the training.", soft_wrap=True)
        print(write_report(run_dir))
    if code:
        return code

    _announce(console, 3, "both are scored on combinations that the training never showed")
    # A recipe is scored on what it trains for; the references are the same for both.
    trained = load(run_dir, device=arguments.device, dtype=arguments.dtype)
    scored = [
        score_model(
            trained,
            learnt_tasks(recipe, tasks),
            num_per_category=arguments.num_per_category,
            contender="trained here",
            references=False,
        ),
        score_model(bundled, tasks, num_per_category=arguments.num_per_category, contender=name),
    ]
    tables = _merged(scored)
    print_scores(tables, console)
    about = {**model_record(bundled, arguments.model), "trained": recipe.name, "run": str(run_dir)}
    write_scores(tables, folder / "scores.json", about)
    data = demo_report(arguments, opening, run_dir, scored, about)
    print(write_report(data, folder / "report.html"))
    return 0


def learnt_tasks(recipe: "Recipe[Any]", tasks: Sequence[str]) -> tuple[str, ...]:
    """The benchmarks that a recipe trains for: pictures of a model that has seen no edit would only mislead."""
    mixed = {name for stage in recipe.stages.values() for name, weight in stage.mix.items() if weight > 0}
    shown = {getattr(recipe.data[name], "task", None) for name in mixed}
    return tuple(task for task in tasks if task not in _LEARNT_FROM or _LEARNT_FROM[task] & shown)


def train_for_demo(recipe: "Recipe[Any]", folder: Path, run_dir: Path, arguments: Namespace) -> int:
    """The training, in two processes where it runs on a CPU; an exit code."""
    count = arguments.processes or default_processes(arguments.device)
    if count == 1:
        return 0 if train_recipe(recipe, run_dir, arguments.device).finished else INTERRUPTED
    from diptych.train.serialization import to_json

    recipe_file = folder / "recipe.json"
    recipe_file.write_text(to_json(recipe))
    return train_in_processes(recipe_file, run_dir, count)


def within_minutes(
    recipe: "Recipe[Any]", minutes: float, folder: Path, arguments: Namespace
) -> "tuple[Recipe[Any], int]":
    """The recipe with as many steps as fit, by what a step of each stage takes here, and an exit code."""
    from diptych.cli.compare_plan import measuring_recipe
    from diptych.evals.run_cost import seconds_per_step
    from diptych.train.budget import Budget, within_budget
    from diptych.train.serialization import to_json

    folder.mkdir(parents=True)
    recipe_file = folder / "recipe.json"
    recipe_file.write_text(to_json(measuring_recipe(recipe, recipe.seed, NUM_TIMED_STEPS)))
    count = arguments.processes or default_processes(arguments.device)
    code = train_in_processes(recipe_file, folder / "run", count, is_quiet=True)
    if code:
        return recipe, code
    costs = {stage: seconds / 60 for stage, seconds in seconds_per_step(folder / "run").items()}
    shutil.rmtree(folder)
    return within_budget(recipe, Budget("minutes", minutes), costs), 0


def open_demo(model: "UnifiedModel", name: str, folder: Path) -> Opening:
    """Draws the prompts, edits the first picture and asks the questions; pictures go to ``folder``."""
    from diptych.data.picture_files import file_slug, save_contact_sheet, save_png
    from diptych.evals.report_data import Answer, Edit

    started = time.perf_counter()
    record = model_record(model, name)
    images = tuple(model.generate_image(list(PROMPTS), seed=0))
    for number, (prompt, image) in enumerate(zip(PROMPTS, images, strict=True)):
        save_png(image, folder / f"{file_slug(prompt)}.png", {**record, "prompt": prompt, "seed": number})
    save_contact_sheet(folder / "all.png", images, PROMPTS, columns=4, metadata=record)
    edited = model.generate_image([images[0], EDIT], seed=0)[0]
    save_png(edited, folder / f"{file_slug(EDIT)}.png", {**record, "prompt": EDIT, "seed": 0})
    texts = model.generate_text([[images[index], question] for index, question in QUESTIONS], max_new_tokens=16)
    answers = tuple(
        Answer(image=images[index], question=question, answer=text, system=Path(name).name)
        for (index, question), text in zip(QUESTIONS, texts, strict=True)
    )
    edit = Edit(source=images[0], instruction=EDIT, result=edited, system=Path(name).name)
    return Opening(images, edit, answers, time.perf_counter() - started)


def demo_report(
    arguments: Namespace, opening: Opening, run_dir: Path, scored: list[Scored], about: dict[str, Any]
) -> "ReportData":
    """The training's own report, with what both models drew, answered and scored."""
    import shlex

    from diptych.evals.report_data import Drawing, FileLink, Gallery
    from diptych.evals.run_folder import format_duration, report_data_from_run
    from diptych.evals.scenes_report import drawing_gallery, shown_answers, shown_edits
    from diptych.evals.scores_file import REFERENCES, headlines_of, score_boards

    now = datetime.now()
    training = report_data_from_run(run_dir)
    trained, bundled = scored
    name = Path(arguments.model).name
    took = ", ".join(filter(None, (training.headlines[-1].text, training.headlines[-1].detail)))
    first = Gallery(
        title=name,
        drawings=tuple(
            Drawing(image=image, prompt=prompt) for image, prompt in zip(opening.images, PROMPTS, strict=True)
        ),
        note=f"The bundled model, first pictures of seed 0; drawn, edited and asked in {opening.seconds:.0f} s.",
    )
    own = [table for table in trained.tables if table.contender not in REFERENCES]
    others = [table for table in bundled.tables if table.contender not in REFERENCES]
    scoring = sum(each.seconds for each in scored)
    return replace(
        training,
        title="diptych demo",
        summary=(
            f"{training.title}, trained from scratch on the built-in world in {took}, beside {name}. The pictures are "
            "synthetic; scores are on combinations that the training never showed."
        ),
        created=f"{now:%A} {now.day} {now:%B %Y, %H:%M}",
        command=shlex.join(arguments.words),
        environment={**training.environment, "model": f"{about['model']} {about['model_fingerprint']}",
                     "scoring": format_duration(scoring)},
        headlines=(
            *headlines_of(own, GOALS if training.title == DEMO_RECIPE else {}),
            *headlines_of(others, BUNDLED_GOALS if name == DEFAULT_MODEL else {}),
        ),
        galleries=(first, *drawing_gallery(trained.samples, "trained here")),
        edits=(opening.edit, *shown_edits(bundled.samples, name, 3), *shown_edits(trained.samples, "trained here", 4)),
        answers=(*opening.answers, *shown_answers(trained.samples, "trained here", 12)),
        score_boards=score_boards(_merged(scored)),
        files=tuple(
            [FileLink(path="scores.json", detail="every score"), FileLink(path="pictures", detail="the first pictures")]
            + [FileLink(path=f"{run_dir.name}/{file.path}", detail=file.detail) for file in training.files]
        ),
    )  # fmt: skip


def _merged(scored: list[Scored]) -> list[Any]:
    """All tables, with the reference rows once."""
    found: dict[tuple[str, str], Any] = {}
    for each in scored:
        for table in each.tables:
            found.setdefault((table.benchmark, table.contender), table)
    return list(found.values())


def _free_folder(folder: Path) -> Path:
    """The folder itself, or one beside it if an earlier demo is in it."""
    number, free = 1, folder
    while any(free.iterdir()) if free.is_dir() else False:
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return writable_folder(free)


def _announce(console: Any, number: int, text: str) -> None:
    console.print(f"\n[bold]{number}/3  {text}[/bold]", soft_wrap=True)
    sys.stdout.flush()
