"""Do and undo through the harness: chains of edits, and no editor wins by doing nothing."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from diptych.evals.manifest import EvaluationFolder, read_lines
from diptych.evals.produce import plan, produce
from diptych.evals.protocol import Earlier, Failure
from diptych.evals.score import reference_table, score
from diptych.evals.tasks import TaskOptions, build_task
from diptych.scenes.doundo import CONTROL, DOUNDO_KINDS
from tests.evals.scripted_editor import ScriptedEditor, every_second


@pytest.fixture(scope="module")
def task():
    return build_task("do-undo", TaskOptions(num_per_category=3))


@pytest.fixture(scope="module")
def references(task):
    return {table.contender: table for table in task.references()}


def table_of(task, rule):
    editor = ScriptedEditor(task, rule)
    return reference_table(task, editor, plan(task, editor))


def test_a_request_is_given_what_an_earlier_one_led_to(task):
    requests = {request.id: request for request in task.requests()}
    assert len(requests) == 3 * 3 * (len(DOUNDO_KINDS) + 1)
    for name, request in requests.items():
        item, step = name.rsplit("/", 1)
        earlier = [part.id for part in request.parts if isinstance(part, Earlier)]
        assert earlier == ([f"{item}/do-1"] if step == "undo-1" else [])
        assert request.capability == "image_edit"
    assert len({request.seed for request in requests.values()}) == len(requests)


def test_the_oracle_leads_a_partial_editor_chance_and_the_trivial_ones(task, references):
    partial = table_of(task, every_second)
    assert references["oracle"].overall.value == 1.0
    assert all(score.value == 1.0 for score in references["oracle"].categories.values())
    assert 0.3 < partial.overall.value < 0.7
    for name in ("chance", "constant", "copy-input"):
        assert references[name].overall.value < 0.1 < partial.overall.low


def test_whoever_changes_nothing_restores_everything_and_has_nothing(references):
    rows = {name: score.value for name, score in references["copy-input"].categories.items()}
    assert rows["undone"] == rows["returned region"] == rows["kept region"] == 1.0
    assert rows["done"] == rows["progress"] == rows["done and undone"] == references["copy-input"].overall.value == 0.0
    assert rows["undone from the true picture"] == 0.0 and rows["returned from the true picture"] < 0.2
    assert rows[f"{CONTROL}, done and undone"] == 0.0


def test_doing_without_undoing_is_no_more(task):
    rows = table_of(task, lambda request, shown, right: shown if "/undo-" in request.id else right)
    assert rows.categories["done"].value == rows.categories["progress"].value == 1.0
    assert rows.categories["undone"].value == 0.0 and rows.overall.value < 0.35


def test_errors_of_every_edit_add_up_over_the_rounds():
    task = build_task("do-undo", TaskOptions(num_per_category=2, rounds=4))
    pictures = {}

    def drift(request, shown, right):
        rng = np.random.default_rng([*request.id.encode()])
        _, step = task._asked[request.id]
        change = right.astype(np.int16) - task._picture(step.edit.source).astype(np.int16)
        noisy = shown + change + rng.normal(0, 6, shown.shape)
        pictures[request.id] = np.clip(noisy, 0, 255).astype(np.uint8)
        return pictures[request.id]

    table = table_of(task, drift)
    away = [entry["color_difference_from_source"] for entry in table.details["rounds"]]
    returned = [entry["returned_region"] for entry in table.details["rounds"]]
    assert away == sorted(away) and away[-1] > 1.3 * away[0]
    assert returned == sorted(returned, reverse=True)
    own, true = (table.categories[name].value for name in ("returned region", "returned from the true picture"))
    assert own < true
    with pytest.raises(ValueError, match=r"do-undo: rounds must be at least 1, got 0\. --rounds says how many"):
        build_task("do-undo", TaskOptions(rounds=0))


def test_what_is_missing_is_wrong_and_what_is_left_out_is_left_out(task):
    verdicts = dict.fromkeys((request.id for request in task.requests()), None)
    empty = task.table(verdicts, "nobody")
    assert empty.overall.value == 0.0 and empty.overall.num_items == 15
    editor = ScriptedEditor(task, lambda request, shown, right: right)
    planned = plan(task, editor)
    verdicts = {
        item.request.id: task.judge([item.request], [task.reference_output("oracle", item.request)])[0]
        for item in planned
    }
    undo = next(name for name in verdicts if name.endswith("/undo-1"))
    assert task.table({**verdicts, undo: None}, "one missing").overall.value == pytest.approx(1 - 1 / 15)
    del verdicts[undo]
    assert task.table(verdicts, "one left out").overall.num_items == 14


def test_a_chain_goes_on_behind_what_could_not_be_made(task, tmp_path):
    broken = [True]

    def rule(request, shown, right):
        return Failure("no luck") if broken[0] and request.id.endswith("recolor/0001/do-1") else right

    editor, folder = ScriptedEditor(task, rule), EvaluationFolder(tmp_path)
    planned = plan(task, editor)
    keys = {item.request.id: item.key for item in planned}
    assert produce(folder, task, editor, planned) == 2  # the edit, and what builds on it
    result = score(folder, task, keys, "scripted")
    assert result.table.overall.value == pytest.approx(1 - 1 / 15) and len(result.missing) == 2
    assert any(
        "builds on test/do-undo/recolor/0001/do-1, and it was not made" in why for why in result.missing.values()
    )
    broken[0] = False
    assert produce(folder, task, editor, planned) == 0
    assert score(folder, task, keys, "scripted").table.overall.value == 1.0


@pytest.mark.process
def test_killed_in_a_chain_and_resumed_no_picture_is_lost_or_made_twice(tmp_path):
    folder = EvaluationFolder(tmp_path / "killed")
    command = [sys.executable, "-m", "tests.evals.scripted_editor", str(folder.path), "2"]
    for attempt in range(10):
        process = subprocess.Popen(command, env={**os.environ}, cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + 60
        wanted = 12 * (attempt + 1)
        while process.poll() is None and time.monotonic() < deadline:
            if attempt < 2 and sum(1 for _ in read_lines(folder.manifest)) >= wanted:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.003)
        process.wait()
        if process.returncode == 0:
            break
    assert attempt == 2
    task = build_task("do-undo", TaskOptions(num_per_category=2, rounds=2))
    editor, unbroken = ScriptedEditor(task, every_second), EvaluationFolder(tmp_path / "unbroken")
    planned = plan(task, editor)
    produce(unbroken, task, editor, planned)
    keys = {item.request.id: item.key for item in planned}
    assert Counter(row["key"] for row in read_lines(folder.manifest)) == dict.fromkeys(keys.values(), 1)
    assert score(folder, task, keys, "scripted").table == score(unbroken, task, keys, "scripted").table
