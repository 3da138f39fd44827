import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from diptych.scenes.captions import caption
from diptych.scenes.draw import draw
from diptych.scenes.program import detections_of
from diptych.scenes.sample import place_objects
from diptych.scenes.scene import SIZES, Scene
from diptych.scenes.scorers import score_twin, twin_references, twin_table
from diptych.scenes.split import (
    NOVEL_TYPES,
    TRAINING_TYPES,
    pair_is_held_out,
    split_scene,
    triple_is_held_out,
)
from diptych.scenes.twin import CATEGORIES, judge_detections, judge_image, oracle_scenes, twin_prompts, types_asked

NUMBERS = {"two": 2, "three": 3, "four": 4}


def accuracies(prompts, scenes):
    """Accuracy of each category when scenes are seen exactly."""
    rows = [judge_detections(p, detections_of(s)) for p, s in zip(prompts, scenes, strict=True)]
    return {tag: score.value for tag, score in twin_table(rows, "test").categories.items()}


@pytest.mark.parametrize("split", ["train", "test", "novel"])
def test_prompts_say_what_their_programs_ask(split):
    prompts = twin_prompts(split, 80)
    assert Counter(p["tag"] for p in prompts) == dict.fromkeys(CATEGORIES, 80)
    assert len({p["id"] for p in prompts}) == len(prompts)
    for p in prompts:
        clauses = p["include"]
        names = [c["class"] if "color" not in c else f"{c['color']} {c['class']}" for c in clauses]
        body = p["prompt"].removeprefix("a photo of ")
        article = [f"{'an' if name[0] == 'o' else 'a'} {name}" for name in names]
        if p["tag"] == "counting":
            number = body.split(" ")[0]
            assert body == f"{number} {names[0]}{'es' if names[0].endswith('cross') else 's'}"
            assert clauses[0]["count"] == NUMBERS[number]
            assert p["exclude"] == [{"class": names[0], "count": NUMBERS[number] + 1}]
        elif p["tag"] == "position":
            relation, target = clauses[1]["position"]
            assert body == f"{article[1]} {relation} {article[0]}"
            assert target == 0
        else:
            assert body == " and ".join(article)
        assert ("color" in clauses[0]) == (p["tag"] in ("colors", "color_attr"))


def test_prompts_of_two_types_are_of_held_out_compositions():
    for split in ("test", "train"):
        for p in twin_prompts(split, 80):
            types = types_asked(p, np.random.default_rng(0))
            assert set(types) <= set(TRAINING_TYPES)
            if p["tag"] in ("two_object", "color_attr"):
                assert pair_is_held_out(*types) == (split == "test")
            if p["tag"] == "position":
                assert triple_is_held_out(types[1], p["include"][1]["position"][0], types[0]) == (split == "test")


def test_prompts_of_the_novel_split_have_a_novel_type():
    for p in twin_prompts("novel", 40):
        assert set(types_asked(p, np.random.default_rng(0))) & set(NOVEL_TYPES)


def test_prompts_repeat_only_when_all_have_been_used():
    prompts = twin_prompts("test", 120)
    for tag, different in (("single_object", 56), ("colors", 56), ("counting", 120), ("two_object", 120)):
        texts = Counter(p["prompt"] for p in prompts if p["tag"] == tag)
        assert len(texts) == different
        assert max(texts.values()) - min(texts.values()) <= 1
    assert twin_prompts("test", 120) == prompts
    assert twin_prompts("test", 120, seed=1) != prompts


def test_training_captions_are_worded_like_the_prompts():
    """Words of the prompts, with types blanked out, all occur among short captions of training scenes."""

    def blank(text):
        return re.sub(r"\ban? \w+ \w+\b", "<one>", re.sub(r"(two|three|four) \w+ \w+$", r"\1 <many>", text))

    rng = np.random.default_rng(0)
    seen = {blank(caption(split_scene(rng, num_objects=n), rng)) for n in (1, 2, 2, 2, 3, 4) for _ in range(60)}
    asked = {blank(p["prompt"]) for p in twin_prompts("test", 40)}
    assert len(asked) == 9  # one, one and one, two|three|four <many>, four relations
    assert asked <= seen


def test_oracle_is_right_everywhere_through_pixels():
    prompts = twin_prompts("test", 6) + twin_prompts("novel", 2)
    images = [draw(scene, 64) for scene in oracle_scenes(prompts)]
    table = score_twin(prompts, images, "oracle")
    assert table.overall.value == 1
    assert [table.categories[tag].value for tag in CATEGORIES] == [1] * 6


def test_chance_is_low_in_every_category():
    oracle, chance = twin_references(twin_prompts("test", 60))
    assert oracle.overall.value == 1
    assert chance.overall.value < 0.05
    assert all(score.value < 0.15 for score in chance.categories.values())


def test_deleting_an_object_lowers_exactly_the_affected_categories():
    prompts = twin_prompts("test", 30)
    scenes = oracle_scenes(prompts)
    for tag in CATEGORIES:
        damaged = [
            Scene(scene.objects[1:], scene.background) if p["tag"] == tag else scene
            for p, scene in zip(prompts, scenes, strict=True)
        ]
        assert accuracies(prompts, damaged) == {other: float(other != tag) for other in CATEGORIES}


def test_a_further_object_lowers_counting_only_and_only_if_it_is_of_the_counted_type():
    prompts = twin_prompts("test", 30)
    rng = np.random.default_rng(0)

    def with_one_more(scene, shape, color):
        placed = place_objects(rng, [(shape, color, "small")], scene.objects)
        return Scene((*scene.objects, *(placed or ())), scene.background), placed is not None

    other, same, has_room = [], [], []
    for p, scene in zip(prompts, oracle_scenes(prompts), strict=True):
        used = {item.shape for item in scene.objects}
        unused = next(shape for shape in ("circle", "star", "ring") if shape not in used)
        other.append(with_one_more(scene, unused, "brown")[0])
        last = scene.objects[-1]
        scene_with_twin, placed = with_one_more(scene, last.shape, last.color)
        same.append(scene_with_twin)
        has_room.append(placed or p["tag"] != "counting")
    assert all(has_room)
    assert set(accuracies(prompts, other).values()) == {1.0}
    found = accuracies(prompts, same)
    assert found.pop("counting") == 0
    found.pop("position")  # which of two equal objects is asked for its position is up to the detector
    assert set(found.values()) == {1.0}


def test_ignoring_positions_costs_in_position_only():
    """A model that draws the objects asked for anywhere has the base rate of a relation, about a third."""
    prompts = twin_prompts("test", 300)
    rng = np.random.default_rng(1)
    scenes = []
    for p in prompts:
        objects = None
        while objects is None:
            objects = place_objects(rng, [(*kind, SIZES[int(rng.integers(3))]) for kind in types_asked(p, rng)])
        scenes.append(Scene(objects))
    found = accuracies(prompts, scenes)
    assert found.pop("position") == pytest.approx(1 / 3, abs=5 * (2 / 9 / 300) ** 0.5)
    assert set(found.values()) == {1.0}


def test_swapped_colours_fail_attribute_binding():
    prompts = [p for p in twin_prompts("test", 30) if p["tag"] == "color_attr"]
    for p, scene in zip(prompts, oracle_scenes(prompts), strict=True):
        a, b = scene.objects
        swapped = Scene((type(a)(a.shape, b.color, a.size, a.x, a.y), type(b)(b.shape, a.color, b.size, b.x, b.y)))
        assert not judge_detections(p, detections_of(swapped)).correct


def test_order_and_png_do_not_change_scores():
    prompts = twin_prompts("test", 4)
    rng = np.random.default_rng(2)
    scenes = [s if rng.random() < 0.6 else Scene(s.objects[1:], s.background) for s in oracle_scenes(prompts)]
    images = [draw(scene, 64) for scene in scenes]
    table = score_twin(prompts, images, "a model")
    assert 0.2 < table.overall.value < 0.9
    order = rng.permutation(len(prompts)).tolist()
    again = score_twin([prompts[i] for i in order], [png_round_trip(images[i]) for i in order], "a model")
    assert dict(again.categories) == dict(table.categories)
    assert again.overall.value == pytest.approx(table.overall.value)


def png_round_trip(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return np.asarray(Image.open(buffer))


def test_a_picture_without_objects_is_wrong_and_says_why():
    prompt = twin_prompts("test", 1)[0]
    row = judge_image(prompt, np.full((64, 64, 3), 255, np.uint8))
    assert not row.correct
    assert row.reason == f"expected {prompt['include'][0]['class']}>=1, found 0"
    assert (row.id, row.tag) == ("test/single_object/0000", "single_object")


def test_wrong_arguments():
    with pytest.raises(ValueError, match="num_per_category must be at least 1, got 0"):
        twin_prompts("test", 0)
    metadata = {"tag": "single_object", "prompt": "a photo of a bench", "include": [{"class": "bench", "count": 1}]}
    with pytest.raises(ValueError, match="'bench' is neither a shape nor a type"):
        types_asked(metadata, np.random.default_rng(0))


@pytest.mark.slow
def test_oracle_is_right_everywhere_through_pixels_full_count():
    for size in (64, 128):
        prompts = twin_prompts("test", 300)
        images = [draw(scene, size) for scene in oracle_scenes(prompts)]
        assert score_twin(prompts, images, "oracle").overall.value == 1
