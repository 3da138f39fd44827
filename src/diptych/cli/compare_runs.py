"""``diptych compare RUN RUN``: two evaluations of the same items, with paired intervals and a paired test."""


def compare_runs(first: str, second: str, as_json: bool) -> int:
    """Prints the differences of two folders that ``diptych evaluate`` wrote.

    Raises:
        FileNotFoundError, ValueError: see `diptych.evals.compare_scores.compare_scores`.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console

    from diptych.cli.score_tables import print_scores
    from diptych.evals.compare_scores import compare_scores, merged_tables

    differences = compare_scores(first, second)
    if as_json:
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
