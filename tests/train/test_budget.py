"""Budgets: arithmetic by hand, for every kind, and what is said where one cannot be kept."""

from dataclasses import replace

import pytest

from diptych.train.budget import Budget, num_examples, within_budget
from diptych.train.recipe import OptimizerConfig
from tests.cli.tiny_recipe import regressed


def recipe():
    """Three stages of 3 x 4, 4 x 4 and 6 x 4 examples."""
    return regressed()


def steps(scaled):
    return [stage.num_steps for stage in scaled.stages.values()]


def sizes(given):
    return {name: float(stage.batch_size) for name, stage in given.stages.items()}


@pytest.mark.parametrize(
    ("text", "kind", "amount", "shown"),
    [
        ("examples=20_000", "examples", 20000.0, "examples=20000"),
        ("flops=1e15", "flops", 1e15, "flops=1e+15"),
        ("minutes=2.5", "minutes", 2.5, "minutes=2.5"),
    ],
)
def test_a_budget_is_read_and_shown(text, kind, amount, shown):
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount, str(budget)) == (kind, amount, shown)


@pytest.mark.parametrize("text", ["hours=3", "example=5", "20000", "=5"])
def test_another_kind_is_refused(text):
    with pytest.raises(ValueError, match=rf"a budget is examples=N, flops=F or minutes=M, got '{text}'"):
        Budget.parse(text)


@pytest.mark.parametrize("amount", ["", "0", "-3", "nan", "inf", "many"])
def test_an_amount_must_be_positive(amount):
    with pytest.raises(ValueError, match=f"must be a positive number, got 'minutes={amount}'"):
        Budget.parse(f"minutes={amount}")


def test_examples_keep_the_proportions_of_the_stages():
    given = recipe()
    assert num_examples(given) == 52 and num_examples(given, ["features"]) == 40
    scaled = within_budget(given, Budget("examples", 520.0), sizes(given))
    assert steps(scaled) == [30, 40, 60] and num_examples(scaled) == 520
    assert within_budget(given, Budget("examples", 52.0), sizes(given)) == given


def test_the_last_stage_takes_what_rounding_leaves():
    given = recipe()
    scaled = within_budget(given, Budget("examples", 100.0), sizes(given))
    assert steps(scaled) == [6, 8, 11] and num_examples(scaled) == 100  # 5.8, 7.7 and what is left of 25


def test_uncounted_stages_stay_as_they_are():
    given = recipe()
    scaled = within_budget(given, Budget("examples", 80.0), sizes(given), ["features"])
    assert steps(scaled) == [3, 8, 12] and scaled.stages["features"] == given.stages["features"]
    with pytest.raises(ValueError, match=r"all stages \(features, understanding, generation\) are uncounted"):
        within_budget(given, Budget("examples", 80.0), sizes(given), list(given.stages))


def test_costly_steps_leave_fewer_of_them():
    given = recipe()
    costs = {"features": 1e6, "understanding": 2e6, "generation": 4e6}  # 3 + 8 + 24 = 35 million as it is
    assert steps(within_budget(given, Budget("flops", 70e6), costs)) == [6, 8, 12]
    dear = within_budget(given, Budget("flops", 70e6), {**costs, "generation": 40e6})
    assert steps(dear) == [1, 1, 2]  # a factor of 70 / 251: 0.8, 1.1, and 67 / 40


def test_a_shorter_stage_has_a_shorter_warm_up():
    given = recipe()
    stages = {name: replace(s, optimizer=OptimizerConfig(warmup_steps=2)) for name, s in given.stages.items()}
    given = replace(given, stages=stages)
    half, double = (within_budget(given, Budget("examples", n), sizes(given)) for n in (26.0, 104.0))
    assert [s.optimizer.warmup_steps for s in half.stages.values()] == [1, 1, 1]
    assert [s.optimizer.warmup_steps for s in double.stages.values()] == [2, 2, 2]


def test_too_little_is_refused_with_what_a_step_costs():
    given = recipe()
    with pytest.raises(ValueError, match=r"examples=4 leaves no step for the stage 'features' of tests:regressed, "
                       r"where one costs 4 examples; the whole recipe as it is costs 52"):  # fmt: skip
        within_budget(given, Budget("examples", 4.0), sizes(given))
