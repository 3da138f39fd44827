import numpy as np
import pytest

from diptych.scenes.color_difference import color_difference, to_lab
from diptych.scenes.doundo import (
    CONTROL,
    DOUNDO_KINDS,
    composite,
    doundo_items,
    guess_bound,
    region_score,
    score_step,
)
from diptych.scenes.draw import draw
from diptych.scenes.scene import COLORS
from diptych.scenes.split import NOVEL_TYPES, SPLITS, allowed_in_training, in_split


def plain(*rgb):
    return np.full((8, 8, 3), rgb, np.uint8)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [((255, 255, 255), (100, 0, 0)), ((0, 0, 0), (0, 0, 0)), ((255, 0, 0), (53.24, 80.09, 67.20)),
     ((0, 255, 0), (87.73, -86.18, 83.18)), ((0, 0, 255), (32.30, 79.19, -107.86))],
)  # fmt: skip
def test_colours_have_their_published_lab_values(rgb, lab):
    np.testing.assert_allclose(to_lab(plain(*rgb))[0, 0], lab, atol=0.02)


def test_the_difference_of_black_and_white_is_a_hundred():
    assert color_difference(plain(0, 0, 0), plain(255, 255, 255)) == pytest.approx(100, abs=1e-3)
    with pytest.raises(ValueError, match=r"pictures must have one size, got \(8, 8, 3\) and \(4, 4, 3\)"):
        color_difference(plain(0, 0, 0), np.zeros((4, 4, 3), np.uint8))


def test_items_are_decided_by_their_seed_and_lead_there_and_back():
    items = doundo_items("test", 3, seed=5)
    assert items == doundo_items("test", 3, seed=5) != doundo_items("test", 3, seed=6)
    assert items[:2] == doundo_items("test", 2, seed=5)[:2]
    assert [item.kind for item in items] == [kind for kind in (*DOUNDO_KINDS, CONTROL) for _ in range(3)]
    for item in items:
        assert item.forward.target == item.undo.source and item.undo.target == item.forward.source
        assert item.forward.place is None and item.forward.relation is None  # one right picture, no other
        assert score_step(item.forward, draw(item.forward.target)) == (
            region_score(*[draw(item.forward.target)] * 2, draw(item.forward.source)),
            True,
        )


@pytest.mark.parametrize("split", SPLITS)
def test_items_are_of_their_split(split):
    for item in doundo_items(split, 2):
        assert in_split(item.forward.source, split)
        for scene in (item.forward.source, item.forward.target):
            if split == "train":
                assert allowed_in_training(scene)
            if split == "test":
                assert not any(thing.type in NOVEL_TYPES for thing in scene.objects)


def test_taking_back_the_control_names_no_color():
    items = [item for item in doundo_items("test", 8) if item.kind == CONTROL]
    for item in items:
        (index,) = item.forward.changed_source
        color = item.forward.source.objects[index].color
        assert color not in item.undo.instruction
        assert item.undo.instruction.startswith("give the ") and not set(item.undo.instruction.split()) & set(COLORS)
    assert guess_bound(items) == pytest.approx(1 / 6)  # eight colours less the one that is there and the novel one


def test_regions_are_told_apart():
    source, target = plain(255, 255, 255), plain(255, 255, 255)
    target[:4, :4] = (237, 0, 0)  # 16 of 64 pixels
    right = region_score(target, target, source)
    assert (right.edited, right.kept, right.iou, right.progress, right.away) == (1, 1, 1, 1, 0)
    idle = region_score(source, target, source)
    assert (idle.edited, idle.kept, idle.iou, idle.progress) == (0, 1, 0, 0)
    half = target.copy()
    half[:2, :4] = 255  # half of the edit is not done, and 8 pixels elsewhere are spoilt
    half[7] = 0
    found = region_score(half, target, source)
    assert (found.edited, found.kept, found.iou) == (0.5, 40 / 48, 8 / (16 + 8))
    assert found.progress < 0.5
    away = region_score(plain(0, 0, 0), target, source)
    assert away.progress < 0 and away.edited == away.kept == 0
    with pytest.raises(ValueError, match="are equal, so there is no edit to judge"):
        region_score(source, source, source)


def test_the_composite_needs_both():
    assert composite(1.0, 1.0) == 1.0 and composite(0.0, 1.0) == composite(1.0, 0.0) == composite(-3.0, 1.0) == 0.0
    assert composite(0.25, 1.0) == 0.5 and composite(7.0, 0.25) == 0.5


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="doundo_items: split must be one of train, test, novel, got 'validation'"):
        doundo_items("validation")
    with pytest.raises(ValueError, match="doundo_items: num_per_kind must be at least 1, got 0"):
        doundo_items("test", 0)
