"""The training loop: the stages of a recipe, one after the other, in a run folder that can be resumed at any time."""

import errno
import json
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from rich.console import Console

from diptych.train.checkpoint import (
    OutOfSpace,
    TrainingState,
    is_out_of_space,
    latest_checkpoint,
    load_checkpoint,
    remove_leftovers,
)
from diptych.train.checks import check_batch_sizes, check_task
from diptych.train.distributed import Processes
from diptych.train.environment import describe_environment
from diptych.train.interrupt import Stopped, StopRequest
from diptych.train.manifest import describe_parts, manifest_dict, manifest_table
from diptych.train.progress import RunDisplay
from diptych.train.recipe import Recipe, validate
from diptych.train.run import Run
from diptych.train.run_folder import RunFolder, check_same_recipe, open_run
from diptych.train.serialization import recipe_to_dict
from diptych.train.stage_runner import StageRunner
from diptych.train.task import TrainingTask
from diptych.train.weights import check_fingerprints, fingerprints, frozen_parts, load_trained_weights


@dataclass(frozen=True)
class TrainingResult:
    """How a call of ``train`` ended.

    Attributes:
        finished: False if the run was stopped; ``diptych resume`` continues it.
        checkpoint: the latest one; its ``model`` folder is the model. None if the run was stopped before its first.
        scores: what the task's ``evaluate`` returned, by stage.
    """

    run_dir: Path
    finished: bool
    step: int
    checkpoint: Path | None
    scores: dict[str, dict[str, float]]

    @property
    def model_folder(self) -> Path:
        """The model as it was saved last.

        Raises:
            FileNotFoundError: the run was stopped before anything was saved.
        """
        if self.checkpoint is None:
            raise FileNotFoundError(f"{self.run_dir} has no checkpoint yet. Continue it with `diptych resume`.")
        return self.checkpoint / "model"


def train(
    task: TrainingTask,
    recipe: Recipe[Any],
    run_dir: str | Path,
    *,
    resume: bool = False,
    device: Literal["auto", "cpu"] = "auto",
    sharding: Literal["auto", "none", "full"] = "auto",
    console: Console | None = None,
) -> TrainingResult:
    """Trains ``task.model`` as the recipe says, from the start or from the latest checkpoint in ``run_dir``.

    Started under ``accelerate launch`` or ``torchrun`` it trains on all their processes; ``stage.batch_size`` is that
    of all of them together, and losses and gradients are the same as in one process. With an average of the weights
    (``optimizer.ema_decay``) pictures, scores and the model folder are those of the average, and the next stage starts
    from it.

    Ctrl-C and SIGTERM finish the step, save, and return with ``finished=False``. While a stage is prepared (features
    are encoded once) there is nothing to save, and they act at once.

    Args:
        resume: continue the run in ``run_dir``; from its beginning if it has no checkpoint yet.
        sharding: ``full`` cuts parameters, gradients and optimizer state up over the processes (FSDP2); ``none`` keeps
            a copy in each (DDP); ``auto`` does what ``accelerate launch`` was told (``--use_fsdp``).
        console: where to show progress; standard output by default.

    Raises:
        ValueError: recipe and model do not fit together, or the recipe is not the one the run was started with.
        FileExistsError: ``run_dir`` holds a run and ``resume`` is False.
        NonFiniteLoss: a loss or gradient became nan or infinite.
        OutOfSpace: a checkpoint could not be written.
    """
    run_dir = Path(run_dir)
    with StopRequest() as stop:
        run, state = _set_up(task, recipe, run_dir, resume, device, sharding, console or Console(), stop)
        finished = _told_if_full(run, state)
    for tracker in run.accelerator.trackers:
        tracker.finish()
    checkpoint = latest_checkpoint(run_dir)
    if finished:
        assert checkpoint is not None
        duration = timedelta(seconds=round(run.seconds))
        run.display.show(f"Done: {run.step} steps in {duration}. Model: {checkpoint / 'model'}")
    else:
        cause = stop.requested or "a signal to another process"
        place = f"after step {run.step}" if run.step else "before the first step"
        run.display.show(f"Stopped by {cause} {place}. Continue with: diptych resume {run_dir}")
    return TrainingResult(run_dir, finished, run.step, checkpoint, run.scores)


def _set_up(
    task: TrainingTask,
    recipe: Recipe[Any],
    run_dir: Path,
    resume: bool,
    device: str,
    sharding: str,
    console: Console,
    stop: StopRequest,
) -> tuple[Run, TrainingState | None]:
    """Checks everything, brings back the state to resume from, and opens the run folder."""
    validate(recipe)
    rows = describe_parts(task.model, recipe)
    check_task(task, recipe)
    accelerator = Accelerator(
        cpu=device == "cpu" or not torch.accelerator.is_available(),  # told so, accelerate uses gloo
        mixed_precision="no",  # the precision is the recipe's; the loop sets autocast itself
        log_with=list(recipe.logging.trackers) or None,
        project_dir=str(run_dir),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],  # others wait while one draws and scores
    )
    check_batch_sizes(recipe, accelerator.num_processes)
    trained = set().union(*({row.name for row in rows if row.stages[name]} for name in recipe.stages))
    state = _load_state(run_dir, recipe) if resume else None
    task.model.to(accelerator.device)
    if state is not None:
        load_trained_weights(task.model, trained, state.weights)
        check_fingerprints(task.model, state.frozen)
    run = Run(
        task=task,
        recipe=recipe,
        folder=_open_run(run_dir, recipe, resume, Processes.of(accelerator)),
        accelerator=accelerator,
        display=RunDisplay(console, _steps_after(recipe), accelerator.is_main_process),
        stop=stop,
        trained_parts=trained,
        frozen=fingerprints(task.model, frozen_parts(task.model, trained)),
        is_sharded=accelerator.num_processes > 1 and _wants_sharding(sharding),
        step=0 if state is None else state.step,
        seconds_before=0.0 if state is None else state.seconds,
    )
    if accelerator.is_main_process:
        _write_start(run, manifest_dict(rows, recipe))
    run.display.show(manifest_table(rows, recipe))
    accelerator.wait_for_everyone()
    run.ended = {line["stage"] for line in run.folder.metrics.read() if line["event"] == "stage_end"}
    accelerator.wait_for_everyone()
    return run, state


def _run_stages(run: Run, state: TrainingState | None) -> bool:
    """Runs what is left of the recipe; False if stopped."""
    names = list(run.recipe.stages)
    for name in names[0 if state is None else names.index(state.stage) :]:
        own = state if state is not None and state.stage == name else None
        num_steps = run.recipe.stages[name].num_steps
        if own is None or own.stage_step < num_steps:
            try:
                runner = StageRunner(run, name, own)
            except Stopped:
                return False
            if not runner.run_steps():
                return False
            if run.stop.requested is not None and run.accelerator.num_processes == 1:
                return False
        if name in run.ended:
            continue
        run.task.model.eval()
        with torch.no_grad():
            if run.recipe.logging.sample_every >= 0:
                run.draw_samples(name)
            if run.recipe.evaluation.scorers and (run.recipe.evaluation.every_stage or name == names[-1]):
                run.evaluate(name)
        run.log(name, "stage_end", {"stage_step": num_steps})
    return True


def _told_if_full(run: Run, state: TrainingState | None) -> bool:
    """``_run_stages``, with words for a disk that is full when metrics or samples are written."""
    try:
        return _run_stages(run, state)
    except OSError as error:
        if isinstance(error, OutOfSpace) or not is_out_of_space(error):
            raise
        last = latest_checkpoint(run.folder.path)
        raise OutOfSpace(
            errno.ENOSPC,
            f"no space left to write the run's files: free some. The last good checkpoint is {last or '(none yet)'}. "
            f"Continue with `diptych resume {run.folder.path}`",
            str(error.filename or run.folder.path),
        ) from error


def _open_run(run_dir: Path, recipe: Recipe[Any], resume: bool, processes: Processes) -> RunFolder:
    """The main process opens the folder; where it cannot, all processes raise the same error."""
    problem: OSError | None = None
    if processes.rank == 0:
        try:
            open_run(run_dir, recipe, resume)
        except OSError as error:
            problem = error
    problem = processes.gather(problem)[0]
    if problem is not None:
        raise problem
    return RunFolder(run_dir)


def _load_state(run_dir: Path, recipe: Recipe[Any]) -> TrainingState | None:
    """The state to resume from; None if the run has not come to its first checkpoint."""
    latest = latest_checkpoint(run_dir)
    if latest is not None:
        state = load_checkpoint(latest)
        check_same_recipe(state.recipe, recipe, run_dir)
        return state
    file = run_dir / "recipe.json"
    if file.exists():
        check_same_recipe(json.loads(file.read_text(encoding="utf-8")), recipe, run_dir)
    return None


def _write_start(run: Run, manifest: dict[str, Any]) -> None:
    remove_leftovers(run.folder.checkpoints)
    run.folder.metrics.truncate_after(run.step if run.step else -1)
    run.folder.write_json("manifest.json", manifest)
    environment = describe_environment(run.accelerator.num_processes, run.accelerator.device)
    run.folder.add_session({**environment, "from_step": run.step, "is_sharded": run.is_sharded})
    if run.recipe.logging.trackers:
        config = {"recipe": json.dumps(recipe_to_dict(run.recipe))}
        # wandb would write where the command was typed.
        in_the_run = {"wandb": {"dir": str(run.folder.path), "name": run.folder.path.name}}
        run.accelerator.init_trackers("diptych", config=config, init_kwargs=in_the_run)


def _wants_sharding(sharding: str) -> bool:
    return sharding == "full" or (sharding == "auto" and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true")


def _steps_after(recipe: Recipe[Any]) -> dict[str, int]:
    after, left = {}, recipe.num_steps
    for name, stage in recipe.stages.items():
        left -= stage.num_steps
        after[name] = left
    return after
