"""``diptych compare`` for real, at the smallest size: what it writes, how it goes on after a kill, and its messages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diptych.cli.compare_cell import COSTS_FILE, measure
from diptych.cli.compare_cells import _environments
from diptych.cli.compare_plan import (
    Plan,
    Scoring,
    check_folder,
    measuring_recipe,
    read_scoring,
    sole_use,
    write_cell_recipe,
)
from diptych.cli.main import INTERRUPTED, main
from diptych.train.budget import Budget
from diptych.train.metrics import MetricsLog
from diptych.train.presets import load_preset

RECIPES = "tests.cli.tiny_recipe"
SECONDS, REGRESSED, LONG, BROKEN = (f"{RECIPES}:{name}" for name in ("seconds", "regressed", "long", "broken"))
QUICK = ("--device", "cpu", "--num-prompts", "2", "--num-noises", "2", "--features", "pixels")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "diptych", "compare", *map(str, words), *QUICK]


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["compare", *map(str, words)]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes, both cells at a time."""
    folder = tmp_path_factory.mktemp("compare") / "two"
    words = (SECONDS, REGRESSED, "--seeds", 3, "--budget", "examples=40", "--uncounted", "features", "--processes", 2)
    scoring = ("--num-per-category", 4, "--on", "geneval,questions", "--out", folder)
    assert main(["compare", *map(str, (*words, *scoring)), *QUICK]) == 0
    return folder


def test_both_recipes_use_the_budget_and_are_scored_alike(compared: Path):
    content = json.loads((compared / "compare.json").read_text())
    assert (content["budget"], content["seeds"], content["failed"]) == ("examples=40", [3], {})
    cells = {cell["recipe"]: cell for cell in content["cells"]}
    assert set(cells) == {"tests:seconds", "tests:regressed"}
    for cell in cells.values():
        counted = [stage for stage in cell["cost"]["stages"] if stage["name"] != "features"]
        assert sum(stage["num_steps"] * stage["batch_size"] for stage in counted) == 40
        assert all(stage["flops_per_step"] > 1e6 for stage in counted) and cell["cost"]["peak_memory"] > 1e6
        own = {table["benchmark"]: table for table in cell["tables"] if table["contender"] == cell["recipe"]}
        assert {name: table["overall"]["num_items"] for name, table in own.items()} == {
            "geneval-twin": 24, "question-answering": 28
        }  # fmt: skip
        assert cell["distances"]["pixels"]["fdr"] > 1 and cell["distances"]["pixels"]["count"] == 24
        assert cell["diversity_of_real"]["pixels"]["value"] > 0
    assert cells["tests:regressed"]["diversity"]["pixels"]["value"] == 0.0
    assert cells["tests:seconds"]["diversity"]["pixels"]["value"] > 0.0
    stages = cells["tests:regressed"]["stage_scores"]["question-answering"]
    assert list(stages) == ["features", "understanding", "generation"]
    assert stages["understanding"] == stages["generation"]  # the backbone was frozen
    prompts = [cell["prompts"] for cell in cells.values()]
    assert prompts[0] == prompts[1] and len(prompts[0]) == 2


def test_the_page_shows_curves_grids_and_tables(compared: Path):
    page = (compared / "report.html").read_text(encoding="utf-8")
    for title in ("Scores", "Training curves", "Same prompts, same noise", "Diversity", "Cost of training", "Budget",
                  "Understanding kept or lost", "Fréchet distance"):  # fmt: skip
        assert f">{title}<" in page
    assert page.count("<img") == 2 * 2 * 2  # prompts, noises, recipes
    assert "examples=40 for each run, seeds 3. 2 of 2 runs are finished." in page
    text = (compared / "compare.md").read_text(encoding="utf-8")
    assert "| tests:seconds | 1 of 1 | features 3 x 4, joint 10 x 4 | 40 |" in text


def test_what_is_done_is_not_done_again(compared: Path, capsys: pytest.CaptureFixture[str]):
    cells = sorted((compared / "cells").glob("*/cell.json"))
    before = [file.stat().st_mtime_ns for file in cells]
    test_both_recipes_use_the_budget_and_are_scored_alike(compared)
    words = (SECONDS, REGRESSED, "--seeds", 3, "--budget", "examples=40", "--uncounted", "features")
    scoring = ("--num-per-category", 4, "--on", "geneval,questions", "--out", compared)
    assert main(["compare", *map(str, (*words, *scoring)), *QUICK]) == 0
    assert capsys.readouterr().out.splitlines() == ["2 cells are there already", str(compared / "report.html")]
    assert [file.stat().st_mtime_ns for file in cells] == before and len(before) == 2


def test_other_settings_in_the_same_folder_are_refused(compared: Path, capsys: pytest.CaptureFixture[str]):
    said = fails(capsys, SECONDS, REGRESSED, "--seeds", 3, "--budget", "examples=60", "--uncounted", "features",
                 "--num-per-category", 4, "--on", "geneval,questions", "--out", compared, *QUICK)  # fmt: skip
    assert 'holds another comparison: budget: "examples=40" -> "examples=60"' in said and "--out" in said


def test_a_killed_comparison_goes_on_and_a_failed_cell_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """SIGKILL amid the training of the first cell; the second one cannot start."""
    words = (LONG, BROKEN, "--num-per-category", 1, "--on", "questions", "--out", tmp_path / "c")
    running = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL)
    run = tmp_path / "c" / "cells" / "tests-long-0" / "run"
    deadline = time.monotonic() + 200
    while not list((run / "checkpoints").glob("step-*")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert main(["compare", *map(str, words), *QUICK]) == 1
    said = capfd.readouterr().err
    assert "failed: tests:broken, seed 0: exit code 2" in said and "no-such-model" in said
    sessions = json.loads((run / "environment.json").read_text())["sessions"]
    assert len(sessions) == 2 and sessions[1]["from_step"] > 0
    steps = [line["step"] for line in MetricsLog(run / "metrics.jsonl").read() if line["event"] == "train"]
    assert steps == list(range(1, 85))
    content = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [cell["recipe"] for cell in content["cells"]] == ["tests:long"]
    assert content["failed"]["tests:broken, seed 0"].startswith("exit code 2") and content["num_missing"] == 0
    assert "1 failed." in (tmp_path / "c" / "report.html").read_text(encoding="utf-8")


def test_a_step_is_measured_in_flops_and_time(tmp_path: Path):
    write_cell_recipe(tmp_path, measuring_recipe(load_preset(REGRESSED), seed=0))
    assert measure(tmp_path, "cpu") == 0
    costs = json.loads((tmp_path / COSTS_FILE).read_text())
    assert list(costs) == ["features", "understanding", "generation"]
    assert all(cost["flops"] > 1e6 and 0 < cost["minutes"] < 5 for cost in costs.values())
    assert not (tmp_path / "run").exists()


def test_one_comparison_at_a_time_works_in_a_folder(tmp_path: Path):
    refused = pytest.raises(ValueError, match="another comparison is at work in")
    with sole_use(tmp_path), refused, sole_use(tmp_path, seconds=0.3):
        pass
    with sole_use(tmp_path, seconds=0.0):
        pass


def test_threads_are_shared_by_cells_that_run_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert _environments(2, "cpu") == [{"OMP_NUM_THREADS": "2"}] * 2
    assert _environments(9, "cpu")[8] == {"OMP_NUM_THREADS": "1"}


def test_a_plan_may_change_until_there_are_cells(tmp_path: Path):
    scoring = Scoring(tasks=("geneval",), num_per_category=1, num_prompts=2, num_noises=2, features=("pixels",))
    short, long = (
        Plan(recipes={"a:b": load_preset(SECONDS)}, seeds=(0, 1), budget=Budget("minutes", amount), uncounted=(),
             scoring=scoring) for amount in (0.1, 2.5)
    )  # fmt: skip
    check_folder(tmp_path, short)
    check_folder(tmp_path, long)
    assert read_scoring(tmp_path) == scoring
    write_cell_recipe(long.cell(tmp_path, "a:b", 1), load_preset(SECONDS))
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["a-b-1"]
    check_folder(tmp_path, long)
    with pytest.raises(ValueError, match=r'holds another comparison:\n  budget: "minutes=2.5" -> "minutes=0.1"'):
        check_folder(tmp_path, short)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("blip3o:tinny",), "blip3o:tiny"),
        ((SECONDS, "--seeds"), "--seeds needs at least one seed, such as --seeds 0 1 2"),
        ((SECONDS, "--seeds", "1", "1"), "--seeds names a seed twice: 1 1"),
        ((SECONDS, "--seeds", "-1"), "must be at least 0, got -1"),
        ((SECONDS, "--budget", "hours=3"), "a budget is examples=N, flops=F or minutes=M, got 'hours=3'"),
        ((SECONDS, "--budget", "examples=0"), "must be a positive number"),
        ((SECONDS, "--budget", "examples=3"), "leaves no step for the stage 'features' of tests:seconds"),
        ((SECONDS, SECONDS), "two recipes are called 'tests:seconds'"),
        ((SECONDS, "--uncounted", "feature"), "--uncounted: no recipe has a stage 'feature'"),
        ((SECONDS, "--on", "genevil"), "--on: there is no 'genevil'"),
        ((SECONDS, "--features", "pixel"), "pixels"),
        ((SECONDS, "--json"), "--json is for two RUNS"),
        (("tests/cli",), "tests/cli is a folder, but neither a recipe nor an evaluation"),
    ],
)
def test_mistakes_are_told(words, said, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert said in fails(capsys, *words, "--out", tmp_path / "c")
    assert not list(tmp_path.glob("c/cells/*/run"))


def test_evaluations_and_recipes_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    assert "one is an evaluation and blip3o:tiny is not" in fails(capsys, one, "blip3o:tiny")
    assert "takes two evaluations, got 3" in fails(capsys, one, two, three)
    assert "are for recipes" in fails(capsys, one, two, "--budget", "examples=3")


def test_a_stopped_comparison_says_what_is_left(tmp_path: Path):
    """SIGTERM: the running cell saves and ends, the report is written, the exit code is that of an interruption."""
    words = (LONG, "--seeds", 0, 1, "--num-per-category", 1, "--on", "questions", "--out", tmp_path / "c")
    running = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env={**os.environ})  # fmt: skip
    run = tmp_path / "c" / "cells" / "tests-long-0" / "run"
    deadline = time.monotonic() + 200
    while not MetricsLog(run / "metrics.jsonl").read() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=120)
    assert running.returncode == INTERRUPTED and "Stopped with 2 cells to go." in said
    assert list((run / "checkpoints").glob("step-*")) and (tmp_path / "c" / "report.html").exists()
