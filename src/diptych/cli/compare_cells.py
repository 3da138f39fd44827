"""Runs the cells of a comparison as processes of their own, so many at a time, and says what became of each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from diptych.cli.main import INTERRUPTED
from diptych.cli.processes import SECONDS_TO_END, num_cores

LOG_FILE = "log.txt"
NUM_LAST_LINES = 3


@dataclass(frozen=True)
class Job:
    """A process to be run: ``python -m diptych.cli.compare_cell WORDS``."""

    name: str
    folder: Path
    words: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs: why each failed one did, and how many were not tried or not finished."""

    failed: Mapping[str, str]
    num_missing: int
    is_stopped: bool


def default_processes(device: str) -> int:
    """The number of GPUs, or 1 on a CPU."""
    import torch

    return max(1, torch.cuda.device_count()) if device == "auto" and torch.cuda.is_available() else 1


def run_jobs(
    jobs: Sequence[Job], count: int, device: str, lock: int, report: Callable[[str], None], at_a_time: int | None = None
) -> Outcome:
    """Runs all jobs, ``count`` at a time; a GPU each where there are GPUs, and the cores shared where not.

    The first Ctrl-C or SIGTERM lets the running jobs save; a second one ends them.

    Args:
        lock: descriptor of the folder's lock, which the processes inherit.
        at_a_time: fewer than ``count``, each with what it would have beside ``count - 1`` others.
    """
    environments = _environments(count, device)[:at_a_time]
    waiting, running = list(jobs), dict[int, tuple[Job, subprocess.Popen[bytes]]]()
    failed: dict[str, str] = {}
    num_missing, stops = 0, 0
    started = time.monotonic()

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stops
        stops += 1
        for _, child in running.values():
            # A terminal sends Ctrl-C to the children itself.
            if stops > 1:
                child.kill()
            elif number == signal.SIGTERM:
                child.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    deadline = 0.0
    try:
        while running or (waiting and not stops):
            for slot, environment in enumerate(environments):
                if slot not in running and waiting and not stops:
                    job = waiting.pop(0)
                    report(f"{job.name}  started")
                    running[slot] = (job, _start(job, environment, lock))
            for slot, (job, child) in list(running.items()):
                code = child.poll()
                if code is None:
                    continue
                del running[slot]
                if code == INTERRUPTED or (stops and code < 0):
                    num_missing += 1
                elif code:
                    failed[job.name] = _reason(job, code)
                    report(f"{job.name}  failed: {failed[job.name]}")
                else:
                    left = len(running) + len(waiting)
                    report(f"{job.name}  done{_time_left(time.monotonic() - started, len(jobs), left)}")
            if stops and not deadline:
                deadline = time.monotonic() + SECONDS_TO_END
            if stops and time.monotonic() > deadline:
                for _, child in running.values():
                    child.kill()
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for _, child in running.values():
            child.kill()
            child.wait()
    return Outcome(failed, num_missing + len(waiting), bool(stops))


def _time_left(seconds: float, total: int, left: int) -> str:
    """How much is done and, where something is left, how long that will take at the pace so far."""
    if not left:
        return ""
    minutes = seconds / (total - left) * left / 60
    about = f", about {minutes:.0f} min left" if minutes >= 1 else ""
    return f"  ({total - left} of {total}{about})"


def _start(job: Job, environment: Mapping[str, str], lock: int) -> "subprocess.Popen[bytes]":
    job.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "diptych.cli.compare_cell", *job.words]
    with (job.folder / LOG_FILE).open("ab") as log:
        return subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=(lock,),
        )  # fmt: skip


def _environments(count: int, device: str) -> list[dict[str, str]]:
    """One for each job that runs at a time."""
    import torch

    num_gpus = torch.cuda.device_count() if device == "auto" and torch.cuda.is_available() else 0
    if num_gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [name for name in visible.split(",") if name] or [str(index) for index in range(num_gpus)]
        return [{"CUDA_VISIBLE_DEVICES": names[slot % len(names)]} for slot in range(count)]
    threads = int(os.environ.get("OMP_NUM_THREADS", num_cores()))
    return [{"OMP_NUM_THREADS": str(max(1, threads // count))} for _ in range(count)]


def _reason(job: Job, code: int) -> str:
    """Exit code or signal, the end of the log, and where all of it is."""
    log = job.folder / LOG_FILE
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}, {log}: {' / '.join(lines[-NUM_LAST_LINES:])}"
