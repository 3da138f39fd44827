import json

import numpy as np
import pytest

from diptych.scenes.scores import bootstrap_interval, score_table


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
    # Category x is certain: the uncertainty of the mean is half that of y.
    y, overall = table.categories["y"], table.overall
    assert overall.high - overall.low == pytest.approx((y.high - y.low) / 2, abs=1e-12)


def test_a_table_is_json():
    table = score_table("b", "c", ["x", "y"], [True, False], ["p", "q"], details={"tolerance": 0.05})
    data = json.loads(json.dumps(table.to_dict()))
    assert data["categories"]["x"] == {"value": 1.0, "low": 1.0, "high": 1.0, "num_items": 1, "num_groups": 1}
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
