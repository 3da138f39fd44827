"""Edits of given pictures that a judge who sees both pictures marks: what ImgEdit, GEdit-Bench and RISEBench share.

What is asked of the judge, how its answers are read and what they add up to is the ``Marking`` of the benchmark, a part
of its own file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from diptych.data.example import ImageIn, LazyImage, Pixels, Text, load_pixels
from diptych.evals.judges import JUDGED_AT_ONCE, Query, StoredAnswers, VisionJudge, ask_all
from diptych.evals.places import Place
from diptych.evals.protocol import Failure, Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.published import NO_JUDGE, Published
from diptych.scenes.scores import ScoreTable


@dataclass(frozen=True)
class EditItem:
    """One edit that is asked for."""

    id: str
    picture: LazyImage
    instruction: str
    category: str
    file: str
    """Where the official scorer looks for the edited picture."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the benchmark's own marking needs of it."""


@runtime_checkable
class Marking(Protocol):
    """How a benchmark marks edits."""

    @property
    def official_judge(self) -> str:
        """Who marks published results."""
        ...

    @property
    def instructions(self) -> str:
        """Name and revision of what a judge is told."""
        ...

    def queries(self, item: EditItem, edited: Pixels) -> list[Query]:
        """What is asked about an edit; ids ``<id of the item>#<what>``."""
        ...

    def verdict(self, item: EditItem, texts: Mapping[str, str]) -> Verdict | Failure:
        """From the judge's answers by ``<what>``; a verdict has a ``value`` from 0 to 1."""
        ...

    def table(self, label: str, contender: str, marked: Sequence[tuple[EditItem, Verdict | None]]) -> ScoreTable:
        """The scores; of an edit that is missing there is no verdict."""
        ...


@dataclass(frozen=True, kw_only=True)
class JudgedEdits(Published):
    """One edited picture for every item.

    Attributes:
        are_official_words: the judge is told what the official script tells it.
    """

    items: tuple[EditItem, ...]
    marking: Marking
    are_official_words: bool = False
    examiner: VisionJudge | None = None
    needs: tuple[str, ...] = ("image_edit",)
    judged_at_once: int = JUDGED_AT_ONCE

    @cached_property
    def _asked(self) -> dict[str, EditItem]:
        return {item.id: item for item in self.items}

    def requests(self) -> list[Request]:
        """Item i has the seed ``seed + i``."""
        return [
            Request(item.id, "image", (ImageIn(item.picture), Text(item.instruction)), self.seed + place)
            for place, item in enumerate(self.items)
        ]

    def judge_record(self) -> dict[str, Any]:
        if self.examiner is None:
            return NO_JUDGE
        record, is_stored = self.examiner.record(), isinstance(self.examiner, StoredAnswers)
        return {
            "judge": record,
            "official": record.get("name") == self.marking.official_judge and (is_stored or self.are_official_words),
            "instructions": "the file's" if is_stored else self.marking.instructions,
        }

    def unready(self) -> str:
        if self.examiner is not None:
            return ""
        return (
            f"{self.name} needs a judge of its pictures: give --judge, a model, URL#NAME or what the official script "
            "wrote, or write the pictures for it with --export DIR"
        )

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict | Failure]:
        if self.examiner is None:
            raise ValueError(f"{self.unready()}.")
        asked: dict[str, list[Query]] = {}
        for request, output in zip(requests, outputs, strict=True):
            assert isinstance(output, np.ndarray)
            asked[request.id] = self.marking.queries(self._asked[request.id], output)
        answers = ask_all(self.examiner, [query for queries in asked.values() for query in queries])
        verdicts: list[Verdict | Failure] = []
        for name, queries in asked.items():
            found = {query.id.rpartition("#")[2]: answers[query.id] for query in queries}
            lacking = next((answer for answer in found.values() if isinstance(answer, Failure)), None)
            texts = {what: answer.text for what, answer in found.items() if not isinstance(answer, Failure)}
            verdicts.append(lacking or self.marking.verdict(self._asked[name], texts))
        return verdicts

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return [
            Unit(name, item.category, name, verdict["value"] if (verdict := verdicts[name]) else 0.0)
            for name, item in self._asked.items()
            if name in verdicts
        ]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        marked = [(item, verdicts[name]) for name, item in self._asked.items() if name in verdicts]
        return self.marking.table(self.label, contender, marked)

    def places(self) -> dict[str, Place]:
        return {item.id: Place(item.file) for item in self.items}


def source_of(item: EditItem) -> Pixels:
    """The picture that is to be edited."""
    return load_pixels(item.picture)


def in_size_of(picture: Pixels, other: Pixels) -> Pixels:
    """The picture in the size of another one, resampled as Pillow does unless told otherwise."""
    size = (other.shape[1], other.shape[0])
    return picture if picture.shape == other.shape else np.asarray(Image.fromarray(picture).resize(size))
