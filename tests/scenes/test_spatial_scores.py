"""The published formulas on measured boxes: which errors cost how much, and what the gate takes away."""

import math
from dataclasses import replace

import numpy as np
import pytest

from diptych.scenes.draw import draw, object_box
from diptych.scenes.edits import Edit
from diptych.scenes.scene import Scene, SceneObject
from diptych.scenes.spatial_edits import SpatialEdit
from diptych.scenes.spatial_scores import Columns, agreement, box_iou, gate, log_accuracy, spatial_score

CIRCLE = SceneObject("circle", "red", "small", 0.2, 0.3)
OTHERS = (SceneObject("square", "blue", "small", 0.2, 0.8), SceneObject("star", "green", "small", 0.8, 0.8))
SOURCE = Scene((CIRCLE, *OTHERS), "white")


def moved(item=CIRCLE, right=0.0, down=0.0, **fields):
    return replace(item, x=item.x + right, y=item.y + down, **fields)


def scene(first, *others):
    return Scene((first, *(others or OTHERS)), "white")


def spatial(operation, target, numbers=(30,)):
    changed = () if operation == "remove" else (0,)
    return SpatialEdit(operation, Edit(operation, "told", SOURCE, target, (0,), changed), numbers)


MOVE = spatial("move", scene(moved(right=0.3)))
SCALE = spatial("scale", scene(replace(CIRCLE, size="large")), (100,))
REMOVE = spatial("remove", Scene(OTHERS, "white"), ())


def score(told, shown, size=128):
    return spatial_score(told, draw(shown, size))


@pytest.mark.parametrize("told", [MOVE, SCALE, REMOVE])
def test_the_exact_target_has_everything(told):
    found = score(told, told.edit.target)
    assert found.is_exact and found.gated == found.ungated
    for value in (found.gated.compliance, found.gated.accuracy, found.gated.locality, found.gated.appearance):
        assert value == pytest.approx(1, abs=0.01)
    assert found.distance_error == (pytest.approx(0, abs=0.002) if told is MOVE else None)


@pytest.mark.parametrize("told", [MOVE, SCALE, REMOVE])
def test_the_source_is_left_alone_and_does_not_comply(told):
    found = score(told, SOURCE)
    assert found.ungated.locality == 1 and found.ungated.compliance == 0 and not found.is_exact
    accuracy = math.exp(-(math.log(2) ** 2)) if told is SCALE else 0.0  # as published, of the factor 1
    assert found.gated == Columns(0.0, pytest.approx(accuracy, abs=0.01), 0.0, 0.0)


@pytest.mark.parametrize("went", [0.15, 0.2, 0.45, 0.6])
def test_a_move_costs_the_logarithm_of_its_error(went):
    found = score(MOVE, scene(moved(right=went)))
    ratio = went / 0.3
    iou = box_iou(object_box(moved(right=went)), object_box(moved(right=0.3)))
    expected = 0.3 * iou + 0.7 * math.exp(-((math.log(ratio) / 2) ** 2))
    assert found.ungated.accuracy == pytest.approx(expected, abs=0.01)
    assert found.gated.compliance == 1 and not found.is_exact
    assert found.distance_error == pytest.approx(abs(went - 0.3), abs=0.003)


def test_half_and_double_cost_the_same_and_the_direction_nothing():
    assert log_accuracy(0.5) == pytest.approx(log_accuracy(2), abs=1e-4) and log_accuracy(2) == pytest.approx(
        0.887, abs=1e-3
    )
    assert [log_accuracy(r) for r in (1, 2, 4, 8)] == sorted((log_accuracy(r) for r in (1, 2, 4, 8)), reverse=True)
    wrong_way = score(MOVE, scene(moved(down=0.3)))  # a weakness of the published formula: kept, and told in the docs
    assert wrong_way.gated.accuracy == pytest.approx(0.7, abs=0.01) and wrong_way.gated.compliance == 1
    assert not wrong_way.is_exact and wrong_way.distance_error == pytest.approx(0.3 * math.sqrt(2), abs=0.003)


def test_less_than_a_fifth_of_the_way_is_no_move():
    assert score(MOVE, scene(moved(right=0.055))).ungated.compliance == 0


def test_another_number_of_objects_halves_a_move():
    whole = score(MOVE, scene(moved(right=0.3))).ungated.accuracy
    fewer = score(MOVE, scene(moved(right=0.3), OTHERS[0]))
    assert fewer.ungated.accuracy == pytest.approx(whole / 2, abs=0.01)
    assert fewer.ungated.appearance == pytest.approx(2 * 2 / 5)


def test_a_moved_object_of_another_colour_does_not_count():
    found = score(MOVE, scene(moved(right=0.3, color="purple")))
    assert found.ungated.compliance == 0 and found.distance_error is None


@pytest.mark.parametrize(("num_gone", "expected"), [(1, 1.0), (2, 0.7), (3, 0.4)])
def test_every_object_too_much_that_is_removed_costs_three_tenths(num_gone, expected):
    left = OTHERS[num_gone - 1 :]
    found = score(REMOVE, Scene(left, "white"))
    assert found.ungated.accuracy == pytest.approx(expected)
    assert found.ungated.compliance == float(expected >= 0.5)
    if num_gone == 3:  # nothing of what should be there is left
        assert found.ungated.appearance == 0 and found.gated == Columns(0.0, pytest.approx(0.4), 0.0, 0.0)


def test_a_scaling_costs_the_logarithm_of_its_factor():
    medium = score(SCALE, scene(replace(CIRCLE, size="medium")))
    ratio = 0.13 / 0.18
    assert medium.ungated.accuracy == pytest.approx(math.exp(-(math.log(ratio) ** 2)), abs=0.01)
    assert medium.gated.compliance == 1 and not medium.is_exact


def test_locality_counts_pixels_outside_of_the_boxes_of_the_object():
    spoilt = draw(MOVE.edit.target, 128)
    spoilt[:, 64:96] = np.where(spoilt[:, 64:96] == 255, 180, spoilt[:, 64:96])  # a grey band
    found = spatial_score(MOVE, spoilt)
    assert 0.6 < found.ungated.locality < 0.85
    one_pixel = draw(MOVE.edit.target, 128)
    one_pixel[100, 64] = 0
    outside = spatial_score(MOVE, one_pixel).ungated.locality
    assert 1 - 1.3 / 128**2 < outside < 1


def test_one_failure_takes_the_others_away_as_published():
    assert gate(Columns(1.0, 0.8, 0.9, 0.5)) == Columns(1.0, 0.8, 0.9, 0.5)
    assert gate(Columns(1.0, 0.8, 0.7, 0.5)) == Columns(0.0, 0.0, 0.0, 0.0)  # too little is left alone to be judged
    assert gate(Columns(0.0, 0.8, 0.9, 0.5)) == Columns(0.0, 0.8, 0.0, 0.0)  # the accuracy stays
    assert gate(Columns(1.0, 0.8, 0.9, 0.0)) == Columns(0.0, 0.0, 0.0, 0.0)
    assert Columns(1.0, 0.5, 0.5, 0.0).average == 0.5


def test_agreement_is_the_f1_of_shapes_and_colours():
    assert agreement(SOURCE, SOURCE) == 1 == agreement(Scene(()), Scene(()))
    assert agreement(SOURCE, Scene(OTHERS)) == pytest.approx(4 / 5)
    assert agreement(SOURCE, Scene((*SOURCE.objects, CIRCLE))) == pytest.approx(6 / 7)
    assert agreement(SOURCE, Scene((replace(CIRCLE, color="pink"),))) == 0 == agreement(SOURCE, Scene(()))


def test_any_size_and_a_photograph_are_judged():
    noise = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    for told in (MOVE, SCALE, REMOVE):
        assert spatial_score(told, noise).gated.compliance == 0
    wide = spatial_score(MOVE, draw(MOVE.edit.target, (64, 128)))
    assert wide.gated.compliance == 1 and wide.is_exact
