"""lmms-eval: our tasks written for it, and, where it is installed, the same scores through both runners."""

import json

import numpy as np
import pytest

from diptych.cli.main import main
from diptych.evals.lmms import tasks as written
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.produce import plan, produce
from diptych.evals.references import Reference
from diptych.evals.score import score
from diptych.evals.scores_file import read_scores
from diptych.evals.tasks import TaskOptions, build_task

OPTIONS = TaskOptions(num_per_category=3)
try:
    import lmms_eval  # noqa: F401

    HAS_LMMS = True
except ImportError:
    HAS_LMMS = False


def answers_of(reference, task):
    """What a reference answers, by id."""
    contender = Reference(reference, task)
    return {request.id: contender.write([request])[0] for request in task.requests()}


def test_a_task_is_written_with_its_documents(tmp_path, capsys):
    assert main(["evaluate", "--lmms-tasks", str(tmp_path), "--on", "questions", "--num-per-category", "3"]) == 0
    assert capsys.readouterr().out == "diptych_questions\n"
    import pyarrow.parquet as parquet

    folder = tmp_path / "diptych_questions"
    rows = parquet.read_table(folder / "documents.parquet").to_pylist()
    requests = build_task("questions", OPTIONS).requests()
    assert [row["id"] for row in rows] == [request.id for request in requests]
    for row, request in zip(rows, requests, strict=True):
        (picture,) = written.doc_to_visual(row)
        assert np.array_equal(np.asarray(picture), request.parts[0].image) and row["question"] == request.parts[1].text
    text = (folder / "diptych_questions.yaml").read_text()
    assert "task: diptych_questions" in text and "max_new_tokens: 12" in text and str(folder) in text


@pytest.mark.parametrize("reference", ["oracle", "chance"])
def test_the_sum_there_is_the_sum_here(tmp_path, reference):
    task = build_task("questions", OPTIONS)
    written.write_lmms_task(task, OPTIONS.to_dict(), tmp_path)
    said = answers_of(reference, task)
    results = [{"id": name, "answer": text} for name, text in said.items()]
    (own,) = [table for table in task.references() if table.contender == reference]
    assert written.overall(str(tmp_path / "diptych_questions"), results) == pytest.approx(own.overall.value)


def test_tasks_that_draw_and_what_is_not_installed_are_named(tmp_path):
    with pytest.raises(ValueError, match="--lmms-tasks: geneval asks for more than answers about pictures"):
        written.write_lmms_task(build_task("geneval", OPTIONS), OPTIONS.to_dict(), tmp_path)
    if not HAS_LMMS:
        with pytest.raises(ValueError, match=r"lmms:mme needs lmms-eval: pip install 'diptych\[lmms\]'"):
            build_task("lmms:mme", OPTIONS).requests()


@pytest.mark.skipif(not HAS_LMMS, reason="lmms-eval is not installed")
def test_the_same_scores_through_both_runners(tmp_path):
    """The bundled model on 21 questions: by this harness, by lmms-eval, and by this harness on lmms-eval's task."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from diptych.evals.contenders import UnifiedContender
    from diptych.evals.lmms.imported import LmmsTask
    from diptych.evals.lmms.model import DiptychModel
    from diptych.loading import load

    contender = UnifiedContender(load("diptych-scenes", device="cpu", dtype="float32"), "bundled", "1")
    task = build_task("questions", OPTIONS)
    name = written.write_lmms_task(task, OPTIONS.to_dict(), tmp_path / "tasks")

    def here(asked, place):
        planned, folder = plan(asked, contender), EvaluationFolder(tmp_path / place)
        assert produce(folder, asked, contender, planned) == 0
        keys = {item.request.id: item.key for item in planned}
        return score(folder, asked, keys, "bundled").table.overall.value

    own = here(task, "own")
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    found = simple_evaluate(DiptychModel(contender=contender), tasks=[name], task_manager=manager, log_samples=False)
    assert found["results"][name]["score,none"] == pytest.approx(own)
    assert here(LmmsTask(task=name, include_path=str(tmp_path / "tasks")), "foreign") == pytest.approx(own)
    assert 0 < own < 1


@pytest.mark.skipif(not HAS_LMMS, reason="lmms-eval is not installed")
def test_a_model_of_lmms_eval_is_measured_here(tmp_path):
    """Its ``dummy`` says one word to everything, and so scores what the judge makes of that word."""
    run = str(tmp_path / "run")
    asked = ["--on", "questions", "--splits", "test", "--num-per-category", "3", "--out", run]
    assert main(["evaluate", "lmms:dummy,response=yes", *asked]) == 0
    scores = {table.contender: table.overall.value for table in read_scores(f"{run}/scores.json")}
    task = build_task("questions", OPTIONS)
    requests = task.requests()
    verdicts = task.judge(requests, ["yes"] * len(requests))
    constant = task.table({one.id: verdict for one, verdict in zip(requests, verdicts, strict=True)}, "constant")
    assert scores["lmms:dummy,response=yes"] == pytest.approx(constant.overall.value) and constant.overall.value > 0
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["contender"]["identity"]
    assert identity["lmms"] == "dummy,response=yes" and identity["lmms_eval"]


@pytest.mark.skipif(not HAS_LMMS, reason="lmms-eval is not installed")
def test_lmms_eval_finds_the_model_by_its_entry_point():
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from diptych.evals.lmms import manifests

    registry = ModelRegistryV2()
    for manifest in manifests():
        registry.register_manifest(manifest)
    assert registry.get_model_class("diptych").__name__ == "DiptychModel"
