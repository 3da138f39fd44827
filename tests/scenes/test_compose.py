import re

import numpy as np
import pytest
from scene_reading import RELATION, stands

from diptych.scenes.compose import COMPOSITION_KINDS, composition, composition_in_split
from diptych.scenes.program import detections_of
from diptych.scenes.rules import evaluate_metadata
from diptych.scenes.scene import Scene


def wanted_types(made):
    """Reads the instruction: the types of the target and, where there is one, the relation."""
    objects = [scene.objects[0] for scene in made.references]
    text = re.sub(r"^(draw|a picture of|show) ", "", made.instruction)
    if found := re.match(
        rf"^the shape of image 1 (?:in|with) the color of image 2(?: ({RELATION}) the object of image 3)?$", text
    ):
        bound = (objects[0].shape, objects[1].color)
        return ([bound, objects[2].type], found[1]) if found[1] else ([bound], None)
    if found := re.match(rf"^the object of image 1 ({RELATION}) the object of image 2$", text):
        return [item.type for item in objects], found[1]
    assert re.match(r"^the objects of image 1(?:, image 2)? and image [23](?: together)?$", text), text
    return [item.type for item in objects], None


@pytest.mark.parametrize("split", ["train", "test", "novel"])
@pytest.mark.parametrize("kind", COMPOSITION_KINDS)
def test_the_target_is_what_the_words_say(kind, split):
    rng = np.random.default_rng(2)
    for _ in range(40):
        made = composition(rng, kind, split)
        types, relation = wanted_types(made)
        assert sorted(item.type for item in made.target.objects) == sorted(types)
        if relation is not None:
            first, second = made.target.objects
            assert stands(first, relation, second)
        assert made.target.background == made.references[0].background
        assert composition_in_split(made, split)
        assert not any(composition_in_split(made, other) for other in {"train", "test", "novel"} - {split})
        assert len(made.references) == (3 if "image 3" in made.instruction else 2)


def test_the_program_accepts_the_target_and_refuses_parts_of_it():
    rng = np.random.default_rng(3)
    for kind in COMPOSITION_KINDS:
        for _ in range(20):
            made = composition(rng, kind)
            assert evaluate_metadata(made.program, detections_of(made.target))
            for index in range(len(made.target.objects)):
                rest = made.target.objects[:index] + made.target.objects[index + 1 :]
                assert not evaluate_metadata(made.program, detections_of(Scene(rest)))


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"kind must be one of bind, relate, .*got 'blend'"):
        composition(np.random.default_rng(0), "blend")
