"""Work in several processes of this machine: producing, where each opens the contender itself, and judging by rules.

All of them write into the folder of the run, which they share.
"""

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from diptych.evals.harness import Asked, OpenContender, PlannedTask, Run, judge_share, judged_by_rules
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.produce import Progress, missing, plan, produce, shares
from diptych.evals.tasks import TASKS

OpenContenders = Callable[[int], OpenContender]
"""Picklable: loads the model in the process it is called in, of the given number."""

Tell = Callable[..., None]
"""Sends a word and values to the process that dealt the work."""


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
    jobs: list[tuple[Any, ...]] = []
    for rank in range(processes):
        own = [(one.asked, dealt[rank]) for one, (dealt, _) in zip(run.tasks, work, strict=True) if dealt[rank]]
        if own:
            jobs.append((str(folder.path), rank, own, open_contenders, given, batch_size))
    failed = [0]

    def hear(what: str, *values: Any) -> None:
        if what == "failed":
            failed[0] += values[0]
        else:
            _count(counted, progress, *values)

    in_processes(_produce_share, jobs, hear)
    return failed[0]


def judge_in_processes(folder: EvaluationFolder, processes: int, progress: Progress | None = None) -> None:
    """Writes the verdicts and references of all tasks that exact rules judge; ``score_run`` then sums them up.

    Raises:
        FileNotFoundError: the folder holds no evaluation.
        RuntimeError: a process was killed. The verdicts that are there are kept.
    """
    entries = [entry for entry in folder.read_run()["tasks"] if judged_by_rules(entry)]
    counted = {entry["label"]: [0, len(entry["keys"])] for entry in entries}
    jobs = [(str(folder.path), entries, rank, processes) for rank in range(processes)] if entries else []
    in_processes(_judge_share, jobs, lambda _, *values: _count(counted, progress, *values))


def in_processes(
    work: Callable[..., None], jobs: Sequence[tuple[Any, ...]], hear: Callable[..., None], cores: int | None = None
) -> None:
    """Runs ``work(tell, *job)`` for every job, each in a process of its own, until all of them are done.

    Args:
        work: picklable.
        hear: is given what the processes tell, here.
        cores: that they share; all of this process without it.

    Raises:
        RuntimeError: a process was killed.
        Exception: whatever a process raised.
    """
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    children = [
        context.Process(target=_child, args=(work, job, own_modules(), told, os.getpid()), daemon=True) for job in jobs
    ]
    with _threads(max(1, (cores or _num_cores()) // max(len(jobs), 1))):
        for child in children:
            child.start()
    try:
        _listen(children, told, hear)
    finally:
        for child in children:
            if child.is_alive():
                child.terminate()
            child.join()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Processes that are started meanwhile work with so many threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _share(folder: EvaluationFolder, one: PlannedTask, processes: int) -> tuple[list[list[str]], int]:
    """Ids for each process, and how many in all."""
    left = missing(folder, one.planned, folder.rows())
    return shares(left, processes), len(left)


def _count(counted: Mapping[str, list[int]], progress: Progress | None, label: str, number: int) -> None:
    counted[label][0] += number
    if progress is not None:
        progress(label, *counted[label])


def _listen(children: Sequence[Any], told: Any, hear: Callable[..., None]) -> None:
    """Passes on what is told until every process has said that it is done."""
    running = len(children)
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
        if what == "done":
            running -= 1
        else:
            hear(what, *values)


class _Orphaned(Exception):
    """The process that dealt the work is gone."""


def own_modules() -> list[str]:
    """Modules that have added benchmarks, which a new process must import to know them."""
    modules = {entry.build.__module__ for entry in TASKS.values()}
    return sorted(name for name in modules if not name.startswith("diptych."))


def _child(work: Callable[..., None], job: tuple[Any, ...], modules: Sequence[str], told: Any, parent: int) -> None:
    """What a process does, until it is done or alone."""

    def tell(what: str, *values: Any) -> None:
        told.put((what, *values))
        if os.getppid() != parent:
            raise _Orphaned

    try:
        for name in modules:
            import_module(name)
        work(tell, *job)
        told.put(("done",))
    except (_Orphaned, KeyboardInterrupt):
        return
    except Exception as error:
        told.put(("error", error))


def _progress(tell: Tell) -> Progress:
    """Progress of a part of a task as what has been done since it was last told."""
    seen: dict[str, int] = {}

    def report(label: str, done: int, total: int) -> None:
        tell("made", label, done - seen.get(label, 0))
        seen[label] = done

    return report


def _produce_share(
    tell: Tell,
    path: str,
    rank: int,
    jobs: Sequence[tuple[Asked, Sequence[str]]],
    open_contenders: OpenContenders,
    given: Mapping[str, Mapping[str, Any]] | None,
    batch_size: int,
) -> None:
    """The samples of one process, task by task."""
    opened = open_contenders(rank)
    for asked, only in jobs:
        task = asked.build()
        contender = opened(task)
        planned = plan(task, contender, given)
        folder, report = EvaluationFolder(path), _progress(tell)
        failed = produce(folder, task, contender, planned, batch_size=batch_size, only=only, progress=report)
        tell("failed", failed)


def _judge_share(tell: Tell, path: str, entries: Sequence[Mapping[str, Any]], rank: int, processes: int) -> None:
    """Every so many-th picture of each task, and the references of every so many-th task; texts alone are not split."""
    for place, entry in enumerate(entries):
        is_own = place % processes == rank
        names = list(entry["keys"])[rank::processes] if "image" in entry["settings"] else list(entry["keys"]) * is_own
        if names:
            keys = {name: entry["keys"][name] for name in names}
            judge_share(EvaluationFolder(path), entry, keys, is_own, _progress(tell))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
