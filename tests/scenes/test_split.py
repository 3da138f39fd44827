from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from sampled_scenes import sampled_scenes
from scene_reading import stands

from diptych.scenes.compose import COMPOSITION_KINDS, composition
from diptych.scenes.edits import edit
from diptych.scenes.sample import fits
from diptych.scenes.scene import COLORS, SHAPES, Scene, SceneObject
from diptych.scenes.split import (
    NOVEL_TYPES,
    OBJECT_COUNT_WEIGHTS,
    TRAINING_TYPES,
    TYPES,
    allowed_in_training,
    in_split,
    may_follow,
    pair_is_held_out,
    pairs_of_split,
    split_scene,
    triple_is_held_out,
    triples_of_split,
    types_allowed_together,
)

HELD_OUT_PAIRS = {frozenset(pair) for pair in pairs_of_split("test")}
HELD_OUT_TRIPLES = set(triples_of_split("test"))


def violations(scene):
    """Everything in a scene that training must not show, by brute force over pairs of objects."""
    found = [item.type for item in scene.objects if item.type in NOVEL_TYPES]
    for a, b in combinations(scene.objects, 2):
        if frozenset((a.type, b.type)) in HELD_OUT_PAIRS:
            found.append((a.type, b.type))
        for first, second in ((a, b), (b, a)):
            for relation in ("left of", "right of", "above", "below"):
                if (first.type, relation, second.type) in HELD_OUT_TRIPLES and stands(first, relation, second):
                    found.append((first.type, relation, second.type))
    return found


def test_novel_types_have_each_shape_and_each_colour_once():
    assert sorted(shape for shape, _ in NOVEL_TYPES) == sorted(SHAPES)
    assert sorted(color for _, color in NOVEL_TYPES) == sorted(COLORS)
    assert set(TRAINING_TYPES) == set(TYPES) - set(NOVEL_TYPES)
    assert len(TRAINING_TYPES) == 56


def test_about_one_in_eight_is_held_out():
    pairs = 56 * 55 / 2
    assert len(HELD_OUT_PAIRS) / pairs == pytest.approx(1 / 8, abs=0.02)
    own = {t for t in HELD_OUT_TRIPLES if frozenset((t[0], t[2])) not in HELD_OUT_PAIRS}
    assert len(own) / ((pairs - len(HELD_OUT_PAIRS)) * 8) == pytest.approx(1 / 8, abs=0.01)


def test_the_hash_is_fixed():
    """Counts and members of the split as published; a change makes old scores and models incomparable."""
    assert (len(HELD_OUT_PAIRS), len(HELD_OUT_TRIPLES)) == (197, 2964)
    assert pairs_of_split("test")[0] == (("circle", "red"), ("square", "purple"))
    assert triples_of_split("test")[0] == (("circle", "red"), "left of", ("circle", "green"))
    assert not pair_is_held_out(("circle", "red"), ("square", "blue"))


def test_pairs_are_unordered_and_a_triple_goes_with_its_mirror():
    for a, b in pairs_of_split("test"):
        assert a != b
        assert pair_is_held_out(b, a)
        assert all(triple_is_held_out(a, relation, b) for relation in ("left of", "right of", "above", "below"))
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert all((b, mirror[relation], a) in HELD_OUT_TRIPLES for a, relation, b in HELD_OUT_TRIPLES)


def test_no_training_scene_shows_what_is_held_out():
    scenes = sampled_scenes("train", 600)
    for scene in scenes:
        assert violations(scene) == []
        assert allowed_in_training(scene)
        assert fits(scene)
    assert max(len(scene.objects) for scene in scenes) == 6


def test_every_scene_of_test_and_novel_shows_something_held_out():
    for scene in sampled_scenes("test", 200):
        found = violations(scene)
        assert found
        assert not any(kind in NOVEL_TYPES for kind in found)
    for scene in sampled_scenes("novel", 200):
        assert any(item.type in NOVEL_TYPES for item in scene.objects)


def test_allowed_in_training_equals_brute_force_on_unrestricted_scenes():
    for scene in (*sampled_scenes("test", 200), *sampled_scenes("novel", 200), *sampled_scenes("train", 200)):
        is_allowed = violations(scene) == []
        assert allowed_in_training(scene) == is_allowed
        assert in_split(scene, "train") == is_allowed


def test_results_of_training_edits_stay_in_training():
    rng = np.random.default_rng(5)
    for scene in sampled_scenes("train", 300):
        made = edit(scene, rng, allow=allowed_in_training, types=TRAINING_TYPES)
        assert violations(made.target) == []
        assert violations(made.inverse.target) == []


def test_references_and_targets_of_training_compositions_show_nothing_held_out():
    rng = np.random.default_rng(6)
    for kind in COMPOSITION_KINDS:
        for _ in range(60):
            made = composition(rng, kind, "train")
            types = {item.type for scene in (*made.references, made.target) for item in scene.objects}
            assert not types & set(NOVEL_TYPES)
            assert not any(frozenset(pair) in HELD_OUT_PAIRS for pair in combinations(types, 2))
            assert violations(made.target) == []


def test_every_training_type_occurs_and_counts_follow_their_weights():
    scenes = sampled_scenes("train", 600)
    assert {item.type for scene in scenes for item in scene.objects} == set(TRAINING_TYPES)
    tally = Counter(len(scene.objects) for scene in scenes)
    for number, weight in enumerate(OBJECT_COUNT_WEIGHTS, start=1):
        assert tally[number] / 600 == pytest.approx(weight, abs=5 * (weight / 600) ** 0.5)


def test_same_types_repeat_often_enough_to_learn_counting():
    scenes = sampled_scenes("train", 600)
    uniform = Counter(len(s.objects) for s in scenes if len({item.type for item in s.objects}) == 1)
    assert all(uniform[number] / 600 > 0.03 for number in (2, 3, 4))


def test_two_objects_of_one_type_are_never_held_out():
    twins = Scene(tuple(SceneObject("star", "red", "small", x, 0.5) for x in (0.2, 0.8)))
    assert allowed_in_training(twins)
    assert types_allowed_together([("star", "red"), ("star", "red")])


def test_results_of_edits_of_held_out_scenes_have_no_novel_type_in_test():
    novel = Scene((SceneObject(*NOVEL_TYPES[0], "small", 0.5, 0.5),))
    assert [may_follow(novel, split) for split in ("train", "test", "novel")] == [False, False, True]
    held_out = sampled_scenes("test", 200)[0]
    assert [may_follow(held_out, split) for split in ("train", "test", "novel")] == [False, True, True]


def test_wrong_arguments_name_the_limits():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="num_objects must be 2 to 6 in split 'test', got 1"):
        split_scene(rng, "test", num_objects=1)
    with pytest.raises(ValueError, match="max_objects must be 1 to 6 in split 'train', got 7"):
        split_scene(rng, "train", max_objects=7)
    with pytest.raises(ValueError, match="min_objects must be 1 to max_objects = 2, got 3"):
        split_scene(rng, "train", min_objects=3, max_objects=2)


@pytest.mark.parametrize("split", ["train", "test", "novel"])
def test_number_of_objects_can_be_asked_for(split):
    rng = np.random.default_rng(0)
    for number in range(2, 7):
        assert len(split_scene(rng, split, num_objects=number).objects) == number
    assert all(len(split_scene(rng, split, max_objects=2).objects) <= 2 for _ in range(30))
    assert {len(split_scene(rng, split, min_objects=3, max_objects=4).objects) for _ in range(30)} == {3, 4}


@pytest.mark.slow
def test_no_training_scene_or_edit_shows_what_is_held_out_full_count():
    rng = np.random.default_rng(1)
    for _ in range(10_000):
        scene = split_scene(rng, "train")
        assert violations(scene) == []
        assert violations(edit(scene, rng, allow=allowed_in_training, types=TRAINING_TYPES).target) == []
