"""A whole evaluation: plan what several tasks ask of a contender, produce it, judge it.

``run.json`` holds the plan, so judging needs neither the model nor the settings it was asked with.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from diptych.evals.json_lines import prompt_files
from diptych.evals.manifest import EvaluationFolder, append_lines, content_hash, write_whole
from diptych.evals.produce import Planned, Progress, batches, missing, plan
from diptych.evals.protocol import Contender
from diptych.evals.score import MissingPolicy, TaskResult, judge_samples, score
from diptych.evals.task import Task
from diptych.evals.tasks import Judge, TaskOptions, build_task, task_entry
from diptych.scenes.scores import ScoreTable

OpenContender = Callable[[Task], Contender]
"""The contender for a task: the same for all, except for references, which know the answers of one."""

_TIMED = 8
"""Samples that an estimate is made from."""


@dataclass(frozen=True)
class Asked:
    """A task as a user asked for it."""

    name: str
    options: TaskOptions

    def build(self, judge: Judge | None = None) -> Task:
        """
        Raises:
            ValueError: no such task, or one of its files is wrong.
        """
        return build_task(self.name, self.options, judge)


@dataclass(frozen=True)
class PlannedTask:
    """A task with the samples that it wants of a contender."""

    asked: Asked
    task: Task
    planned: Sequence[Planned]
    contender: Contender


@dataclass(frozen=True)
class Run:
    """What is to be done."""

    tasks: tuple[PlannedTask, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Label of each task that the contender cannot do, with the reason."""


def plan_run(
    asked: Sequence[Asked], open_contender: OpenContender, given: Mapping[str, Mapping[str, Any]] | None = None
) -> Run:
    """Plans every task that the contender has the capabilities for; the others are skipped and named.

    Args:
        given: settings by kind of request, which go before those of the tasks.

    Raises:
        ValueError: nothing is left, two tasks have one label, or a plan cannot be carried out.
    """
    planned: list[PlannedTask] = []
    skipped: dict[str, str] = {}
    for one in asked:
        task = one.build()
        contender = open_contender(task)
        lacking = [name for name in task.needs if name not in contender.capabilities]
        if lacking:
            skipped[task.label] = (
                f"{task.name} needs a model that can do {' and '.join(lacking)}; "
                f"{contender.name} can do {', '.join(contender.capabilities)}"
            )
            continue
        if task.label in {other.task.label for other in planned}:
            raise ValueError(f"two tasks are called {task.label!r}. Ask for each of them once.")
        planned.append(PlannedTask(one, task, plan(task, contender, given), contender))
    if not planned:
        raise ValueError(f"there is nothing to measure: {'; '.join(skipped.values()) or 'no task was asked for'}.")
    return Run(tuple(planned), skipped)


def write_plan(folder: EvaluationFolder, run: Run, about: Mapping[str, Any]) -> None:
    """Writes ``run.json``.

    Args:
        about: JSON-able facts about the evaluation: model, versions, command.
    """
    contender = run.tasks[0].contender
    folder.write_run(
        {
            "contender": {
                "name": contender.name,
                "capabilities": list(contender.capabilities),
                "identity": contender.identity(),
                "fingerprint": content_hash(contender.identity())[:16],
            },
            "about": dict(about),
            "skipped": dict(run.skipped),
            "tasks": [
                {
                    "name": one.asked.name,
                    "label": one.task.label,
                    "version": one.task.version,
                    "options": _kept_files(folder, one.asked.options).to_dict(),
                    "config": one.task.config(),
                    "settings": _settings(one.planned),
                    "keys": {item.request.id: item.key for item in one.planned},
                }
                for one in run.tasks
            ],
        }
    )


def _kept_files(folder: EvaluationFolder, options: TaskOptions) -> TaskOptions:
    """The options with copies of their files in the folder, so that it can be judged where the files are not."""
    kept = {}
    for name in ("prompts", "rewritten"):
        if given := getattr(options, name):
            source = Path(given).resolve() if Path(given).is_dir() else Path(given)
            target = folder.path / "inputs" / source.name
            if source.is_dir():
                for file in prompt_files(source):
                    _copy(file, target / file.name)
            else:
                _copy(source, target)
            kept[name] = f"inputs/{target.name}"
    return replace(options, **kept)  # type: ignore[arg-type]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)


def planned_before(folder: EvaluationFolder, entry: Mapping[str, Any]) -> Asked:
    """A task of ``run.json`` as it was asked for."""
    options = TaskOptions.from_dict(entry["options"])
    paths = {name: str(folder.path / value) for name in ("prompts", "rewritten") if (value := getattr(options, name))}
    return Asked(entry["name"], replace(options, **paths))  # type: ignore[arg-type]


def _settings(planned: Sequence[Planned]) -> dict[str, Any]:
    """Settings by kind of request, of the first of each kind."""
    found: dict[str, Any] = {}
    for item in planned:
        found.setdefault(item.request.kind, dict(item.request.settings))
    return found


@dataclass(frozen=True)
class Outlook:
    """What a task would take."""

    label: str
    num_samples: int
    num_missing: int
    seconds: float | None
    """None where nothing could be timed."""


def outlook(
    folder: EvaluationFolder, run: Run, batch_size: int = 64, processes: int = 1, time_it: bool = True
) -> list[Outlook]:
    """How many samples are there and are to be made, and an estimate from making a few of them for nothing."""
    rows = folder.rows()
    found = []
    for one in run.tasks:
        todo = missing(folder, one.planned, rows)
        seconds = _estimate(one, todo, batch_size) / processes if todo and time_it else None if todo else 0.0
        found.append(Outlook(one.task.label, len(one.planned), len(todo), seconds))
    return found


def _estimate(one: PlannedTask, todo: Sequence[Planned], batch_size: int) -> float:
    """Seconds, from one small batch of each kind; what builds on others counts as the rest of its kind."""
    total = 0.0
    for kind in dict.fromkeys(item.request.kind for item in todo):
        own = [item for item in todo if item.request.kind == kind]
        free = [item for item in own if not item.builds_on]
        if not free:
            continue
        batch = next(batches(free, min(batch_size, _TIMED)))
        method = {"image": "draw", "text": "write", "log_likelihood": "log_likelihood"}[kind]
        started = time.perf_counter()
        getattr(one.contender, method)([item.request for item in batch])
        total += (time.perf_counter() - started) / len(batch) * len(own)
    return total


def score_run(
    folder: EvaluationFolder,
    *,
    judge: Judge | None = None,
    missing: MissingPolicy = "wrong",
    progress: Progress | None = None,
) -> tuple[list[TaskResult], list[ScoreTable], dict[str, str]]:
    """Judges what a folder holds: results, the references' tables, and tasks that cannot be judged, with the reason.

    Raises:
        FileNotFoundError: the folder holds no evaluation.
        ValueError: its tasks have changed since, or no sample of one is there.
    """
    run = folder.read_run()
    results: list[TaskResult] = []
    references: list[ScoreTable] = []
    unjudged: dict[str, str] = {}
    for entry in run["tasks"]:
        task = planned_before(folder, entry).build(judge)
        _check_unchanged(folder, task, entry)
        if reason := task.unready():
            unjudged[task.label] = reason
            continue
        result = score(folder, task, entry["keys"], run["contender"]["name"], missing=missing, progress=progress)
        results.append(result)
        references += [table for table in reference_rows(folder, task) if table.contender != run["contender"]["name"]]
        write_units(folder, result)
    return results, references, unjudged


def judged_by_rules(entry: Mapping[str, Any]) -> bool:
    """Whether a task of ``run.json`` is of the built-in world, whose rules need no judge that could be overburdened."""
    return not entry["name"].startswith("lmms:") and task_entry(entry["name"]).has_splits


def judge_share(
    folder: EvaluationFolder,
    entry: Mapping[str, Any],
    keys: Mapping[str, str],
    with_references: bool,
    progress: Progress | None = None,
) -> None:
    """Judges some samples of a task of ``run.json`` by its own rules, and leaves the verdicts in the folder.

    Args:
        keys: of the samples, by id of the request.
        with_references: also the rows that the task is read against.

    Raises:
        ValueError: the task has changed since.
    """
    task = planned_before(folder, entry).build()
    _check_unchanged(folder, task, entry)
    if not task.unready():
        judge_samples(folder, task, keys, progress)
        if with_references:
            reference_rows(folder, task)


def reference_rows(folder: EvaluationFolder, task: Task) -> list[ScoreTable]:
    """The references of a task, from the folder where they have been measured before."""
    file = folder.path / "references" / f"{file_name(task.label)}.json"
    key = content_hash([task.name, task.label, task.version, task.config(), task.judge_record()])
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if kept.get("key") == key:
        return [ScoreTable.from_dict(entry) for entry in kept["tables"]]
    tables = task.references()
    if tables:
        content = {"key": key, "tables": [table.to_dict() for table in tables]}
        write_whole(file, json.dumps(content, ensure_ascii=False).encode())
    return tables


def _check_unchanged(folder: EvaluationFolder, task: Task, entry: Mapping[str, Any]) -> None:
    if task.version != entry["version"] or content_hash(task.config()) != content_hash(entry["config"]):
        raise ValueError(
            f"{folder.path}: {task.label} was produced as version {entry['version']} with {entry['config']}; here it "
            f"is version {task.version} with {task.config()}. Evaluate again: samples still asked for are kept."
        )


def units_file(folder: EvaluationFolder, label: str) -> Path:
    """Where the units of a task lie."""
    return folder.path / "units" / f"{file_name(label)}.jsonl"


def file_name(label: str) -> str:
    """A label as the name of a file, without a suffix."""
    return "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in label).strip("-")


def write_units(folder: EvaluationFolder, result: TaskResult) -> None:
    """Keeps the units of a task for comparisons; those of an earlier judging are replaced."""
    file = units_file(folder, result.table.benchmark)
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    append_lines(unfinished, [asdict(unit) for unit in result.units])
    unfinished.replace(file)
