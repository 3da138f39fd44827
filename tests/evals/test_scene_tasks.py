"""Tasks of the built-in world in the harness give the figures of ``evaluate_scenes``, files and rows in between."""

import json
from dataclasses import fields, replace

import pytest

from diptych.evals.contenders import Pair, UnifiedContender
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.produce import plan, produce
from diptych.evals.references import REFERENCE_NAMES, Reference
from diptych.evals.scenes import evaluate_scenes
from diptych.evals.score import reference_table, score
from diptych.evals.tasks import SCENE_TASKS, TASKS, TaskEntry, TaskOptions, build_task, register_task
from diptych.unified.settings import DrawSettings
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("name", SCENE_TASKS)
def test_figures_are_those_of_one_pass(model, tmp_path, name):
    options = TaskOptions(num_per_category=1, split="novel", seed=3)
    task, contender = build_task(name, options), UnifiedContender(model, "model", "tiny")
    planned = plan(task, contender)
    folder = EvaluationFolder(tmp_path)
    assert produce(folder, task, contender, planned, batch_size=3) == 0
    result = score(folder, task, {item.request.id: item.key for item in planned}, "model")
    expected = evaluate_scenes(model, (name,), 1, "novel", seed=3).tables
    judged = {**expected[0].details, "judge": task.judge_record()}
    assert result.table == replace(expected[0], details=judged)
    assert task.references() == list(expected[1:])
    assert build_task(name, TaskOptions.from_dict(options.to_dict())).requests()[0].id == planned[0].request.id


@pytest.mark.parametrize("name", SCENE_TASKS)
def test_references_enter_as_models_do(name):
    task = build_task(name, TaskOptions(num_per_category=2, seed=1))
    scores = {}
    for reference in REFERENCE_NAMES:
        contender = Reference(reference, task)
        scores[reference] = reference_table(task, contender, plan(task, contender)).overall.value
    assert scores["oracle"] == 1.0
    assert max(scores["chance"], scores["constant"], scores["copy-input"]) < 0.7
    for table in task.references():
        if table.contender != "chance" or name != "geneval":  # of scenes there, of their drawings here
            assert table.overall.value == scores[table.contender]


def test_more_pictures_a_prompt_have_seeds_of_their_own():
    task = build_task("geneval", TaskOptions(num_per_category=2, samples=4, seed=10))
    requests = task.requests()
    assert [request.seed for request in requests] == list(range(10, 10 + 48))
    assert len({request.id for request in requests}) == 48
    assert len({request.parts for request in requests}) == 12


def test_settings_are_complete_and_checked(model):
    contender = UnifiedContender(model, "model", "tiny")
    drawn = contender.settings("image", {"guidance_scale": 1.0})
    assert (drawn["num_steps"], drawn["guidance_scale"], drawn["size"]) == (3, 1.0, [64, 64])
    assert set(drawn) == {"size", *(field.name for field in fields(DrawSettings))} and json.dumps(drawn)
    task = build_task("geneval", TaskOptions(num_per_category=1))
    plans = [plan(task, contender, {"image": given}) for given in
             ({}, {"num_steps": 4}, {"guidance_scale": 2.5}, {"size": [32, 64]}, {"think": True})]  # fmt: skip
    plans.append(plan(task, UnifiedContender(model, "model", "other weights")))
    assert len({one[0].key for one in plans}) == len(plans) == 6
    with pytest.raises(ValueError, match=r"there is no setting 'steps' of image\. Known: num_steps, guidance_scale"):
        contender.settings("image", {"steps": 3})


def test_a_pair_writes_with_one_and_draws_with_the_other(model):
    task = build_task("questions", TaskOptions(num_per_category=1))
    oracle, own = Reference("oracle", task), UnifiedContender(model, "model", "tiny")
    pair = Pair(oracle, own)
    assert pair.name == "oracle+model" and set(pair.capabilities) == {
        "text", "image_to_text", "text_to_image", "image_edit"
    }  # fmt: skip
    planned = plan(task, pair)
    assert reference_table(task, pair, planned).overall.value == 1.0
    assert pair.settings("image", {}) == own.settings("image", {}) and pair.settings("text", {}) == {}
    swapped = plan(task, Pair(own, oracle))
    assert not {item.key for item in planned} & {item.key for item in swapped}


def test_log_likelihoods_and_hidden_states(model):
    from diptych.data.example import Text
    from diptych.evals.protocol import Request

    contender = UnifiedContender(model, "model", "tiny")
    settings = contender.settings("log_likelihood", {})
    request = Request("a", "log_likelihood", (Text("Is it red?"),), settings=settings, choices=("yes", "no"))
    (values,) = contender.log_likelihood([request])
    assert values == tuple(model.log_likelihood("Is it red?", ["yes", "no"])) and max(values) < 0
    states = contender.hidden_states(request, [0, 2])
    assert states[2].shape == model.hidden_states("Is it red?", [0, 2])[2].shape


def test_benchmarks_of_ones_own_have_names_of_their_own():
    entry = TaskEntry("mine", (), TASKS["questions"].build)
    with pytest.raises(ValueError, match="there is a benchmark 'questions' already"):
        register_task("questions", entry)
    register_task("questions-of-mine", entry)
    try:
        assert build_task("questions-of-mine", TaskOptions(num_per_category=1)).name == "questions"
    finally:
        del TASKS["questions-of-mine"]
    with pytest.raises(ValueError, match=r"there is no benchmark 'nothing'\. Known: geneval, questions"):
        build_task("nothing", TaskOptions())
