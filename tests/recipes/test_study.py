"""The design study: its recipes differ in what they say and in nothing else, train, and draw."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

import diptych
from diptych.methods.training import build_task
from diptych.recipes import study
from diptych.train.loop import train
from diptych.train.presets import presets_of
from diptych.train.recipe import CheckpointConfig, EvaluationConfig
from diptych.train.serialization import from_json, to_json

PRESETS = presets_of(study)
DESIGNS = ("clip_mse", "clip_flow", "vae_flow")


def drawn_and_asked(recipe):
    """Examples by source, those of the autoencoder's own stage left out."""
    total = dict.fromkeys(recipe.data, 0.0)
    for name, stage in recipe.stages.items():
        for source, weight in stage.mix.items() if name != "vae" else ():
            total[source] += stage.num_steps * stage.batch_size * weight / sum(stage.mix.values())
    return total


def test_three_designs_in_two_orders_from_the_same_data():
    assert set(PRESETS) == {f"{design}_{order}" for design in DESIGNS for order in ("joint", "sequential")}
    recipes = [preset() for preset in PRESETS.values()]
    assert all(recipe.data == recipes[0].data for recipe in recipes)
    assert all(drawn_and_asked(recipe) == pytest.approx(drawn_and_asked(recipes[0])) for recipe in recipes)
    assert all(from_json(to_json(recipe)) == recipe for recipe in recipes)
    for recipe in recipes:
        assert recipe.name == f"study:{next(name for name, preset in PRESETS.items() if preset() == recipe)}"


def test_pictures_are_looked_at_alike_and_backbones_begin_alike(tmp_path):
    models = []
    for design in DESIGNS:
        recipe = PRESETS[f"{design}_joint"]()
        models.append(build_task(recipe, tmp_path / design).model)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    seen = [model.encode_inputs(image) for model in models]
    assert all(torch.equal(other, seen[0]) for other in seen) and seen[0].shape == (2, 32, 4, 4)
    clip, _, vae = models
    torch.testing.assert_close(clip.encode_outputs(image), seen[0])
    assert vae.encode_outputs(image).shape == (2, 8, 8, 8)
    assert [model.image_head.num_queries for model in models] == [16, 16, 16]
    sizes = [sum(p.numel() for p in model.backbone.parameters()) for model in models]
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("name", ["clip_mse_sequential", "vae_flow_joint"])
def test_it_trains_what_it_says_and_draws(name, tmp_path):
    recipe = PRESETS[name]()
    stages = {key: replace(stage, num_steps=2, batch_size=4) for key, stage in recipe.stages.items()}
    recipe = replace(recipe, stages=stages, evaluation=EvaluationConfig(), checkpoints=CheckpointConfig(every_steps=9))
    run = tmp_path / "run"
    task = build_task(recipe, run)
    understanding = {key: value.clone() for key, value in task.model.encoder.state_dict().items()}
    assert train(task, recipe, run, console=Console(quiet=True), device="cpu").finished
    model = diptych.load(run, device="cpu")
    assert all(torch.equal(value, understanding[key]) for key, value in model.encoder.state_dict().items())
    assert model.capabilities == ("text", "image_to_text", "text_to_image", "image_edit")
    (image,) = model.generate_image("a red circle", num_steps=2)
    assert isinstance(model.generate_text([image, "What color is the circle?"], max_new_tokens=2), str)
