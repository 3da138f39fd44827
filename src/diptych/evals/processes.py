"""Producing in several processes of this machine. Each opens the contender itself and writes into the same folder."""

import multiprocessing
import os
import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diptych.evals.harness import Asked, OpenContender, PlannedTask, Run
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.produce import Progress, missing, plan, produce, shares

OpenContenders = Callable[[int], OpenContender]
"""Picklable: loads the model in the process it is called in, of the given number."""


def produce_run(folder: EvaluationFolder, run: Run, *, batch_size: int = 64, progress: Progress | None = None) -> int:
    """Everything in this process; how many samples could not be made."""
    return sum(
        produce(folder, one.task, one.contender, one.planned, batch_size=batch_size, progress=progress)
        for one in run.tasks
    )


def produce_in_processes(
    folder: EvaluationFolder,
    run: Run,
    open_contenders: OpenContenders,
    processes: int,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> int:
    """Deals what is missing to ``processes`` processes, which share the cores; how many samples could not be made.

    Raises:
        RuntimeError: a process was killed. The samples that are there are kept.
        Exception: whatever a process raised.
    """
    work = [_share(folder, one, processes) for one in run.tasks]
    counted = {
        one.task.label: [len(one.planned) - left, len(one.planned)]
        for one, (_, left) in zip(run.tasks, work, strict=True)
    }
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(max(1, _num_cores() // processes))
    children = []
    try:
        for rank in range(processes):
            jobs = [(one.asked, dealt[rank]) for one, (dealt, _) in zip(run.tasks, work, strict=True) if dealt[rank]]
            if jobs:
                arguments = (str(folder.path), rank, jobs, open_contenders, given, batch_size, told, os.getpid())
                children.append(context.Process(target=_work, args=arguments, daemon=True))
        for child in children:
            child.start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    try:
        return _listen(children, told, counted, progress)
    finally:
        for child in children:
            if child.is_alive():
                child.terminate()
            child.join()


def _share(folder: EvaluationFolder, one: PlannedTask, processes: int) -> tuple[list[list[str]], int]:
    """Ids for each process, and how many in all."""
    left = missing(folder, one.planned, folder.rows())
    return shares(left, processes), len(left)


def _listen(children: Sequence[Any], told: Any, counted: Mapping[str, list[int]], progress: Progress | None) -> int:
    """Passes progress on until every process has said that it is done; how many samples failed."""
    running, failed = len(children), 0
    while running:
        try:
            what, *values = told.get(timeout=1.0)
        except queue.Empty:
            dead = [child for child in children if child.exitcode not in (None, 0)]
            if dead:
                raise RuntimeError(
                    f"a process ended with code {dead[0].exitcode}. What was made is kept: run the same command again."
                ) from None
            continue
        if what == "error":
            raise values[0]
        if what == "made":
            label, number = values
            counted[label][0] += number
            if progress is not None:
                progress(label, *counted[label])
        else:
            running, failed = running - 1, failed + values[0]
    return failed


class _Orphaned(Exception):
    """The process that dealt the work is gone."""


def _work(
    path: str,
    rank: int,
    jobs: Sequence[tuple[Asked, Sequence[str]]],
    open_contenders: OpenContenders,
    given: Mapping[str, Mapping[str, Any]] | None,
    batch_size: int,
    told: Any,
    parent: int,
) -> None:
    """What a process does: the samples of its share, task by task."""
    try:
        opened = open_contenders(rank)
        failed = 0
        for asked, only in jobs:
            task = asked.build()
            contender = opened(task)
            seen = [0]

            def report(label: str, done: int, total: int, seen: list[int] = seen) -> None:
                told.put(("made", label, done - seen[0]))
                seen[0] = done
                if os.getppid() != parent:
                    raise _Orphaned

            planned = plan(task, contender, given)
            failed += produce(
                EvaluationFolder(path), task, contender, planned, batch_size=batch_size, only=only, progress=report
            )
        told.put(("done", failed))
    except (_Orphaned, KeyboardInterrupt):
        return
    except Exception as error:
        told.put(("error", error))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
