"""The presets of FD-loss: JSON round trip, and only one-step sampling."""

import pytest

from diptych.recipes import fd_loss
from diptych.train.presets import load_preset, presets_of
from diptych.train.serialization import from_json, to_json

PRESETS = presets_of(fd_loss)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_every_preset_round_trips_through_json(name):
    assert set(PRESETS) == {"tiny", "small"}
    recipe = load_preset(f"fd_loss:{name}")
    assert from_json(to_json(recipe)) == recipe
    assert (recipe.sampling.num_steps, recipe.sampling.guidance_scale) == (1, 1.0)
    assert not set(recipe.model.representations) & set(recipe.model.held_out)
