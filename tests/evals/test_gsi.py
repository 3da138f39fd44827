"""Spatial edits through the harness: references in their order, columns with and without the gate."""

import pytest

from diptych.evals.produce import plan
from diptych.evals.score import reference_table
from diptych.evals.tasks import TaskOptions, build_task
from diptych.scenes.spatial_edits import SPATIAL_OPERATIONS
from tests.evals.scripted_editor import ScriptedEditor, every_second


@pytest.fixture(scope="module")
def task():
    return build_task("gsi", TaskOptions(num_per_category=6))


@pytest.fixture(scope="module")
def references(task):
    return {table.contender: table for table in task.references()}


def table_of(task, rule):
    editor = ScriptedEditor(task, rule)
    return reference_table(task, editor, plan(task, editor))


def test_the_oracle_leads_a_partial_editor_chance_and_the_trivial_ones(task, references):
    partial = table_of(task, every_second)
    assert references["oracle"].overall.value == pytest.approx(1.0, abs=0.001)
    assert references["oracle"].categories["exactly as told"].value == 1.0
    assert partial.overall.value == pytest.approx(0.5, abs=0.06)
    for name in ("chance", "constant", "copy-input"):
        assert references[name].overall.value < 0.15 < partial.overall.low
        assert references[name].categories["exactly as told"].value == 0.0


def test_whoever_changes_nothing_has_locality_before_the_gate_alone(references):
    rows = {name: score.value for name, score in references["copy-input"].categories.items()}
    assert rows["edit locality, ungated"] == 1.0 and rows["appearance consistency, ungated"] > 0.8
    assert rows["instruction compliance"] == rows["edit locality"] == rows["appearance consistency"] == 0.0
    # The published gate leaves a scaling the accuracy of the factor 1, and nothing else.
    assert {name for name in SPATIAL_OPERATIONS if rows[name] > 0.001} == {"scale"} and rows["scale"] < 0.25


def test_the_headline_is_the_mean_of_the_four_columns_and_of_the_units(task):
    table = table_of(task, every_second)
    columns = ("instruction compliance", "spatial accuracy", "edit locality", "appearance consistency")
    mean = sum(table.categories[name].value for name in columns) / 4
    assert table.overall.value == pytest.approx(mean)
    assert list(table.categories)[:5] == list(SPATIAL_OPERATIONS)
    assert set(table.details["by_operation"]) == set(SPATIAL_OPERATIONS)
    numbers = table.details["numbers"]
    assert numbers["trained"]["count"] + numbers["unseen"]["count"] == 18


def test_what_is_missing_is_wrong_and_what_is_left_out_is_left_out(task):
    requests = task.requests()
    assert [request.seed for request in requests] == list(range(30))
    missing = task.table(dict.fromkeys((request.id for request in requests), None), "nobody")
    assert missing.overall.value == 0.0 and missing.overall.num_items == 30
    first = requests[0]
    verdict = task.judge([first], [task.reference_output("oracle", first)])[0]
    only = task.table({first.id: verdict}, "one")
    assert only.overall.num_items == 1 and only.overall.value > 0.99
    assert task.units({first.id: verdict})[0].reason == ""
