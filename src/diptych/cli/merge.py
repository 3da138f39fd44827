"""``diptych merge``: a model and the adapters that were trained on it as one model folder."""

from argparse import Namespace
from pathlib import Path

from diptych.cli.models import add_device_options
from diptych.cli.parser import Parser

DESCRIPTION = """\
Adds low-rank adapters (LoRA) to the weights of a model and writes a plain model folder, which needs no peft.
ADAPTERS is a folder "adapters", or a run, checkpoint or model folder that holds one."""
EXAMPLES = """\
  diptych merge diptych-scenes runs/blip3o-lora models/mine
  diptych merge models/blip3o-4b adapters models/mine --dtype bfloat16"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("base", metavar="BASE", help="model that the adapters were trained on, as for --model")
    parser.add_argument("adapters", metavar="ADAPTERS", help="folder of adapters, or a run that trained them")
    parser.add_argument("target", metavar="TARGET", help="model folder to write")
    add_device_options(parser)


def run(arguments: Namespace) -> int:
    from diptych.loading import load
    from diptych.unified.adapter_files import find_adapters, merge_adapters
    from diptych.unified.folder import check_replaceable

    target = Path(arguments.target)
    adapters = find_adapters(arguments.adapters)
    check_replaceable(target.resolve())
    model = load(arguments.base, device=arguments.device, dtype=arguments.dtype)
    layers = merge_adapters(model, adapters)
    model.save(target)
    print(f"{target}: {model.info()['parameters']:,} parameters, adapters of {len(layers)} layers added")
    return 0
