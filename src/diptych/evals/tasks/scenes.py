"""Question answering, editing and multi-reference on the built-in world as tasks of the harness."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from diptych.data.example import ImageIn, Pixels, Text
from diptych.evals.protocol import Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.scenes.answers import answer_is_correct
from diptych.scenes.draw import draw
from diptych.scenes.edit_checks import DEFAULT_TOLERANCE, EditVerdict, check_edit
from diptych.scenes.parse import parse
from diptych.scenes.rules import evaluate_metadata
from diptych.scenes.scene import Scene
from diptych.scenes.scorers import (
    ANSWERS,
    COMPOSITIONS,
    EDITS,
    answer_reference_texts,
    answer_references,
    answer_table,
    composition_reference_scenes,
    composition_references,
    composition_table,
    edit_reference_scenes,
    edit_references,
    edit_table,
)
from diptych.scenes.scores import ScoreTable
from diptych.scenes.split import Split
from diptych.scenes.testsets import (
    CompositionItem,
    EditItem,
    QuestionItem,
    composition_items,
    edit_items,
    question_items,
)
from diptych.scenes.twin import parsed_detections

MAX_NEW_TOKENS = 12
"""Answers have one or two words."""


@dataclass(frozen=True, kw_only=True)
class SceneItems:
    """Which items of the built-in world are asked for; ``mark`` stands behind the name of the benchmark."""

    split: Split = "test"
    num_per_category: int = 60
    seed: int = 0
    image_size: tuple[int, int] = (64, 64)
    mark: str = ""
    version: int = 1

    def config(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "num_per_category": self.num_per_category,
            "seed": self.seed,
            "image_size": list(self.image_size),
        }

    def judge_record(self) -> dict[str, Any]:
        return {"name": "exact rules of the built-in world", "revision": "1"}

    def unready(self) -> str:
        return ""

    def _picture(self, scene: Scene) -> Pixels:
        return draw(scene, self.image_size)

    def _drawings(self, scenes: Mapping[str, Sequence[Scene]], ids: Sequence[str]) -> dict[str, dict[str, Scene]]:
        return {name: dict(zip(ids, own, strict=True)) for name, own in scenes.items()}


@dataclass(frozen=True, kw_only=True)
class Questions(SceneItems):
    """Questions about pictures with exact answers."""

    name: str = "questions"
    needs: tuple[str, ...] = ("image_to_text",)

    @property
    def label(self) -> str:
        return ANSWERS + self.mark

    @cached_property
    def items(self) -> dict[str, QuestionItem]:
        return {item.id: item for item in question_items(self.split, self.num_per_category, self.seed)}

    def requests(self) -> list[Request]:
        return [
            Request(
                name,
                "text",
                (ImageIn(self._picture(item.scene)), Text(item.question.text)),
                settings={"max_new_tokens": MAX_NEW_TOKENS},
            )
            for name, item in self.items.items()
        ]

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        return [
            {"correct": answer_is_correct(str(text), self.items[request.id].question), "answer": text}
            for request, text in zip(requests, outputs, strict=True)
        ]

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return _units({name: item.question.kind for name, item in self.items.items()}, verdicts)

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        items = [item for name, item in self.items.items() if name in verdicts]
        table = answer_table(items, [unit.value == 1 for unit in self.units(verdicts)], contender)
        return replace(table, benchmark=self.label)

    def references(self) -> list[ScoreTable]:
        tables = answer_references(list(self.items.values()), self.seed)
        return [replace(table, benchmark=self.label) for table in tables]

    @cached_property
    def _texts(self) -> dict[str, dict[str, str]]:
        made = answer_reference_texts(list(self.items.values()), self.seed)
        return {name: dict(zip(self.items, texts, strict=True)) for name, texts in made.items()}

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        return self._texts[reference][request.id]


@dataclass(frozen=True, kw_only=True)
class Editing(SceneItems):
    """Pictures to be changed as told, and nothing else."""

    name: str = "editing"
    needs: tuple[str, ...] = ("image_edit",)

    @property
    def label(self) -> str:
        return EDITS + self.mark

    @cached_property
    def items(self) -> dict[str, EditItem]:
        return {item.id: item for item in edit_items(self.split, self.num_per_category, self.seed)}

    def requests(self) -> list[Request]:
        return [
            Request(
                name,
                "image",
                (ImageIn(self._picture(item.edit.source)), Text(item.edit.instruction)),
                self.seed + place,
            )
            for place, (name, item) in enumerate(self.items.items())
        ]

    def judge_record(self) -> dict[str, Any]:
        return {**super().judge_record(), "tolerance": asdict(DEFAULT_TOLERANCE)}

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        verdicts = [
            check_edit(self.items[request.id].edit, _pixels(image))
            for request, image in zip(requests, outputs, strict=True)
        ]
        return [{"correct": verdict.correct, **asdict(verdict)} for verdict in verdicts]

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return _units({name: item.edit.kind for name, item in self.items.items()}, verdicts)

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        items = [item for name, item in self.items.items() if name in verdicts]
        found = [
            EditVerdict(verdict["followed"], verdict["preserved"], verdict["reason"])
            if (verdict := verdicts[item.id])
            else EditVerdict(False, False, "missing")
            for item in items
        ]
        return replace(edit_table(items, found, contender), benchmark=self.label)

    def references(self) -> list[ScoreTable]:
        tables = edit_references(list(self.items.values()), min(self.image_size))
        return [replace(table, benchmark=self.label) for table in tables]

    @cached_property
    def _scenes(self) -> dict[str, dict[str, Scene]]:
        return self._drawings(edit_reference_scenes(list(self.items.values())), list(self.items))

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        return self._picture(self._scenes[reference][request.id])


@dataclass(frozen=True, kw_only=True)
class MultiReference(SceneItems):
    """Pictures to be composed from several references."""

    name: str = "multi-reference"
    needs: tuple[str, ...] = ("image_edit",)

    @property
    def label(self) -> str:
        return COMPOSITIONS + self.mark

    @cached_property
    def items(self) -> dict[str, CompositionItem]:
        return {item.id: item for item in composition_items(self.split, self.num_per_category, self.seed)}

    def requests(self) -> list[Request]:
        requests = []
        for place, (name, item) in enumerate(self.items.items()):
            shown = [ImageIn(self._picture(scene)) for scene in item.composition.references]
            requests.append(Request(name, "image", (*shown, Text(item.composition.instruction)), self.seed + place))
        return requests

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        verdicts = []
        for request, image in zip(requests, outputs, strict=True):
            program = self.items[request.id].composition.program
            verdict = evaluate_metadata(program, parsed_detections(parse(_pixels(image))))
            verdicts.append({"correct": verdict.correct, "reason": verdict.reason})
        return verdicts

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return _units({name: item.composition.kind for name, item in self.items.items()}, verdicts)

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        items = [item for name, item in self.items.items() if name in verdicts]
        table = composition_table(items, [unit.value == 1 for unit in self.units(verdicts)], contender)
        return replace(table, benchmark=self.label)

    def references(self) -> list[ScoreTable]:
        tables = composition_references(list(self.items.values()), min(self.image_size), self.seed)
        return [replace(table, benchmark=self.label) for table in tables]

    @cached_property
    def _scenes(self) -> dict[str, dict[str, Scene]]:
        return self._drawings(composition_reference_scenes(list(self.items.values()), self.seed), list(self.items))

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        return self._picture(self._scenes[reference][request.id])


def _units(categories: Mapping[str, str], verdicts: Verdicts) -> list[Unit]:
    """One unit a sample, each a group of its own, in the order of the items."""
    units = []
    for name, category in categories.items():
        if name in verdicts:
            verdict = verdicts[name] or {"correct": False, "reason": "missing"}
            units.append(Unit(name, category, name, float(verdict["correct"]), verdict.get("reason", "")))
    return units


def _pixels(output: Output) -> Pixels:
    assert isinstance(output, np.ndarray)
    return output
