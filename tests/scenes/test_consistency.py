"""Cross-task consistency: the numbers of the protocol in closed form, facts that are true, drawings read exactly."""

import numpy as np
import pytest

from diptych.scenes.consistency import (
    FACT_KINDS,
    FactScore,
    consistency_items,
    consistency_numbers,
    consistency_table,
    fact_holds,
    match_objects,
)
from diptych.scenes.scene import Scene, SceneObject
from diptych.scenes.split import in_split


def facts(u, g, per_scene=5):
    return [
        FactScore(str(index // per_scene), FACT_KINDS[index % 3], float(a), float(b), True)
        for index, (a, b) in enumerate(zip(u, g, strict=True))
    ]


RNG = np.random.default_rng(0)
SEVENTY, OTHER_SEVENTY = RNG.random(20_000) < 0.7, RNG.random(20_000) < 0.7
TWENTY, OTHER_TWENTY = RNG.random(20_000) < 0.2, RNG.random(20_000) < 0.2
ONES, ZEROS = np.ones(20_000), np.zeros(20_000)


@pytest.mark.parametrize(
    ("u", "g", "ccta", "aw", "cir"),
    [
        (ONES, ONES, 1.0, 1.0, 1.0),
        (ZEROS, ZEROS, 1.0, 0.0, 0.0),
        (ZEROS, ONES, 0.0, 0.0, None),
        (SEVENTY, SEVENTY, 1.0, 0.7, 0.7),
        (SEVENTY, OTHER_SEVENTY, 0.58, 0.49, 0.84),
        (SEVENTY, TWENTY, 0.38, 0.14, 0.38),
        (TWENTY, OTHER_TWENTY, 0.68, 0.04, 0.06),
    ],
)
def test_simulated_models(u, g, ccta, aw, cir):
    found = consistency_numbers(facts(u, g))
    assert found["ccta"] == pytest.approx(ccta, abs=0.015) and found["aw_ccta"] == pytest.approx(aw, abs=0.015)
    assert found["cir"] is None if cir is None else found["cir"] == pytest.approx(cir, abs=0.015)
    assert found["aw_ccta"] == pytest.approx(found["both_right"], abs=1e-12)
    if u is not g:  # independent, or constant: what is over the floor is nothing
        assert found["excess"] == pytest.approx(0, abs=0.01)


def test_the_identity_of_agreement_accuracy_and_covariance():
    u, g = np.random.default_rng(1).random((2, 500))
    found = consistency_numbers(facts(u, g))
    joint = float(np.mean((u + g) / 2))
    covariance = float(np.cov(1 - np.abs(g - u), (g + u) / 2, bias=True)[0, 1])
    assert found["covariance"] == pytest.approx(covariance, abs=1e-12)
    assert found["aw_ccta"] == pytest.approx(found["ccta"] * joint + covariance, abs=1e-12)
    shares = [found[name] for name in ("both_right", "both_wrong", "und_only", "gen_only")]
    assert sum(shares) == pytest.approx(1)


def test_coupling_raises_the_headline_and_the_excess_at_equal_abilities():
    coupled = consistency_table(facts(SEVENTY, SEVENTY), "coupled", num=200)
    apart = consistency_table(facts(SEVENTY, OTHER_SEVENTY), "apart", num=200)
    assert coupled.overall.low > apart.overall.high
    assert coupled.details["excess"]["low"] > 0.19 and abs(apart.details["excess"]["value"]) < 0.01
    floor = coupled.categories["floor"]
    assert floor.value == pytest.approx(0.49, abs=0.01) and floor.low < floor.value < floor.high


def test_intervals_are_over_scenes_and_do_not_depend_on_order():
    rng = np.random.default_rng(2)
    by_scene = np.repeat(rng.random(40) < 0.5, 50)  # all facts of a scene agree: 40 trials, not 2000
    own = facts(by_scene, by_scene, per_scene=50)
    table = consistency_table(own, "model")
    half = 1.96 * (0.25 / 40) ** 0.5
    assert (table.overall.high - table.overall.low) / 2 == pytest.approx(half, rel=0.2)
    assert table.overall.num_groups == 40 and table.overall.num_items == 2000
    assert consistency_table(own[::-1], "model").overall == table.overall


@pytest.mark.parametrize("split", ["train", "test", "novel"])
def test_facts_are_told_true_and_have_one_answer(split):
    items = consistency_items(split, 25, seed=1)
    kinds = set()
    for item in items:
        assert in_split(item.scene, split)
        own = [None if fact is None else fact.question.text for fact in item.facts]
        assert len(set(own)) == len(own)
        matches = match_objects(item.scene.objects, item.scene.objects)
        assert matches == list(range(len(item.scene.objects)))
        for fact in item.facts:
            kinds.add(fact.kind)
            assert fact_holds(fact, item.scene, matches) and fact.question.answer in fact.question.choices
            assert fact.question.answer in item.caption
    assert kinds == set(FACT_KINDS) and len({item.id for item in items}) == 25
    assert consistency_items(split, 3, seed=1) == items[:3] != consistency_items(split, 3, seed=2)


RED_CIRCLE = SceneObject("circle", "red", "small", 0.2, 0.5)
BLUE_SQUARE = SceneObject("square", "blue", "large", 0.7, 0.5)


@pytest.mark.parametrize(
    ("drawn", "strict", "loose"),
    [
        ([BLUE_SQUARE, RED_CIRCLE], [1, 0], [1, 0]),
        ([SceneObject("circle", "green", "small", 0.2, 0.5)], [0, None], [0, None]),
        ([SceneObject("star", "pink", "small", 0.8, 0.5)], [None, None], [None, 0]),
        # Equal shapes: the one of the right colour; equal in all: the nearer one.
        ([SceneObject("circle", "blue", "small", 0.2, 0.5), RED_CIRCLE], [1, 0], [1, 0]),
        ([SceneObject("circle", "red", "small", 0.9, 0.9), RED_CIRCLE], [1, None], [1, 0]),
        ([], [None, None], [None, None]),
    ],
)
def test_matches(drawn, strict, loose):
    assert match_objects([RED_CIRCLE, BLUE_SQUARE], drawn) == strict
    assert match_objects([RED_CIRCLE, BLUE_SQUARE], drawn, min_similarity=0.0) == loose


def test_matching_is_the_best_assignment_and_quick_in_a_crowd():
    rng = np.random.default_rng(3)

    def anything():
        shape, color = rng.choice(["circle", "square", "star"]), rng.choice(["red", "blue", "pink"])
        return SceneObject(str(shape), str(color), "small", *rng.random(2).tolist())

    for _ in range(50):
        wanted, drawn = [anything() for _ in range(2)], [anything() for _ in range(6)]
        total = 0.0
        for i in range(6):
            for j in set(range(6)) - {i}:
                pair = [(wanted[0], drawn[i]), (wanted[1], drawn[j])]
                total = max(total, sum(0.5 * (a.shape == b.shape) + 0.5 * (a.color == b.color) for a, b in pair))
        matches = match_objects(wanted, drawn)
        own = [(a, drawn[m]) for a, m in zip(wanted, matches, strict=True) if m is not None]
        assert sum(0.5 * (a.shape == b.shape) + 0.5 * (a.color == b.color) for a, b in own) == total
    assert len(match_objects([anything() for _ in range(3)], [anything() for _ in range(3000)])) == 3


def test_each_change_of_a_drawing_breaks_the_facts_it_touches():
    (item,) = consistency_items("train", 1, seed=4)
    first = item.scene.objects[0]
    color = "red" if first.color != "red" else "brown"

    def holding(changed):
        scene = Scene((changed, *item.scene.objects[1:]), item.scene.background)
        matches = match_objects(item.scene.objects, scene.objects)
        return [fact_holds(fact, scene, matches) for fact in item.facts]

    kept = holding(first)
    recolored = holding(SceneObject(first.shape, color, first.size, first.x, first.y))
    broken = {fact.attribute for fact, a, b in zip(item.facts, kept, recolored, strict=True) if a and not b}
    assert all(kept) and broken == {"color"}
    resized = holding(SceneObject(first.shape, first.color, "small" if first.size != "small" else "large",
                                  first.x, first.y))  # fmt: skip
    assert {f.attribute for f, b in zip(item.facts, resized, strict=True) if not b} <= {"size", "relation"}
    assert resized.count(False) >= 1
    gone = Scene(item.scene.objects[1:], item.scene.background)
    matches = match_objects(item.scene.objects, gone.objects)
    assert {fact.object for fact in item.facts if not fact_holds(fact, gone, matches)} == {0}


def test_no_facts_are_an_error():
    with pytest.raises(ValueError, match="there are no facts to average"):
        consistency_table([], "model")
    with pytest.raises(ValueError, match="split must be one of train, test, novel, got 'dev'"):
        consistency_items("dev")
