import numpy as np
import pytest
from sampled_scenes import sampled_scenes, some_of_each_split
from scene_reading import caption_is_true

from diptych.scenes.captions import caption
from diptych.scenes.scene import Scene, SceneObject
from diptych.scenes.split import split_scene


@pytest.mark.parametrize("style", ["short", "placed", "paraphrase", "long", "mixed"])
def test_every_statement_of_every_caption_is_true(style):
    rng = np.random.default_rng(1)
    for scene in some_of_each_split(200):
        text = caption(scene, rng, style)
        assert caption_is_true(text, scene), (text, scene)


@pytest.mark.parametrize("style", ["short", "placed", "paraphrase", "long"])
def test_the_reader_of_this_test_sees_false_captions(style):
    """A caption of one scene is false of a scene with one object recoloured, reshaped or taken away."""
    rng = np.random.default_rng(2)
    for scene in sampled_scenes("train", 200):
        text = caption(scene, rng, style)
        first, *rest = scene.objects
        unused = next(
            c
            for c in ("red", "green", "blue", "pink", "brown", "orange", "purple")
            if c not in {o.color for o in scene.objects}
        )
        other = SceneObject(first.shape, unused, first.size, first.x, first.y)
        assert not caption_is_true(text, Scene((other, *rest), scene.background)), text
        assert not caption_is_true(text, Scene(tuple(rest), scene.background)), text


def test_captions_depend_on_the_state_of_the_generator_alone():
    scene = split_scene(np.random.default_rng(3))
    for style in ("short", "placed", "paraphrase", "long", "mixed"):
        first, second = (caption(scene, np.random.default_rng(4), style) for _ in range(2))
        assert first == second


def test_a_scene_of_two_objects_is_described_with_and_without_relation():
    scene = Scene((SceneObject("circle", "red", "small", 0.5, 0.2), SceneObject("square", "blue", "large", 0.5, 0.7)))
    rng = np.random.default_rng(5)
    texts = {caption(scene, rng, "short") for _ in range(200)}
    bodies = {
        "a red circle above a blue square",
        "a blue square below a red circle",
        "a red circle and a blue square",
        "a blue square and a red circle",
    }
    assert texts == bodies | {f"a photo of {body}" for body in bodies}


def test_placed_captions_say_where():
    one = SceneObject("circle", "red", "small", 0.5, 0.2)
    scene = Scene((one, SceneObject("square", "blue", "large", 0.5, 0.7)))
    rng = np.random.default_rng(5)
    assert {caption(Scene((one,)), rng, "placed").removeprefix("a photo of ") for _ in range(20)} == {
        "a red circle at the top"
    }
    assert {caption(scene, rng, "placed").removeprefix("a photo of ") for _ in range(200)} == {
        "a red circle above a blue square",
        "a blue square below a red circle",
        "a red circle at the top and a blue square at the bottom",
        "a blue square at the bottom and a red circle at the top",
    }


def test_groups_are_counted_and_plurals_spelt():
    items = [SceneObject("cross", "orange", "small", 0.15 + 0.3 * i, 0.2) for i in range(3)]
    scene = Scene((*items, SceneObject("star", "blue", "small", 0.5, 0.2)))
    rng = np.random.default_rng(6)
    texts = {caption(scene, rng, "short").removeprefix("a photo of ") for _ in range(100)}
    assert texts == {"three orange crosses and a blue star", "a blue star and three orange crosses"}


def test_empty_scene():
    scene = Scene((), "beige")
    rng = np.random.default_rng(0)
    assert caption(scene, rng, "short") == "an empty beige background"
    assert caption(scene, rng, "long") == "The background is beige. There are no objects."


def test_unknown_style_names_the_known_ones():
    with pytest.raises(
        ValueError, match="style must be one of short, placed, long, paraphrase, layout, mixed, got 'terse'"
    ):
        caption(Scene(()), np.random.default_rng(0), "terse")


@pytest.mark.slow
def test_every_statement_of_every_caption_is_true_full_count():
    rng = np.random.default_rng(8)
    for _ in range(10_000):
        scene = split_scene(rng)
        for style in ("short", "placed", "paraphrase", "long"):
            text = caption(scene, rng, style)
            assert caption_is_true(text, scene), (text, scene)
