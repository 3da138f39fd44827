"""The presets of FD-loss: JSON round trip, and only one-step sampling."""

import pytest

from diptych.recipes import fd_loss
from diptych.train.presets import load_preset, presets_of
from diptych.train.serialization import from_json, to_json

PRESETS = presets_of(fd_loss)


@pytest.mark.parametrize("name", ["tiny", "small", "paper", "paper_imf", "paper_jit", "paper_sd35"])
def test_every_preset_round_trips_through_json(name):
    assert set(PRESETS) == {"tiny", "small", "paper", "paper_imf", "paper_jit", "paper_sd35"}
    recipe = load_preset(f"fd_loss:{name}")
    assert from_json(to_json(recipe)) == recipe
    assert (recipe.sampling.num_steps, recipe.sampling.guidance_scale) == (1, 1.0)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_no_trained_space_is_held_out(name):
    model = load_preset(f"fd_loss:{name}").model
    assert model.held_out and not set(model.representations) & set(model.held_out)


@pytest.mark.parametrize(
    ("name", "lr", "num_steps", "guidance"),
    [("paper", 1e-6, 125_000, 8.5), ("paper_imf", 1e-6, 125_000, 8.0), ("paper_jit", 1e-5, 62_500, 1.0)],
)
def test_published_runs_have_the_published_numbers(name, lr, num_steps, guidance):
    """As the card of the paper gives them, section 4: warm-up of 5 epochs of 1250 steps, batch 1024, beta 0.999."""
    recipe = load_preset(f"fd_loss:{name}")
    stage = recipe.stages["one_step"]
    assert (stage.optimizer.lr, stage.num_steps, recipe.model.guidance_scale) == (lr, num_steps, guidance)
    assert (stage.batch_size, stage.optimizer.warmup_steps, stage.optimizer.clip_norm) == (1024, 6250, None)
    assert recipe.model.population.decay == 0.999 and recipe.model.population.final_decay is None
    assert set(recipe.model.representations) == {"siglip2", "mae", "inception"}
    with pytest.raises(FileNotFoundError, match=r"checkpoints/base/.*pth is missing"):
        recipe.model.build()


def test_the_published_run_on_captions_has_the_published_numbers():
    """Card of the paper, section 4: 15,000 steps, 2,500 of warm-up, learning rate 1e-5, batch 1024, no guidance."""
    recipe = load_preset("fd_loss:paper_sd35")
    stage = recipe.stages["one_step"]
    assert (stage.num_steps, stage.optimizer.warmup_steps, stage.optimizer.lr, stage.batch_size) == (
        15_000,
        2500,
        1e-5,
        1024,
    )
    assert recipe.model.generator.image_size == 256 and recipe.model.guidance_scale == 1
    assert recipe.model.checkpoint_activations and recipe.model.prompts == recipe.data["captions"]
    assert set(recipe.model.references) == {"siglip2", "mae", "inception"}
