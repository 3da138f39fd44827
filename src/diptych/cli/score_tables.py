"""Scores in a terminal: one table a benchmark, a column for each contender, intervals beside the values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diptych.evals.report_data import Estimate, ScoreBoard
from diptych.evals.scores_file import score_boards
from diptych.scenes.scores import ScoreTable

if TYPE_CHECKING:
    from rich.console import Console


def print_scores(tables: Sequence[ScoreTable], console: "Console") -> None:
    """Prints every benchmark; references stand dim on the right, without intervals, so that 80 columns are enough."""
    for board in score_boards(tables):
        _print_board(board, console)


def _print_board(board: ScoreBoard, console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(board.title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", no_wrap=True, min_width=max((len(row.name) for row in board.rows), default=0))
    for system in board.systems:
        style = "dim" if system in board.references else None
        table.add_column(escape(system), justify="right", style=style, header_style=style or "none", no_wrap=True)
    for row in board.rows:
        cells = [_cell(row.scores.get(system), system in board.references) for system in board.systems]
        table.add_row(escape(row.name), *cells, style="bold" if row.is_total else None)
    console.print(table)
    console.print()


def _cell(estimate: Estimate | None, is_reference: bool) -> str:
    if estimate is None:
        return "–"
    if is_reference or estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.2f}–{estimate.high:.2f})"
