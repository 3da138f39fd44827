"""``diptych resume``: goes on with a run that was stopped or killed, as if it had not been."""

from argparse import Namespace
from pathlib import Path

from diptych.cli.parser import Parser
from diptych.cli.train import add_run_options, run_recipe

TAKES_FIELDS = True
DESCRIPTION = """\
Goes on with a run from its latest checkpoint. Checkpoints, logging and evaluation may be changed by flags; what decides
the weights may not."""
EXAMPLES = """\
  diptych resume runs/blip3o-tiny
  diptych resume runs/blip3o-tiny --checkpoints.every-steps 500"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder")
    add_run_options(parser)


def run(arguments: Namespace) -> int:
    from diptych.train.override import override
    from diptych.train.presets import load_preset

    if arguments.wants_help:
        arguments.parser.print_help()
        return 0
    if arguments.run is None:
        raise ValueError("diptych resume needs a RUN, the folder of the run to go on with.")
    run_dir = Path(arguments.run)
    if not (run_dir / "recipe.json").is_file():
        raise FileNotFoundError(f"There is no run to resume in {run_dir}: it has no recipe.json.")
    recipe = override(load_preset(str(run_dir / "recipe.json")), arguments.fields, f"diptych resume {run_dir}")
    return run_recipe(recipe, run_dir, arguments, resume=True)
