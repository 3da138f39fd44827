"""``diptych ask``: a question about one or more pictures, answered as it is written."""

from argparse import Namespace

from diptych.cli.models import add_model_options, add_think_option, load_model
from diptych.cli.parser import Parser, whole_number

DESCRIPTION = "Asks a question about a picture and prints the answer as it is written."
EXAMPLES = """\
  diptych ask picture.png "What color is the square?"
  diptych ask before.png after.png "What changed?" --max-new-tokens 64"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="picture file, or several in the order they are shown"
    )
    parser.add_argument("question", metavar="QUESTION", help="what to ask")
    parser.add_argument("--max-new-tokens", type=whole_number(1), default=256, metavar="N", help="longest answer")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default)"
    )
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling (default: 1, off)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of sampling (default: 0)")
    add_think_option(parser, "the answer")
    add_model_options(parser)


def run(arguments: Namespace) -> int:
    from diptych.data.picture_files import read_picture

    if not arguments.question.strip():
        raise ValueError('The question is empty. Ask something, such as: diptych ask picture.png "What is in it?"')
    images = [read_picture(path) for path in arguments.images]
    model = load_model(arguments.model, arguments, "image_to_text")
    pieces = model.stream_text(
        [*images, arguments.question],
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        think=arguments.think,
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0
