"""The rule engine against verdicts worked out by hand from the official scorer's code (djghosh13/geneval)."""

import numpy as np
import pytest

from diptych.scenes.rules import Detection, evaluate_metadata, keep_detections, relations_between


def box(x, y, width=20, height=20):
    """A box around a centre."""
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def prompt(tag, *include, exclude=()):
    return {"tag": tag, "prompt": "a photo", "include": list(include), "exclude": list(exclude)}


BENCH = {"class": "bench", "count": 1}


# Position ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (box(10, 50), box(90, 50), ("left of",)),
        (box(90, 50), box(10, 50), ("right of",)),
        (box(50, 10), box(50, 90), ("above",)),
        (box(50, 90), box(50, 10), ("below",)),
        # Offset (-80, -80), shortened by 0.1 * 40 = 4 to 76, over 113.1: 0.67 on both axes.
        (box(10, 10), box(90, 90), ("left of", "above")),
        # Offset (-60, 36) shortened to (-56, 32) over 69.97: (-0.80, 0.457): only left.
        (box(20, 86), box(80, 50), ("left of",)),
        # Offset (-60, 39) shortened to (-56, 35) over 71.56: (-0.78, 0.489). With the norm of the shortened offset,
        # 66.04, it would be 0.53 and "below": the official code divides by the length of the plain offset.
        (box(20, 89), box(80, 50), ("left of",)),
        # Offset (-60, 42) shortened to (-56, 38) over 73.2: (-0.76, 0.519).
        (box(20, 92), box(80, 50), ("left of", "below")),
        # Offset 4 is eaten up by the margin 0.1 * (20 + 20) = 4.
        (box(50, 50), box(54, 50), ()),
        # Offset 7.9 shortened to 3.9: 0.494 of 7.9.
        (box(50, 50), box(57.9, 50), ()),
        # Offset 8.1 shortened to 4.1: 0.506 of 8.1.
        (box(50, 50), box(58.1, 50), ("left of",)),
        # A wide box eats more of the horizontal offset than a small one: 0.1 * (180 + 20) = 20 of 30 is 0.33.
        (box(50, 50, width=180), box(80, 50), ()),
        (box(50, 50), box(50, 50), ()),
    ],
)
def test_relations_of_two_boxes(a, b, expected):
    assert relations_between(a, b) == expected


def test_relations_equal_the_formula_in_numpy():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(3000):
        a, b = (box(*rng.uniform(0, 512, 2), *rng.uniform(5, 200, 2)) for _ in range(2))
        corners = np.array([a, b]).reshape(2, 2, 2)
        offset = corners[0].mean(0) - corners[1].mean(0)
        extents = np.abs(corners[:, 1] - corners[:, 0]).sum(0)
        shortened = np.maximum(np.abs(offset) - 0.1 * extents, 0) * np.sign(offset)
        dx, dy = shortened / np.linalg.norm(offset)
        names = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
        expected = {name for name, holds in names.items() if holds}
        assert set(relations_between(a, b)) == expected
        seen.add(tuple(sorted(expected)))
    assert len(seen) == 9  # nothing, four sides, four corners


def test_boxes_closer_than_a_thousandth_of_a_pixel_have_no_relation():
    assert relations_between(box(50, 50, 0, 0), box(50.0009, 50, 0, 0)) == ()
    assert relations_between(box(50, 50, 0, 0), box(50.0011, 50, 0, 0)) == ("left of",)


def test_position_must_hold_between_all_pairs():
    metadata = prompt(
        "position", {"class": "dog", "count": 2}, {"class": "cat", "count": 1, "position": ["left of", 0]}
    )
    dogs = [Detection("dog", 0.9, box(80, 50)), Detection("dog", 0.8, box(60, 50))]
    assert evaluate_metadata(metadata, [*dogs, Detection("cat", 0.9, box(20, 50))])
    verdict = evaluate_metadata(metadata, [*dogs, Detection("cat", 0.9, box(65, 20))])
    assert verdict.reason == "expected cat left of target, found above target"


def test_position_looks_at_the_most_confident_detections_only():
    metadata = prompt(
        "position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}
    )
    dog = Detection("dog", 0.9, box(50, 50))
    right, left = Detection("cat", 0.8, box(90, 50)), Detection("cat", 0.7, box(10, 50))
    assert not evaluate_metadata(metadata, [dog, right, left])
    better = Detection("cat", 0.85, box(10, 50))
    assert evaluate_metadata(metadata, [dog, right, better])


def test_position_of_a_target_that_failed():
    metadata = prompt(
        "position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}
    )
    verdict = evaluate_metadata(metadata, [Detection("cat", 0.9, box(20, 50))])
    assert verdict.reason == "expected dog>=1, found 0\nno target for cat to be left of"


def test_position_is_not_asked_where_the_count_failed():
    metadata = prompt(
        "position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}
    )
    verdict = evaluate_metadata(metadata, [Detection("dog", 0.9, box(20, 50))])
    assert verdict.reason == "expected cat>=1, found 0"


def test_a_position_clause_must_come_after_its_target():
    metadata = prompt("position", {"class": "cat", "count": 1, "position": ["left of", 0]}, BENCH)
    with pytest.raises(ValueError, match=r"points to include clause 0, but only 0 clause.* Put the target first"):
        evaluate_metadata(metadata, [Detection("cat", 0.9, box(20, 50))])


# Counts and confidence -----------------------------------------------------------------------------------------------


def test_confidence_must_be_strictly_above_the_threshold():
    metadata = prompt("single_object", BENCH)
    assert not evaluate_metadata(metadata, [Detection("bench", 0.3, box(50, 50))])
    assert evaluate_metadata(metadata, [Detection("bench", 0.31, box(50, 50))])


def test_counting_has_a_threshold_of_its_own():
    metadata = prompt("counting", {"class": "bench", "count": 2}, exclude=[{"class": "bench", "count": 3}])
    sure = [Detection("bench", 0.95, box(x, 50)) for x in (20, 60)]
    assert evaluate_metadata(metadata, sure)
    assert evaluate_metadata(metadata, [*sure, Detection("bench", 0.9, box(90, 50))])  # 0.9 is not above 0.9
    verdict = evaluate_metadata(metadata, [*sure, Detection("bench", 0.91, box(90, 50))])
    assert verdict.reason == "expected bench<3, found 3"
    assert evaluate_metadata(metadata, sure[:1]).reason == "expected bench>=2, found 1"


def test_further_objects_are_not_punished_without_an_exclude_clause():
    metadata = prompt("two_object", BENCH, {"class": "cat", "count": 1})
    many = [Detection(name, 0.9, box(x, 50)) for name in ("bench", "cat", "dog") for x in (20, 50, 80)]
    assert evaluate_metadata(metadata, many)


def test_exclude_clauses_are_joined_by_or():
    metadata = prompt("two_object", BENCH, exclude=[{"class": "cat", "count": 1}, {"class": "dog", "count": 2}])
    bench = Detection("bench", 0.9, box(50, 50))
    dog = Detection("dog", 0.9, box(20, 20))
    assert evaluate_metadata(metadata, [bench, dog])
    assert not evaluate_metadata(metadata, [bench, dog, dog])
    assert not evaluate_metadata(metadata, [bench, Detection("cat", 0.9, box(20, 20))])


def test_at_most_sixteen_detections_of_a_class_are_kept():
    crowd = [Detection("cat", 0.4 + 0.01 * i, box(i, 50)) for i in range(20)]
    kept = keep_detections(crowd, "single_object")["cat"]
    assert [d.box for d in kept] == [box(i, 50) for i in range(19, 3, -1)]
    assert evaluate_metadata(prompt("single_object", {"class": "cat", "count": 16}), crowd)
    assert not evaluate_metadata(prompt("single_object", {"class": "cat", "count": 17}), crowd)


def test_of_equally_confident_detections_the_later_comes_first():
    crowd = [Detection("cat", 0.5, box(i, 50)) for i in range(4)]
    order = np.argsort([d.confidence for d in crowd], kind="stable")[::-1]
    assert keep_detections(crowd, "position")["cat"] == [crowd[i] for i in order]


# Colours -------------------------------------------------------------------------------------------------------------


def test_colours_are_asked_of_the_most_confident_detections_only():
    metadata = prompt("colors", {"class": "cat", "count": 1, "color": "red"})
    blue, red = Detection("cat", 0.9, box(20, 50), "blue"), Detection("cat", 0.8, box(80, 50), "red")
    verdict = evaluate_metadata(metadata, [blue, red])
    assert verdict.reason == "expected red cat>=1, found 0 red; and 1 blue"
    assert evaluate_metadata(metadata, [blue, Detection("cat", 0.95, box(80, 50), "red")])


def test_all_of_the_counted_detections_must_have_the_colour():
    metadata = prompt("colors", {"class": "cat", "count": 2, "color": "red"})
    cats = [Detection("cat", 0.9, box(20, 50), "red"), Detection("cat", 0.8, box(80, 50), "pink")]
    assert evaluate_metadata(metadata, cats).reason == "expected red cat>=2, found 1 red; and 1 red, 1 pink"


def test_attribute_binding_asks_each_class_for_its_colour():
    metadata = prompt(
        "color_attr", {"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}
    )
    bound = [Detection("cat", 0.9, box(20, 50), "red"), Detection("dog", 0.9, box(80, 50), "blue")]
    swapped = [Detection("cat", 0.9, box(20, 50), "blue"), Detection("dog", 0.9, box(80, 50), "red")]
    assert evaluate_metadata(metadata, bound)
    assert evaluate_metadata(metadata, swapped).reason.count("expected") == 2


def test_position_is_not_asked_where_the_colour_failed():
    cat = {"class": "cat", "count": 1, "color": "red", "position": ["left of", 0]}
    found = [Detection("bench", 0.9, box(10, 50)), Detection("cat", 0.9, box(80, 50), "blue")]
    assert evaluate_metadata(prompt("position", BENCH, cat), found).reason == (
        "expected red cat>=1, found 0 red; and 1 blue"
    )


def test_a_classifier_is_called_with_the_kept_detections_and_the_class():
    calls = []

    def classify(detections, name):
        calls.append((name, [d.confidence for d in detections]))
        return ["green"] * len(detections)

    metadata = prompt("colors", {"class": "cat", "count": 2, "color": "green"})
    cats = [Detection("cat", c, box(50, 50)) for c in (0.4, 0.9, 0.6, 0.2)]
    assert evaluate_metadata(metadata, cats, color_of=classify)
    assert calls == [("cat", [0.9, 0.6])]


def test_missing_colours_are_an_error_with_a_way_out():
    metadata = prompt("colors", {"class": "cat", "count": 1, "color": "green"})
    with pytest.raises(ValueError, match=r"1 detection\(s\) of cat have no color.*pass color_of"):
        evaluate_metadata(metadata, [Detection("cat", 0.9, box(50, 50))])


def test_the_order_of_detections_has_no_influence():
    rng = np.random.default_rng(0)
    metadata = prompt("position", {"class": "dog", "count": 2}, {"class": "cat", "count": 1, "position": ["above", 0]})
    found = [Detection(name, float(c), box(*rng.uniform(0, 100, 2))) for name in ("dog", "cat") for c in rng.random(4)]
    verdicts = {evaluate_metadata(metadata, [found[i] for i in rng.permutation(8)]) for _ in range(20)}
    assert len(verdicts) == 1
