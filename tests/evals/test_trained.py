"""The bundled model between the references, on the benchmarks whose pictures take a model minutes."""

import pytest

import diptych
from diptych.evals.contenders import UnifiedContender
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.produce import plan, produce
from diptych.evals.score import score
from diptych.evals.tasks import TaskOptions, build_task


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("do-undo", 10), ("gsi", 12), ("xtc", 20), ("dpg", 10)])
def test_oracle_trained_chance_and_no_trivial_model_wins(name, number, tmp_path):
    task = build_task(name, TaskOptions(num_per_category=number, samples=2))
    contender = UnifiedContender(diptych.load("diptych-scenes"), "diptych-scenes", "bundled")
    planned, folder = plan(task, contender), EvaluationFolder(tmp_path)
    assert produce(folder, task, contender, planned) == 0
    keys = {item.request.id: item.key for item in planned}
    trained = score(folder, task, keys, contender.name).table.overall
    references = {table.contender: table.overall for table in task.references()}
    print(f"{name}: {trained}; {', '.join(f'{key} {value.value:.3f}' for key, value in references.items())}")
    assert references["oracle"].value > 0.999 and trained.high < references["oracle"].value
    for trivial in ("chance", "constant", "copy-input"):
        assert trained.low > references[trivial].high
