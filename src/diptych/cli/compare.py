"""``diptych compare``: recipes trained under one budget and scored alike, or two evaluations item by item."""

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.main import INTERRUPTED
from diptych.cli.models import writable_folder
from diptych.cli.parser import Parser, whole_number
from diptych.cli.scene_scores import TASKS, chosen_names

if TYPE_CHECKING:
    from diptych.cli.compare_cells import Outcome
    from diptych.cli.compare_plan import Plan
    from diptych.train.recipe import Recipe

FAILED = 1
DESCRIPTION = """\
RECIPES: trains every recipe with every seed under one budget, scores all alike, and writes one report with curves,
scores, pictures of the same prompts and noise, diversity, distances, understanding kept or lost, and cost. Run again,
it goes on where it was stopped.
Two RUNS, folders that `diptych evaluate` wrote: the difference item by item, the second minus the first, with a 95 %
interval and the probability of one as large by chance. What was asked or judged differently is refused."""
EXAMPLES = """\
  diptych compare blip3o:tiny blip3o:tiny_sequential --budget examples=2000
  diptych compare study:clip_flow_joint study:vae_flow_joint --seeds 0 1 2 --budget minutes=3 --uncounted vae
  diptych compare mine.json blip3o:demo --budget flops=1e14 --processes 2 --out compare/mine
  diptych compare scores-before scores-after"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("subjects", nargs="+", metavar="RECIPE|RUN", help="recipes, or two folders of evaluations")
    parser.add_argument("--json", action="store_true", help="of two RUNS: print JSON")
    group = parser.add_argument_group("of recipes")
    group.add_argument("--seeds", type=whole_number(0), nargs="*", metavar="S", help="of the trainings (default: 0)")
    group.add_argument(
        "--budget",
        metavar="KIND=N",
        help="examples=N, flops=F or minutes=M, of each run (default: the examples of the first recipe)",
    )
    group.add_argument(
        "--uncounted", nargs="*", default=[], metavar="STAGE", help="stages that the budget does not count"
    )
    group.add_argument("--out", metavar="DIR", help="folder for everything (default: runs/compare)")
    group.add_argument(
        "--processes", type=whole_number(1), metavar="K", help="cells at a time (default: one a GPU, or 1)"
    )
    group.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto takes GPUs where there are any")
    group.add_argument(
        "--on",
        default="geneval,questions,editing",
        metavar="TASKS",
        help=f"of {', '.join(TASKS)}, as far as a recipe learns them (default: all but the last)",
    )
    group.add_argument(
        "--num-per-category", type=whole_number(1), default=60, metavar="N", help="scored items (default: 60)"
    )
    group.add_argument(
        "--num-prompts", type=whole_number(1), default=12, metavar="N", help="of the grid and diversity (default: 12)"
    )
    group.add_argument(
        "--num-noises", type=whole_number(2), default=4, metavar="N", help="pictures of each of them (default: 4)"
    )
    group.add_argument(
        "--features",
        default="pixels,scenes",
        metavar="NAMES",
        help="of diversity and distances, by the names of diptych fd (default: pixels,scenes)",
    )
    group.add_argument(
        "--pictures",
        nargs="+",
        default=[],
        metavar="TARS",
        help="held-out pictures with texts, which recipes on other data than the built-in world are scored on: drawing "
        "and naming among 20",
    )
    group.add_argument(
        "--category", default="", metavar="KEY", help="of the pictures' metadata: told apart from others of the same"
    )
    group.add_argument(
        "--group", default="", metavar="KEY", help="of the pictures' metadata: only one of each group counts"
    )


def run(arguments: Namespace) -> int:
    from diptych.train.presets import load_preset

    are_runs = [is_evaluation(word) for word in arguments.subjects]
    if any(are_runs):
        return _compare_runs(arguments, are_runs)
    for word in arguments.subjects:
        if Path(word).is_dir():
            raise ValueError(
                f"{word} is a folder, but neither a recipe nor an evaluation. Of a training, give its recipe.json to "
                f"train it again, or evaluate it first: diptych evaluate {word}."
            )
    if arguments.json:
        raise ValueError("--json is for two RUNS; recipes leave a compare.json in their folder.")
    if arguments.seeds is not None and not arguments.seeds:
        raise ValueError("--seeds needs at least one seed, such as --seeds 0 1 2.")
    return compare_recipes([load_preset(word) for word in arguments.subjects], arguments)


def is_evaluation(word: str) -> bool:
    """Whether a word names a folder that ``diptych evaluate`` wrote."""
    return (Path(word) / "run.json").is_file() or (Path(word) / "results.json").is_file()


def _compare_runs(arguments: Namespace, are_runs: list[bool]) -> int:
    from diptych.cli.compare_runs import compare_runs

    words = arguments.subjects
    if not all(are_runs):
        runs = [word for word, is_run in zip(words, are_runs, strict=True) if is_run]
        others = [word for word in words if word not in runs]
        raise ValueError(
            f"compare takes recipes or two evaluations, not both: {', '.join(runs)} is an evaluation and "
            f"{', '.join(others)} is not. Give either kind alone."
        )
    if len(words) != 2:
        raise ValueError(f"compare takes two evaluations, got {len(words)}. For several, compare each with the first.")
    if arguments.budget or arguments.seeds is not None or arguments.out:
        raise ValueError("--seeds, --budget and --out are for recipes; two evaluations are compared as they are.")
    return compare_runs(words[0], words[1], arguments.json)


def compare_recipes(recipes: "list[Recipe[Any]]", arguments: Namespace) -> int:
    """Trains and scores what is not done yet and writes the report; 1 if a cell failed, 130 if it was stopped."""
    from diptych.cli.compare_cells import default_processes
    from diptych.cli.compare_pictures import held_out_pictures
    from diptych.cli.compare_plan import Scoring, check_folder, make_plan, sole_use
    from diptych.interop.feature_networks import load_features
    from diptych.train.budget import Budget

    features = tuple(dict.fromkeys(name.strip() for name in arguments.features.split(",") if name.strip()))
    for name in features:
        load_features(name)  # an unknown or absent one is found before anything is trained
    scoring = Scoring(
        tasks=tuple(chosen_names(arguments.on, TASKS, "--on")),
        num_per_category=arguments.num_per_category,
        num_prompts=arguments.num_prompts,
        num_noises=arguments.num_noises,
        features=features,
        pictures=tuple(arguments.pictures),
        category=arguments.category,
        group=arguments.group,
    )
    if scoring.pictures:
        held_out_pictures(scoring)  # too few or none are found before anything is trained
    elif scoring.category or scoring.group:
        raise ValueError("--category and --group are keys of --pictures, which are not given.")
    budget: Budget | None = None if arguments.budget is None else Budget.parse(arguments.budget)
    plan = make_plan(recipes, arguments.seeds or [0], budget, arguments.uncounted, scoring)
    folder = writable_folder(arguments.out or "runs/compare")
    count = arguments.processes or default_processes(arguments.device)
    with sole_use(folder) as lock:
        check_folder(folder, plan)
        outcome, trained = _run_plan(folder, plan, count, arguments.device, lock)
    _write(folder, plan, trained, outcome, arguments)
    for name, reason in outcome.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if outcome.is_stopped:
        print(f"Stopped with {outcome.num_missing} cells to go. The same command goes on.", file=sys.stderr)
        return INTERRUPTED
    return FAILED if outcome.failed else 0


def _run_plan(
    folder: Path, plan: "Plan", count: int, device: str, lock: int
) -> "tuple[Outcome, Mapping[str, Recipe[Any]]]":
    """Measures what a step costs where the budget needs it, then runs the cells that are not done.

    Returns:
        What became of the cells, and the recipes with the steps that they got.
    """
    from diptych.cli.compare_cells import Job, Outcome, run_jobs
    from diptych.cli.compare_plan import cell_recipe, write_cell_recipe
    from diptych.evals.comparison import CELL_FILE

    costs, measured = _step_costs(folder, plan, count, device, lock)
    # All recipes of the first seed first, so that there is something to compare soon.
    cells = {
        (name, seed): cell_recipe(plan.recipes[name], seed, plan, costs[name]) for seed in plan.seeds for name in costs
    }
    trained = {name: cells[name, plan.seeds[0]] for name in costs}
    jobs: list[Job] = []
    for (name, seed), own in cells.items():
        cell = plan.cell(folder, name, seed)
        if not (cell / CELL_FILE).exists():
            write_cell_recipe(cell, own)
            jobs.append(Job(f"{name}, seed {seed}", cell, ("train", str(cell), device)))
    if measured.is_stopped:
        return Outcome(measured.failed, len(plan.recipes) * len(plan.seeds), True), trained
    done = len(cells) - len(jobs)
    if done:
        _say(f"{done} cells are there already")
    outcome = run_jobs(jobs, count, device, lock, _say)
    return Outcome({**measured.failed, **outcome.failed}, outcome.num_missing, outcome.is_stopped), trained


def _step_costs(
    folder: Path, plan: "Plan", count: int, device: str, lock: int
) -> "tuple[dict[str, dict[str, float]], Outcome]":
    """What a step of each stage costs in the budget's unit, by recipe; those that cannot be measured are left out."""
    from diptych.cli.compare_cell import COSTS_FILE
    from diptych.cli.compare_cells import Job, Outcome, run_jobs
    from diptych.cli.compare_plan import measuring_recipe, write_cell_recipe
    from diptych.data.picture_files import file_slug

    kind = plan.budget.kind
    if kind == "examples":
        sizes = {name: {s: float(stage.batch_size) for s, stage in recipe.stages.items()}
                 for name, recipe in plan.recipes.items()}  # fmt: skip
        return sizes, Outcome({}, 0, False)
    folders = {name: folder / "measured" / file_slug(name) for name in plan.recipes}
    jobs = []
    for name, own in folders.items():
        if not (own / COSTS_FILE).exists():
            write_cell_recipe(own, measuring_recipe(plan.recipes[name], plan.seeds[0]))
            jobs.append(Job(f"{name}, cost of a step", own, ("measure", str(own), device)))
    # One at a time where time is measured, with the threads that a cell will have.
    outcome = run_jobs(jobs, count, device, lock, _say, at_a_time=1)
    costs: dict[str, dict[str, float]] = {}
    failed = dict(outcome.failed)
    for name, own in folders.items():
        if (own / COSTS_FILE).exists():
            found = json.loads((own / COSTS_FILE).read_text(encoding="utf-8"))
            if any(stage[kind] is None for stage in found.values()):
                failed[f"{name}, cost of a step"] = "its FLOPs could not be counted. Use another kind of budget."
            else:
                costs[name] = {stage: entry[kind] for stage, entry in found.items()}
    return costs, Outcome(failed, outcome.num_missing, outcome.is_stopped)


def _write(
    folder: Path, plan: "Plan", trained: "Mapping[str, Recipe[Any]]", outcome: "Outcome", arguments: Namespace
) -> None:
    """report.html, compare.md and compare.json of what there is."""
    import torch

    from diptych import __version__
    from diptych.evals.comparison import read_cell
    from diptych.evals.comparison_report import Comparison, comparison_json, comparison_report, markdown
    from diptych.evals.report import write_report
    from diptych.train.run_folder import write_text
    from diptych.train.serialization import recipe_to_dict

    found = [read_cell(plan.cell(folder, name, seed)) for name in plan.recipes for seed in plan.seeds]
    cells = [cell for cell in found if cell is not None]
    scoring = plan.scoring
    comparison = Comparison(
        folder=folder,
        recipes={name: recipe_to_dict(trained.get(name, recipe)) for name, recipe in plan.recipes.items()},
        seeds=plan.seeds,
        budget=str(plan.budget),
        uncounted=plan.uncounted,
        cells=cells,
        failed=outcome.failed,
        num_missing=outcome.num_missing,
        command=shlex.join(arguments.words),
        facts={
            "data": _data_fact(plan),
            "scored": f"{scoring.num_per_category} items of each category, seed {scoring.seed}",
            **({"pictures": " ".join(scoring.pictures)} if scoring.pictures else {}),
            "device": ", ".join(dict.fromkeys(str(cell.record["device"]) for cell in cells)),
            "diptych": __version__,
            "torch": torch.__version__,
        },
    )
    write_text(folder / "compare.json", json.dumps(comparison_json(comparison), indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "compare.md", markdown(comparison))
    print(write_report(comparison_report(comparison), folder / "report.html"))


def _data_fact(plan: "Plan") -> str:
    """Whether the recipes draw from the same sources, of those that any stage mixes."""
    used = {
        name: {key: recipe.data[key] for stage in recipe.stages.values() for key, weight in stage.mix.items() if weight}
        for name, recipe in plan.recipes.items()
    }
    first = next(iter(used.values()))
    different = [
        name
        for name, sources in used.items()
        if not all(source in first.values() for source in sources.values())
        or not all(source in sources.values() for source in first.values())
    ]
    if not different:
        return "the same sources for all recipes"
    return f"other sources than the first recipe's: {', '.join(different)}"


def _say(text: str) -> None:
    print(text, flush=True)
