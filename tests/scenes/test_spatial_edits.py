import math
import re

import numpy as np
import pytest

from diptych.scenes.draw import draw
from diptych.scenes.edit_checks import check_edit
from diptych.scenes.sample import fits
from diptych.scenes.scene import SIZE_RADIUS, Scene, SceneObject
from diptych.scenes.spatial_edits import (
    HELD_OUT,
    SPATIAL_OPERATIONS,
    spatial_edit,
    spatial_items,
)
from diptych.scenes.split import SPLITS, in_split, may_follow

MOVE = re.compile(
    r"move the (.+) (\d+)% of the (width|height) (to the left|to the right|up|down)"
    r"|shift the (.+) (to the left|to the right|up|down) by (\d+)% of the (width|height)"
)
STEPS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
BESIDE = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@pytest.fixture(scope="module")
def items():
    return spatial_items("test", 12, seed=3)


def named(phrase, scene):
    """The one object that a name fits, read word by word."""
    words = set(re.sub(r" (in|at|on) the .*", "", phrase).split())
    found = [o for o in scene.objects if words <= {o.shape, o.color, o.size}]
    assert len(found) == 1, (phrase, scene)
    return found[0]


def told_scene(item):
    """The target that the words of an instruction ask for, by brute force."""
    scene, text = item.spatial.edit.source, item.spatial.edit.instruction
    if item.spatial.operation == "move":
        match = MOVE.fullmatch(text)
        phrase, percent, side, way = match.group(1, 2, 3, 4) if match[1] else match.group(5, 7, 8, 6)
        dx, dy = STEPS[way]
        assert side == ("width" if dx else "height")
        moved = named(phrase, scene)
        spot = (moved.x + dx * int(percent) / 100, moved.y + dy * int(percent) / 100)
    elif item.spatial.operation == "place":
        pattern = r"place the (.+) (left of|right of|above|below) the (.+), (\d+)% of the (width|height) from .*"
        phrase, relation, other, percent, side = re.fullmatch(pattern, text).groups()
        dx, dy = BESIDE[relation]
        assert side == ("width" if dx else "height")
        moved, anchor = named(phrase, scene), named(other, scene)
        spot = (anchor.x + dx * int(percent) / 100, anchor.y + dy * int(percent) / 100)
    elif item.spatial.operation == "point":
        pattern = r"place the (.+) with its center (\d+)% from the left and (\d+)% from the top"
        phrase, across, down = re.fullmatch(pattern, text).groups()
        moved, spot = named(phrase, scene), (int(across) / 100, int(down) / 100)
    elif item.spatial.operation == "scale":
        pattern = r"(enlarge|scale up|shrink|scale down) the (.+) by (\d+)%"
        verb, phrase, percent = re.fullmatch(pattern, text).groups()
        moved = named(phrase, scene)
        factor = 1 + int(percent) / 100 * (1 if verb in ("enlarge", "scale up") else -1)
        wanted = SIZE_RADIUS[moved.size] * factor
        size = min(SIZE_RADIUS, key=lambda name: abs(SIZE_RADIUS[name] - wanted))
        assert SIZE_RADIUS[size] == pytest.approx(wanted, rel=0.01)
        return {*scene.objects} - {moved} | {SceneObject(moved.shape, moved.color, size, moved.x, moved.y)}
    else:
        return {*scene.objects} - {named(re.fullmatch(r"remove the (.+)", text)[1], scene)}
    return {*scene.objects} - {moved} | {SceneObject(moved.shape, moved.color, moved.size, *spot)}


def test_the_target_is_what_the_words_ask_for(items):
    seen = 0
    for item in items:
        with_places = re.search(r" (in|at|on) the (top|bottom|left|right|center)", item.spatial.edit.instruction)
        if not with_places:
            assert told_scene(item) == set(item.spatial.edit.target.objects), item.spatial.edit.instruction
            seen += 1
    assert seen > 50


def test_the_drawn_target_is_exact_and_the_source_is_not(items):
    for item in items:
        edit = item.spatial.edit
        assert fits(edit.target) and check_edit(edit, draw(edit.target)).correct
        assert not check_edit(edit, draw(edit.source)).followed
        if item.spatial.operation in ("move", "scale"):
            assert edit.inverse.source == edit.target and edit.inverse.target == edit.source
        else:
            assert edit.inverse is None


def test_items_are_decided_by_their_seed(items):
    assert items == spatial_items("test", 12, seed=3) != spatial_items("test", 12, seed=4)
    assert (
        spatial_items("test", 2, seed=3, operations=("scale",))
        == [item for item in items if item.spatial.operation == "scale"][:2]
    )


@pytest.mark.parametrize("split", SPLITS)
def test_items_are_of_their_split_and_training_holds_numbers_back(split):
    items = spatial_items(split, 40)
    told = {number for item in items for number in item.spatial.numbers}
    assert (set(HELD_OUT) <= told) == (split != "train") and (set(HELD_OUT) & told == set()) == (split == "train")
    for item in items:
        assert in_split(item.spatial.edit.source, split) and may_follow(item.spatial.edit.target, split)


def test_moves_go_as_far_as_they_say(items):
    for item in items:
        if item.spatial.operation == "move":
            edit = item.spatial.edit
            before, after = edit.source.objects[item.spatial.index], edit.target.objects[item.spatial.index]
            assert math.hypot(after.x - before.x, after.y - before.y) == pytest.approx(item.spatial.numbers[0] / 100)


def test_bad_requests_are_refused():
    rng, alone = np.random.default_rng(0), Scene((SceneObject("circle", "red", "large", 0.5, 0.5),))
    with pytest.raises(ValueError, match="operation must be one of move, place, point, scale, remove, got 'rotate'"):
        spatial_edit(alone, rng, "rotate")
    with pytest.raises(
        ValueError, match=r"no edit of operation 'place' found for a scene of 1 object\(s\)\. Leave the"
    ):
        spatial_edit(alone, rng, "place")
    with pytest.raises(ValueError, match="spatial_items: split must be one of train, test, novel, got 'dev'"):
        spatial_items("dev")
    with pytest.raises(ValueError, match="num_per_operation must be at least 1, got 0"):
        spatial_items("test", 0)
    with pytest.raises(ValueError, match=r"spatial_items: operation must be one of move, .*, got 'turn'"):
        spatial_items("test", 1, operations=("turn",))
    assert {spatial_edit(s, rng).operation for s in [alone] * 20} <= set(SPATIAL_OPERATIONS) - {"place", "remove"}
