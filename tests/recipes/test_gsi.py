"""The presets of GSI-Bench: JSON round trip, the bundled model as the start, and a control that is told no number."""

import pytest

import diptych
from diptych.data.sources.spatial_scenes import SpatialScenesSource
from diptych.recipes import gsi
from diptych.train.presets import load_preset, presets_of
from diptych.train.serialization import from_json, to_json

PRESETS = ("tiny", "control", "rehearsed")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_round_trips_through_json(name):
    recipe = load_preset(f"gsi:{name}")
    assert from_json(to_json(recipe)) == recipe
    (stage,) = recipe.stages.values()
    assert "autoencoder" not in stage.trainable and set(stage.mix) == set(recipe.data)
    assert all(source.split == "train" for source in recipe.data.values())


def test_presets_are_known():
    assert set(presets_of(gsi)) == set(PRESETS)


def test_the_model_is_the_bundled_one():
    built, bundled = load_preset("gsi:tiny").model.build(), diptych.load("diptych-scenes")
    assert built.parts().keys() == bundled.parts().keys()
    for name, part in built.parts().items():
        other = bundled.parts()[name].state_dict()
        assert all((value == other[key]).all() for key, value in part.state_dict().items()), name


def test_the_control_differs_in_its_data_alone():
    tiny, control = gsi.tiny(), gsi.control()
    (ours,), (theirs,) = tiny.stages.values(), control.stages.values()
    assert (ours.num_steps, ours.batch_size, ours.optimizer) == (theirs.num_steps, theirs.batch_size, theirs.optimizer)
    assert tiny.model == control.model and tiny.sampling == control.sampling
    assert not any(isinstance(source, SpatialScenesSource) for source in control.data.values())
