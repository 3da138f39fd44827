"""Scorers of the built-in world: from what a model made to a table of scores, and the reference rows beside it.

Every function is pure. ``contender`` names who made the results; the rows ``oracle`` (exact answers), ``chance``
(random scenes, blind answers) and ``copy-input`` (the source picture handed back) are what a score is read against.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from diptych.scenes.answers import BlindAnswers, answer_is_correct
from diptych.scenes.draw import draw
from diptych.scenes.edit_checks import DEFAULT_TOLERANCE, EditTolerance, EditVerdict, check_edit
from diptych.scenes.parse import parse
from diptych.scenes.program import detections_of
from diptych.scenes.rules import Metadata, evaluate_metadata
from diptych.scenes.sample import sample_scene
from diptych.scenes.scene import Scene
from diptych.scenes.scores import Score, ScoreTable, bootstrap_interval, score_table
from diptych.scenes.testsets import CompositionItem, EditItem, QuestionItem, question_items
from diptych.scenes.twin import TwinRow, judge_detections, judge_image, oracle_scenes, parsed_detections

__all__ = [
    "ANSWERS",
    "COMPOSITIONS",
    "EDITS",
    "TWIN",
    "Score",
    "ScoreTable",
    "answer_reference_texts",
    "answer_references",
    "answer_table",
    "bootstrap_interval",
    "composition_reference_scenes",
    "composition_references",
    "composition_table",
    "edit_reference_scenes",
    "edit_references",
    "edit_table",
    "score_answers",
    "score_compositions",
    "score_edits",
    "score_table",
    "score_twin",
    "twin_reference_scenes",
    "twin_references",
    "twin_table",
]

TWIN, ANSWERS, EDITS, COMPOSITIONS = "geneval-twin", "question-answering", "editing", "multi-reference"

ImageArray = NDArray[np.uint8]
"""uint8 RGB, ``height width 3``."""


def twin_table(rows: Sequence[TwinRow], contender: str) -> ScoreTable:
    """The table of GenEval: accuracy of each category and their mean; intervals over different prompts.

    ``details`` has what the official summary also prints: the share of correct pictures, and of prompts with any.
    """
    table = score_table(
        TWIN, contender, [row.tag for row in rows], [row.correct for row in rows], [row.prompt for row in rows]
    )
    any_correct: dict[tuple[str, str], bool] = {}
    for row in rows:
        key = (row.tag, row.prompt)
        any_correct[key] = any_correct.get(key, False) or row.correct
    details = {
        "correct_images": sum(row.correct for row in rows) / len(rows),
        "prompts_with_a_correct_image": sum(any_correct.values()) / len(any_correct),
    }
    return ScoreTable(table.benchmark, table.contender, table.overall, table.categories, details)


def score_twin(prompts: Sequence[Metadata], images: Sequence[ImageArray], contender: str) -> ScoreTable:
    """Parse one picture per prompt and judge it.

    Raises:
        ValueError: not one picture per prompt.
    """
    _check_lengths("score_twin", "prompts", prompts, "images", images)
    return twin_table([judge_image(prompt, image) for prompt, image in zip(prompts, images, strict=True)], contender)


def twin_references(prompts: Sequence[Metadata], seed: int = 0) -> list[ScoreTable]:
    """``oracle``: a scene that satisfies each prompt; ``chance``: random scenes of any types. Scenes, not pictures."""
    return [
        twin_table([judge_detections(p, detections_of(s)) for p, s in zip(prompts, scenes, strict=True)], name)
        for name, scenes in twin_reference_scenes(prompts, seed).items()
    ]


def twin_reference_scenes(prompts: Sequence[Metadata], seed: int = 0) -> dict[str, list[Scene]]:
    """The scene of each prompt for ``oracle`` and ``chance``."""
    rng = np.random.default_rng([seed, 1])
    return {"oracle": oracle_scenes(prompts, seed), "chance": [sample_scene(rng) for _ in prompts]}


def score_answers(items: Sequence[QuestionItem], predictions: Sequence[str], contender: str) -> ScoreTable:
    """Accuracy by kind of question and the mean of the kinds.

    Raises:
        ValueError: not one prediction per question.
    """
    _check_lengths("score_answers", "questions", items, "predictions", predictions)
    correct = [answer_is_correct(text, item.question) for text, item in zip(predictions, items, strict=True)]
    return answer_table(items, correct, contender)


def answer_table(items: Sequence[QuestionItem], correct: Sequence[bool], contender: str) -> ScoreTable:
    """The table of answers that have been judged."""
    _check_lengths("answer_table", "questions", items, "verdicts", correct)
    table = score_table(ANSWERS, contender, [item.question.kind for item in items], correct)
    details = {"mean_over_questions": sum(correct) / len(correct)}
    return ScoreTable(table.benchmark, table.contender, table.overall, table.categories, details)


def answer_references(items: Sequence[QuestionItem], seed: int = 0, num_training: int = 300) -> list[ScoreTable]:
    """``oracle``, and ``chance``: the majority answer of training questions (``num_training`` of each kind)."""
    rows = answer_reference_texts(items, seed, num_training)
    return [score_answers(items, predictions, name) for name, predictions in rows.items()]


def answer_reference_texts(
    items: Sequence[QuestionItem], seed: int = 0, num_training: int = 300
) -> dict[str, list[str]]:
    """The answer to each question for ``oracle`` and ``chance``."""
    blind = BlindAnswers.fit(item.question for item in question_items("train", num_training, seed))
    return {
        "oracle": [item.question.answer for item in items],
        "chance": [blind.answer(item.question) for item in items],
    }


def edit_table(
    items: Sequence[EditItem],
    verdicts: Sequence[EditVerdict],
    contender: str,
    tolerance: EditTolerance = DEFAULT_TOLERANCE,
) -> ScoreTable:
    """Success by kind of edit and the mean of the kinds; ``details`` says how often either half was done."""
    _check_lengths("edit_table", "edits", items, "verdicts", verdicts)
    details = {
        "followed": float(np.mean([verdict.followed for verdict in verdicts])),
        "preserved": float(np.mean([verdict.preserved for verdict in verdicts])),
        "tolerance": asdict(tolerance),
    }
    correct = [verdict.correct for verdict in verdicts]
    return score_table(EDITS, contender, [item.edit.kind for item in items], correct, details=details)


def score_edits(
    items: Sequence[EditItem],
    images: Sequence[ImageArray],
    contender: str,
    tolerance: EditTolerance = DEFAULT_TOLERANCE,
) -> ScoreTable:
    """Parse one edited picture per edit and judge it.

    Raises:
        ValueError: not one picture per edit.
    """
    _check_lengths("score_edits", "edits", items, "images", images)
    verdicts = [check_edit(item.edit, image, tolerance) for item, image in zip(items, images, strict=True)]
    return edit_table(items, verdicts, contender, tolerance)


def edit_references(items: Sequence[EditItem], size: int = 64) -> list[ScoreTable]:
    """``oracle``: the target drawn; ``chance``: the target of another edit; ``copy-input``: the source drawn."""
    rows = edit_reference_scenes(items)
    return [score_edits(items, [draw(scene, size) for scene in scenes], name) for name, scenes in rows.items()]


def edit_reference_scenes(items: Sequence[EditItem]) -> dict[str, list[Scene]]:
    """The scene of each edit for ``oracle``, ``chance`` and ``copy-input``."""
    return {
        "oracle": [item.edit.target for item in items],
        "chance": [items[(index + len(items) // 2) % len(items)].edit.target for index in range(len(items))],
        "copy-input": [item.edit.source for item in items],
    }


def score_compositions(items: Sequence[CompositionItem], images: Sequence[ImageArray], contender: str) -> ScoreTable:
    """Parse one picture per composition and judge it by the rules of GenEval; by kind and their mean.

    Raises:
        ValueError: not one picture per composition.
    """
    _check_lengths("score_compositions", "compositions", items, "images", images)
    verdicts = [
        evaluate_metadata(item.composition.program, parsed_detections(parse(image)))
        for item, image in zip(items, images, strict=True)
    ]
    return composition_table(items, [verdict.correct for verdict in verdicts], contender)


def composition_table(items: Sequence[CompositionItem], correct: Sequence[bool], contender: str) -> ScoreTable:
    """The table of compositions that have been judged."""
    _check_lengths("composition_table", "compositions", items, "verdicts", correct)
    return score_table(COMPOSITIONS, contender, [item.composition.kind for item in items], correct)


def composition_references(items: Sequence[CompositionItem], size: int = 64, seed: int = 0) -> list[ScoreTable]:
    """``oracle``: the target drawn; ``chance``: random scenes; ``copy-input``: the first reference drawn."""
    rows = composition_reference_scenes(items, seed)
    return [score_compositions(items, [draw(scene, size) for scene in scenes], name) for name, scenes in rows.items()]


def composition_reference_scenes(items: Sequence[CompositionItem], seed: int = 0) -> dict[str, list[Scene]]:
    """The scene of each composition for ``oracle``, ``chance`` and ``copy-input``."""
    rng = np.random.default_rng([seed, 2])
    return {
        "oracle": [item.composition.target for item in items],
        "chance": [sample_scene(rng) for _ in items],
        "copy-input": [item.composition.references[0] for item in items],
    }


def _check_lengths(where: str, first: str, some: Sequence[object], second: str, others: Sequence[object]) -> None:
    if len(some) != len(others) or not some:
        raise ValueError(
            f"{where}: need one of the {second} for each of the {first}, got {len(others)} and {len(some)}."
        )
