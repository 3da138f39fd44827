"""The worked examples: an own method trains in the real loop, is saved, loads and draws; an own benchmark is sound."""

from dataclasses import replace

import pytest
import torch

from diptych import Example, ImageOut, Text, load
from diptych.data.sources.scenes import ScenesSource
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.produce import plan, produce
from diptych.evals.references import Reference
from diptych.evals.score import score
from diptych.evals.task import Task
from diptych.evals.tasks import TASKS, TaskOptions
from diptych.methods.training import build_task
from diptych.train.loop import train
from diptych.train.metrics import MetricsLog
from diptych.train.presets import load_preset
from diptych.train.serialization import from_json, to_json
from docs.examples import regression_head, retold

NAME = "docs.examples.regression_head:tiny"


def short_recipe():
    """The recipe with few steps and without scores."""
    recipe = load_preset(NAME)
    stages = {
        name: replace(stage, num_steps=steps, batch_size=8)
        for (name, stage), steps in zip(recipe.stages.items(), (2, 16), strict=True)
    }
    return replace(
        recipe,
        stages=stages,
        evaluation=replace(recipe.evaluation, scorers=()),
        logging=replace(recipe.logging, every_steps=4),
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("regression") / "run"
    recipe = short_recipe()
    return train(build_task(recipe, run_dir), recipe, run_dir, device="cpu")


def test_its_recipe_survives_json():
    assert from_json(to_json(load_preset(NAME))) == load_preset(NAME)


def test_it_learns(result):
    lines = [line for line in MetricsLog(result.run_dir / "metrics.jsonl").read() if line["event"] == "train"]
    errors = [line["loss/regression"] for line in lines if line["stage"] == "joint"]
    texts = [line["loss/text"] for line in lines if line["stage"] == "joint"]
    assert result.finished and len(errors) == 4
    assert errors[-1] < 0.8 * errors[0] and texts[-1] < 0.8 * texts[0]


def test_the_saved_model_draws_and_answers(result):
    model = load(result.model_folder, device="cpu")
    first, second = model.generate_image(["a red circle", "a blue square"], seed=0)
    (other_seed,) = model.generate_image("a red circle", seed=9)
    assert first.size == (64, 64) and first.tobytes() != second.tobytes()
    assert first.tobytes() == other_seed.tobytes()  # the design has no noise
    assert isinstance(model.generate_text([first, "What color is the circle?"], max_new_tokens=4), str)


def test_another_size_is_refused(result):
    with pytest.raises(ValueError, match=r"draws features of \(4, 4\) cells only, got \(8, 8\)"):
        load(result.model_folder, device="cpu").generate_image("a red circle", size=128)


def test_its_loss_is_the_squared_distance_to_the_features():
    torch.manual_seed(0)
    model = load_preset(NAME).model.build()
    with torch.no_grad():
        model.image_head.to_features.weight.zero_()
        model.image_head.to_features.bias.fill_(0.5)
    source = ScenesSource(num_scenes=3).build()
    examples = [replace(source.example(i, 0), weight=float(i)) for i in range(3)]
    batch = model.collator()(examples)
    terms = regression_head.joint(model, batch, torch.Generator())
    assert set(terms) == {"regression"}
    errors = [
        (0.5 - model.encode_outputs(model.images.prepare(example.parts[1].image.load(), True)[None])).square().mean()
        for example in examples
    ]
    torch.testing.assert_close(terms["regression"].sum, errors[1] + 2 * errors[2])
    assert terms["regression"].count == 3


def test_a_prompt_alone_has_no_target():
    model = load_preset(NAME).model.build()
    batch = model.collator()([Example((Text("a red circle"), ImageOut(size=(64, 64))))])
    with pytest.raises(ValueError, match="an image that is yet to be drawn"):
        regression_head.joint(model, batch, torch.Generator())


def test_the_benchmark_of_the_page_is_won_by_the_oracle_and_by_no_trivial_output():
    task = retold.Retold(num_per_category=6)
    assert isinstance(task, Task) and TASKS["retold"].build(TaskOptions(num_per_category=6), None) == task
    overall = {table.contender: table.overall.value for table in task.references()}
    assert overall["oracle"] == 1 and max(overall[name] for name in ("chance", "constant", "copy-input")) < 0.2


def test_drawing_everything_does_not_bring_everything_back():
    (scene,) = list(retold.Retold(num_per_category=1).scenes.values())[:1]
    more = replace(scene, objects=(*scene.objects, *scene.objects))
    assert retold.share_returned(scene, scene) == 1 and retold.share_returned(scene, more) == 0.5
    assert retold.share_returned(scene, replace(scene, objects=())) == 0


def test_the_benchmark_of_the_page_draws_from_the_words_that_were_written(tmp_path):
    task, folder = retold.Retold(num_per_category=2), EvaluationFolder(tmp_path / "scores")
    oracle = Reference("oracle", task)
    planned = plan(task, oracle)
    assert produce(folder, task, oracle, planned) == 0
    keys = {item.request.id: item.key for item in planned}
    told, drawn = (folder.rows()[keys[f"2-0000/{name}"]] for name in ("told", "drawn"))
    assert tuple(drawn.inputs) == (told.sha256,)
    result = score(folder, task, keys, "oracle")
    assert result.table.overall.value == 1 and len(result.units) == 6 and not result.missing
