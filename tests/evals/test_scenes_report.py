"""Which items of an evaluation a report shows, and what it says about them."""

import numpy as np
import pytest

from diptych.evals.scenes import Sample
from diptych.evals.scenes_report import drawing_gallery, evenly, shown_answers, shown_edits

PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("count", "limit", "chosen"),
    [(0, 3, []), (2, 3, [0, 1]), (7, 3, [0, 3, 6]), (9, 1, [0]), (100, 4, [0, 33, 66, 99])],
)
def test_items_are_picked_at_equal_distances(count: int, limit: int, chosen: list[int]):
    assert evenly(range(count), limit) == chosen


def test_samples_become_drawings_answers_and_edits():
    samples = [
        Sample("geneval", "a red circle", (), PICTURE, "", "", True),
        Sample("questions", "How many?", (PICTURE,), None, "Two.", "2", True),
        Sample("questions", "Is there a star?", (PICTURE,), None, "yes, there is", "no", False),
        Sample("editing", "make it blue", (PICTURE,), PICTURE, "", PICTURE, False, "the color stayed"),
    ]
    (gallery,) = drawing_gallery(samples, "mine")
    assert [drawing.prompt for drawing in gallery.drawings] == ["a red circle"]
    answers = shown_answers(samples, "mine")
    assert [(answer.question, answer.is_right, answer.system) for answer in answers] == [
        ("How many?", True, "mine"),
        ("Is there a star?", False, "mine"),
    ]
    assert [edit.instruction for edit in shown_edits(samples, "mine")] == ["make it blue"]
    assert [drawing.is_right for drawing in gallery.drawings] == [True]
    assert [(edit.is_right, edit.detail) for edit in shown_edits(samples)] == [(False, "the color stayed")]
    assert drawing_gallery(samples[1:], "mine") == ()
