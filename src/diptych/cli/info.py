"""``diptych info``: what a model is made of, what it can do, and how it came about."""

import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from diptych.cli.models import folder_fingerprint
from diptych.cli.parser import Parser

DESCRIPTION = "Prints a model's parts, parameters, capabilities, licence, training summary and scores."
EXAMPLES = """\
  diptych info diptych-scenes
  diptych info runs/mine/checkpoints/last --json"""

_SHOWN_APART = ("name", "description", "parts", "parameters", "capabilities")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="bundled model, model folder, or checkpoint of a run")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: Namespace) -> int:
    from diptych.loading import load

    # Nothing is computed, so the weights stay where they are cheapest.
    model = load(arguments.model, device="cpu")
    info = {**model.info(), "fingerprint": folder_fingerprint(arguments.model)}
    if arguments.json:
        print(json.dumps(info, indent=2, ensure_ascii=False, default=str))
    else:
        print_info(info, arguments.model)
    return 0


def print_info(info: Mapping[str, Any], name: str) -> None:
    """Tables for people; keys of the model card that diptych does not know are shown as they are."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{escape(str(info.get('name', name)))}[/bold]")
    if "description" in info:
        console.print(escape(str(info["description"])))
    console.print(f"can do: {', '.join(info['capabilities'])}\n")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("part")
    table.add_column("class")
    table.add_column("parameters", justify="right")
    for part_name, part in info["parts"].items():
        table.add_row(part_name, part["class"], f"{part['parameters']:,}")
    table.add_row("[bold]all[/bold]", "", f"[bold]{info['parameters']:,}[/bold]")
    console.print(table)
    for key, value in info.items():
        if key not in _SHOWN_APART:
            _print_entry(console, key, value)


def _print_entry(console: Any, key: str, value: Any, indent: int = 0) -> None:
    from rich.markup import escape

    space = "  " * indent
    if indent == 0:
        console.print()
    if isinstance(value, Mapping):
        console.print(f"{space}[dim]{escape(key)}[/dim]")
        for name, entry in value.items():
            _print_entry(console, str(name), entry, indent + 1)
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        console.print(f"{space}[dim]{escape(key)}[/dim]")
        for number, entry in enumerate(value, 1):
            _print_entry(console, str(number), entry, indent + 1)
    else:
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        console.print(f"{space}[dim]{escape(key)}[/dim]  {escape(shown)}")
