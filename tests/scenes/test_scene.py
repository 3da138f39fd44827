"""Scenes as data: names, checks, JSON."""

import itertools
import json

import numpy as np
import pytest

from diptych.scenes.sample import sample_scene
from diptych.scenes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject, size_radius


def test_world_is_as_large_as_promised():
    assert len(set(SHAPES)) == 8
    assert len(set(COLORS)) == 8
    assert len(set(SIZES)) == 3
    assert len(set(BACKGROUNDS)) == 4
    assert not set(COLORS) & set(BACKGROUNDS)


def test_size_classes_are_well_apart():
    radii = [size_radius(size) for size in SIZES]
    assert all(larger / smaller > 1.35 for smaller, larger in itertools.pairwise(radii))


def test_scenes_survive_json():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = sample_scene(rng)
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


@pytest.mark.parametrize(
    ("field", "value"), [("shape", "hexagon"), ("color", "mauve"), ("size", "huge")], ids=["shape", "color", "size"]
)
def test_unknown_names_are_refused(field, value):
    fields = {"shape": "circle", "color": "red", "size": "small", "x": 0.5, "y": 0.5}
    with pytest.raises(ValueError, match=rf"SceneObject\.{field} must be one of .*, got '{value}'"):
        SceneObject(**{**fields, field: value})


def test_unknown_background_is_refused():
    with pytest.raises(ValueError, match=r"Scene\.background must be one of white, .*, got 'green'"):
        Scene((), "green")
