"""The loop as a whole, on a small real task in one process."""

import json
import os
import signal
import time
from dataclasses import replace
from io import StringIO
from itertools import pairwise

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from toy_task import (
    ToyModel,
    collate,
    flow_objective,
    one_stage,
    save_model_folder,
    text_objective,
    toy_recipe,
    toy_task,
)

from diptych.data.picture_files import read_picture
from diptych.objectives.loss_term import LossTerm
from diptych.train.checkpoint import latest_checkpoint, load_checkpoint
from diptych.train.distributed import Processes
from diptych.train.loop import train
from diptych.train.metrics import LossMeter, MetricsLog
from diptych.train.nonfinite import NonFiniteLoss
from diptych.train.recipe import CheckpointConfig, EvaluationConfig, LoggingConfig, OptimizerConfig
from diptych.train.step import Step, StepModule
from diptych.train.task import example_seeds, step_key

ONE = Processes(rank=0, count=1, device=torch.device("cpu"))


def quiet() -> Console:
    return Console(file=StringIO())


def metrics(run_dir, event="train"):
    return [line for line in MetricsLog(run_dir / "metrics.jsonl").read() if line["event"] == event]


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal_weights(first, second):
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# --- learning


def test_the_loop_overfits_a_few_rows(tmp_path):
    stage = {"mix": {"b": 1.0}, "objectives": {"text": 1.0}, "num_steps": 200, "batch_size": 17}
    recipe = one_stage(**stage, optimizer=OptimizerConfig(lr=2e-2, warmup_steps=10), trainable=("*",))
    recipe = replace(recipe, model=replace(recipe.model, dim=64), logging=LoggingConfig(every_steps=50))
    recipe = replace(recipe, checkpoints=CheckpointConfig(every_steps=1000))
    train(toy_task(recipe), recipe, tmp_path / "run", console=quiet())
    lines = metrics(tmp_path / "run")
    first = 1.5  # the mean square of the targets is what a network that says 0 has
    assert lines[-1]["loss/text"] < first / 1000


def test_frozen_parts_stay_and_trained_parts_move(tmp_path):
    recipe = toy_recipe()
    task = toy_task(recipe)
    before = weights_of(task.model)
    train(task, recipe, tmp_path / "run", console=quiet())
    after = task.model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        name for name in before if not name.startswith("encoder")
    ]
    assert all(parameter.grad is None for parameter in task.model.encoder.parameters())


def test_the_first_stage_leaves_the_second_stages_parts_alone(tmp_path):
    recipe = toy_recipe()
    recipe = replace(recipe, stages={"first": recipe.stages["first"]})
    task = toy_task(recipe)
    before = weights_of(task.model)
    train(task, recipe, tmp_path / "run", console=quiet())
    moved = {
        name.split(".")[0] for name, tensor in task.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved == {"trunk", "head"}
    assert task.model.denoiser[0].weight.grad is None


def test_bfloat16_runs_in_autocast_over_float32_weights(tmp_path):
    recipe = replace(one_stage(num_steps=6), precision="bfloat16")
    seen = []

    def looking(model, batch, generator):
        seen.append(model.head(model(batch.values)).dtype)
        return text_objective(model, batch, generator)

    task = toy_task(recipe, objectives={"text": looking, "flow": flow_objective})
    train(task, recipe, tmp_path / "run", console=quiet())
    assert seen and set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in task.model.parameters()} == {torch.float32}


# --- normalisation


def gradients(model, batches, weights, seeds=None, count_terms=None, max_micro_batches=1):
    objectives = {"text": text_objective, "flow": flow_objective}
    processes = replace(ONE, max_micro_batches=max_micro_batches)
    module = StepModule(model, {name: objectives[name] for name in weights})
    model.zero_grad(set_to_none=True)
    result = Step(module, weights, processes, count_terms=count_terms).run(batches, seeds or list(range(len(batches))))
    return {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }, result


def rows(start, stop, step=0):
    from toy_task import NumbersSource

    source = NumbersSource()
    places = list(range(start, stop))
    return collate([source.example(place, 0) for place in places], example_seeds(3, "s", step, places))


def direct_gradients(model, batch, weights):
    """The definition, written out: sum over terms of weight * sum / count of one big batch."""
    model.zero_grad(set_to_none=True)
    terms = {**text_objective(model, batch, torch.Generator()), **flow_objective(model, batch, torch.Generator())}
    sum(weights[name] * terms[name].sum / terms[name].count for name in weights).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def counted_ahead(batch):
    return {"text": float(batch.mask.sum()), "flow": float((batch.mask.sum(1) > 1).sum())}


@pytest.mark.parametrize("count_terms", [None, counted_ahead])
@pytest.mark.parametrize("weights", [{"text": 1.0}, {"text": 0.3, "flow": 2.0}])
@pytest.mark.parametrize("cuts", [(0, 13), (0, 6, 13), (0, 1, 3, 4, 13)])
def test_micro_batches_of_unequal_counts_give_the_gradient_of_one_batch(cuts, weights, count_terms):
    model = ToyModel().double()
    batches = [rows(start, stop) for start, stop in pairwise(cuts)]
    whole = rows(0, 13)
    batches = [replace(batch, values=batch.values.double()) for batch in batches]
    whole = replace(whole, values=whole.values.double())
    expected = direct_gradients(model, whole, weights)
    got, result = gradients(model, batches, weights, count_terms=count_terms, max_micro_batches=len(batches))
    assert set(got) == set(expected)
    for name in expected:
        # the losses are summed in float32, so only their weights are exact to more than that
        torch.testing.assert_close(got[name], expected[name], rtol=2e-6, atol=2e-7)
    counts = [float(terms["text"].count) for terms in result.terms]
    assert len(set(counts)) > 1 or len(batches) == 1  # the micro-batches do differ


def test_a_mean_of_micro_batch_means_would_be_noticed():
    model = ToyModel()
    expected = direct_gradients(model, rows(0, 13), {"text": 1.0})
    parts = [direct_gradients(model, rows(start, stop), {"text": 1.0}) for start, stop in ((0, 1), (1, 13))]
    naive = {name: (parts[0][name] + parts[1][name]) / 2 for name in expected}
    assert max((naive[name] - expected[name]).abs().max().item() for name in expected) > 0.01


def test_an_objective_under_two_names_runs_once_and_unnamed_terms_are_left_out():
    calls = []

    def joint(model, batch, generator):
        calls.append(1)
        terms = {**text_objective(model, batch, generator), **flow_objective(model, batch, generator)}
        return {**terms, "flow/extra": terms["flow"], "other": terms["text"]}

    batch = rows(0, 8)
    both = StepModule(ToyModel(), {"text": joint, "flow": joint})(batch, 0)
    assert set(both) == {"text", "flow", "flow/extra"} and len(calls) == 1
    assert set(StepModule(ToyModel(), {"text": joint})(batch, 0)) == {"text"}


def test_a_batch_with_nothing_to_learn_leaves_no_gradient():
    def nothing(model, batch, generator):
        return {"text": LossTerm(torch.tensor(0.0), torch.tensor(0.0))}

    model = ToyModel()
    Step(StepModule(model, {"text": nothing}), {"text": 1.0}, ONE).run([rows(0, 2)], [0])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_seeds_depend_on_everything_that_names_a_place():
    seeds = {
        step_key(*arguments)
        for arguments in [(0, "a", 0, "x"), (1, "a", 0, "x"), (0, "b", 0, "x"), (0, "a", 1, "x"), (0, "a", 0, "y")]
    }
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)
    whole = example_seeds(0, "a", 7, range(8))
    assert example_seeds(0, "a", 7, range(4, 8)) == whole[4:] and len(set(whole)) == 8


# --- logging


def test_metrics_hold_losses_by_noise_level_and_rates(tmp_path):
    recipe = replace(one_stage(num_steps=30), logging=LoggingConfig(every_steps=10))
    train(toy_task(recipe), recipe, tmp_path / "run", console=quiet())
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [10, 20, 30]
    names = {"loss", "loss/text", "loss/flow", "lr", "grad_norm", "examples_per_second", "tokens_per_second", "time"}
    assert names <= set(lines[0])
    bins = [name for line in lines for name in line if name.startswith("loss/flow/sigma")]
    assert set(bins) == {f"loss/flow/sigma {low:.2f}-{low + 0.25:.2f}" for low in (0, 0.25, 0.5, 0.75)}
    assert lines[0]["loss"] == pytest.approx(0.5 * lines[0]["loss/text"] + lines[0]["loss/flow"])
    assert "mfu" not in lines[0]  # the peak of a CPU is not known


def test_the_meter_weighs_by_count():
    meter = LossMeter({"flow": 2.0}, num_bins=2)
    values, levels = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.9, 1.0])
    term = LossTerm(values.sum(), torch.tensor(3.0), values=values, levels=levels)
    other = LossTerm(torch.tensor(10.0), torch.tensor(1.0))
    meter.add([{"flow": term}, {"flow": other}], torch.tensor(4.0))
    meter.add([{"flow": other}], torch.tensor(2.0))
    read = meter.read(ONE)
    assert read["loss/flow"] == pytest.approx(26 / 5) and read["loss"] == pytest.approx(52 / 5)
    assert read["loss/flow/sigma 0.00-0.50"] == 1.0 and read["loss/flow/sigma 0.50-1.00"] == 2.5
    assert read["grad_norm"] == 3.0
    assert meter.read(ONE) == {"loss": 0.0}


def test_a_run_folder_says_how_it_was_made(tmp_path):
    recipe = toy_recipe()
    console = Console(file=StringIO(), width=120)
    result = train(toy_task(recipe), recipe, tmp_path / "run", console=console)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    rows = {row["name"]: row for row in manifest["parts"]}
    assert rows["encoder"]["stages"] == {"first": False, "second": False}
    assert rows["denoiser"]["stages"] == {"first": False, "second": True}
    assert rows["head"]["parameters"] == 51 and rows["head"]["dtypes"] == ["float32"]
    assert manifest["parameters"] == sum(p.numel() for p in ToyModel().parameters())
    sessions = json.loads((tmp_path / "run" / "environment.json").read_text())["sessions"]
    assert sessions[0]["versions"]["torch"] == torch.__version__ and sessions[0]["hardware"]["processes"] == 1
    assert (tmp_path / "run" / "recipe.json").exists()
    shown = console.file.getvalue()
    assert "encoder" in shown and "frozen" in shown and "Done: 20 steps" in shown and "left" in shown
    assert result.finished and result.step == 20 and result.model_folder.is_dir()


def test_samples_and_scores_are_of_the_average_and_in_evaluation_mode(tmp_path):
    recipe = one_stage(num_steps=6, optimizer=OptimizerConfig(lr=0.1, ema_decay=0.99))
    recipe = replace(
        recipe, logging=LoggingConfig(every_steps=1, sample_every=2), evaluation=EvaluationConfig(scorers=("x",))
    )
    shown = {}

    def sample(name, step):
        assert not task.model.training and not torch.is_grad_enabled()
        shown[step] = weights_of(task.model)
        image = torch.full((8, 8, 3), step * 20, dtype=torch.uint8).numpy()
        return [(image, f"step {step}"), (image, "again")]

    def evaluate(name):
        assert not task.model.training
        return {"accuracy": 0.5}

    task = toy_task(recipe, sample=sample, evaluate=evaluate)
    result = train(task, recipe, tmp_path / "run", console=quiet())
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        "000002-only.png", "000004-only.png", "000006-only.png",
    ]  # fmt: skip
    assert read_picture(tmp_path / "run" / "samples" / "000002-only.png").size[0] > 16
    saved = load_file(result.model_folder / "model.safetensors")
    assert_equal_weights(shown[6], saved)
    assert_equal_weights(weights_of(task.model), saved)  # the stage ends with the average as its weights
    assert metrics(tmp_path / "run", "scores")[0]["score/accuracy"] == 0.5
    assert result.scores == {"only": {"accuracy": 0.5}}


def test_the_model_folder_holds_the_average_and_the_state_the_weights(tmp_path):
    recipe = one_stage(num_steps=5, optimizer=OptimizerConfig(lr=0.1, ema_decay=0.99))
    train(toy_task(recipe), recipe, tmp_path / "run", console=quiet())
    middle = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-000003")
    shown = load_file(tmp_path / "run" / "checkpoints" / "step-000003" / "model" / "model.safetensors")
    assert middle.ema_updates == 3 and set(middle.ema) < set(shown)
    for name, tensor in middle.ema.items():
        assert torch.equal(tensor, shown[name]), name
        assert not torch.equal(tensor, middle.weights[name]), name


def test_a_weight_without_effect_is_told_once(tmp_path, caplog):
    recipe = one_stage(objectives={"text": 1.0, "flow": 1.0}, num_steps=3)
    task = toy_task(recipe, objectives={"text": text_objective, "flow": text_objective})
    train(task, recipe, tmp_path / "run", console=quiet())
    assert [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()] == [
        "stage 'only': nothing in its mix had the loss 'flow'; its weight had no effect."
    ]


# --- stopping and resuming


def stopping_at(step, task, number=signal.SIGINT):
    """The task, which gets a signal in the middle of a step."""
    calls = []

    def objective(model, batch, generator):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return text_objective(model, batch, generator)

    return replace(task, objectives={**task.objectives, "text": objective})


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Weights and metrics of a run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    task = toy_task(toy_recipe())
    train(task, toy_recipe(), run_dir, console=quiet())
    return weights_of(task.model), metrics(run_dir)


@pytest.mark.parametrize(
    ("call", "number"), [(1, signal.SIGTERM), (5, signal.SIGINT), (8, signal.SIGTERM), (11, signal.SIGINT)]
)
def test_a_signal_saves_and_the_resumed_run_ends_with_the_same_weights(tmp_path, straight, call, number):
    recipe = toy_recipe()
    console = Console(file=StringIO(), width=200)
    before = signal.getsignal(number)
    stopped = train(stopping_at(call, toy_task(recipe), number), recipe, tmp_path / "run", console=console)
    assert not stopped.finished and signal.getsignal(number) == before
    assert stopped.step == (call if call <= 8 else 8 + -(-(call - 8) // 4))  # the step in which the signal came
    assert (
        f"Stopped by {number.name} after step {stopped.step}. Continue with: diptych resume" in console.file.getvalue()
    )
    resumed = toy_task(recipe)
    result = train(resumed, recipe, tmp_path / "run", resume=True, console=quiet())
    assert result.finished and result.step == 20
    expected_weights, expected = straight
    assert_equal_weights(weights_of(resumed.model), expected_weights)
    lines = metrics(tmp_path / "run")
    assert [(line["step"], line["loss"]) for line in lines] == [(line["step"], line["loss"]) for line in expected]
    assert len(metrics(tmp_path / "run", "stage_end")) == 2


@pytest.mark.parametrize(("stage", "number"), [("first", signal.SIGTERM), ("second", signal.SIGINT)])
def test_a_signal_while_a_stage_is_prepared_acts_at_once(tmp_path, straight, stage, number):
    """Nothing is to be saved then; the resumed run prepares again."""
    recipe = toy_recipe()
    encoded = []

    def prepare(name, config):
        encoded.append(name)
        if name == stage:
            os.kill(os.getpid(), number)
            for _ in range(1000):
                time.sleep(0.001)
            encoded.append("everything")

    console = Console(file=StringIO(), width=200)
    before = signal.getsignal(number)
    result = train(toy_task(recipe, prepare_stage=prepare), recipe, tmp_path / "run", console=console)
    assert not result.finished and encoded[-1] == stage and signal.getsignal(number) == before
    place = "before the first step" if stage == "first" else "after step 8"
    assert f"Stopped by {number.name} {place}. Continue with: diptych resume {tmp_path / 'run'}" in (
        console.file.getvalue().replace("\n", "")
    )
    if stage == "first":
        assert result.checkpoint is None
        with pytest.raises(FileNotFoundError, match=r"run has no checkpoint yet. Continue it with `diptych resume`."):
            _ = result.model_folder
    resumed = toy_task(recipe)
    assert train(resumed, recipe, tmp_path / "run", resume=True, console=quiet()).finished
    assert_equal_weights(weights_of(resumed.model), straight[0])


def test_resuming_a_finished_run_does_nothing_again(tmp_path):
    recipe = replace(toy_recipe(), evaluation=EvaluationConfig(scorers=("x",)))
    evaluated = []
    task = toy_task(recipe, evaluate=lambda name: evaluated.append(name) or {"a": 1.0})
    train(task, recipe, tmp_path / "run", console=quiet())
    before = metrics(tmp_path / "run")
    other = toy_task(recipe, evaluate=task.evaluate)
    result = train(other, recipe, tmp_path / "run", resume=True, console=quiet())
    assert result.finished and evaluated == ["second"] and metrics(tmp_path / "run") == before
    assert_equal_weights(weights_of(other.model), weights_of(task.model))


def test_scores_that_a_kill_prevented_are_made_up_for(tmp_path):
    recipe = replace(toy_recipe(), evaluation=EvaluationConfig(scorers=("x",)))

    def broken(name):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train(toy_task(recipe, evaluate=broken), recipe, tmp_path / "run", console=quiet())
    result = train(
        toy_task(recipe, evaluate=lambda name: {"a": 1.0}), recipe, tmp_path / "run", resume=True, console=quiet()
    )
    assert result.scores == {"second": {"a": 1.0}} and result.step == 20
    assert len(metrics(tmp_path / "run")) == 20


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    recipe = toy_recipe()
    train(stopping_at(4, toy_task(recipe)), recipe, tmp_path / "run", console=quiet())
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.append({"event": "train", "step": 5, "stage": "first", "time": 0.0, "loss": 123.0})
    with log.path.open("a") as file:
        file.write('{"event": "train", "step": 6, "sta')  # cut off by a kill
    train(toy_task(recipe), recipe, tmp_path / "run", resume=True, console=quiet())
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "train"] == list(range(1, 21))
    assert not any(line.get("loss") == 123.0 for line in lines)


# --- what can go wrong


class Faulty(torch.nn.Module):
    """Divides by zero once it is told to."""

    is_broken = False

    def forward(self, x):
        return x / 0 if self.is_broken else x


def test_a_nonfinite_loss_names_the_module_and_saves_the_batch(tmp_path):
    recipe = one_stage(num_steps=6)
    model = ToyModel()
    fault = Faulty()
    model.trunk.insert(2, fault)
    calls = []

    def objective(model, batch, generator):
        calls.append(1)
        fault.is_broken = len(calls) >= 4
        return text_objective(model, batch, generator)

    task = toy_task(recipe, model, objectives={"text": objective, "flow": flow_objective})
    message = (
        r"step 4 \(stage 'only'\).*the module trunk.2 \(Faulty\) gives non-finite values from finite inputs.*"
        r"last checkpoint is .*step-000003"
    )
    with pytest.raises(NonFiniteLoss, match=message) as error:
        train(task, recipe, tmp_path / "run", console=quiet())
    folder = tmp_path / "run" / "nonfinite-step-000004" / "process-0-batch-0"
    assert str(folder) in str(error.value)
    tensors = load_file(folder / "batch.safetensors")
    facts = json.loads((folder / "batch.json").read_text())
    assert tensors["values"].shape[0] == 8 and facts["culprit"].startswith("the module trunk.2")
    assert len(facts["examples"]) == 8
    saved = load_checkpoint(latest_checkpoint(tmp_path / "run"))
    assert_equal_weights(saved.weights, {name: weights_of(model)[name] for name in saved.weights})  # no step was taken


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda model, batch, terms: terms["text"].sum * float("inf"), "the objective text gives a non-finite loss"),
        (
            lambda model, batch, terms: terms["text"].sum + (model.head.bias * 0).sqrt().sum(),
            "backward pass .* head.bias",
        ),
    ],
)
def test_a_fault_outside_of_modules_is_named_too(tmp_path, break_it, message):
    def objective(model, batch, generator):
        terms = text_objective(model, batch, generator)
        return {"text": replace(terms["text"], sum=break_it(model, batch, terms))}

    recipe = one_stage(objectives={"text": 1.0})
    task = toy_task(recipe, objectives={"text": objective})
    with pytest.raises(NonFiniteLoss, match=message):
        train(task, recipe, tmp_path / "run", console=quiet())


def test_weights_that_are_not_finite_are_named(tmp_path):
    recipe = one_stage()
    model = ToyModel()
    with torch.no_grad():
        model.encoder[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"the weight encoder.0.weight itself is not finite.*\(none yet\)"):
        train(toy_task(recipe, model), recipe, tmp_path / "run", console=quiet())


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"trainable": ("trnk",)}, r"stages.only.trainable names the part 'trnk'.* Did you mean trunk\?"),
        ({"objectives": {"flw": 1.0}}, r"stages.only.objectives names 'flw'.* Did you mean flow\?"),
        ({"mix": {"c": 1.0}}, r"stages.only.mix names the source 'c'.* Known: a, b."),
        ({"optimizer": OptimizerConfig(lr_multipliers={"dnoiser": 0.1})}, r"lr_multipliers names the part 'dnoiser'"),
    ],
)
def test_a_recipe_that_does_not_fit_the_model_is_refused_before_any_work(tmp_path, stage, message):
    recipe = one_stage(**stage)
    with pytest.raises(ValueError, match=message):
        train(toy_task(one_stage()), recipe, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.train.checks.find_spec", lambda name: None)
    recipe = replace(one_stage(), logging=LoggingConfig(trackers=("wandb",)))
    with pytest.raises(
        ValueError, match=r"logging.trackers has 'wandb', which is not installed. Use `pip install wandb`"
    ):
        train(toy_task(recipe), recipe, tmp_path / "run", console=quiet())


def test_run_folders_that_cannot_be_used(tmp_path):
    recipe = one_stage(num_steps=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"is a file. Choose another path."):
        train(toy_task(recipe), recipe, tmp_path / "file", console=quiet())
    with pytest.raises(PermissionError, match=r"run folder .* cannot be written \(.*\). Choose another one"):
        train(toy_task(recipe), recipe, "/proc/run", console=quiet())  # refused to root as well
    with pytest.raises(FileNotFoundError, match=r"no run to resume in .*none"):
        train(toy_task(recipe), recipe, tmp_path / "none", resume=True, console=quiet())
    train(toy_task(recipe), recipe, tmp_path / "run", console=quiet())
    with pytest.raises(FileExistsError, match=r"already holds a run. Continue it with `diptych resume"):
        train(toy_task(recipe), recipe, tmp_path / "run", console=quiet())


def test_resuming_with_another_recipe_is_refused_field_by_field(tmp_path):
    recipe = toy_recipe()
    train(stopping_at(4, toy_task(recipe)), recipe, tmp_path / "run", console=quiet())
    other = replace(recipe, seed=6, stages={**recipe.stages, "first": replace(recipe.stages["first"], num_steps=9)})
    with pytest.raises(
        ValueError, match=r"(?s)differs from .*stages.first.num_steps: 8 -> 9\n  seed: 5 -> 6\n.*Only name,"
    ):
        train(toy_task(other), other, tmp_path / "run", resume=True, console=quiet())
    allowed = replace(recipe, name="renamed", logging=LoggingConfig(every_steps=2))
    assert train(toy_task(allowed), allowed, tmp_path / "run", resume=True, console=quiet()).finished


def test_a_field_that_recipes_have_got_since_does_not_stop_a_resumption(tmp_path):
    recipe = toy_recipe()
    result = train(stopping_at(4, toy_task(recipe)), recipe, tmp_path / "run", console=quiet())
    file = result.checkpoint / "state" / "trainer.json"
    state = json.loads(file.read_text())
    assert state["recipe"].pop("precision") == recipe.precision
    file.write_text(json.dumps(state))
    assert train(toy_task(recipe), recipe, tmp_path / "run", resume=True, console=quiet()).finished


def test_resuming_with_another_frozen_part_is_refused(tmp_path):
    recipe = toy_recipe()
    train(stopping_at(4, toy_task(recipe)), recipe, tmp_path / "run", console=quiet())
    with pytest.raises(ValueError, match="the frozen part 'encoder' is not the one this run began with"):
        train(toy_task(recipe, ToyModel(seed=1)), recipe, tmp_path / "run", resume=True, console=quiet())
    with pytest.raises(ValueError, match=r"weights are of another model.*of another shape \['scale', 'trunk.0.weight'"):
        train(toy_task(recipe, ToyModel(dim=8)), recipe, tmp_path / "run", resume=True, console=quiet())


def test_an_error_in_the_data_reaches_the_caller(tmp_path):
    recipe = one_stage()

    def failing(examples, seeds):
        raise ValueError("example 'a/3': the picture is too large")

    with pytest.raises(ValueError, match="the picture is too large"):
        train(toy_task(recipe, collate=failing), recipe, tmp_path / "run", console=quiet())


def test_a_model_folder_can_be_saved_from_the_toy(tmp_path):
    save_model_folder(ToyModel(), tmp_path / "m")
    assert_equal_weights(load_file(tmp_path / "m" / "model.safetensors"), weights_of(ToyModel()))
