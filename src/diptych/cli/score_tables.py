"""Scores in a terminal: one table a benchmark, a column for each contender, intervals beside the values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diptych.evals.report_data import Estimate, ScoreBoard
from diptych.evals.scores_file import score_boards
from diptych.scenes.scores import ScoreTable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_scores(tables: Sequence[ScoreTable], console: "Console") -> None:
    """Prints every benchmark; references stand dim on the right, without intervals. Columns for which a line is too
    short stand in a table below, so that no number is cut."""
    for board in score_boards(tables):
        _print_board(board, console)


def _print_board(board: ScoreBoard, console: "Console") -> None:
    left = list(board.systems)
    while left:
        here = left[:1]
        while len(here) < len(left) and _width(_table(board, left[: len(here) + 1]), console) <= console.width:
            here = left[: len(here) + 1]
        console.print(_table(board, here, has_title=left == list(board.systems)))
        console.print()
        left = left[len(here) :]


def _table(board: ScoreBoard, systems: Sequence[str], has_title: bool = True) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    title = escape(board.title) if has_title else None
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", no_wrap=True, min_width=max((len(row.name) for row in board.rows), default=0))
    for system in systems:
        style = "dim" if system in board.references else None
        table.add_column(escape(system), justify="right", style=style, header_style=style or "none", no_wrap=True)
    for row in board.rows:
        cells = [_cell(row.scores.get(system), system in board.references) for system in systems]
        table.add_row(escape(row.name), *cells, style="bold" if row.is_total else None)
    return table


def _width(table: "Table", console: "Console") -> int:
    """Columns that the table takes where there is room."""
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _cell(estimate: Estimate | None, is_reference: bool) -> str:
    if estimate is None:
        return "–"
    if is_reference or estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.2f}–{estimate.high:.2f})"
