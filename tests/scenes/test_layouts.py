import numpy as np
import pytest

from diptych.scenes.captions import caption
from diptych.scenes.layouts import layout_text, parse_layout, reading_text, square_of
from diptych.scenes.sample import sample_scene
from diptych.scenes.scene import Scene, SceneObject

SCENE = Scene(
    (
        SceneObject("star", "blue", "large", 0.7, 0.75),
        SceneObject("circle", "red", "small", 0.3, 0.3),
        SceneObject("circle", "red", "medium", 0.9, 0.1),
    ),
    "beige",
)


def test_objects_stand_from_left_to_right() -> None:
    assert layout_text(SCENE) == "c3 small red circle, f7 large blue star, h1 medium red circle, on beige"
    assert layout_text(Scene((), "black")) == "on black"


def test_what_is_meant_has_a_mark_and_its_square_behind_it() -> None:
    assert reading_text(SCENE) == layout_text(SCENE) == caption(SCENE, np.random.default_rng(0), "layout")
    assert reading_text(SCENE, (1, 2)) == (
        "c3 small red circle 1 c3, f7 large blue star, h1 medium red circle 1 h1, on beige"
    )


def test_another_order_can_be_given() -> None:
    told = layout_text(SCENE, order=(0, 2, 1))
    assert told == "f7 large blue star, h1 medium red circle, c3 small red circle, on beige"


@pytest.mark.parametrize(
    ("about", "first"),
    [
        ("a blue star below two red circles", "f7 large blue star, c3 small red circle, h1 medium red circle"),
        ("two red circles and a blue star", "c3 small red circle, h1 medium red circle, f7 large blue star"),
    ],
)
def test_what_a_caption_is_about_stands_first_in_its_order(about: str, first: str) -> None:
    assert layout_text(SCENE, about).startswith(first)


@pytest.mark.parametrize(
    ("x", "y", "square"), [(0.0, 0.0, "a1"), (1.0, 1.0, "h8"), (0.124, 0.126, "a2"), (0.5, 0.49, "e4")]
)
def test_squares_are_eighths(x: float, y: float, square: str) -> None:
    assert square_of(SceneObject("ring", "pink", "small", x, y)) == square


def test_a_layout_is_read_back() -> None:
    rng = np.random.default_rng(0)
    for turn in range(200):
        scene = sample_scene(rng)
        read = parse_layout(reading_text(scene, (0,) if turn % 2 else ()))
        assert read is not None and read.background == scene.background
        told = sorted((o.size, o.color, o.shape, square_of(o)) for o in scene.objects)
        assert sorted((o.size, o.color, o.shape, square_of(o)) for o in read.objects) == told
        for item in read.objects:
            nearest = min(max(abs(item.x - o.x), abs(item.y - o.y)) for o in scene.objects if o.type == item.type)
            assert nearest <= 1 / 16 + 1e-9


@pytest.mark.parametrize(
    "text",
    ["", "red circle c3, on beige", "c3 small red circle", "c9 small red circle, on white",
     "small red circle, on white", "c3 small red circle, on green", "c3 small red circle, on white, on white",
     "c3 small red circle 1 c4, on white", "c3 small red circle c3, on white"],
)  # fmt: skip
def test_anything_else_is_no_layout(text: str) -> None:
    assert parse_layout(text) is None
