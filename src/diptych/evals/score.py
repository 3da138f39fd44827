"""The second phase: from rows and files to verdicts, and from verdicts to a table. Needs no model.

A verdict is kept under the key of its sample, the content that was judged and the judge, so judging goes on where it
was stopped, and the same folder may be judged by several.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from diptych.evals.manifest import EvaluationFolder, append_lines, content_hash, read_lines
from diptych.evals.produce import Planned, plan, resolved
from diptych.evals.protocol import Contender, Failure, Output, Request
from diptych.evals.references import REFERENCE_NAMES, Reference
from diptych.evals.task import Task, Unit, Verdict
from diptych.scenes.scores import ScoreTable

MissingPolicy: TypeAlias = Literal["wrong", "refuse"]
BATCH = 64
"""Samples between two times that verdicts are written; a task may ask for fewer with ``judged_at_once``."""


@dataclass(frozen=True)
class TaskResult:
    """The scores of one task and what they rest on."""

    task: str
    table: ScoreTable
    units: tuple[Unit, ...]
    missing: Mapping[str, str]
    """By id, why there is no verdict."""
    judge: Mapping[str, Any]
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; without the units."""
        return {
            "task": self.task,
            "table": self.table.to_dict(),
            "missing": dict(self.missing),
            "judge": dict(self.judge),
            "num_samples": self.num_samples,
        }


def score(
    folder: EvaluationFolder,
    task: Task,
    keys: Mapping[str, str],
    contender: str,
    *,
    missing: MissingPolicy = "wrong",
    progress: Callable[[str, int, int], None] | None = None,
) -> TaskResult:
    """Judges the samples of a task that have no verdict of this judge yet, and sums up.

    Args:
        keys: of the samples, by id of the request, as the run planned them.
        contender: how the table names it.
        missing: what a sample without a usable output counts as. ``wrong``: 0, and the table says how many and what the
            score is without them; ``refuse``: an error.

    Raises:
        ValueError: samples are missing under ``refuse``, or all of them are.
    """
    judge = task.judge_record()
    verdicts, absent = judge_samples(folder, task, keys, progress)
    if absent and missing == "refuse":
        name, reason = next(iter(absent.items()))
        raise ValueError(
            f"{task.label}: {len(absent)} of {len(keys)} samples are missing, such as {name}: {reason}. "
            "Run the same command again to make them, or count them as wrong with --missing wrong."
        )
    if len(absent) == len(keys):
        raise ValueError(f"{task.label}: all {len(keys)} samples are missing. {next(iter(absent.values()))}")
    all_verdicts = {name: verdicts.get(name) for name in keys}
    table = task.table(all_verdicts, contender)
    details = {**table.details, "judge": judge}
    if absent:
        without = task.table(verdicts, contender).overall.value
        counted_as = getattr(task, "missing_counts_as", "wrong")
        details["missing"] = {"count": len(absent), "counted_as": counted_as, "score_without_them": without}
    return TaskResult(
        task.name, replace(table, details=details), tuple(task.units(all_verdicts)), absent, judge, len(keys)
    )


def judge_samples(
    folder: EvaluationFolder,
    task: Task,
    keys: Mapping[str, str],
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[dict[str, Verdict], dict[str, str]]:
    """Verdicts, and reasons for those that there are none of, both by id; new verdicts are left in the folder."""
    rows, reasons = folder.rows(), folder.reasons()
    judged_by = content_hash([task.name, task.version, task.judge_record()])[:16]
    file = folder.path / "verdicts" / f"{task.name}-{judged_by}.jsonl"
    known = {(record["key"], record["sha256"]): record["verdict"] for record in read_lines(file)}
    requests = {request.id: request for request in task.requests()}
    verdicts: dict[str, Verdict] = {}
    absent: dict[str, str] = {}
    todo: list[tuple[Request, Output]] = []
    names = [name for name in keys if name in requests]
    batch = min(BATCH, getattr(task, "judged_at_once", BATCH))
    absent.update({name: "the task does not ask for it any more" for name in keys if name not in requests})
    for place, name in enumerate(names):
        row = rows.get(keys[name])
        if row is None:
            absent[name] = reasons.get(keys[name], "it was not made")
        elif (verdict := known.get((keys[name], row.sha256))) is not None and folder.is_whole(row):
            verdicts[name] = verdict
        elif isinstance(output := folder.output(row), Failure):
            absent[name] = output.reason
        else:
            todo.append((requests[name], output))
        if todo and (len(todo) >= batch or place == len(names) - 1):
            new = task.judge([request for request, _ in todo], [output for _, output in todo])
            records = []
            for (request, _), verdict in zip(todo, new, strict=True):
                if isinstance(verdict, Failure):
                    absent[request.id] = verdict.reason
                    continue
                key = keys[request.id]
                records.append({"key": key, "id": request.id, "sha256": rows[key].sha256, "verdict": verdict})
                verdicts[request.id] = verdict
            append_lines(file, records)
            todo = []
        if progress is not None:
            progress(task.label, place + 1, len(names))
    return verdicts, absent


def reference_table(task: Task, contender: Contender, planned: Sequence[Planned]) -> ScoreTable:
    """A reference of a task by the same way as a model, without files; what builds on others is given what they led to.

    Raises:
        ValueError: the reference failed to answer a request.
    """
    outputs: dict[str, Output] = {}
    for item in planned:
        request = resolved(item.request, outputs.__getitem__)
        if isinstance(request, Request):
            method = contender.write if request.kind == "text" else contender.draw
            outputs[request.id] = method([request])[0]
        else:
            outputs[item.request.id] = request
    failed = {name: output.reason for name, output in outputs.items() if isinstance(output, Failure)}
    if failed:
        name, reason = next(iter(failed.items()))
        raise ValueError(f"{task.label}: {contender.name} failed at {len(failed)} requests, such as {name}: {reason}.")
    requests = [item.request for item in planned]
    verdicts = task.judge(requests, [outputs[request.id] for request in requests])
    named = {
        request.id: None if isinstance(verdict, Failure) else verdict
        for request, verdict in zip(requests, verdicts, strict=True)
    }
    return task.table(named, contender.name)


def reference_tables(task: Task, image_size: tuple[int, int]) -> list[ScoreTable]:
    """All references of a task by the same way as a model.

    Args:
        image_size: (height, width) of the pictures that they draw.
    """
    contenders = [Reference(name, task, image_size) for name in REFERENCE_NAMES]
    return [reference_table(task, contender, plan(task, contender)) for contender in contenders]
