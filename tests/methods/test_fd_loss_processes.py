"""FD-loss through the training loop in two processes: features are gathered, so losses, distances, gradients and
weights are those of one process with the same batches.

The children are forked from a server that has imported everything already, each costs a fraction of a second.
"""

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.process

HERE, ROOT = str(Path(__file__).parent), str(Path(__file__).parents[2])
TIMEOUT = 120
STEPS = 3


def plan_of(kind: str, source: str):
    """Three steps of 8 pictures, each saved, without clipping: ``class`` generator or unified ``model``.

    Args:
        source: the file of real moments, or the folder of the model to start from.
    """
    from diptych.methods.fd_loss import QueueConfig
    from diptych.train.recipe import CheckpointConfig, LoggingConfig

    if kind == "class":
        from test_class_fd_loss import recipe

        plan = recipe(source, num_steps=STEPS, batch_size=8, weights={"pixels": 2.0})
    else:
        from test_fd_loss import recipe

        plan = recipe(source, population=QueueConfig(size=64), num_validation=64)
    (name, stage), *_ = plan.stages.items()
    optimizer = replace(stage.optimizer, clip_norm=None)
    return replace(
        plan,
        stages={name: replace(stage, num_steps=STEPS, batch_size=8, optimizer=optimizer)},
        checkpoints=CheckpointConfig(every_steps=1, keep=STEPS),
        logging=LoggingConfig(every_steps=1, sample_every=-1),
    )


def train_run(kind: str, source: str, folder: str) -> None:
    from diptych.methods.training import build_task
    from diptych.train.loop import train

    torch.set_num_threads(1)
    plan = plan_of(kind, source)
    train(build_task(plan, Path(folder)), plan, Path(folder), device="cpu")


def child(kind: str, source: str, folder: str, environment: dict[str, str]) -> None:
    """One of several processes; its output goes to a file."""
    os.environ.update(environment)
    descriptor = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    train_run(kind, source, folder)


@pytest.fixture(scope="module")
def server():
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, ROOT, *filter(None, [before])])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_fd_loss_processes", "test_fd_loss", "test_class_fd_loss", "torch._dynamo"])
    yield context
    os.environ["PYTHONPATH"] = before
    from multiprocessing import forkserver

    forkserver._forkserver._stop()


def source_of(kind: str, folder: Path) -> str:
    if kind == "class":
        path = folder / "real.npz"
        rows = np.random.RandomState(0).standard_normal((400, 48)) * 0.3
        np.savez(path, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
        return str(path)
    from diptych.recipes import blip3o

    torch.manual_seed(0)
    blip3o.tiny().model.build().eval().save(folder / "model")
    return str(folder / "model")


def lines_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "train"]


def state_of(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "state" / f"{name}.safetensors")


@pytest.mark.parametrize("kind", ["class", "model"])
def test_two_processes_train_as_one(server, tmp_path, kind):
    source = source_of(kind, tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    settings = [{}, *({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))]
    one, two = tmp_path / "one", tmp_path / "two"
    processes = [
        server.Process(target=child, args=(kind, source, str(folder), environment))
        for folder, environment in zip((one, two, two), settings, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
    logs = "".join(path.read_text()[-3000:] for path in tmp_path.glob("*.log"))
    assert [process.exitcode for process in processes] == [0, 0, 0], logs

    lines, expected = lines_of(two), lines_of(one)
    assert len(lines) == len(expected) == STEPS
    for line, other in zip(lines, expected, strict=True):
        for name in ("loss", "fd/pixels", "grad_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-4), name
    first, other = state_of(two, 1, "optimizer"), state_of(one, 1, "optimizer")
    moments = [name for name in other if name.startswith("exp_avg/")]  # 0.1 of the first gradient
    assert set(first) == set(other) and len(moments) > 10
    largest = max(other[name].abs().max().item() for name in moments)
    assert largest > 0 and max((first[name] - other[name]).abs().max().item() for name in moments) < 1e-4 * largest
    for name, value in state_of(one, STEPS, "companion").items():  # the population after three steps
        torch.testing.assert_close(state_of(two, STEPS, "companion")[name], value, rtol=1e-3, atol=1e-5)
    assert json.loads((two / "environment.json").read_text())["sessions"][0]["hardware"]["processes"] == 2
