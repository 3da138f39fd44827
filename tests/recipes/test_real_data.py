"""The presets on real pictures, changed by overrides alone."""

import pytest

from diptych.recipes import blip3o
from diptych.train.override import override
from diptych.train.serialization import from_json, to_json

TAEF2 = '{"kind": "diptych.interop.taef2:Taef2Config", "path": "taef2"}'


def test_a_generation_space_from_elsewhere_is_a_flag():
    recipe = override(blip3o.tiny(), ["--model.features", TAEF2, "--model.features.path", "elsewhere"])
    assert type(recipe.model.features).__name__ == "Taef2Config"
    assert recipe.model.features.path == "elsewhere"
    assert from_json(to_json(recipe)) == recipe


def test_a_kind_that_builds_nothing_is_refused():
    stage = '{"kind": "diptych.unified.model:DrawSettings"}'
    with pytest.raises(
        ValueError, match=r"model\.features\.kind must be one of .*FeaturesConfig.* any config class with"
    ):
        override(blip3o.tiny(), ["--model.features", stage])


def test_what_is_on_can_be_turned_off():
    assert blip3o.small().model.cache_features
    assert not override(blip3o.small(), ["--model.no-cache-features"]).model.cache_features
