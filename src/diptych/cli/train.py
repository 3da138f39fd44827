"""``diptych train``: a recipe, changed by flags, into a run folder with its report."""

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.main import INTERRUPTED
from diptych.cli.models import writable_folder
from diptych.cli.parser import Parser, whole_number

if TYPE_CHECKING:
    from diptych.train.loop import TrainingResult
    from diptych.train.recipe import Recipe

TAKES_FIELDS = True
DESCRIPTION = """\
Trains a recipe into a run folder: checkpoints (each with a model that loads alone), metrics, sample grids, a report.
Every field of the recipe is a flag. Ctrl-C saves; `diptych resume RUN` goes on.
On several GPUs: accelerate launch -m diptych train RECIPE …"""
EXAMPLES = """\
  diptych train blip3o:tiny
  diptych train blip3o:tiny --stages.joint.num-steps 50 --seed 3 --out runs/mine
  diptych train blip3o:joint --data.mine '{"kind": "diptych.data.sources.folder:FolderSource", "path": "pictures"}'
  diptych train blip3o:tiny --help      (all fields of that recipe)"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="paper:preset, module:function of your own, or a recipe.json"
    )
    parser.add_argument("--out", metavar="RUN", help="run folder (default: runs/RECIPE)")
    add_run_options(parser)


def add_run_options(parser: Parser) -> None:
    """What ``train`` and ``resume`` share."""
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto takes a GPU where there is one")
    parser.add_argument(
        "--num-workers", type=whole_number(0), default=0, metavar="N", help="processes that read data (default: 0)"
    )
    parser.add_argument(
        "-h", "--help", action="store_true", dest="wants_help", help="show this and all fields, and exit"
    )


def run(arguments: Namespace) -> int:
    from diptych.data.picture_files import file_slug
    from diptych.train.override import override
    from diptych.train.presets import load_preset

    if arguments.recipe is None:
        return _list_recipes(arguments)
    recipe = load_preset(arguments.recipe)
    if arguments.wants_help:
        arguments.parser.print_help()
        print(f"\nfields of {arguments.recipe}:\n", flush=True)
        arguments.fields = [*arguments.fields, "--help"]
    try:
        recipe = override(recipe, arguments.fields, f"diptych train {arguments.recipe}")
    except SystemExit:
        return 0
    run_dir = Path(arguments.out or Path("runs") / file_slug(recipe.name))
    if _num_processes() == 1:
        # Several processes meet in the loop, which checks again.
        if (run_dir / "recipe.json").exists():
            raise FileExistsError(
                f"{run_dir} already holds a run. Continue it with `diptych resume {run_dir}`, delete it, or choose "
                "another folder with --out."
            )
        writable_folder(run_dir)
    return run_recipe(recipe, run_dir, arguments)


def run_recipe(recipe: "Recipe[Any]", run_dir: Path, arguments: Namespace, resume: bool = False) -> int:
    """Trains, writes the report, and says where both are."""
    result = train_recipe(recipe, run_dir, arguments.device, arguments.num_workers, resume)
    if _is_main_process():
        from diptych.evals.report import write_report

        print(write_report(run_dir))
    return 0 if result.finished else INTERRUPTED


def train_recipe(
    recipe: "Recipe[Any]", run_dir: Path, device: Any = "auto", num_workers: int = 0, resume: bool = False
) -> "TrainingResult":
    """Builds what the recipe describes and trains it."""
    from diptych.methods.training import build_task
    from diptych.train.loop import train

    return train(build_task(recipe, run_dir, num_workers), recipe, run_dir, resume=resume, device=device)


def _list_recipes(arguments: Namespace) -> int:
    """Every preset with the first line of its docstring; an error unless help was asked for."""
    import inspect
    from importlib import import_module

    from diptych.train.presets import presets_of, recipe_names

    lines = []
    for name in recipe_names():
        for preset, function in presets_of(import_module(f"diptych.recipes.{name}")).items():
            first_line = (inspect.getdoc(function) or "").partition("\n")[0]
            lines.append(f"  {name}:{preset}\n      {first_line}")
    text = "recipes:\n" + "\n".join(lines)
    if not arguments.wants_help:
        raise ValueError(f"diptych train needs a RECIPE.\n{text}")
    arguments.parser.print_help()
    print(f"\n{text}")
    return 0


def _num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
