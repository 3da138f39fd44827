"""The smaller pieces of the loop: data ahead, speed, progress, trackers, environment, batch sizes."""

import json
import threading
import time
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from test_loop import assert_equal_weights, metrics, quiet, stopping_at, weights_of
from torch import nn
from toy_task import one_stage, toy_recipe, toy_task

from diptych.train.checks import check_batch_sizes
from diptych.train.distributed import Processes
from diptych.train.environment import describe_environment, git_commit, versions
from diptych.train.loop import train
from diptych.train.metrics import MetricsLog
from diptych.train.nonfinite import find_culprit, save_batch
from diptych.train.prefetch import Prefetcher, prefetch_depth
from diptych.train.progress import RunDisplay
from diptych.train.recipe import LoggingConfig
from diptych.train.run_folder import recipe_changes
from diptych.train.throughput import PEAK_BFLOAT16_FLOPS, SpeedMeter, count_flops, peak_flops

# --- data ahead


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetched_items_come_in_order_and_end(depth):
    prefetcher = Prefetcher(iter(range(5)), depth)
    assert [prefetcher.next() for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        prefetcher.next()
    prefetcher.close()


def test_prefetching_works_one_item_ahead_in_a_thread():
    made = []

    def items():
        for number in range(100):
            made.append((number, threading.current_thread().name))
            yield number

    prefetcher = Prefetcher(items(), depth=1)
    assert prefetcher.next() == 0
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(made) == 3  # 0 was taken, 1 waits in the queue, 2 waits to be put there
    assert {name for _, name in made} == {"diptych-prefetch"}
    prefetcher.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "diptych-prefetch"]


def test_the_thread_changes_no_weight_and_a_run_with_it_resumes(tmp_path, monkeypatch):
    recipe = toy_recipe()
    plain = toy_task(recipe)
    train(plain, recipe, tmp_path / "plain", console=quiet())
    monkeypatch.setattr("diptych.train.stage_runner.prefetch_depth", lambda device_type: 2)
    train(stopping_at(11, toy_task(recipe)), recipe, tmp_path / "run", console=quiet())
    resumed = toy_task(recipe)
    train(resumed, recipe, tmp_path / "run", resume=True, console=quiet())
    assert_equal_weights(weights_of(plain.model), weights_of(resumed.model))
    assert (prefetch_depth("cpu"), prefetch_depth("cuda")) == (0, 1)


def test_closing_does_not_wait_for_a_reader_that_hangs(monkeypatch):
    monkeypatch.setattr("diptych.train.prefetch.SECONDS_TO_CLOSE", 0.2)
    released = threading.Event()

    def items():
        yield 0
        released.wait()
        yield 1

    prefetcher = Prefetcher(items())
    assert prefetcher.next() == 0
    started = time.monotonic()
    prefetcher.close()
    assert time.monotonic() - started < 5
    released.set()


def test_an_error_in_the_thread_is_raised_where_the_item_is_awaited():
    def items():
        yield 1
        raise OSError("the shard is gone")

    prefetcher = Prefetcher(items())
    assert prefetcher.next() == 1
    with pytest.raises(OSError, match="the shard is gone"):
        prefetcher.next()


# --- speed


def test_flops_of_a_linear_layer_are_counted_forward_and_backward():
    layer = nn.Linear(30, 20, bias=False)
    x = torch.randn(7, 30)
    assert count_flops(lambda: layer(x)) == 2 * 7 * 30 * 20
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * 2 * 7 * 30 * 20  # the input needs no gradient


def test_the_peak_is_known_for_the_gpus_of_the_table_only(monkeypatch):
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
    for name, part in (("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-80GB", "A100"),
                       ("NVIDIA H100 PCIe", "H100 PCIe")):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda"), torch.bfloat16) == PEAK_BFLOAT16_FLOPS[part]
        assert peak_flops(torch.device("cuda"), torch.float32) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Other GPU")
    assert peak_flops(torch.device("cuda"), torch.bfloat16) is None


def test_time_that_is_paused_does_not_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("diptych.train.throughput.time.perf_counter", lambda: now[0])
    meter = SpeedMeter(peak=1e3, flops_per_step=500)
    meter.start()
    for _ in range(4):
        now[0] += 0.5
        meter.add(16, 80)
    meter.pause()
    now[0] += 100.0
    meter.start()
    assert meter.read() == {
        "examples_per_second": 32.0, "seconds_per_step": 0.5, "tokens_per_second": 160.0, "mfu": 1.0,
    }  # fmt: skip
    now[0] += 2.0
    meter.add(2, 0)
    assert meter.read() == {"examples_per_second": 1.0, "seconds_per_step": 2.0, "mfu": 0.25}


def test_a_known_peak_brings_the_mfu_into_the_metrics_and_changes_no_weight(tmp_path, monkeypatch):
    recipe = one_stage(num_steps=4)
    plain, measured = toy_task(recipe), toy_task(recipe)
    train(plain, recipe, tmp_path / "plain", console=quiet())
    monkeypatch.setattr("diptych.train.stage_runner.peak_flops", lambda device, precision: 1e12)
    train(measured, recipe, tmp_path / "run", console=quiet())
    assert all(0 < line["mfu"] < 1 for line in metrics(tmp_path / "run"))
    for first, second in zip(plain.model.parameters(), measured.model.parameters(), strict=True):
        assert torch.equal(first, second)


# --- what a person sees


def test_a_terminal_gets_a_bar_with_the_time_left(tmp_path):
    console = Console(file=StringIO(), force_terminal=True, width=160)
    train(toy_task(toy_recipe()), toy_recipe(), tmp_path / "run", console=console)
    shown = console.file.getvalue()
    assert "━" in shown and "12/12" in shown and "examples/s" in shown and "left" in shown


def test_the_time_left_counts_later_stages(monkeypatch):
    console = Console(file=StringIO(), width=200)
    display = RunDisplay(console, {"first": 50, "second": 0})
    display.start_stage("first", 0, 100)
    figures = {
        "loss/text": 1.25,
        "loss/text/sigma 0.00-0.25": 1.0,
        "examples_per_second": 100.0,
        "seconds_per_step": 2.0,
    }
    display.update(100, figures)
    assert "first 100/100 text 1.25  100 examples/s  0:01:40 left" in console.file.getvalue()
    assert "sigma" not in console.file.getvalue()


def test_other_processes_are_silent():
    console = Console(file=StringIO())
    display = RunDisplay(console, {"a": 0}, is_main=False)
    display.start_stage("a", 0, 1)
    display.show("hello")
    display.update(1, {"examples_per_second": 1.0, "seconds_per_step": 1.0})
    display.end_stage()
    assert console.file.getvalue() == ""


# --- logs


def test_metrics_are_whole_lines_and_never_invalid_json(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.read() == []
    log.append({"event": "train", "step": 1, "loss": float("nan"), "lr": 0.5})
    log.append({"event": "train", "step": 2, "loss": float("inf")})
    with log.path.open("a") as file:
        file.write('{"event": "train", "st')
    assert [line["loss"] for line in log.read()] == [None, None]
    log.truncate_after(1)
    assert log.path.read_text() == '{"event": "train", "step": 1, "loss": null, "lr": 0.5}\n'


def test_tensorboard_gets_the_figures_when_asked(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = replace(one_stage(num_steps=3), logging=LoggingConfig(every_steps=1, trackers=("tensorboard",)))
    train(toy_task(recipe), recipe, tmp_path / "run", console=quiet())
    (events,) = (tmp_path / "run" / "diptych").glob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("only/loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in metrics(tmp_path / "run")
    ]


def test_wandb_gets_the_figures_when_asked(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = replace(one_stage(num_steps=3), logging=LoggingConfig(every_steps=1, trackers=("wandb",)))
    logged = []
    init = wandb.init

    def init_and_listen(*arguments, **settings):
        run = init(*arguments, **settings)
        log = run.log
        monkeypatch.setattr(run, "log", lambda values, **where: (logged.append((where, values)), log(values, **where)))
        return run

    monkeypatch.setattr(wandb, "init", init_and_listen)
    train(toy_task(recipe), recipe, tmp_path / "run", console=quiet())
    (file,) = tmp_path.rglob("run-*.wandb")  # in the run folder, to be sent by `wandb sync`
    assert file.stat().st_size > 100
    assert [(where["step"], values["only/loss"]) for where, values in logged if "only/loss" in values] == [
        (line["step"], line["loss"]) for line in metrics(tmp_path / "run")
    ]


def test_the_environment_can_be_written_and_names_versions():
    environment = describe_environment(2, torch.device("cpu"))
    assert json.loads(json.dumps(environment)) == environment
    assert environment["hardware"]["processes"] == 2 and environment["hardware"]["cpu_cores"] >= 1
    assert {"python", "torch", "numpy", "safetensors"} <= set(versions())


def test_no_commit_outside_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "inside").mkdir()
    assert git_commit(tmp_path / "inside") is None


# --- before the start


@pytest.mark.parametrize(("processes", "accumulation", "batch_size"), [(3, 1, 8), (2, 2, 6), (8, 2, 8)])
def test_batches_that_cannot_be_cut_up_are_refused_with_one_that_can(processes, accumulation, batch_size):
    recipe = one_stage(batch_size=batch_size, gradient_accumulation=accumulation)
    message = (
        rf"stages.only.batch_size must be a multiple of .*: got {batch_size}, {processes} and {accumulation}. Use (\d+)"
    )
    with pytest.raises(ValueError, match=message) as error:
        check_batch_sizes(recipe, processes)
    advice = int(str(error.value).rsplit(" ", 1)[1].rstrip("."))
    check_batch_sizes(one_stage(batch_size=advice, gradient_accumulation=accumulation), processes)


def test_recipe_changes_are_listed_by_field():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": "x", "gone": None}
    new = {"a": {"b": 2, "c": [1, 2]}, "d": "x", "e": {"f": 1.5}}
    assert recipe_changes(old, new) == ["a.b: 1 -> 2", "gone: null -> (absent)", "e.f: (absent) -> 1.5"]
    assert recipe_changes(old, old) == []


# --- faults


def test_the_first_module_on_the_way_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 2))
    x = torch.tensor([[float("inf"), 1.0]])
    sentence = find_culprit(model, lambda: {"loss": model(x).sum()})
    assert sentence == "the module 0 (Linear) gives non-finite values already given non-finite inputs"
    assert "does not repeat" in find_culprit(model, lambda: {"loss": model(torch.ones(1, 2)).sum()})
    assert not model[0]._forward_hooks


def test_a_saved_batch_has_every_tensor_by_its_path(tmp_path):
    from safetensors.torch import load_file

    shared = torch.arange(3)
    save_batch(tmp_path / "b", {"x": (shared, [shared.float()]), "note": "hello", "mask": shared > 1}, {"step": 3})
    assert set(load_file(tmp_path / "b" / "batch.safetensors")) == {"x.0", "x.1.0", "mask"}
    assert json.loads((tmp_path / "b" / "batch.json").read_text())["step"] == 3


def test_processes_of_one_need_no_group():
    alone = Processes(rank=0, count=1, device=torch.device("cpu"))
    tensor = torch.ones(2)
    alone.sum(tensor)
    assert alone.gather("x") == ["x"] and tensor.tolist() == [1.0, 1.0]
