"""Runs in processes of their own: killed and resumed, and two processes against one.

Children are forked from a server that has imported everything already, so each costs a fraction of a second.
"""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy_task
from safetensors.torch import load_file
from test_loop import assert_equal_weights, metrics

from diptych.train.checkpoint import latest_checkpoint, load_checkpoint

pytestmark = pytest.mark.process

HERE = str(Path(__file__).parent)
TIMEOUT = 120


def child(argv: list[str], log: Path, environment: dict[str, str]) -> None:
    """What a forked process does: trains, with its output in a file."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    toy_task.main(argv)


@pytest.fixture(scope="module")
def server():
    """Starts children; stops their server at the end."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, before]) if before else HERE
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_processes", "diptych.train.loop", "torch.optim.adamw", "torch._dynamo"])
    yield context
    os.environ["PYTHONPATH"] = before
    from multiprocessing import forkserver

    forkserver._forkserver._stop()


def start(server, run_dir: Path, *arguments: object, **environment: object):
    argv = [str(run_dir), *map(str, arguments)]
    settings = {name: str(value) for name, value in environment.items()}
    process = server.Process(target=child, args=(argv, run_dir.parent / "log.txt", settings))
    process.start()
    return process


def finish(process) -> int:
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        pytest.fail("a child process did not end")
    return process.exitcode


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    latest = latest_checkpoint(run_dir)
    assert latest is not None and latest.name == "step-000020"
    return {**load_checkpoint(latest).weights, **load_file(latest / "model" / "model.safetensors")}


@pytest.fixture(scope="module")
def straight(server, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    process = start(server, run_dir)
    assert finish(process) == 0, (run_dir.parent / "log.txt").read_text()
    return run_dir


def assert_same_run(run_dir: Path, straight: Path) -> None:
    assert_equal_weights(final_weights(run_dir), final_weights(straight))
    lines, expected = metrics(run_dir), metrics(straight)
    assert [(line["step"], line["loss"]) for line in lines] == [(line["step"], line["loss"]) for line in expected]


def test_killed_in_the_middle_of_steps_and_saves_a_run_ends_with_the_same_weights(server, straight, tmp_path):
    run_dir = tmp_path / "run"
    # before the first checkpoint; in a step; while a checkpoint is written; in the second stage; in its average
    plan = [("--kill-at", 2), ("--resume", "--kill-at", 5), ("--resume", "--kill-in-save", 1)]
    plan += [("--resume", "--kill-at", 9), ("--resume", "--kill-at", 14)]
    for arguments in plan:
        assert finish(start(server, run_dir, *arguments)) == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert finish(start(server, run_dir, "--resume")) == 0, (tmp_path / "log.txt").read_text()
    assert_same_run(run_dir, straight)
    assert not [path for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")]


def kill_at_random_moments(server, tmp_path: Path, straight: Path, seed: int, num_kills: int) -> None:
    """Kills the run whenever a random number of metrics lines have been written, and a random moment later."""
    random.seed(seed)
    run_dir = tmp_path / "run"
    for _ in range(num_kills):
        process = start(server, run_dir, *(["--resume"] if (run_dir / "recipe.json").exists() else []))
        have = len(metrics(run_dir))
        wanted = have + random.randint(1, 6)
        deadline = time.monotonic() + TIMEOUT
        while process.is_alive() and len(metrics(run_dir)) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(random.random() * 0.1)
        process.kill()
        finish(process)
        for line in (run_dir / "metrics.jsonl").read_text().splitlines()[:-1]:
            assert line.startswith("{") and line.endswith("}")
    assert finish(start(server, run_dir, "--resume")) == 0, (tmp_path / "log.txt").read_text()
    assert_same_run(run_dir, straight)


def test_killed_at_random_moments(server, straight, tmp_path):
    kill_at_random_moments(server, tmp_path, straight, seed=0, num_kills=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_killed_at_many_random_moments(server, straight, tmp_path, seed):
    kill_at_random_moments(server, tmp_path, straight, seed=seed, num_kills=6)


def test_ctrl_c_in_another_process_saves_and_says_how_to_resume(server, straight, tmp_path):
    run_dir = tmp_path / "run"
    process = start(server, run_dir)
    deadline = time.monotonic() + TIMEOUT
    while process.is_alive() and len(metrics(run_dir)) < 4 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 0
    assert "SIGINT: stopping after this step and saving. Again to stop at once." in (tmp_path / "log.txt").read_text()
    assert f"Continue with: diptych resume {run_dir}" in (tmp_path / "log.txt").read_text().replace("\n", "")
    assert finish(start(server, run_dir, "--resume")) == 0
    assert_same_run(run_dir, straight)


# --- two processes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_many(server, count: int, run_dir: Path, *arguments: object, **environment: object) -> list:
    port = free_port()
    return [
        start(server, run_dir, *arguments, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=count, LOCAL_WORLD_SIZE=count,
              MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **environment)
        for rank in range(count)
    ]  # fmt: skip


def start_two(server, run_dir: Path, *arguments: object, **environment: object) -> list:
    return start_many(server, 2, run_dir, *arguments, **environment)


COMPARED = (
    "--one-stage", "--stages.only.num-steps", 20, "--checkpoints.every-steps", 1, "--checkpoints.keep", 20,
    "--stages.only.optimizer.clip-norm", "None",
)  # fmt: skip


def first_gradients(run_dir: Path) -> dict[str, torch.Tensor]:
    """AdamW's first moment after one step is (1 - beta_1) times the gradient."""
    state = load_checkpoint(run_dir / "checkpoints" / "step-000001")
    return {
        name.removeprefix("exp_avg/"): tensor / (1 - 0.9)
        for name, tensor in state.optimizer.items()
        if name.startswith("exp_avg/")
    }


@pytest.mark.parametrize(("sharding", "accumulation"), [("replicated", 1), ("replicated", 2), ("sharded", 2)])
def test_two_processes_give_the_gradients_and_losses_of_one(server, tmp_path, accumulation, sharding):
    arguments = (*COMPARED, "--stages.only.gradient-accumulation", accumulation)
    settings = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharding == "sharded" else {}
    (tmp_path / "one").mkdir()
    processes = [start(server, tmp_path / "one" / "run", *arguments)]
    processes += start_two(server, tmp_path / "two", *arguments, **settings)
    assert [finish(process) for process in processes] == [0, 0, 0], (tmp_path / "log.txt").read_text()
    one, two = first_gradients(tmp_path / "one" / "run"), first_gradients(tmp_path / "two")
    assert set(one) == set(two) and len(one) == 13
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6
    losses = [[line["loss"] for line in metrics(run)] for run in (tmp_path / "one" / "run", tmp_path / "two")]
    assert len(losses[0]) == len(losses[1]) == 20
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-5
    rates = [line["grad_norm"] for line in metrics(tmp_path / "two")]
    assert rates == pytest.approx([line["grad_norm"] for line in metrics(tmp_path / "one" / "run")], rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [("replicated", "one"), ("sharded", "one"), ("one", "sharded")])
def test_a_run_is_resumed_by_another_number_of_processes(server, straight, tmp_path, before, after):
    """Both stages, clipping and the weight average included; the sums of two processes differ in the last bits."""

    def run(how: str, *arguments: object) -> list[int]:
        settings = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if how == "sharded" else {}
        starter = start_two if how != "one" else lambda *given, **_: [start(*given)]
        processes = starter(server, tmp_path / "run", *arguments, **settings)
        return [finish(process) for process in processes]

    def log() -> str:
        return (tmp_path / "log.txt").read_text()

    # stopped in the second stage, where there is an average
    assert set(run(before, "--stop-at", 14)) == {0}, log()
    assert latest_checkpoint(tmp_path / "run").name != "step-000020"
    assert set(run(after, "--resume")) == {0}, log()
    weights, expected = final_weights(tmp_path / "run"), final_weights(straight)
    assert set(weights) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)
    sessions = json.loads((tmp_path / "run" / "environment.json").read_text())["sessions"]
    assert [session["is_sharded"] for session in sessions] == [before == "sharded", after == "sharded"]
    assert [session["hardware"]["processes"] for session in sessions] == [2 - (before == "one"), 2 - (after == "one")]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicated", "sharded"])
def test_saved_by_eight_processes_and_resumed_by_two_the_losses_go_on(server, tmp_path, sharding):
    """The same global batch all along: losses and weights are those of one process that was never stopped."""
    sizes = ("--stages.first.batch-size", 16, "--stages.second.batch-size", 16)
    straight = tmp_path / "straight"
    assert finish(start(server, straight, *sizes)) == 0, (tmp_path / "log.txt").read_text()
    settings = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharding == "sharded" else {}
    eight = start_many(server, 8, tmp_path / "run", *sizes, "--stop-at", 10, **settings)
    assert {finish(process) for process in eight} == {0}, (tmp_path / "log.txt").read_text()
    stopped = metrics(tmp_path / "run")[-1]["step"]
    assert 4 <= stopped < 20
    two = start_two(server, tmp_path / "run", *sizes, "--resume", **settings)
    assert {finish(process) for process in two} == {0}, (tmp_path / "log.txt").read_text()
    losses, expected = ([line["loss"] for line in metrics(run)] for run in (tmp_path / "run", straight))
    assert len(losses) == len(expected) == 20
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-5)
    weights = final_weights(tmp_path / "run")
    for name, tensor in final_weights(straight).items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)
    sessions = json.loads((tmp_path / "run" / "environment.json").read_text())["sessions"]
    assert [session["hardware"]["processes"] for session in sessions] == [8, 2]


def test_adapters_learn_the_same_cut_up_over_two_processes(server, tmp_path):
    """LoRA under FSDP2: gradients of the adapters and losses of one process, the layers below untouched."""
    pytest.importorskip("peft")
    arguments = (*COMPARED, "--stages.only.num-steps", 4, "--model.rank", 2)
    (tmp_path / "one").mkdir()
    settings = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    processes = [start(server, tmp_path / "one" / "run", *arguments)]
    processes += start_two(server, tmp_path / "two", *arguments, **settings)
    assert [finish(process) for process in processes] == [0, 0, 0], (tmp_path / "log.txt").read_text()
    one, two = first_gradients(tmp_path / "one" / "run"), first_gradients(tmp_path / "two")
    assert set(one) == set(two) and {"trunk.0.lora_A.default.weight", "trunk.3.lora_B.default.weight"} < set(one)
    assert not [name for name in one if name.startswith("trunk.") and "lora" not in name]
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6
    losses = [[line["loss"] for line in metrics(run)] for run in (tmp_path / "one" / "run", tmp_path / "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    first, last = (load_file(tmp_path / "two" / "checkpoints" / f"step-00000{step}" / "model" / "model.safetensors")
                   for step in (1, 4))  # fmt: skip
    assert torch.equal(first["trunk.0.base_layer.weight"], last["trunk.0.base_layer.weight"])
    assert not torch.equal(first["trunk.0.lora_B.default.weight"], last["trunk.0.lora_B.default.weight"])


@pytest.mark.parametrize("sharding", ["replicated", "sharded"])
def test_what_is_not_finite_in_one_process_stops_both_and_is_named(server, tmp_path, sharding):
    settings = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharding == "sharded" else {}
    processes = start_two(server, tmp_path / "run", "--one-stage", "--overflow-at", 5, **settings)
    assert [finish(process) for process in processes] == [1, 1]
    log = (tmp_path / "log.txt").read_text()
    # the first call of a step may be made again while the processes agree on the names of the losses
    assert (
        log.count("NonFiniteLoss: step 4 (stage 'only') has a loss or gradient that is not finite: in process 1, ") == 2
    )
    assert "the module trunk.1 (GELU) gives non-finite values from finite inputs" in log
    saved = [path.name for path in (tmp_path / "run" / "nonfinite-step-000004").iterdir()]
    assert sorted(saved) == ["process-0-batch-0", "process-1-batch-0"]
    assert latest_checkpoint(tmp_path / "run").name == "step-000003"


def test_accelerate_launch_trains_with_two_processes(tmp_path):
    # --multi_gpu is accelerate's name for several processes on one machine; without a GPU they use gloo.
    options = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options, f"--main_process_port={free_port()}"]
    command = [*launch, "toy_task.py", str(tmp_path / "run"), "--one-stage", "--stages.only.num-steps", "3"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Done: 3 steps") == 1 and done.stdout.count('"step": 3') == 2
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
