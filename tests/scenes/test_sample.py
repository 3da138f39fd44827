"""Random scenes keep the stated bounds, are deterministic, and can be asked for."""

import math
from collections import Counter

import numpy as np
import pytest

from diptych.scenes.sample import COUNT_WEIGHTS, MARGIN, MIN_GAP, fits, place_objects, sample_scene
from diptych.scenes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject, size_radius


def test_gap_and_margin_hold_in_every_scene():
    rng = np.random.default_rng(1)
    pairs = 0
    for _ in range(600):
        scene = sample_scene(rng)
        assert fits(scene)
        for i, item in enumerate(scene.objects):
            radius = size_radius(item.size)
            assert min(item.x, item.y, 1 - item.x, 1 - item.y) >= radius + MARGIN - 1e-9
            for other in scene.objects[:i]:
                pairs += 1
                distance = math.hypot(item.x - other.x, item.y - other.y)
                assert distance >= radius + size_radius(other.size) + MIN_GAP - 1e-9
    assert pairs > 1000


def test_equal_seeds_give_equal_scenes():
    first = [sample_scene(np.random.default_rng(seed)) for seed in range(30)]
    assert first == [sample_scene(np.random.default_rng(seed)) for seed in range(30)]
    assert len(set(first)) == 30


def test_counts_and_names_have_the_stated_frequencies():
    rng = np.random.default_rng(2)
    scenes = [sample_scene(rng) for _ in range(1500)]
    counts = Counter(len(scene.objects) for scene in scenes)
    for number, weight in enumerate(COUNT_WEIGHTS, 1):
        assert abs(counts[number] / 1500 - weight) < 5 * math.sqrt(weight * (1 - weight) / 1500)
    objects = [item for scene in scenes for item in scene.objects]
    for field, names in (("shape", SHAPES), ("color", COLORS)):
        seen = Counter(getattr(item, field) for item in objects)
        share = 1 / len(names)
        for name in names:
            assert abs(seen[name] / len(objects) - share) < 5 * math.sqrt(share * (1 - share) / len(objects))
    assert set(Counter(scene.background for scene in scenes)) == set(BACKGROUNDS)
    # Crowded pictures shrink some large objects; no class becomes rare.
    sizes = Counter(item.size for item in objects)
    assert min(sizes[size] for size in SIZES) / len(objects) > 0.27


def test_wishes_are_granted():
    rng = np.random.default_rng(3)
    types = [("star", "red"), ("star", "red"), ("ring", "blue")]
    scene = sample_scene(rng, types=types, background="black")
    assert [item.type for item in scene.objects] == types
    assert scene.background == "black"
    scene = sample_scene(rng, types=types, num_objects=6)
    assert [item.type for item in scene.objects[:3]] == types
    assert len(scene.objects) == 6
    for _ in range(20):
        scene = sample_scene(
            rng, num_objects=4, allow=lambda found: len(set(found)) == len(found) and found[0][1] == "red"
        )
        assert len({item.type for item in scene.objects}) == 4
        assert scene.objects[0].color == "red"


def test_six_objects_always_find_room():
    rng = np.random.default_rng(4)
    for _ in range(100):
        scene = sample_scene(rng, num_objects=6)
        assert len(scene.objects) == 6
        assert fits(scene)


def test_impossible_wishes_are_errors():
    rng = np.random.default_rng(5)
    with pytest.raises(ValueError, match="number of objects must be 1 to 6, got 7"):
        sample_scene(rng, num_objects=7)
    with pytest.raises(ValueError, match="must be 2 to 6, got 1"):
        sample_scene(rng, num_objects=1, types=[("star", "red"), ("star", "blue")])
    with pytest.raises(ValueError, match=r"allow\(\) refuses the given types \[\('star', 'red'\)\]"):
        sample_scene(rng, types=[("star", "red")], allow=lambda types: False)
    with pytest.raises(ValueError, match=r"allow\(\) refused 10000 random sets of 2 types"):
        sample_scene(rng, num_objects=2, allow=lambda types: False)


def test_objects_are_placed_beside_fixed_ones_in_the_asked_order():
    rng = np.random.default_rng(6)
    fixed = (SceneObject("circle", "red", "large", 0.3, 0.3),)
    wishes = [("star", "blue", "small"), ("cross", "pink", "large"), ("ring", "green", "medium")]
    placed = 0
    for _ in range(100):
        found = place_objects(rng, wishes, fixed)
        if found is not None:
            placed += 1
            assert [(item.shape, item.color, item.size) for item in found] == wishes
            assert fits(Scene(fixed + found))
    assert placed > 50


def test_no_room_is_none():
    middle = (SceneObject("circle", "red", "large", 0.5, 0.5),)
    wishes = [("circle", "red", "large")] * 5
    assert place_objects(np.random.default_rng(7), wishes, middle) is None


def test_fits_refuses_what_breaks_a_bound():
    def scene(*places, size="small"):
        return Scene(tuple(SceneObject("circle", "red", size, x, y) for x, y in places))

    least = 2 * size_radius("small") + MIN_GAP
    assert fits(scene((0.3, 0.3), (0.3 + least, 0.3)))
    assert not fits(scene((0.3, 0.3), (0.3 + least - 1e-3, 0.3)))
    edge = size_radius("small") + MARGIN
    assert fits(scene((edge, 0.5)))
    assert not fits(scene((edge - 1e-3, 0.5)))
    assert not fits(scene((0.5, 1 - edge + 1e-3)))
    grid = [(x, y) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)]
    assert fits(scene(*grid[:6]))
    assert not fits(scene(*grid[:7]))
    assert fits(scene())
