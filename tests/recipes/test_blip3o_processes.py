"""BLIP3-o itself, by the command line, in processes of its own: killed and resumed, and two processes against one.

`tests/train/test_processes.py` has the same in the suite with a network of seconds; this takes minutes.
"""

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from diptych.recipes import blip3o
from diptych.train.checkpoint import latest_checkpoint, load_checkpoint
from diptych.train.recipe import CheckpointConfig, EvaluationConfig, LoggingConfig

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
MODULE = "tests.recipes.test_blip3o_processes"
QUIET = LoggingConfig(every_steps=1, sample_every=-1)
TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
TWO += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "diptych"]


def killed():
    """``blip3o:tiny`` with two stages of twelve steps and a checkpoint after every fifth."""
    base = blip3o.tiny()
    stages = {name: replace(stage, num_steps=12, batch_size=8) for name, stage in base.stages.items()}
    checkpoints = CheckpointConfig(every_steps=5)
    return replace(base, stages=stages, checkpoints=checkpoints, evaluation=EvaluationConfig(), logging=QUIET)


def compared():
    """The joint stage of ``blip3o:tiny``: 20 steps, each with a checkpoint, gradients as they are."""
    base = blip3o.tiny()
    joint = base.stages["joint"]
    joint = replace(joint, num_steps=20, optimizer=replace(joint.optimizer, clip_norm=None))
    checkpoints = CheckpointConfig(every_steps=1, keep=20)
    base = replace(base, stages={"joint": joint}, checkpoints=checkpoints, precision="float32")
    return replace(base, evaluation=EvaluationConfig(), logging=QUIET)


def start(*words: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DIPTYCH_CHECK_SHAPES": "0"}
    command = [sys.executable, *map(str, words), "--device", "cpu"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]


def train_lines(run: Path) -> list[dict]:
    if not (run / "metrics.jsonl").exists():
        return []
    whole = [line for line in (run / "metrics.jsonl").read_text().split("\n")[:-1] if line]
    return [line for line in map(json.loads, whole) if line["event"] == "train"]


def weights(run: Path) -> dict:
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    files = sorted((checkpoint / "model").rglob("*.safetensors"))
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def test_killed_at_random_steps_it_ends_with_the_same_weights(tmp_path):
    finish(start("-m", "diptych", "train", f"{MODULE}:killed", "--out", tmp_path / "straight"))
    random.seed(0)
    run, places = tmp_path / "run", []
    for _ in range(5):
        words = ["resume", run] if (run / "recipe.json").exists() else ["train", f"{MODULE}:killed", "--out", run]
        process = start("-m", "diptych", *words)
        before = latest_checkpoint(run) if run.exists() else None
        first = int(before.name.split("-")[1]) if before else 0
        wanted, deadline = first + random.randint(1, 6), time.monotonic() + 600
        while process.poll() is None and time.monotonic() < deadline:
            lines = train_lines(run)
            if lines and lines[-1]["step"] == wanted:
                break
            time.sleep(0.005)
        time.sleep(random.random() * 0.2)
        process.kill()
        process.communicate()
        places.append(train_lines(run)[-1]["step"])
    finish(start("-m", "diptych", "resume", run))
    print(f"killed after steps {places} of 24")
    expected, found = weights(tmp_path / "straight"), weights(run)
    assert expected.keys() == found.keys() and len(expected) > 50
    assert [name for name in expected if not expected[name].equal(found[name])] == []
    losses = [[(line["step"], line["loss"]) for line in train_lines(tmp_path / name)] for name in ("straight", "run")]
    assert losses[0] == losses[1] and len(losses[0]) == 24


@pytest.mark.parametrize("sharding", ["replicated", "sharded"])
def test_two_processes_give_the_gradients_and_losses_of_one(tmp_path, sharding):
    finish(start("-m", "diptych", "train", f"{MODULE}:compared", "--out", tmp_path / "one"))
    launch = TWO if sharding == "replicated" else [*TWO[:2], "--use_fsdp", "--fsdp_version=2", *TWO[3:]]
    finish(start(*launch, "train", f"{MODULE}:compared", "--out", tmp_path / "two"))
    states = [load_checkpoint(tmp_path / run / "checkpoints" / "step-000001").optimizer for run in ("one", "two")]
    # AdamW's first moment after one step is (1 - beta_1) times the gradient.
    one, two = (
        {name: value / (1 - 0.9) for name, value in state.items() if name.startswith("exp_avg/")} for state in states
    )
    assert one.keys() == two.keys() and len(one) > 30
    gradients = max((one[name] - two[name]).abs().max().item() for name in one)
    largest = max(value.abs().max().item() for value in one.values())
    losses = [[line["loss"] for line in train_lines(tmp_path / run)] for run in ("one", "two")]
    assert len(losses[0]) == len(losses[1]) == 20
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    print(f"{sharding}: gradients up to {largest:.1f} differ by at most {gradients:.1e}, losses by {difference:.1e}")
    # The flow loss of an untrained space is about 40; float32 tells its gradients apart to a millionth of the largest.
    assert gradients < 1e-6 * largest and difference < 1e-5
