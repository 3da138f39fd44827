"""``diptych edit``: a picture changed as told, written beside the original."""

import hashlib
import shlex
from argparse import Namespace
from pathlib import Path

from diptych.cli.generate import draw_record, thought_record
from diptych.cli.models import add_model_options, add_think_option, load_model, model_record, writable_folder
from diptych.cli.parser import Parser, whole_number

DESCRIPTION = "Changes a picture as an instruction says and writes the result as a PNG; the original stays as it is."
EXAMPLES = """\
  diptych edit picture.png "make the red circle blue"
  diptych edit picture.png "remove the star" --out edited.png --seed 3"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="picture file")
    parser.add_argument("instruction", metavar="INSTRUCTION", help="what to change")
    parser.add_argument("--out", metavar="FILE.png", help="result, a file or a folder (default: IMAGE-edited.png)")
    parser.add_argument("--steps", type=whole_number(1), metavar="N", help="sampling steps (default: the model's)")
    parser.add_argument("--guidance", type=float, metavar="S", help="guidance scale, 1 is off (default: the model's)")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of the noise (default: 0)")
    add_think_option(parser, "the result")
    add_model_options(parser)


def run(arguments: Namespace) -> int:
    from diptych.data.picture_files import read_picture, save_png, unused_path

    if not arguments.instruction.strip():
        raise ValueError('The instruction is empty. Say what to change, such as: "make the red circle blue".')
    source = Path(arguments.image)
    picture = read_picture(source)
    target = _target(source, arguments.out)
    writable_folder(target.parent)
    model = load_model(arguments.model, arguments, "image_edit")
    result = model.generate_image(
        [picture, arguments.instruction],
        num_steps=arguments.steps,
        guidance_scale=arguments.guidance,
        negative_prompt=arguments.negative_prompt,
        seed=arguments.seed,
        think=arguments.think,
    )[0]
    record = {**model_record(model, arguments.model), **draw_record(model, arguments)}
    words = ["diptych", "edit", source.name, arguments.instruction, "--model", arguments.model]
    words += ["--seed", str(arguments.seed), "--steps", str(record["num_steps"])]
    words += ["--guidance", str(record["guidance_scale"])]
    words += ["--adapters", arguments.adapters] if arguments.adapters else []
    words.append("--think" if record["think"] else "--no-think")
    record |= {
        **thought_record(result),
        "prompt": arguments.instruction,
        "seed": arguments.seed,
        "size": [result.height, result.width],
        "source": source.name,
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "command": shlex.join(words),
    }
    # A file that was named is written, whatever it held; a name made up here never overwrites anything else.
    path = target if arguments.out and target.name == Path(arguments.out).name else unused_path(target, record)
    print(save_png(result, path, record))
    return 0


def _target(source: Path, out: str | None) -> Path:
    """Where the result goes.

    Raises:
        ValueError: the name is that of the source, or not of a PNG.
    """
    name = f"{source.stem}-edited.png"
    if out is None:
        return source.with_name(name)
    target = Path(out)
    if target.is_dir() or not target.suffix:
        return target / name
    if target.suffix.lower() != ".png":
        raise ValueError(f"--out must name a .png file or a folder, got {out!r}.")
    if target.resolve() == source.resolve():
        raise ValueError(f"--out is the picture itself ({source}), which would be lost. Choose another name.")
    return target
