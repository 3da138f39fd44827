"""``diptych convert``: a released model of others as a model folder."""

from argparse import Namespace
from pathlib import Path

from diptych.cli.models import add_device_options
from diptych.cli.parser import Parser

DESCRIPTION = (
    "Reads a released model (BLIP3o-Model-4B, -8B or BLIP3o-NEXT as downloaded) and writes it as a model folder: "
    "safetensors and JSON, whole or not at all."
)
EXAMPLES = """\
  diptych convert BLIP3o-Model-4B models/blip3o-4b --dtype bfloat16
  diptych convert BLIP3o-Model-8B models/reader --dtype bfloat16 --read-only"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="folder of the released model")
    parser.add_argument("target", metavar="TARGET", help="model folder to write")
    parser.add_argument(
        "--encoder-file",
        metavar="FILE",
        help="weights of EVA-CLIP's tower, or of TA-Tok for BLIP3o-NEXT, to train on images; drawing needs none",
    )
    parser.add_argument(
        "--diffusion-folder", metavar="DIR", help="SANA's folder, for a BLIP3o-NEXT of another SANA than 1.5 1.6B"
    )
    parser.add_argument("--read-only", action="store_true", help="leave out what draws")
    parser.add_argument("--allow-unknown", action="store_true", help="leave unknown weights aside, not refuse them")
    parser.add_argument(
        "--strict-original", action="store_true", help="keep what diptych corrects in the released inference"
    )
    add_device_options(parser)


def run(arguments: Namespace) -> int:
    from diptych.interop.released import released_kind
    from diptych.loading import load
    from diptych.unified.folder import check_replaceable

    source, target = Path(arguments.source), Path(arguments.target)
    if released_kind(source) is None:
        raise ValueError(
            f"{source} is not laid out as BLIP3o-Model-4B or -8B, nor as BLIP3o-NEXT: it needs a config.json with "
            "model_type blip3o_qwen. Give the folder as it was downloaded, whole."
        )
    check_replaceable(target.resolve())
    options = {
        "encoder_file": arguments.encoder_file,
        "diffusion_folder": arguments.diffusion_folder,
        "allow_unknown": arguments.allow_unknown,
        "strict_original": arguments.strict_original,
    }
    asked = {name: value for name, value in options.items() if value}  # not every kind of model takes all of them
    if arguments.read_only:
        asked["can_draw"] = False
    model = load(source, device=arguments.device, dtype=arguments.dtype, **asked)
    model.save(target)
    print(f"{target}: {model.info()['parameters']:,} parameters, can do {', '.join(model.capabilities)}")
    return 0
