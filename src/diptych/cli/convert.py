"""``diptych convert``: a released model of others as a model folder."""

from argparse import Namespace
from pathlib import Path

from diptych.cli.models import add_device_options
from diptych.cli.parser import Parser

DESCRIPTION = (
    "Reads a released model (BLIP3o-Model-4B or -8B as downloaded) and writes it as a model folder: safetensors and "
    "JSON, whole or not at all."
)
EXAMPLES = """\
  diptych convert BLIP3o-Model-4B models/blip3o-4b --dtype bfloat16
  diptych convert BLIP3o-Model-8B models/reader --dtype bfloat16 --read-only"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="folder of the released model")
    parser.add_argument("target", metavar="TARGET", help="model folder to write")
    parser.add_argument(
        "--encoder-file", metavar="FILE", help="weights of EVA-CLIP's tower, to train on images; drawing needs none"
    )
    parser.add_argument("--read-only", action="store_true", help="leave out what draws")
    parser.add_argument("--allow-unknown", action="store_true", help="leave unknown weights aside, not refuse them")
    parser.add_argument(
        "--strict-original", action="store_true", help="keep what diptych corrects in the released inference"
    )
    add_device_options(parser)


def run(arguments: Namespace) -> int:
    from diptych.interop.blip3o_layout import is_blip3o_folder
    from diptych.loading import load
    from diptych.unified.folder import check_replaceable

    source, target = Path(arguments.source), Path(arguments.target)
    if not is_blip3o_folder(source):
        raise ValueError(
            f"{source} is not laid out as BLIP3o-Model-4B or -8B: it needs a config.json with model_type blip3o_qwen. "
            "Give the folder as it was downloaded, whole."
        )
    check_replaceable(target.resolve())
    model = load(
        source,
        device=arguments.device,
        dtype=arguments.dtype,
        encoder_file=arguments.encoder_file,
        can_draw=not arguments.read_only,
        allow_unknown=arguments.allow_unknown,
        strict_original=arguments.strict_original,
    )
    model.save(target)
    print(f"{target}: {model.info()['parameters']:,} parameters, can do {', '.join(model.capabilities)}")
    return 0
