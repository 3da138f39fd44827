"""``diptych data``: what a data set holds, packing it into WebDataset tars, a tokenizer of its words."""

import json
from argparse import Namespace

from diptych.cli.parser import Parser, whole_number

DESCRIPTION = """\
check: counts, sizes, aspect ratios, text lengths, duplicates and broken records of a data set.
pack:  writes a data set as WebDataset tars, which training reads fastest.
tokenizer: trains a tokenizer on the texts of data sets, for `train … --model.tokenizer.path`."""
EXAMPLES = """\
  diptych data check pictures/
  diptych data check "shards/train-{0000..0009}.tar" --limit 10000
  diptych data pack pictures/ --out packed
  diptych data pack emoji/ --kind emoji --split train --out packed/emoji-train
  diptych data tokenizer packed/emoji-train packed/emoji-edits --out tokenizer --vocab-size 1024"""

_TASKS = ("text_to_image", "image_to_text", "image_edit", "interleaved", "text")
_KINDS = ("records", "emoji", "emoji_edit", "eurosat", "nlvr")


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "action", choices=("check", "pack", "tokenizer"), metavar="check|pack|tokenizer", help="what to do"
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="tars, a folder of images, .json, .jsonl, .parquet, .arrow or .npz"
    )
    parser.add_argument("--task", choices=_TASKS, help="what a record means (default: found out from its columns)")
    parser.add_argument("--split", default="train", help="of a data set that has splits (default: train)")
    check = parser.add_argument_group("check")
    check.add_argument("--limit", type=whole_number(1), metavar="N", help="look at so many records, evenly spread")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    pack = parser.add_argument_group("pack")
    pack.add_argument("--out", metavar="DIR", help="new folder for the tars, or for the tokenizer")
    pack.add_argument("--kind", choices=_KINDS, default="records", help="records (any format), or a set in npz files")
    pack.add_argument("--styles", nargs="+", metavar="STYLE", help="emoji styles (default: all)")
    pack.add_argument("--caption", choices=("name", "keywords"), default="name", help="emoji caption (default: name)")
    pack.add_argument("--edit-kinds", nargs="+", default=(), metavar="KIND", help="kinds of emoji edits (default: all)")
    pack.add_argument(
        "--num-orders", type=whole_number(1), default=6, metavar="N", help="NLVR drawings of each example"
    )
    pack.add_argument("--max-records", type=whole_number(1), default=10_000, metavar="N", help="records in a tar")
    tokenizer = parser.add_argument_group("tokenizer")
    tokenizer.add_argument(
        "--vocab-size", type=whole_number(257), default=1024, metavar="N", help="largest number of tokens"
    )


def run(arguments: Namespace) -> int:
    if arguments.action == "tokenizer":
        return _tokenizer(arguments)
    if len(arguments.paths) > 1:
        raise ValueError(
            f"data {arguments.action} takes one PATH, got {len(arguments.paths)}. Quote a pattern of tars."
        )
    arguments.path = arguments.paths[0]
    if arguments.action == "check":
        from diptych.data.check import check_path

        found = check_path(arguments.path, arguments.task, arguments.split, arguments.limit or 0)
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if arguments.json else found.to_text())
        return 0
    return _pack(arguments)


def _pack(arguments: Namespace) -> int:
    from diptych.data.pack import pack
    from diptych.data.sources.blob_npz import EMOJI_STYLES

    if arguments.out is None:
        raise ValueError("data pack needs --out, a new folder for the tars.")
    styles = tuple(arguments.styles or EMOJI_STYLES)
    if not set(styles) <= set(EMOJI_STYLES):
        raise ValueError(f"--styles must be of {', '.join(EMOJI_STYLES)}, got {', '.join(styles)}.")
    report = pack(
        arguments.kind,
        arguments.path,
        arguments.out,
        arguments.split,
        task=arguments.task,
        styles=styles,
        caption=arguments.caption,
        edit_kinds=tuple(arguments.edit_kinds),
        num_orders=arguments.num_orders,
        max_records=arguments.max_records,
    )
    print(report.to_text())
    return 0


def _tokenizer(arguments: Namespace) -> int:
    from diptych.cli.models import writable_folder
    from diptych.data.texts import read_texts, train_tokenizer_on

    if arguments.out is None:
        raise ValueError("data tokenizer needs --out, a folder for tokenizer.json.")
    writable_folder(arguments.out)
    tokenizer = train_tokenizer_on(arguments.paths, arguments.vocab_size, arguments.split)
    tokenizer.save(arguments.out)
    lengths = [
        len(tokenizer.encode(text)) for path in arguments.paths for text in read_texts(path, None, arguments.split)
    ]
    mean = sum(lengths) / len(lengths)
    print(f"{tokenizer.vocab_size} tokens in {arguments.out}; texts have {mean:.1f} of them on average")
    return 0
