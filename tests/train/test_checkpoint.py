"""Checkpoints: whole or not at all, what is refused when they are read, and what a full disk leaves behind."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_loop import assert_equal_weights, quiet, stopping_at, weights_of
from toy_task import one_stage, toy_recipe, toy_task

from diptych.train.checkpoint import (
    FORMAT_VERSION,
    OutOfSpace,
    TrainingState,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    refuse_pickle,
    save_checkpoint,
)
from diptych.train.loop import train
from tests.file_size_limit import file_size_limit


def state(step: int = 3, **changes) -> TrainingState:
    torch.manual_seed(step)
    values = {
        "stage": "only",
        "stage_step": step,
        "step": step,
        "seconds": 1.5,
        "data": [{"drawn": {"a": 3}}],
        "recipe": {"name": "x"},
        "frozen": {"encoder": "abc"},
        "weights": {"trunk.weight": torch.randn(4, 3), "trunk.half": torch.randn(5).bfloat16()},
        "optimizer": {"exp_avg/trunk.weight": torch.randn(4, 3), "step/trunk.weight": torch.tensor(3.0)},
    }
    return TrainingState(**{**values, **changes})


def save_toy_model(path: Path) -> None:
    path.mkdir()
    save_file({"w": torch.arange(6.0)}, path / "model.safetensors")
    (path / "diptych.json").write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_equal(tmp_path):
    saved = state(ema={"trunk.weight": torch.ones(4, 3)}, ema_updates=3)
    path = save_checkpoint(tmp_path / "checkpoints", saved, save_toy_model)
    loaded = load_checkpoint(path)
    for field in ("weights", "optimizer", "ema"):
        assert_equal_weights(getattr(saved, field), getattr(loaded, field))
        assert {t.dtype for t in getattr(loaded, field).values()} == {t.dtype for t in getattr(saved, field).values()}
    for field in ("stage", "stage_step", "step", "seconds", "data", "recipe", "frozen", "ema_updates"):
        assert getattr(saved, field) == getattr(loaded, field)
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert {Path(file).suffix for file in files} == {".safetensors", ".json"}
    assert "state/ema.safetensors" in files and "model/model.safetensors" in files


def test_the_latest_checkpoint_is_the_newest_complete_one(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (9, 10, 123456789):
        save_checkpoint(tmp_path / "checkpoints", state(step), save_toy_model, keep=5)
    (tmp_path / "checkpoints" / "step-999999999" / "state").mkdir(parents=True)  # no trainer.json
    (tmp_path / "checkpoints" / ".unfinished-step-999999999").mkdir()
    (tmp_path / "checkpoints" / "step-best").mkdir()
    assert latest_checkpoint(tmp_path).name == "step-123456789"
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == [
        "step-000009",
        "step-000010",
        "step-123456789",
    ]


def test_only_the_latest_are_kept_and_deleted_after_the_new_one_is_complete(tmp_path):
    folder = tmp_path / "checkpoints"
    present = []

    def looking(path: Path) -> None:
        present.append([path.name for path in checkpoints(folder)])
        save_toy_model(path)

    for step in (1, 2, 3, 4):
        save_checkpoint(folder, state(step), looking, keep=2)
    assert present == [[], ["step-000001"], ["step-000001", "step-000002"], ["step-000002", "step-000003"]]
    assert names(folder) == ["step-000003", "step-000004"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, state(3), save_toy_model)
    save_checkpoint(folder, state(3, seconds=9.0), save_toy_model)
    assert names(folder) == ["step-000003"] and load_checkpoint(folder / "step-000003").seconds == 9.0


def test_leftovers_of_a_kill_are_cleared_away(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in (".unfinished-step-000007", ".deleted-step-000001"):
        (folder / name / "state").mkdir(parents=True)
        (folder / name / "state" / "weights.safetensors").write_text("half")
    save_checkpoint(folder, state(3), save_toy_model)
    assert names(folder) == ["step-000003"]


@pytest.mark.parametrize(
    "name", ["state/weights.safetensors", "state/optimizer.safetensors", "model/model.safetensors"]
)
def test_a_missing_or_truncated_file_is_named(tmp_path, name):
    path = save_checkpoint(tmp_path / "checkpoints", state(3), save_toy_model)
    other = save_checkpoint(tmp_path / "checkpoints", state(5), save_toy_model)
    content = (other / name).read_bytes()
    (other / name).write_bytes(content[:-10])
    sizes = f"it has {len(content) - 10} bytes, {len(content)} were written"
    with pytest.raises(ValueError, match=rf"{name} is damaged: {sizes}. Delete step-000005 to resume from step-000003"):
        load_checkpoint(other)
    (other / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"step-000005 lacks {name}. Delete step-000005"):
        load_checkpoint(other)
    shutil.rmtree(other)
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no other checkpoint to resume from; start the run again."):
        load_checkpoint(path)


def test_damage_that_keeps_the_size_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints", state(3), save_toy_model)
    file = path / "state" / "weights.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(ValueError, match=r"weights.safetensors is damaged \("):
        load_checkpoint(path)
    (path / "state" / "trainer.json").write_text('{"format_version": 1, "sta')
    with pytest.raises(ValueError, match=r"trainer.json is damaged"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"is no complete checkpoint: state/trainer.json is missing"):
        load_checkpoint(tmp_path / "nothing")


def test_a_newer_format_is_refused_with_the_version_needed(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints", state(3), save_toy_model)
    file = path / "state" / "trainer.json"
    trainer = json.loads(file.read_text())
    trainer["format_version"], trainer["versions"]["diptych"] = FORMAT_VERSION + 1, "9.0"
    file.write_text(json.dumps(trainer))
    with pytest.raises(
        ValueError, match=r"format version 2, but this diptych reads up to 1: .* by diptych 9.0. Upgrade"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pkl", ".pth", ".ckpt"])
def test_pickle_files_are_refused_with_the_safe_way_out(tmp_path, suffix):
    path = save_checkpoint(tmp_path / "checkpoints", state(3), save_toy_model)
    (path / "state" / f"optimizer{suffix}").write_bytes(b"\x80\x04")
    with pytest.raises(
        ValueError, match=rf"optimizer{suffix} is a pickle file, .*safetensors.torch.save_file\(torch.load"
    ):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="weights_only=True"):
        refuse_pickle(path / "state" / f"optimizer{suffix}")
    refuse_pickle(path / "model")


# --- a full disk


def full(path: Path) -> None:
    """A real ENOSPC from the kernel."""
    path.mkdir()
    with Path("/dev/full").open("wb") as file:
        file.write(b"x")


def test_a_full_disk_says_so_and_leaves_the_last_good_checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    with pytest.raises(OutOfSpace, match=r"There is no earlier checkpoint. Continue with `diptych resume"):
        save_checkpoint(folder, state(1), full)
    good = save_checkpoint(folder, state(3), save_toy_model, keep=1)
    message = r"no space left to write step-000005 \(\d+ MiB free\): .* good checkpoint is .*step-000003. Continue with"
    with pytest.raises(OutOfSpace, match=message):
        save_checkpoint(folder, state(5), full, keep=1)
    assert names(folder) == ["step-000003"] and load_checkpoint(good).step == 3


def test_a_limit_that_strikes_in_the_middle_of_the_tensors(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    save_checkpoint(folder, state(3), save_toy_model)
    large = state(5, weights={"trunk.weight": torch.zeros(200_000)})
    with file_size_limit(100_000), pytest.raises(OutOfSpace, match=r"no space left to write step-000005"):
        save_checkpoint(folder, large, save_toy_model)
    assert names(folder) == ["step-000003"]
    assert save_checkpoint(folder, large, save_toy_model).name == "step-000005"


def test_a_run_on_a_full_disk_can_be_resumed_when_there_is_space(tmp_path):
    recipe = toy_recipe()
    straight = toy_task(recipe)
    train(straight, recipe, tmp_path / "straight", console=quiet())
    task = toy_task(recipe)
    saves = []

    def filling(path: Path) -> None:
        saves.append(1)
        task.save_model_folder(path) if len(saves) < 3 else full(path)

    with pytest.raises(OutOfSpace, match=r"last good checkpoint is .*step-000006"):
        train(toy_task(recipe, task.model, save_model_folder=filling), recipe, tmp_path / "run", console=quiet())
    again = toy_task(recipe)
    assert train(again, recipe, tmp_path / "run", resume=True, console=quiet()).finished
    assert_equal_weights(weights_of(again.model), weights_of(straight.model))


def test_metrics_that_cannot_be_written_say_that_the_disk_is_full(tmp_path):
    recipe = one_stage()
    task = toy_task(recipe)

    def filling(batch, seeds):
        metrics = tmp_path / "run" / "metrics.jsonl"
        if metrics.exists() and not metrics.is_symlink():
            metrics.unlink()
            metrics.symlink_to("/dev/full")
        return task.collate(batch, seeds)

    with pytest.raises(
        OutOfSpace, match=r"no space left to write the run's files: free some. The last good checkpoint is"
    ):
        train(toy_task(recipe, collate=filling), recipe, tmp_path / "run", console=quiet())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        train(toy_task(one_stage()), one_stage(), tmp_path / "run", console=quiet())


def test_a_damaged_checkpoint_stops_the_resumption_before_any_work(tmp_path):
    recipe = toy_recipe()
    train(stopping_at(4, toy_task(recipe)), recipe, tmp_path / "run", console=quiet())
    latest = latest_checkpoint(tmp_path / "run")
    (latest / "state" / "optimizer.safetensors").unlink()
    before = sorted(str(path) for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(
        FileNotFoundError, match=r"lacks state/optimizer.safetensors. Delete step-000004 to resume from"
    ):
        train(toy_task(recipe), recipe, tmp_path / "run", resume=True, console=quiet())
    assert sorted(str(path) for path in (tmp_path / "run").rglob("*")) == before
