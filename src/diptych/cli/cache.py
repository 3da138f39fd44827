"""``diptych cache``: encodes the images of a data set once, for trainings with ``model.feature_cache``."""

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.models import writable_folder
from diptych.cli.parser import Parser, whole_number

if TYPE_CHECKING:
    from diptych.unified import UnifiedModel

DESCRIPTION = """\
Writes what a model is to draw, the encoded images of a data set, into a folder that trainings read instead of encoding
(`--model.feature-cache DIR`). Killed and started again it goes on; several processes share the work by --part."""
EXAMPLES = """\
  diptych cache blip3o:joint --data "shards/{0000..0009}.tar" --out features
  diptych cache runs/mine --data pictures/ --out features --dtype float32
  diptych cache blip3o:joint --data draw --out features --part 0/2 & diptych cache … --part 1/2
  diptych train blip3o:joint --model.feature-cache features"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="RECIPE|MODEL", help="whose generation space encodes")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="a source of the recipe, tars, or a folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the features, new or to be completed")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the stored features (default: bfloat16)",
    )
    parser.add_argument("--part", metavar="I/N", help="every N-th record from I on (default: RANK/WORLD_SIZE, or 0/1)")
    parser.add_argument("--batch-size", type=whole_number(1), default=64, metavar="N", help="images at a time")
    parser.add_argument("--shard-size", type=whole_number(1), default=1024, metavar="N", help="images of a shard")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default: auto)")


def run(arguments: Namespace) -> int:
    from diptych.unified.feature_cache import fill_files

    part = _part(arguments.part)
    writable_folder(arguments.out)
    model, sources = _open(arguments)
    source = sources[arguments.data].build() if arguments.data in sources else _source(arguments.data, sources)
    report = fill_files(model, source, arguments.out, arguments.dtype, part, arguments.batch_size, arguments.shard_size)
    print(f"{report.to_text()}. Train with --model.feature-cache {arguments.out}")
    return 0


def _open(arguments: Namespace) -> "tuple[UnifiedModel, dict[str, Any]]":
    """The model with the weights that a training begins with, and the recipe's sources."""
    import diptych

    if ":" not in arguments.model and not arguments.model.endswith(".json"):
        return diptych.load(arguments.model, device=arguments.device), {}
    import torch

    from diptych.methods.training import fresh_model
    from diptych.train.presets import load_preset

    recipe = load_preset(arguments.model)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model: UnifiedModel = fresh_model(recipe).to(device)
    return model, recipe.data


def _source(path: str, sources: dict[str, Any]) -> Any:
    from diptych.data.sources.folder import FolderSource
    from diptych.data.sources.webdataset import WebDatasetSource

    if ".tar" in path or path.startswith("pipe:") or any(Path(path).glob("*.tar")):
        return WebDatasetSource(urls=(path,)).build()
    if Path(path).is_dir():
        return FolderSource(path=path).build()
    known = f" The recipe's sources are {', '.join(sources)}." if sources else ""
    raise ValueError(f"--data {path!r} is neither tars nor a folder.{known}")


def _part(text: str | None) -> tuple[int, int]:
    text = text or f"{os.environ.get('RANK', '0')}/{os.environ.get('WORLD_SIZE', '1')}"
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ValueError(f"--part must be I/N with 0 <= I < N, such as 0/2, got {text!r}.")
    return int(number), int(count)
