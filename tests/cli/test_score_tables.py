"""Scores in a terminal: no number is cut, however short its lines are."""

import io

import pytest
from rich.console import Console

from diptych.cli.score_tables import print_scores
from diptych.scenes.scores import Score, ScoreTable

CONTENDERS = ("my model", "oracle", "chance", "constant", "copy-input")


def printed(width: int) -> str:
    score = Score(0.1234, 0.05, 0.21, 40, 40)
    rows = {"returned from the true picture": score, "kept region": score}
    tables = [ScoreTable("do-undo", name, score, rows) for name in CONTENDERS]
    console = Console(file=io.StringIO(), width=width)
    print_scores(tables, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [50, 66, 80, 200])
def test_every_number_is_there_whole(width):
    lines = printed(width).splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert sum(line.count("0.123 (0.05–0.21)") for line in lines) == 3  # two rows and the mean
    assert sum(line.count("0.123") for line in lines) == 3 * len(CONTENDERS)
    for name in CONTENDERS:
        assert sum(name in line for line in lines) == 1


def test_one_table_where_it_fits():
    assert sum("returned from" in line for line in printed(200).splitlines()) == 1
    assert sum("returned from" in line for line in printed(66).splitlines()) == 2
