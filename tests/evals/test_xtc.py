"""Cross-task consistency through the harness: the reference rows and a trained model in their order."""

import pytest

import diptych
from diptych.evals.contenders import Pair, UnifiedContender
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.produce import plan, produce
from diptych.evals.references import Reference
from diptych.evals.score import reference_table, score
from diptych.evals.tasks import TaskOptions, build_task


@pytest.fixture(scope="module")
def task():
    return build_task("xtc", TaskOptions(num_per_category=5, samples=2))


@pytest.fixture(scope="module")
def references(task):
    return {table.contender: table for table in task.references()}


def test_oracle_trained_chance_and_no_trivial_model_wins(task, references, tmp_path):
    contender = UnifiedContender(diptych.load("diptych-scenes"), "diptych-scenes", "bundled")
    planned, folder = plan(task, contender), EvaluationFolder(tmp_path)
    produce(folder, task, contender, planned)
    keys = {item.request.id: item.key for item in planned}
    trained = score(folder, task, keys, "diptych-scenes").table
    assert references["oracle"].overall.value == 1.0
    assert references["oracle"].overall.value > trained.overall.high
    assert trained.overall.low > references["chance"].overall.high
    for name in ("chance", "constant", "copy-input"):
        assert references[name].overall.value < trained.overall.value
    # What the headline is there for: the constant, which is always wrong, wins by raw agreement.
    agreement = {name: table.categories["raw agreement"].value for name, table in references.items()}
    assert agreement["constant"] == 1.0 > trained.categories["raw agreement"].value
    assert references["constant"].overall.value == 0.0
    assert trained.details["judge"]["min_similarity"] == 0.5
    units = score(folder, task, keys, "diptych-scenes").units
    assert sum(unit.value for unit in units) / len(units) == pytest.approx(trained.overall.value)

    gone = {key: key_ for key, key_ in keys.items() if not key.endswith("drawing-00")}
    folder.file(folder.rows()[keys[next(iter(k for k in keys if "drawing" in k))]].sha256).unlink()
    damaged = score(folder, task, keys, "diptych-scenes").table
    assert damaged.details["missing"]["count"] == 1 and damaged.overall.value <= trained.overall.value
    assert len(score(folder, task, gone, "diptych-scenes").units) == len(units) // 2


@pytest.mark.parametrize(("understander", "generator"), [("oracle", "constant"), ("constant", "oracle")])
def test_right_on_one_side_alone_is_nothing(task, understander, generator):
    pair = Pair(Reference(understander, task), Reference(generator, task))
    table = reference_table(task, pair, plan(task, pair))
    assert table.overall.value == 0.0 and table.details["all_facts"]["ccta"] == 0.0
    assert table.details["all_facts"]["cir"] is None
    assert {table.categories["answered right"].value, table.categories["drawn right"].value} == {0.0, 1.0}


def test_each_scene_is_drawn_several_times_and_asked_once(task):
    requests = task.requests()
    drawings = [request for request in requests if request.kind == "image"]
    assert len(drawings) == 10 and [request.seed for request in drawings] == list(range(10))
    assert len({request.parts for request in drawings}) == 5
    assert {request.capability for request in requests} == {"image_to_text", "text_to_image"} == set(task.needs)
