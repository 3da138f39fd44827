"""What a report shows of an evaluation folder: the outputs of some samples beside their verdicts, evenly picked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diptych.data.example import ImageIn, Text, load_pixels
from diptych.evals.manifest import EvaluationFolder, SampleRow
from diptych.evals.protocol import Failure, Request
from diptych.evals.scenes import Sample
from diptych.evals.scenes_report import evenly
from diptych.evals.score import TaskResult
from diptych.evals.task import Task, Unit
from diptych.evals.tasks.doundo import DoUndo
from diptych.evals.tasks.geneval import GenEval
from diptych.evals.tasks.gsi import SpatialCompliance
from diptych.evals.tasks.scenes import Editing, Questions
from diptych.scenes.doundo import score_step
from diptych.scenes.draw import draw

LIMIT = 18


def shown_samples(
    folder: EvaluationFolder, tasks: Sequence[tuple[Task, Mapping[str, str], TaskResult]]
) -> list[Sample]:
    """Drawings, answers and edits with their verdicts.

    Args:
        tasks: each with the keys of its samples and its result.
    """
    rows = folder.rows()
    samples: list[Sample] = []
    for task, keys, result in tasks:
        if isinstance(task, GenEval | Questions | Editing | SpatialCompliance):
            requests = {request.id: request for request in task.requests()}
            for unit in evenly(result.units, LIMIT):
                row = rows.get(keys.get(unit.id, ""))
                if row is not None:
                    samples += _sample(folder, task, requests[unit.id], row, unit)
        elif isinstance(task, DoUndo):
            for unit in evenly(result.units, LIMIT // 2):
                samples += _done_and_undone(folder, task, unit, {name: rows.get(key) for name, key in keys.items()})
    return samples


def _done_and_undone(
    folder: EvaluationFolder, task: DoUndo, unit: Unit, rows: Mapping[str, SampleRow | None]
) -> list[Sample]:
    """An edit, and its undoing from the picture that came out, as far as both can be shown."""
    item = task.items[unit.id]
    shown, samples = draw(item.forward.source, task.image_size), []
    for edit, step in ((item.forward, "do-1"), (item.undo, "undo-1")):
        row = rows.get(f"{unit.id}/{step}")
        output = Failure("missing") if row is None else folder.output(row)
        if not isinstance(output, np.ndarray):
            break
        is_right = score_step(edit, output)[1]
        target = draw(edit.target, task.image_size)
        samples.append(Sample("editing", edit.instruction, (shown,), output, "", target, is_right, ""))
        shown = output
    return samples


def _sample(
    folder: EvaluationFolder,
    task: GenEval | Questions | Editing | SpatialCompliance,
    request: Request,
    row: SampleRow,
    unit: Unit,
) -> list[Sample]:
    """One sample, or none where its output cannot be shown."""
    output = folder.output(row)
    if isinstance(output, Failure | tuple):
        return []
    told = " ".join(part.text for part in request.parts if isinstance(part, Text))
    seen = tuple(load_pixels(part.image) for part in request.parts if isinstance(part, ImageIn))
    drawn = output if isinstance(output, np.ndarray) else None
    answer = output if isinstance(output, str) else ""
    name, expected = _expected(task, request)
    is_right = not unit.reason if isinstance(task, SpatialCompliance) else unit.value == 1
    return [Sample(name, told, seen, drawn, answer, expected, is_right, unit.reason)]


def _expected(task: GenEval | Questions | Editing | SpatialCompliance, request: Request) -> tuple[str, Any]:
    """The name that galleries know the task by, and the right answer or picture."""
    if isinstance(task, Questions):
        return "questions", task.items[request.id].question.answer
    if isinstance(task, Editing):
        return "editing", draw(task.items[request.id].edit.target, task.image_size)
    if isinstance(task, SpatialCompliance):
        return "editing", draw(task.items[request.id].spatial.edit.target, task.image_size)
    return "geneval", ""
