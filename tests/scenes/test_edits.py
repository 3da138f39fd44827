import re
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from sampled_scenes import sampled_scenes, some_of_each_split
from scene_reading import COLOR, PLACE, PLACE_WORDS, RELATION, SHAPE, SIZE, matching, stands, third

from diptych.scenes.edits import EDIT_KINDS, edit
from diptych.scenes.sample import fits
from diptych.scenes.scene import Scene, SceneObject
from diptych.scenes.split import NOVEL_TYPES, TRAINING_TYPES, allowed_in_training, split_scene

DESTINATION = {
    f"to the {words.removeprefix('in the ').removeprefix('at the ')}": at for words, at in PLACE_WORDS.items()
}
DESTINATION |= {"to the left side": (1, 0), "to the right side": (1, 2)}


@cache
def all_edits(number):
    rng = np.random.default_rng(7)
    return [edit(scene, rng, types=TRAINING_TYPES) for scene in some_of_each_split(number)]


def only(phrase, scene):
    fitting = matching(phrase, scene)[1]
    assert len(fitting) == 1, (phrase, scene)
    return fitting[0]


def replaced(scene, old, new):
    return {*scene.objects} - {old} | {new}


def follows(made):
    """Reads the words of an instruction and checks by brute force that the target is what they ask for."""
    source, target, text = made.source, made.target, made.instruction
    before, after = set(source.objects), set(target.objects)
    if found := re.match(rf"^(?:add|put|draw) an? ({SIZE}) ({COLOR}) ({SHAPE}) (.+)$", text):
        (new,) = after - before
        size, color, shape, where = found.groups()
        return before < after and (new.size, new.color, new.shape) == (size, color, shape) and is_at(new, where, source)
    if found := re.match(r"^(?:remove|delete|take away) the (.+)$", text):
        return after == before - {only(found[1], source)}
    if found := re.match(r"^(?:swap|exchange) the (.+) and the (.+)$", text):
        a, b = only(found[1], source), only(found[2], source)
        moved = {SceneObject(*a.type, a.size, b.x, b.y), SceneObject(*b.type, b.size, a.x, a.y)}
        return after == before - {a, b} | moved
    if found := re.match(rf"^(?:move|shift) the (.+?) ({'|'.join(DESTINATION)}|(?:{RELATION}) the .+)$", text):
        old = only(found[1], source)
        (new,) = after - before
        unchanged = (new.type, new.size) == (old.type, old.size) and after == replaced(source, old, new)
        if found[2] in DESTINATION:
            return unchanged and third(new) == DESTINATION[found[2]] != third(old)
        return unchanged and is_at(new, found[2], source) and not is_at(old, found[2], source)
    for pattern, field in (
        (rf"^(?:make|paint) the (.+) ({COLOR})$", "color"),
        (rf"^change the color of the (.+) to ({COLOR})$", "color"),
        (rf"^(?:turn|change) the (.+) into an? ({SHAPE})$", "shape"),
        (rf"^make the (.+) an? ({SHAPE})$", "shape"),
        (rf"^make the (.+) ({SIZE})$", "size"),
        (rf"^(?:change the size of|resize) the (.+) to ({SIZE})$", "size"),
    ):
        if found := re.match(pattern, text):
            old = only(found[1], source)
            values = {"shape": old.shape, "color": old.color, "size": old.size, field: found[2]}
            new = SceneObject(**values, x=old.x, y=old.y)
            return new != old and after == replaced(source, old, new)
    raise AssertionError(f"cannot read {text!r}")


def is_at(item, where, source):
    if re.fullmatch(PLACE, where):
        return third(item) == PLACE_WORDS[where]
    relation, name = re.match(rf"^({RELATION}) the (.+)$", where).groups()
    return stands(item, relation, only(name, source))


def test_targets_are_what_the_words_say_and_inverses_lead_back():
    edits = all_edits(150)
    assert {made.kind for made in edits} == set(EDIT_KINDS)
    for made in edits:
        assert made.target != made.source
        assert follows(made), made
        assert made.inverse.source == made.target
        assert made.inverse.target == made.source
        assert made.inverse.inverse is None
        assert follows(made.inverse), made.inverse


def test_an_inverse_is_of_the_opposite_kind():
    opposite = {"add": "remove", "remove": "add"}
    for made in all_edits(150):
        assert made.inverse.kind == opposite.get(made.kind, made.kind)


def test_what_is_not_mentioned_stays_and_results_fit():
    for made in all_edits(150):
        assert fits(made.target)
        assert made.target.background == made.source.background
        kept = made.kept()
        assert len(kept) + len(made.changed_source) == len(made.source.objects)
        assert all(made.source.objects[i] == made.target.objects[j] for i, j in kept)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_every_kind_can_be_asked_for(kind):
    rng = np.random.default_rng(8)
    made = []
    scenes = [scene for scene in sampled_scenes("train", 300) if len({item.type for item in scene.objects}) == 2]
    for scene in scenes[:40]:
        with suppress(ValueError):  # not every scene has room, or a swap that training may show
            made.append(edit(scene, rng, kind, allowed_in_training, TRAINING_TYPES))
    assert len(made) >= 12
    assert {m.kind for m in made} == {kind}
    assert all(allowed_in_training(m.target) for m in made)


def test_no_type_of_the_novel_split_is_named_in_training():
    rng = np.random.default_rng(9)
    names = [f"{color} {shape}" for shape, color in NOVEL_TYPES]
    for scene in sampled_scenes("train", 300):
        made = edit(scene, rng, allow=allowed_in_training, types=TRAINING_TYPES)
        assert not any(name in text for name in names for text in (made.instruction, made.inverse.instruction))


def test_deterministic_in_the_generator():
    scene = sampled_scenes("train", 5)[4]
    assert edit(scene, np.random.default_rng(1)) == edit(scene, np.random.default_rng(1))


def test_impossible_kinds_say_what_to_do():
    scene = Scene((SceneObject("circle", "red", "small", 0.5, 0.5),))
    with pytest.raises(
        ValueError, match=r"no edit of kind 'swap' found for a scene of 1 object\(s\)\. Leave the kind open"
    ):
        edit(scene, np.random.default_rng(0), "swap")
    with pytest.raises(ValueError, match=r"kind must be one of add, remove, .*got 'melt'"):
        edit(scene, np.random.default_rng(0), "melt")


@pytest.mark.slow
def test_targets_are_what_the_words_say_full_count():
    rng = np.random.default_rng(8)
    for _ in range(10_000):
        made = edit(split_scene(rng), rng)
        assert follows(made), made
        assert follows(made.inverse), made.inverse
