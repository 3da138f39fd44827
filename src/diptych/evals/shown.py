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
from diptych.evals.tasks.geneval import GenEval
from diptych.evals.tasks.scenes import Editing, Questions
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
        if isinstance(task, GenEval | Questions | Editing):
            requests = {request.id: request for request in task.requests()}
            for unit in evenly(result.units, LIMIT):
                row = rows.get(keys.get(unit.id, ""))
                if row is not None:
                    samples += _sample(folder, task, requests[unit.id], row, unit)
    return samples


def _sample(
    folder: EvaluationFolder, task: GenEval | Questions | Editing, request: Request, row: SampleRow, unit: Unit
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
    return [Sample(name, told, seen, drawn, answer, expected, unit.value == 1, unit.reason)]


def _expected(task: GenEval | Questions | Editing, request: Request) -> tuple[str, Any]:
    """The name that galleries know the task by, and the right answer or picture."""
    if isinstance(task, Questions):
        return "questions", task.items[request.id].question.answer
    if isinstance(task, Editing):
        return "editing", draw(task.items[request.id].edit.target, task.image_size)
    return "geneval", ""
