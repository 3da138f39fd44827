"""``diptych generate``: pictures from prompts, written as PNGs that carry their settings."""

import math
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.models import add_model_options, add_think_option, load_model, model_record, writable_folder
from diptych.cli.parser import Parser, picture_size, whole_number

if TYPE_CHECKING:
    from PIL.Image import Image

    from diptych.unified import UnifiedModel

DESCRIPTION = "Draws pictures and writes them as PNGs, with all settings in their metadata."
EXAMPLES = """\
  diptych generate "a red circle above a blue square"
  diptych generate "three green stars" "a large pink heart" --num-images 4 --sheet --out pictures
  diptych generate --prompts-file prompts.txt --seed 7 --steps 20 --guidance 2.5
  diptych generate "a cat" --model BLIP3o-Model-4B --few-steps 12 --offload
  echo "a yellow ring" | diptych generate -"""

_CHUNK = 64
"""Pictures between two writes: what is drawn is on disk soon."""


@dataclass(frozen=True)
class Order:
    """One picture to draw."""

    prompt: str
    seed: int


def add_arguments(parser: Parser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to draw; - reads prompts from stdin")
    parser.add_argument("--prompts-file", metavar="FILE", help="one prompt a line, empty lines ignored; - is stdin")
    parser.add_argument("--out", default=".", metavar="DIR", help="folder for the pictures (default: this one)")
    parser.add_argument("--num-images", type=whole_number(1), default=1, metavar="N", help="pictures of each prompt")
    parser.add_argument(
        "--size", type=picture_size, metavar="WxH", help="pixels, e.g. 64 or 96x64 (default: the model's)"
    )
    parser.add_argument("--steps", type=whole_number(1), metavar="N", help="sampling steps (default: the model's)")
    parser.add_argument(
        "--few-steps",
        type=whole_number(1),
        metavar="N",
        help="N steps of second-order multistep samplers, in a second diffusion stage too where there is one",
    )
    parser.add_argument(
        "--decoder-steps", type=whole_number(1), metavar="N", help="steps of the second stage (default: the model's)"
    )
    parser.add_argument("--guidance", type=float, metavar="S", help="guidance scale, 1 is off (default: the model's)")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="S", help="of the first picture (default: 0)"
    )
    add_think_option(parser, "each picture")
    parser.add_argument("--batch-size", type=whole_number(1), metavar="N", help="pictures drawn at a time")
    parser.add_argument("--sheet", action="store_true", help="also write contact-sheet.png with all pictures")
    add_model_options(parser)


def run(arguments: Namespace) -> int:
    from diptych.data.picture_files import file_slug, save_contact_sheet, save_png, unused_path

    prompts = read_prompts(arguments.prompts, arguments.prompts_file)
    if arguments.guidance is not None and not math.isfinite(arguments.guidance):
        raise ValueError(f"--guidance must be a finite number, got {arguments.guidance}.")
    folder = writable_folder(arguments.out)
    model = load_model(arguments.model, arguments, "text_to_image")
    set_steps(model, arguments)
    common = {**model_record(model, arguments.model), **draw_record(model, arguments)}
    common |= {name: given for name in ("few_steps", "adapters") if (given := getattr(arguments, name)) is not None}
    orders = [
        Order(prompt, arguments.seed + index * arguments.num_images + k)
        for index, prompt in enumerate(prompts)
        for k in range(arguments.num_images)
    ]
    images: list[Image] = []
    for order, image in zip(orders, draw(model, orders, arguments), strict=True):
        metadata = picture_record(order, image, common)
        path = unused_path(folder / f"{file_slug(order.prompt)}-{order.seed}.png", metadata)
        print(save_png(image, path, metadata), flush=True)
        if arguments.sheet:
            images.append(image)
    if arguments.sheet:
        captions = [order.prompt for order in orders]
        record = {**common, "prompts": captions, "seeds": [order.seed for order in orders]}
        columns = arguments.num_images if 1 < arguments.num_images <= 8 else None
        path = unused_path(folder / "contact-sheet.png", record)
        print(save_contact_sheet(path, images, captions, columns, record))
    return 0


def set_steps(model: "UnifiedModel", arguments: Namespace) -> None:
    """Gives the model the samplers and steps that were asked for; ``--steps`` and ``--decoder-steps`` go before.

    Raises:
        ValueError: ``--decoder-steps`` for a model with one diffusion stage.
    """
    from dataclasses import replace

    space = model.autoencoder
    has_second = hasattr(space, "solver")
    if arguments.few_steps is not None:
        model.draw_settings = replace(model.draw_settings, num_steps=arguments.few_steps, solver="multistep")
        if has_second:
            space.num_steps, space.solver = arguments.few_steps, "multistep"
    if arguments.decoder_steps is not None:
        if not has_second:
            raise ValueError(
                f"--decoder-steps: {arguments.model} has no second diffusion stage; its features are decoded in one "
                "pass. Leave it out."
            )
        space.num_steps = arguments.decoder_steps


def read_prompts(words: Sequence[str], file: str | None) -> list[str]:
    """The prompts of the command line, then those of the file or of stdin.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no prompt, an empty one, or a file that is not UTF-8 text.
    """
    prompts = []
    for number, word in enumerate(words, 1):
        if word == "-":
            prompts += _lines(sys.stdin.read())
        elif not word.strip():
            raise ValueError(f"prompt {number} is empty. Say what to draw.")
        else:
            prompts.append(word)
    if file == "-":
        prompts += _lines(sys.stdin.read())
    elif file is not None:
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"There is no prompts file {path}.")
        try:
            prompts += _lines(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if not prompts:
        raise ValueError('No prompt was given. Write one, such as: diptych generate "a red circle above a blue square"')
    return prompts


def draw(model: "UnifiedModel", orders: Sequence[Order], arguments: Namespace) -> Iterator["Image"]:
    """The pictures in order, as soon as each chunk of them is drawn; progress goes to stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("drawing", total=len(orders))
        for start in range(0, len(orders), _CHUNK):
            chunk = orders[start : start + _CHUNK]
            images = model.generate_image(
                [order.prompt for order in chunk],
                size=arguments.size,
                num_steps=arguments.steps,
                guidance_scale=arguments.guidance,
                negative_prompt=arguments.negative_prompt,
                seed=[order.seed for order in chunk],
                think=arguments.think,
                batch_size=arguments.batch_size or "auto",
            )
            progress.advance(task, len(chunk))
            yield from images


def draw_record(model: "UnifiedModel", arguments: Namespace) -> dict[str, Any]:
    """The settings that all pictures of a command share, with the model's own where none was given."""
    settings, space = model.draw_settings, model.autoencoder
    return {
        "num_steps": settings.num_steps if arguments.steps is None else arguments.steps,
        "guidance_scale": settings.guidance_scale if arguments.guidance is None else arguments.guidance,
        "guidance_interval": list(settings.guidance_interval),
        "solver": settings.solver,
        "time_shift": settings.time_shift,
        "think": settings.think if arguments.think is None else arguments.think,
        "negative_prompt": arguments.negative_prompt,
        **({"decoder_steps": space.num_steps, "decoder_solver": space.solver} if hasattr(space, "solver") else {}),
    }


def picture_record(order: Order, image: "Image", common: dict[str, Any]) -> dict[str, Any]:
    """Everything one picture depends on, and the command that draws it again alone."""
    words = ["diptych", "generate", order.prompt, "--model", common["model"], "--seed", str(order.seed)]
    words += ["--few-steps", str(common["few_steps"])] if common.get("few_steps") else []
    words += ["--decoder-steps", str(common["decoder_steps"])] if "decoder_steps" in common else []
    words += ["--steps", str(common["num_steps"]), "--guidance", str(common["guidance_scale"])]
    words += ["--size", f"{image.width}x{image.height}"]
    if common["negative_prompt"] is not None:
        words += ["--negative-prompt", common["negative_prompt"]]
    words += ["--adapters", str(common["adapters"])] if "adapters" in common else []
    words.append("--think" if common["think"] else "--no-think")
    record = {**common, "prompt": order.prompt, "seed": order.seed, "size": [image.height, image.width]}
    return {**record, **thought_record(image), "command": shlex.join(words)}


def thought_record(image: "Image") -> dict[str, str]:
    """What was thought before the picture was drawn, if anything was."""
    return {"thought": image.info["thought"]} if "thought" in image.info else {}


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
