from collections import Counter

import numpy as np
import pytest
from sampled_scenes import sampled_scenes, some_of_each_split
from scene_reading import answer_by_brute_force

from diptych.scenes.phrases import describe, in_place
from diptych.scenes.questions import QUESTION_KINDS, question
from diptych.scenes.scene import Scene, SceneObject
from diptych.scenes.split import NOVEL_TYPES, TRAINING_TYPES, split_scene


def ask_all(scenes, rounds, types=TRAINING_TYPES):
    rng = np.random.default_rng(3)
    return [(scene, question(scene, rng, types=types)) for scene in scenes for _ in range(rounds)]


def test_answers_equal_those_found_by_brute_force():
    asked = ask_all(some_of_each_split(200), 3)
    assert {q.kind for _, q in asked} == set(QUESTION_KINDS)
    for scene, q in asked:
        assert answer_by_brute_force(q.text, scene) == q.answer, (q, scene)
        assert q.answer in q.choices
        assert len(q.answer.split()) <= 2


def test_yes_and_no_are_balanced_for_every_form_of_words():
    counts: dict[str, Counter[str]] = {}
    for _, q in ask_all(sampled_scenes("train", 200), 12):
        if q.answer in ("yes", "no"):
            form = " ".join(q.text.split()[:3]) if q.text.startswith("Are there") else q.kind
            counts.setdefault(form, Counter())[q.answer] += 1
    assert set(counts) == {"existence", "relation", "comparison", "Are there more"}
    for form, tally in counts.items():
        total = sum(tally.values())
        # Two standard deviations would be enough for one draw; five for four forms of words and a fixed seed.
        assert abs(tally["yes"] / total - 0.5) < 5 * 0.5 / total**0.5, (form, tally)


def test_no_count_is_the_answer_most_of_the_time():
    tally = Counter(q.answer for _, q in ask_all(sampled_scenes("train", 200), 12) if q.kind == "count")
    assert set(tally) == {"0", "1", "2", "3", "4", "5", "6"}
    assert max(tally.values()) / sum(tally.values()) < 0.4


def test_training_questions_name_no_novel_type():
    names = [f"{color} {shape}" for shape, color in NOVEL_TYPES]
    asked = ask_all(sampled_scenes("train", 200), 6)
    assert any("Is there" in q.text and q.answer == "no" for _, q in asked)
    for _, q in asked:
        singular = q.text.replace("crosses", "cross")
        assert not any(f"{name}s" in singular or f"{name} " in singular or f"{name}?" in singular for name in names), q


def test_one_object_allows_no_relation():
    scene = Scene((SceneObject("circle", "red", "small", 0.5, 0.5),))
    with pytest.raises(ValueError, match=r"scene of 1 object\(s\) allows no question of kind 'relation'"):
        question(scene, np.random.default_rng(0), "relation")
    kinds = {question(scene, np.random.default_rng(seed)).kind for seed in range(60)}
    assert kinds == set(QUESTION_KINDS) - {"relation"}


def test_ambiguous_objects_are_not_asked_for():
    twins = tuple(SceneObject("ring", "blue", "small", x, 0.5) for x in (0.2, 0.25 + 0.35))
    scene = Scene((*twins, SceneObject("ring", "red", "large", 0.5, 0.8)))
    rng = np.random.default_rng(1)
    texts = {question(scene, rng, "size").text for _ in range(100)}
    assert "What size is the red ring?" in texts
    assert not texts & {"What size is the ring?", "What size is the blue ring?"}


def test_a_name_with_a_size_does_not_give_a_comparison_away():
    rings = tuple(SceneObject("ring", "blue", size, x, 0.5) for size, x in (("small", 0.2), ("large", 0.7)))
    rng = np.random.default_rng(1)
    for _ in range(50):
        assert "er than the" not in question(Scene(rings), rng, "comparison").text


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match=r"kind must be one of existence, color, .*got 'mood'"):
        question(Scene(()), np.random.default_rng(0), "mood")


@pytest.mark.slow
def test_answers_equal_those_found_by_brute_force_full_count():
    rng = np.random.default_rng(8)
    for _ in range(10_000):
        scene = split_scene(rng)
        for _ in range(3):
            q = question(scene, rng)
            assert answer_by_brute_force(q.text, scene) == q.answer, (q, scene)


def test_places_are_those_of_the_one_object_that_is_named():
    rng = np.random.default_rng(7)
    forms = ("shape", "color", "type", "size type")
    num_asked = 0
    for scene in sampled_scenes("train", 100):
        names = [{describe(item, form) for form in forms} for item in scene.objects]
        if all(any(mine <= other for j, other in enumerate(names) if j != i) for i, mine in enumerate(names)):
            with pytest.raises(ValueError, match="allows no question of kind 'place'"):
                question(scene, rng, "place")
            continue
        asked = question(scene, rng, "place")
        name = asked.text.removeprefix("Where is the ").removesuffix("?")
        named = [item for item, phrases in zip(scene.objects, names, strict=True) if name in phrases]
        assert len(named) == 1 and in_place(named[0].x, named[0].y, asked.answer)
        assert asked.answer in asked.choices
        num_asked += 1
    assert num_asked > 80
