"""Work in several processes: what they tell is heard, what they raise is raised, and a kill is said."""

import os
import signal

import pytest

from diptych.cli.main import main
from diptych.evals.processes import in_processes
from diptych.evals.scores_file import read_scores

pytestmark = pytest.mark.process


def told(tell, *values):
    """Says what it was given, and how many threads it may have."""
    for value in values:
        if value == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if value == "fail":
            raise ValueError("the model is broken")
        tell("made", value, os.environ["OMP_NUM_THREADS"])


def test_all_that_is_told_is_heard_and_the_cores_are_shared(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    heard = []
    in_processes(told, [("a", "b"), ("c",)], lambda *values: heard.append(values), cores=4)
    assert sorted(heard) == [("made", "a", "2"), ("made", "b", "2"), ("made", "c", "2")]
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        ("die", RuntimeError, "a process ended with code -9. What was made is kept: run the same command again"),
        ("fail", ValueError, "the model is broken"),
    ],
)
def test_a_process_that_is_killed_or_fails_is_told(job, error, message):
    with pytest.raises(error, match=message):
        in_processes(told, [("a", job)], lambda *values: None)


def test_a_benchmark_of_ones_own_is_known_in_all_of_them(tmp_path):
    words = ["evaluate", "oracle", "--on", "retold", "--num-per-category", "1", "--splits", "test", "--processes", "2"]
    assert main(["--import", "docs.examples.retold", *words, "--out", str(tmp_path)]) == 0
    tables = read_scores(tmp_path / "scores.json")
    assert [table.overall.value for table in tables if table.contender == "oracle"] == [1.0]
