"""What an evaluation on the built-in world looks like in a report: drawings, answers and edits, evenly picked.

Items are taken at equal distances from the whole list, which is ordered by category, and never by how well they went.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from diptych.evals.report_data import Answer, Drawing, Edit, Gallery
from diptych.evals.scenes import Sample

T = TypeVar("T")


def drawing_gallery(samples: Sequence[Sample], title: str, limit: int = 18) -> tuple[Gallery, ...]:
    """Pictures that a model drew from prompts; none if it drew none."""
    chosen = evenly(_of(samples, "geneval"), limit)
    if not chosen:
        return ()
    drawings = tuple(
        Drawing(image=sample.drawn, prompt=sample.request, is_right=sample.correct, detail=sample.reason)
        for sample in chosen
        if sample.drawn is not None
    )
    return (Gallery(title=title, drawings=drawings, note="Held-out compositions at equal distances, not selected."),)


def shown_answers(samples: Sequence[Sample], system: str = "", limit: int = 12) -> tuple[Answer, ...]:
    """Questions about pictures with what the model answered."""
    answers = []
    for sample in evenly(_of(samples, "questions"), limit):
        assert isinstance(sample.expected, str)
        answers.append(
            Answer(
                image=sample.images[0],
                question=sample.request,
                answer=sample.answer,
                expected=sample.expected,
                is_right=sample.correct,
                system=system,
            )
        )
    return tuple(answers)


def shown_edits(samples: Sequence[Sample], system: str = "", limit: int = 8) -> tuple[Edit, ...]:
    """Pictures that were to be changed: source, result and the exact target."""
    edits = []
    for sample in evenly(_of(samples, "editing"), limit):
        assert sample.drawn is not None and isinstance(sample.expected, np.ndarray)
        edits.append(
            Edit(
                source=sample.images[0],
                instruction=sample.request,
                result=sample.drawn,
                target=sample.expected,
                is_right=sample.correct,
                detail=sample.reason,
                system=system,
            )
        )
    return tuple(edits)


def evenly(items: Sequence[T], limit: int) -> list[T]:
    """At most ``limit`` items at equal distances, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    if limit == 1:
        return [items[0]]
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]


def _of(samples: Sequence[Sample], benchmark: str) -> list[Sample]:
    return [sample for sample in samples if sample.benchmark == benchmark]
