"""Schedules at closed-form points; AdamW's groups and its state; the weight average; clipping."""

import math

import pytest
import torch
from torch import nn
from toy_task import ToyModel

from diptych.train.ema import WeightAverage
from diptych.train.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    lr_multiplier,
    optimizer_tensors,
    set_learning_rate,
)
from diptych.train.parts import freeze_all_but, matching_parts, parts_of, trained_parameters
from diptych.train.recipe import OptimizerConfig
from diptych.train.schedule import lr_factor


def factors(num_steps: int, **config) -> list[float]:
    return [lr_factor(OptimizerConfig(**config), step, num_steps) for step in range(num_steps)]


def test_warm_up_is_linear_and_ends_at_the_peak():
    values = factors(20, schedule="constant", warmup_steps=5)
    assert values[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert set(values[5:]) == {1.0}


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_cosine_and_linear_at_start_middle_and_end(warmup, ratio):
    num_steps = warmup + 11
    cosine = factors(num_steps, schedule="cosine", warmup_steps=warmup, min_lr_ratio=ratio)
    linear = factors(num_steps, schedule="linear", warmup_steps=warmup, min_lr_ratio=ratio)
    for values in (cosine, linear):
        assert values[warmup] == pytest.approx(1.0)
        assert values[warmup + 5] == pytest.approx((1 + ratio) / 2)
        assert values[-1] == pytest.approx(ratio, abs=1e-12)
    assert cosine[warmup + 2] == pytest.approx(ratio + (1 - ratio) * (1 + math.cos(math.pi / 5)) / 2)
    assert linear[warmup + 2] == pytest.approx(1 - (1 - ratio) / 5)


def test_wsd_is_flat_and_then_falls_to_its_end():
    values = factors(100, schedule="wsd", decay_fraction=0.2, min_lr_ratio=0.1)
    assert set(values[:80]) == {1.0}
    assert values[80] == pytest.approx(1 - 0.9 / 20)
    assert values[89] == pytest.approx(1 - 0.9 / 2)
    assert values[99] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_short_stages_have_finite_rates_in_range(schedule, num_steps):
    for warmup in (0, 1, 50):
        assert all(0 <= value <= 1 for value in factors(num_steps, schedule=schedule, warmup_steps=warmup))


def test_groups_have_decay_on_matrices_only_and_multipliers_by_part():
    model = ToyModel()
    freeze_all_but(model, {"trunk", "head", "scale"})
    config = OptimizerConfig(lr=0.01, weight_decay=0.1, lr_multipliers={"tr*": 0.5, "trunk": 3.0})
    parameters = trained_parameters(model)
    optimizer = build_optimizer(parameters, config)
    set_learning_rate(optimizer, 0.02)
    settings = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        for name, own in parameters.items()
        if own is parameter
    }
    assert set(settings) == set(parameters)
    assert settings["trunk.0.weight"] == (0.01, 0.1)
    assert settings["trunk.0.bias"] == (0.01, 0.0)
    assert settings["head.weight"] == (0.02, 0.1)
    assert settings["scale"] == (0.02, 0.0)
    assert lr_multiplier("trunk", config.lr_multipliers) == 0.5  # the first entry that matches


def test_one_adamw_step_is_the_closed_form():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = build_optimizer({"part.weight": weight}, OptimizerConfig(lr=0.1, weight_decay=0.5, eps=1e-8))
    weight.grad = torch.tensor([[3.0, -0.5]])
    optimizer.step()
    # after one step the bias-corrected moments are g and g^2, so the update is lr * sign(g)
    expected = torch.tensor([[1.0, -2.0]]) * (1 - 0.1 * 0.5) - 0.1 * torch.sign(weight.grad)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-6)


def test_optimizer_state_round_trip_continues_to_the_bit():
    def run(model, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            model.head(model(torch.randn(4, 6))).square().sum().backward()
            optimizer.step()

    def fresh():
        model = ToyModel()
        freeze_all_but(model, {"trunk", "head", "denoiser"})  # the denoiser never has a gradient, so it has no state
        return model, build_optimizer(trained_parameters(model), OptimizerConfig(lr_multipliers={"head": 0.1}))

    straight, optimizer = fresh()
    run(straight, optimizer, range(6))
    first, optimizer = fresh()
    run(first, optimizer, range(3))
    tensors = optimizer_tensors(optimizer, trained_parameters(first))
    assert {name.split("/")[0] for name in tensors} == {"exp_avg", "exp_avg_sq", "step"}
    assert not any("denoiser" in name for name in tensors)
    second, optimizer = fresh()
    second.load_state_dict(first.state_dict())
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    load_optimizer_tensors(optimizer, trained_parameters(second), copies)
    run(second, optimizer, range(3, 6))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"optimizer state is of another model: it has 'nose.weight'"):
        load_optimizer_tensors(optimizer, trained_parameters(second), {"exp_avg/nose.weight": torch.zeros(1)})


def test_average_is_the_closed_form():
    weight = nn.Parameter(torch.zeros(3))
    average = WeightAverage({"w": weight}, decay=0.9)
    expected = torch.zeros(3)
    for step in range(300):
        with torch.no_grad():
            weight.fill_(float(step + 1))
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
    torch.testing.assert_close(average.tensors()["w"], expected)
    # of a ramp the average lags by decay / (1 - decay) steps
    torch.testing.assert_close(average.tensors()["w"], torch.full((3,), 300 - 9.0), rtol=1e-4, atol=1e-3)


def test_average_is_applied_and_taken_back_to_the_bit():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(50).bfloat16())
    before = weight.detach().clone()
    average = WeightAverage({"w": weight}, decay=0.5)
    with torch.no_grad():
        weight.mul_(3)
    changed = weight.detach().clone()
    average.update()
    with pytest.raises(RuntimeError), average.applied():
        assert torch.equal(weight, average.tensors()["w"].bfloat16())
        assert not torch.equal(weight, changed)
        raise RuntimeError
    assert torch.equal(weight, changed)
    with pytest.raises(ValueError, match=r"weight average is of another model: missing \['w'\], unknown \['v'\]"):
        average.load({"v": before}, 1)
    average.load({"w": before}, 7)
    average.copy_to_model()
    assert torch.equal(weight, before) and average.num_updates == 7


def test_parts_by_pattern():
    model = ToyModel()
    assert set(parts_of(model)) == {"encoder", "trunk", "head", "denoiser", "scale"}
    assert matching_parts(["*er", "scale"], parts_of(model), "x") == {"encoder", "denoiser", "scale"}
    with pytest.raises(ValueError, match=r"stages.a.trainable names the part 'trnk', .* Did you mean trunk"):
        matching_parts(["head", "trnk"], parts_of(model), "stages.a.trainable")


def test_frozen_parts_are_in_evaluation_mode():
    model = ToyModel()
    freeze_all_but(model, {"trunk", "scale"})
    assert {name.split(".")[0] for name in trained_parameters(model)} == {"trunk", "scale"}
    assert [model.trunk.training, model.encoder.training, model.denoiser[0].training] == [True, False, False]
