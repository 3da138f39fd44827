"""``diptych compare-scores``: two evaluations of the same items, with paired intervals and a test of the difference."""

from argparse import Namespace

from diptych.cli.parser import Parser

DESCRIPTION = """\
Compares two folders that `diptych evaluate` wrote, item by item. What was asked or judged differently is refused.
A difference is the second minus the first, with a 95 % interval and the probability of one as large by chance."""
EXAMPLES = """\
  diptych compare-scores scores-before scores-after
  diptych compare-scores scores-before scores-after --json"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("runs", nargs=2, metavar="RUN", help="folders of evaluations")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: Namespace) -> int:
    import json
    from dataclasses import asdict

    from rich.console import Console

    from diptych.cli.score_tables import print_scores
    from diptych.evals.compare_scores import compare_scores, merged_tables

    first, second = arguments.runs
    differences = compare_scores(first, second)
    if arguments.json:
        print(json.dumps([asdict(difference) for difference in differences], indent=2))
        return 0
    print_scores(merged_tables([first, second]), Console(highlight=False))
    print(f"{'difference':<32}{'':>9}{'95 % interval':>20}{'p':>9}{'items':>8}")
    for one in differences:
        name = one.benchmark if not one.category else f"  {one.category.replace('_', ' ')}"
        interval = f"{one.low:+.3f} to {one.high:+.3f}"
        mark = " *" if one.is_significant else ""
        print(f"{name:<32}{one.value:>+9.3f}{interval:>20}{one.p_value:>9.4f}{one.num_units:>8}{mark}")
    print("* less than 5 % by chance, each line by itself")
    return 0
