"""The benchmarks of the built-in world for any unified model: drawing, question answering, editing, multi-reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.scenes.answers import answer_is_correct
from diptych.scenes.draw import draw
from diptych.scenes.edit_checks import check_edit
from diptych.scenes.scene import Scene
from diptych.scenes.scorers import (
    ScoreTable,
    answer_references,
    composition_references,
    edit_references,
    edit_table,
    score_answers,
    score_compositions,
    twin_references,
    twin_table,
)
from diptych.scenes.split import Split
from diptych.scenes.testsets import composition_items, edit_items, question_items
from diptych.scenes.twin import judge_image, twin_prompts

if TYPE_CHECKING:
    from diptych.unified import UnifiedModel

Progress = Callable[[str, int, int], None]
"""``(benchmark, items done, items in all)``."""

SCENE_TASKS = {
    "geneval": "draw prompts of six categories, judged by the rules of GenEval",
    "questions": "answer questions about pictures",
    "editing": "change pictures as told, and nothing else",
    "multi-reference": "compose pictures from several references",
}
"""Benchmarks by the name ``--on`` takes."""


@dataclass(frozen=True)
class Sample:
    """One item of a benchmark as a person would look at it."""

    benchmark: str
    request: str
    images: tuple[NDArray[np.uint8], ...]
    """What the model was shown."""
    drawn: NDArray[np.uint8] | None
    """What it drew, if it drew."""
    answer: str
    """What it wrote, if it wrote."""
    expected: str | NDArray[np.uint8]
    correct: bool | None = None
    """The verdict; None where the benchmark keeps none by item."""
    reason: str = ""
    """What was wrong."""


@dataclass(frozen=True)
class Evaluation:
    """Score tables, the model's first and then the references, and everything they were computed from."""

    tables: tuple[ScoreTable, ...]
    samples: tuple[Sample, ...] = field(default_factory=tuple)


def evaluate_scenes(
    model: "UnifiedModel",
    tasks: Sequence[str] = tuple(SCENE_TASKS),
    num_per_category: int = 60,
    split: Split = "test",
    seed: int = 0,
    contender: str = "model",
    batch_size: int = 64,
    references: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a model on held-out scenes; the same seed asks every model the same.

    Args:
        tasks: names of ``SCENE_TASKS``.
        num_per_category: prompts, questions or edits of each category.
        references: also score oracle, chance and, for edits, copying the input.

    Raises:
        ValueError: an unknown task, or one the model has no capability for.
    """
    tables: list[ScoreTable] = []
    samples: list[Sample] = []
    for task in tasks:
        if task not in SCENE_TASKS:
            raise ValueError(f"there is no benchmark {task!r}. Known: {', '.join(SCENE_TASKS)}.")
        needed = _NEEDS[task]
        if needed not in model.capabilities:
            raise ValueError(
                f"{task} needs a model that can do {needed}; this one can do {', '.join(model.capabilities)}."
            )
        report = (lambda done, total, name=task: progress(name, done, total)) if progress is not None else _silent
        run = _RUNNERS[task]
        own, seen = run(model, num_per_category, split, seed, contender, batch_size, references, report)
        tables += own
        samples += seen
    return Evaluation(tuple(tables), tuple(samples))


def _silent(done: int, total: int) -> None:
    pass


_NEEDS = {
    "geneval": "text_to_image",
    "questions": "image_to_text",
    "editing": "image_edit",
    "multi-reference": "image_edit",
}

_Result = tuple[list[ScoreTable], list[Sample]]


def _draw_all(
    model: "UnifiedModel", requests: Sequence[list[Any]], seed: int, batch_size: int, report: Callable[[int, int], None]
) -> list[NDArray[np.uint8]]:
    """One picture for every request, at the model's own size; picture i has the seed ``seed + i``."""
    drawn: list[NDArray[np.uint8]] = []
    for start in range(0, len(requests), batch_size):
        chosen = [list(request) for request in requests[start : start + batch_size]]
        images = model.generate_image(chosen, seed=seed + start, batch_size=batch_size)
        drawn += [np.asarray(image) for image in images]
        report(len(drawn), len(requests))
    return drawn


def _picture(model: "UnifiedModel", scene: Scene) -> Image.Image:
    return Image.fromarray(draw(scene, model.images.size))


def _geneval(model: "UnifiedModel", number: int, split: Split, seed: int, contender: str, batch_size: int,
             references: bool, report: Callable[[int, int], None]) -> _Result:  # fmt: skip
    prompts = twin_prompts(split, number, seed)
    drawn = _draw_all(model, [[prompt["prompt"]] for prompt in prompts], seed, batch_size, report)
    rows = [judge_image(prompt, image) for prompt, image in zip(prompts, drawn, strict=True)]
    tables = [twin_table(rows, contender)] + (twin_references(prompts, seed) if references else [])
    return tables, [
        Sample("geneval", row.prompt, (), image, "", "", row.correct, row.reason)
        for row, image in zip(rows, drawn, strict=True)
    ]


def _questions(model: "UnifiedModel", number: int, split: Split, seed: int, contender: str, batch_size: int,
               references: bool, report: Callable[[int, int], None]) -> _Result:  # fmt: skip
    items = question_items(split, number, seed)
    pictures = [_picture(model, item.scene) for item in items]
    answers: list[str] = []
    for start in range(0, len(items), batch_size):
        chosen = range(start, min(start + batch_size, len(items)))
        written = model.generate_text([[pictures[i], items[i].question.text] for i in chosen], max_new_tokens=12)
        assert isinstance(written, list)
        answers += written
        report(len(answers), len(items))
    tables = [score_answers(items, answers, contender)] + (answer_references(items, seed) if references else [])
    samples = [
        Sample(
            "questions",
            item.question.text,
            (np.asarray(picture),),
            None,
            answer,
            item.question.answer,
            answer_is_correct(answer, item.question),
        )
        for item, picture, answer in zip(items, pictures, answers, strict=True)
    ]
    return tables, samples


def _editing(model: "UnifiedModel", number: int, split: Split, seed: int, contender: str, batch_size: int,
             references: bool, report: Callable[[int, int], None]) -> _Result:  # fmt: skip
    items = edit_items(split, number, seed)
    sources = [_picture(model, item.edit.source) for item in items]
    requests = [[source, item.edit.instruction] for source, item in zip(sources, items, strict=True)]
    drawn = _draw_all(model, requests, seed, batch_size, report)
    size = min(model.images.size)
    verdicts = [check_edit(item.edit, image) for item, image in zip(items, drawn, strict=True)]
    tables = [edit_table(items, verdicts, contender)] + (edit_references(items, size) if references else [])
    samples = [
        Sample(
            "editing",
            item.edit.instruction,
            (np.asarray(source),),
            image,
            "",
            draw(item.edit.target, model.images.size),
            verdict.correct,
            verdict.reason,
        )
        for item, source, image, verdict in zip(items, sources, drawn, verdicts, strict=True)
    ]
    return tables, samples


def _multi_reference(model: "UnifiedModel", number: int, split: Split, seed: int, contender: str, batch_size: int,
                     references: bool, report: Callable[[int, int], None]) -> _Result:  # fmt: skip
    items = composition_items(split, number, seed)
    shown = [[_picture(model, scene) for scene in item.composition.references] for item in items]
    requests = [[*images, item.composition.instruction] for images, item in zip(shown, items, strict=True)]
    drawn = _draw_all(model, requests, seed, batch_size, report)
    size = min(model.images.size)
    tables = [score_compositions(items, drawn, contender)]
    tables += composition_references(items, size, seed) if references else []
    samples = [
        Sample("multi-reference", item.composition.instruction, tuple(np.asarray(image) for image in images), picture,
               "", draw(item.composition.target, model.images.size))
        for item, images, picture in zip(items, shown, drawn, strict=True)
    ]  # fmt: skip
    return tables, samples


_RUNNERS: dict[str, Callable[..., _Result]] = {
    "geneval": _geneval,
    "questions": _questions,
    "editing": _editing,
    "multi-reference": _multi_reference,
}
