import json

import numpy as np
import pytest

from diptych.scenes.scores import bootstrap_interval, score_table, wilson_interval


def test_interval_of_independent_verdicts_has_the_binomial_width():
    values = [1.0] * 140 + [0.0] * 60
    low, high = bootstrap_interval(values)
    half = 1.96 * (0.7 * 0.3 / 200) ** 0.5
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.01)


def test_copies_of_a_picture_do_not_narrow_the_interval():
    """Four equal pictures per prompt are no more evidence than one, which a bootstrap over pictures would believe."""
    rng = np.random.default_rng(0)
    verdicts = (rng.random(100) < 0.6).astype(float).tolist()
    names = [f"prompt {i}" for i in range(100)]
    once = bootstrap_interval(verdicts, names)
    four_times = bootstrap_interval(verdicts * 4, names * 4)
    assert four_times == pytest.approx(once, abs=1e-12)
    ungrouped = bootstrap_interval(verdicts * 4)
    assert (ungrouped[1] - ungrouped[0]) == pytest.approx((once[1] - once[0]) / 2, rel=0.1)


def test_four_different_pictures_of_a_prompt_do():
    rng = np.random.default_rng(0)
    names = [f"prompt {i}" for i in range(100)]
    once = bootstrap_interval((rng.random(100) < 0.6).astype(float).tolist(), names)
    four = bootstrap_interval((rng.random(400) < 0.6).astype(float).tolist(), names * 4)
    assert (four[1] - four[0]) == pytest.approx((once[1] - once[0]) / 2, rel=0.2)


def test_neither_order_nor_names_of_groups_matter():
    rng = np.random.default_rng(0)
    values = (rng.random(60) < 0.5).astype(float).tolist()
    names = [f"p{i % 20}" for i in range(60)]
    order = rng.permutation(60).tolist()
    expected = bootstrap_interval(values, names)
    assert bootstrap_interval([values[i] for i in order], [names[i] for i in order]) == expected
    assert bootstrap_interval(values, [f"q{name}" for name in names]) == expected


def test_overall_is_the_unweighted_mean_of_categories():
    table = score_table("b", "c", ["x"] * 10 + ["y"] * 30, [1.0] * 10 + [0.0] * 15 + [1.0] * 15)
    assert table.categories["x"].value == 1
    assert table.categories["y"].value == 0.5
    assert table.overall.value == 0.75
    assert table.overall.num_items == 40
    y, overall = table.categories["y"], table.overall
    assert (overall.high - overall.low) / 2 < y.high - y.low  # the mean is known better than y


def test_overall_of_mixed_categories_is_a_bootstrap_within_each():
    values = [1.0] * 5 + [0.0] * 5 + [0.0] * 15 + [1.0] * 15
    table = score_table("b", "c", ["x"] * 10 + ["y"] * 30, values)
    x, y, overall = table.categories["x"], table.categories["y"], table.overall
    expected = ((x.high - x.low) ** 2 + (y.high - y.low) ** 2) ** 0.5 / 2
    assert overall.high - overall.low == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("verdict", [0.0, 1.0])
def test_verdicts_that_agree_are_not_certain(verdict):
    """A bootstrap of equal verdicts is [0, 0] or [1, 1]; by Wilson's interval 50 successes leave 7 % of failures."""
    low, high = bootstrap_interval([verdict] * 50)
    assert (low, high) == wilson_interval(verdict, 50)
    width = 1.959964**2 / (50 + 1.959964**2)
    assert (low, high) == pytest.approx((0, width) if verdict == 0 else (1 - width, 1), abs=1e-9)
    names = [f"prompt {i % 10}" for i in range(50)]
    assert bootstrap_interval([verdict] * 50, names) == wilson_interval(verdict, 10)  # pictures of a prompt are one


def test_equal_values_that_are_no_verdicts_stay_certain():
    assert bootstrap_interval([0.1] * 20) == pytest.approx((0.1, 0.1))  # the exact chance of each item


def test_wilson_interval_holds_the_probabilities_that_do_not_refute_the_rate():
    """Its limits p solve (rate - p)^2 = z^2 p (1 - p) / n."""
    for rate, num in ((0.0, 7), (0.3, 20), (1.0, 60)):
        for limit in wilson_interval(rate, num):
            assert (rate - limit) ** 2 == pytest.approx(1.959964**2 * limit * (1 - limit) / num, abs=1e-12)


def test_one_certain_category_widens_the_overall_interval():
    mixed = [1.0] * 20 + [0.0] * 20
    table = score_table("b", "c", ["x"] * 40 + ["y"] * 40, [1.0] * 40 + mixed)
    x, y, overall = table.categories["x"], table.categories["y"], table.overall
    assert x.high == 1
    below = ((x.value - x.low) ** 2 + (y.value - y.low) ** 2) ** 0.5 / 2
    assert overall.low == pytest.approx(overall.value - below)
    assert overall.high == pytest.approx(overall.value + (y.high - y.value) / 2)


def test_overall_of_categories_that_all_agree_counts_their_prompts_together():
    categories = ["x"] * 60 + ["y"] * 60
    assert score_table("b", "c", categories, [1.0] * 120).overall.low == wilson_interval(1.0, 120)[0]
    assert score_table("b", "c", categories, [0.0] * 120).overall.high == wilson_interval(0.0, 120)[1]
    uneven = score_table("b", "c", ["x"] * 5 + ["y"] * 115, [1.0] * 120)
    assert uneven.overall.low == wilson_interval(1.0, 10)[0]


@pytest.mark.parametrize("rates", [(0.99, 0.99, 0.99), (0.99, 0.5, 0.9), (0.02, 0.02, 0.98)])
def test_the_overall_interval_holds_the_truth(rates):
    """In 300 draws of 20 verdicts a category, most of which have a category at 0 or 1: 98, 95 and 100 % are measured.
    A plain bootstrap holds the truth of the first and the third in half of them."""
    rng = np.random.default_rng(0)
    categories = [name for name in "xyz" for _ in range(20)]
    held = 0
    for _ in range(300):
        values = [float(v) for rate in rates for v in rng.random(20) < rate]
        overall = score_table("b", "c", categories, values, num=200).overall
        held += overall.low <= np.mean(rates) <= overall.high
    assert held / 300 > 0.95 - 5 * (0.95 * 0.05 / 300) ** 0.5


def test_a_table_is_json():
    table = score_table("b", "c", ["x", "y"], [True, False], ["p", "q"], details={"tolerance": 0.05})
    data = json.loads(json.dumps(table.to_dict()))
    assert data["categories"]["x"] == {
        "value": 1.0,
        "low": wilson_interval(1.0, 1)[0],
        "high": 1.0,
        "num_items": 1,
        "num_groups": 1,
    }
    assert data["details"] == {"tolerance": 0.05}


def test_lists_must_fit_together():
    with pytest.raises(
        ValueError, match=r"score_table\('b'\): need equally long, non-empty lists, got 1 categories, 2"
    ):
        score_table("b", "c", ["x"], [1.0, 0.0])
    with pytest.raises(ValueError, match="2 values but 1 groups"):
        bootstrap_interval([1.0, 0.0], ["p"])
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])
