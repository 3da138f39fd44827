"""Training state on disk: written whole or not at all, safetensors and JSON only.

    checkpoints/step-000123/
      model/                       the model folder, loadable alone; with the averaged weights where there is an average
      state/weights.safetensors    every part that some stage trains, as the optimizer sees it
      state/optimizer.safetensors  moments of the running stage
      state/ema.safetensors        averaged weights of the running stage, where there is an average
      state/companion.safetensors  what the objectives of the running stage keep, where they keep anything
      state/trainer.json           place in the run and in the data, recipe, versions, and the size of every file

A checkpoint is written to a temporary folder, flushed to disk and renamed, so a folder called ``step-...`` is complete.
Torch's random generators are seeded anew at every step, so there is no random state to keep.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diptych.train.environment import versions

FORMAT_VERSION = 1
"""Of the training state; a newer one is refused."""
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")

_STEP_NAME = re.compile(r"step-(\d{6,})")
_TRAINER = "state/trainer.json"
_TENSORS = ("weights", "optimizer", "ema", "companion")


class OutOfSpace(OSError):
    """The disk is full; what was saved before is untouched."""


@dataclass(kw_only=True)
class TrainingState:
    """Everything that decides how a run goes on.

    Attributes:
        stage: name of the running stage, or of the last finished one.
        stage_step: optimizer steps done in it.
        step: optimizer steps done in the whole run.
        seconds: the run's time so far.
        data: state of the data stream of every process.
        recipe: the recipe as plain JSON values.
        frozen: fingerprint of each part that no stage trains and that therefore is not saved.
        weights: parameters and buffers by name.
        optimizer: see ``optimizer.optimizer_tensors``.
        ema: averaged weights by name; empty without an average.
        companion: see ``task.Companion``.
        ema_updates: updates the average has had.
    """

    stage: str
    stage_step: int
    step: int
    seconds: float
    data: list[dict[str, Any]]
    recipe: dict[str, Any]
    frozen: dict[str, str]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    ema_updates: int = 0
    companion: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, state: TrainingState, save_model_folder: Callable[[Path], None], keep: int = 2
) -> Path:
    """Writes ``folder/step-NNNNNN``, then deletes all but the ``keep`` latest checkpoints.

    Args:
        folder: the run's ``checkpoints``.
        save_model_folder: writes the model folder to the path it is given.

    Raises:
        OutOfSpace: the disk is full.
        OSError: the folder cannot be written.
    """
    target = folder / f"step-{state.step:06d}"
    temporary = folder / f".unfinished-{target.name}"
    with _told_in_full(folder, target):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        try:
            (temporary / "state").mkdir(parents=True)
            save_model_folder(temporary / "model")
            _write_state(temporary, state)
            _flush(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if target.exists():  # the same step of a run that was resumed before it
            os.replace(target, folder / f".deleted-{target.name}")
        os.replace(temporary, target)
        _fsync(folder)
        for old in checkpoints(folder)[:-keep]:
            os.replace(old, folder / f".deleted-{old.name}")  # so that a kill leaves no half of it under its name
        remove_leftovers(folder)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _STEP_NAME.fullmatch(path.name) and (path / _TRAINER).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run; half-written ones do not count."""
    found = checkpoints(run_dir / "checkpoints")
    return found[-1] if found else None


def remove_leftovers(folder: Path) -> None:
    """Deletes what a killed run left behind: unfinished checkpoints and those that were being deleted."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith((".unfinished-", ".deleted-")):
                shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(path: Path) -> TrainingState:
    """The training state in a checkpoint folder, after checking that every file of it is there in full.

    Raises:
        FileNotFoundError: there is no checkpoint, or a file of it is missing; the message names it.
        ValueError: a pickle file, a truncated file (named), or a newer format version.
    """
    refuse_pickle(path)
    if not (path / _TRAINER).is_file():
        raise FileNotFoundError(f"{path} is no complete checkpoint: {_TRAINER} is missing.{_other_checkpoint(path)}")
    try:
        trainer = json.loads((path / _TRAINER).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / _TRAINER} is damaged ({error}).{_other_checkpoint(path)}") from None
    version = trainer.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        writer = trainer.get("versions", {}).get("diptych", "of a newer version")
        raise ValueError(
            f"{path} has format version {version}, but this diptych reads up to {FORMAT_VERSION}: it was written by "
            f"diptych {writer}. Upgrade with pip install -U diptych."
        )
    _check_files(path, trainer["files"])
    tensors = {name: _load_tensors(path, name) for name in _TENSORS}
    return TrainingState(
        stage=trainer["stage"],
        stage_step=trainer["stage_step"],
        step=trainer["step"],
        seconds=trainer["seconds"],
        data=trainer["data"],
        recipe=trainer["recipe"],
        frozen=trainer["frozen"],
        ema_updates=trainer["ema_updates"],
        **tensors,
    )


def refuse_pickle(folder: Path) -> None:
    """Raises ``ValueError`` if ``folder`` is, or holds, a pickled checkpoint: unpickling can run any code in it."""
    files = [folder] if folder.is_file() else sorted(folder.rglob("*")) if folder.is_dir() else []
    for file in files:
        if file.suffix in PICKLE_SUFFIXES:
            raise ValueError(
                f"{file} is a pickle file, which can run code when it is loaded; training state is read from "
                "safetensors and JSON only. If you trust it, convert it once: "
                "safetensors.torch.save_file(torch.load(file, weights_only=True), ...)."
            )


def _write_state(folder: Path, state: TrainingState) -> None:
    for name in _TENSORS:
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in getattr(state, name).items()}
        if tensors or name == "weights":
            save_file(tensors, folder / "state" / f"{name}.safetensors")
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    trainer = {
        "format_version": FORMAT_VERSION,
        "stage": state.stage,
        "stage_step": state.stage_step,
        "step": state.step,
        "seconds": state.seconds,
        "ema_updates": state.ema_updates,
        "data": state.data,
        "recipe": state.recipe,
        "frozen": state.frozen,
        "versions": versions(),
        "files": files,
    }
    text = json.dumps(trainer, indent=1, ensure_ascii=False)
    (folder / _TRAINER).write_text(text + "\n", encoding="utf-8")


def _check_files(path: Path, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        file = path / name
        if not file.is_file():
            raise FileNotFoundError(f"the checkpoint {path} lacks {name}.{_other_checkpoint(path)}")
        if file.stat().st_size != size:
            raise ValueError(
                f"{file} is damaged: it has {file.stat().st_size} bytes, {size} were written.{_other_checkpoint(path)}"
            )


def _other_checkpoint(path: Path) -> str:
    """The way out of a damaged checkpoint: the latest other one."""
    others = [other.name for other in checkpoints(path.parent) if other != path]
    if others:
        return f" Delete {path.name} to resume from {others[-1]}."
    return " There is no other checkpoint to resume from; start the run again."


def _load_tensors(path: Path, name: str) -> dict[str, Tensor]:
    file = path / "state" / f"{name}.safetensors"
    if not file.exists():
        return {}
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}).{_other_checkpoint(path)}") from None


def is_out_of_space(error: BaseException) -> bool:
    """Whether an error of Python or of safetensors (which has no errno) means that the disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, SafetensorError) and any(f"os error {code})" in str(error) for code in codes)


@contextmanager
def _told_in_full(folder: Path, target: Path) -> Iterator[None]:
    """Turns a failure to write into words: what failed, what is left, what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        left = checkpoints(folder)
        good = f"The last good checkpoint is {left[-1]}." if left else "There is no earlier checkpoint."
        if is_out_of_space(error):
            free = shutil.disk_usage(folder).free / 2**20
            raise OutOfSpace(
                errno.ENOSPC,
                f"no space left to write {target.name} ({free:.0f} MiB free): free some, or keep fewer checkpoints "
                f"(--checkpoints.keep). {good} Continue with `diptych resume {folder.parent}`",
                str(folder),
            ) from error
        raise OSError(f"could not write the checkpoint {target}: {error}. {good}") from error


def _flush(folder: Path) -> None:
    """Brings all files and folders to the disk, so that a rename never gets ahead of what it names."""
    for path in sorted(folder.rglob("*")):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
