import numpy as np
import pytest

from diptych.scenes.answers import answer_is_correct, normalize_answer
from diptych.scenes.compose import COMPOSITION_KINDS
from diptych.scenes.draw import draw
from diptych.scenes.edit_checks import EditTolerance, check_edit
from diptych.scenes.edits import EDIT_KINDS, edit
from diptych.scenes.questions import QUESTION_KINDS, Question
from diptych.scenes.scene import Scene, SceneObject
from diptych.scenes.scorers import (
    answer_references,
    composition_references,
    edit_references,
    score_answers,
    score_edits,
)
from diptych.scenes.split import in_split
from diptych.scenes.testsets import composition_items, edit_items, question_items

# Questions -----------------------------------------------------------------------------------------------------------


def asked(answer, choices=("yes", "no")):
    return Question("?", answer, "existence", choices)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Yes.", "yes", True),
        ("yes, there is", "yes", True),
        ("no", "yes", False),
        ("There is a red circle, yes", "yes", False),
        ("", "yes", False),
        ("The red circle.", "red circle", True),
        ("circle", "red circle", False),
        ("red", "red", True),
        ("red or blue", "red", False),
        ("three", "3", True),
        (" 3\n", "3", True),
        ("13", "3", False),
    ],
)
def test_answers_are_read_strictly(text, answer, expected):
    assert answer_is_correct(text, asked(answer)) == expected


def test_normal_form():
    assert normalize_answer("A  Small-Red CIRCLE!") == "small red circle"


def test_question_sets_are_of_their_split_and_reproducible():
    for split in ("test", "novel"):
        items = question_items(split, 10)
        assert [item.question.kind for item in items] == [kind for kind in QUESTION_KINDS for _ in range(10)]
        assert all(in_split(item.scene, split) for item in items)
        assert question_items(split, 10) == items
        assert question_items(split, 5) == [item for i, item in enumerate(items) if i % 10 < 5]


def test_oracle_and_chance_of_question_answering():
    oracle, chance = answer_references(question_items("test", 50), num_training=50)
    assert oracle.overall.value == 1
    for kind, low, high in (
        ("existence", 0.3, 0.7),
        ("comparison", 0.3, 0.7),
        ("color", 0.02, 0.3),
        ("shape", 0.02, 0.3),
        ("size", 0.15, 0.55),
        ("count", 0.1, 0.5),
        ("relation", 0.2, 0.6),
    ):
        assert low < chance.categories[kind].value < high, kind
    assert 0.25 < chance.overall.value < 0.42


def test_one_prediction_for_each_question():
    with pytest.raises(ValueError, match="score_answers: need one of the predictions for each of the questions, got 1"):
        score_answers(question_items("test", 1), ["yes"], "a model")


# Edits ---------------------------------------------------------------------------------------------------------------


def test_reference_rows_of_editing():
    items = edit_items("test", 2)
    oracle, chance, copied = edit_references(items)
    assert (oracle.overall.value, oracle.details["preserved"]) == (1, 1)
    assert (chance.overall.value, chance.details["followed"]) == (0, 0)
    assert (copied.overall.value, copied.details["followed"], copied.details["preserved"]) == (0, 0, 1)
    assert list(oracle.categories) == list(EDIT_KINDS)


def test_backward_edits_are_judged_as_well():
    for item in edit_items("test", 1):
        back = item.edit.inverse
        assert check_edit(back, draw(back.target, 64)).correct
        assert not check_edit(back, draw(back.source, 64)).followed


def shifted(scene, index, dx, dy):
    item = scene.objects[index]
    moved = SceneObject(item.shape, item.color, item.size, item.x + dx, item.y + dy)
    return Scene((*scene.objects[:index], moved, *scene.objects[index + 1 :]), scene.background)


@pytest.fixture(scope="module")
def recolor():
    """A recoloured object beside an untouched one."""
    source = Scene((SceneObject("circle", "red", "small", 0.3, 0.3), SceneObject("square", "blue", "large", 0.7, 0.7)))
    for seed in range(100):
        made = edit(source, np.random.default_rng(seed), "recolor")
        if made.changed_source == (0,):
            return made
    raise AssertionError


def test_untouched_objects_may_move_within_the_tolerance_only(recolor):
    assert check_edit(recolor, draw(shifted(recolor.target, 1, 0.03, 0.0), 64)).correct
    verdict = check_edit(recolor, draw(shifted(recolor.target, 1, -0.08, 0.0), 64))
    assert not verdict.preserved
    assert "large blue square did not stay as it was" in verdict.reason
    strict = EditTolerance(center=0.015)
    assert not check_edit(recolor, draw(shifted(recolor.target, 1, 0.03, 0.0), 64), strict).preserved


def test_the_altered_object_stays_where_it_is(recolor):
    verdict = check_edit(recolor, draw(shifted(recolor.target, 0, 0.1, 0.0), 64))
    assert verdict.preserved
    assert not verdict.followed


def test_further_objects_and_a_changed_background_are_noticed(recolor):
    extra = Scene((*recolor.target.objects, SceneObject("star", "green", "small", 0.3, 0.75)))
    assert check_edit(recolor, draw(extra, 64)).reason == "expected 1 new or altered object(s), found 2"
    other = Scene(recolor.target.objects, "gray")
    assert "background turned from white to gray" in check_edit(recolor, draw(other, 64)).reason


def test_painted_background_is_noticed(recolor):
    image = draw(recolor.target, 64).copy()
    assert check_edit(recolor, image).correct
    image[2:10, 40:62] = (200, 200, 200)
    verdict = check_edit(recolor, image)
    assert verdict.followed
    assert not verdict.preserved


def test_any_resolution_and_slight_noise_pass(recolor):
    for size in (48, 100, 256):
        assert check_edit(recolor, draw(recolor.target, size)).correct
    noise = np.random.default_rng(0).normal(0, 8, (64, 64, 3))
    assert check_edit(recolor, np.clip(draw(recolor.target, 64) + noise, 0, 255).astype(np.uint8)).correct


def test_an_added_object_may_stand_anywhere_in_its_place():
    item = next(i for i in edit_items("test", 20, kinds=["add"]) if i.edit.place == "center")
    index = item.edit.changed_target[0]
    target = item.edit.target
    new = target.objects[index]
    centered = shifted(target, index, 0.5 - new.x, 0.5 - new.y)
    assert check_edit(item.edit, draw(centered, 64)).followed
    assert not check_edit(item.edit, draw(shifted(target, index, 0.12 - new.x, 0.5 - new.y), 64)).followed


def test_one_picture_for_each_edit():
    with pytest.raises(ValueError, match="score_edits: need one of the images for each of the edits, got 0"):
        score_edits(edit_items("test", 1), [], "a model")


# Compositions --------------------------------------------------------------------------------------------------------


def test_reference_rows_of_compositions():
    oracle, chance, copied = composition_references(composition_items("test", 3))
    assert list(oracle.categories) == list(COMPOSITION_KINDS)
    assert oracle.overall.value == 1
    assert chance.overall.value < 0.2
    assert copied.overall.value == 0
