import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from diptych.data.example import ImageIn, ImageOut, Text, load_pixels
from diptych.data.sources.protocol import Source, SourceConfig
from diptych.data.sources.spatial_scenes import SpatialScenesSource
from diptych.scenes.draw import draw
from diptych.scenes.layouts import parse_layout
from diptych.scenes.scene import Scene
from diptych.scenes.spatial_edits import HELD_OUT, SPATIAL_OPERATIONS, spatial_items
from diptych.scenes.split import allowed_in_training

CONFIG = SpatialScenesSource(num_examples=60, seed=4)


def test_examples_are_edits_of_training_scenes_that_tell_no_held_out_number():
    source = CONFIG.build()
    assert isinstance(source, Source) and isinstance(CONFIG, SourceConfig) and len(source) == 60
    kinds = set()
    for index in range(60):
        example = source.example(index, 0)
        shown, told, drawn = example.parts
        assert (type(shown), type(told), type(drawn)) == (ImageIn, Text, ImageOut) and drawn.is_target
        before, after = (Scene.from_dict(example.metadata[name]) for name in ("source", "scene"))
        assert allowed_in_training(before) and allowed_in_training(after)
        assert not set(example.metadata["numbers"]) & set(HELD_OUT)
        np.testing.assert_array_equal(load_pixels(shown.image), draw(before))
        np.testing.assert_array_equal(load_pixels(drawn.image), draw(after))
        kinds.add(example.metadata["kind"])
        json.dumps(example.metadata)
    assert kinds == set(SPATIAL_OPERATIONS)


def test_examples_depend_on_seed_index_and_epoch_alone():
    first, again = CONFIG.build(), pickle.loads(pickle.dumps(replace(CONFIG, num_examples=1000).build()))
    texts = [first.example(i, 1).parts[1] for i in range(10)]
    assert texts == [again.example(i, 1).parts[1] for i in range(10)]
    assert texts != [first.example(i, 2).parts[1] for i in range(10)]
    assert texts != [replace(CONFIG, seed=5).build().example(i, 1).parts[1] for i in range(10)]


def test_no_item_of_a_test_is_an_example():
    tested = {item.spatial.edit.source for item in spatial_items("test", 20, seed=4)}
    assert not any(allowed_in_training(scene) for scene in tested)


def test_a_thought_tells_what_is_meant_and_ends_in_the_layout_of_the_target():
    source = replace(CONFIG, thinks=True).build()
    for index in range(20):
        example = source.example(index, 0)
        thought, edit = example.parts[2], source.spatial(index, 0).edit
        assert isinstance(thought, Text) and thought.is_thought and thought.is_target
        *read, new, target = thought.text.split("; ")
        assert read[::2] == [mention.phrase for mention in edit.about]
        assert all(mention.phrase in edit.instruction for mention in edit.about)
        marked = [part.count(" 1 ") for part in read[1::2]]
        assert marked == [1] * len(edit.about)
        assert (new == "no object") == (example.metadata["kind"] == "remove") and (new in target or new == "no object")
        wanted, told = Scene.from_dict(example.metadata["scene"]), parse_layout(target)
        assert sorted(o.type for o in told.objects) == sorted(o.type for o in wanted.objects)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"operations": ("turn",)}, r"SpatialScenesSource\.operations must be among move, .*, got \('turn',\)\."),
        ({"operations": ()}, r"SpatialScenesSource\.operations must be among move, .*, got \(\)\."),
        ({"num_examples": 0}, r"SpatialScenesSource\.num_examples must be at least 1, got 0\."),
        ({"max_objects": 1}, r"SpatialScenesSource\.max_objects must be 2 to 6, got 1\."),
        ({"image_size": 4}, r"SpatialScenesSource\.image_size must be 8 to 4096, got 4\."),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **fields)
    with pytest.raises((ValueError, TypeCheckError), match="split"):
        replace(CONFIG, split="dev")
    with pytest.raises(IndexError, match="SpatialScenesSource has 60 examples, got index 60"):
        CONFIG.build().example(60)
