"""GenEval (arXiv 2310.11513): its rules on the detections of any detector; the twin and the real one are one task.

The rule engine is ``scenes.rules``. What judges a picture is a ``Detector``: the scene parser for the twin, and for the
real prompts stored detections or an object detector. The official ones are Mask2Former Swin-S and CLIP ViT-L/14; with
any other the record of the judge says so, and the scores are no GenEval scores of the literature.

Differs from the official summary: a picture that is missing counts as wrong, where the official one passes over it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diptych.data.example import Pixels, Text
from diptych.evals.json_lines import json_lines
from diptych.evals.protocol import Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.scenes.draw import draw
from diptych.scenes.parse import parse
from diptych.scenes.rules import GENEVAL_RULES, RELATIONS, Box, Detection, Metadata, RuleSettings, evaluate_metadata
from diptych.scenes.scorers import TWIN, twin_reference_scenes, twin_references, twin_table
from diptych.scenes.scores import ScoreTable
from diptych.scenes.split import Split
from diptych.scenes.twin import CATEGORIES, TwinRow, parsed_detections, twin_prompts

OFFICIAL_DETECTOR = "Mask2Former Swin-S (COCO) with colours by CLIP ViT-L/14"
OFFICIAL_SAMPLES = 4
"""Pictures a prompt."""

OFFICIAL_RULES = RuleSettings(threshold=float(np.float32(0.3)), counting_threshold=float(np.float32(0.9)))
"""The official scorer compares in float32: a confidence of exactly float32(0.3) does not count, though it is > 0.3."""


@runtime_checkable
class Detector(Protocol):
    """Finds objects in pictures."""

    def record(self) -> dict[str, Any]:
        """JSON-able: ``name``, ``revision``, and ``official``, whether it is GenEval's own."""
        ...

    def detect(self, ids: Sequence[str], images: Sequence[Pixels]) -> list[list[Detection]]:
        """All objects of each picture, unfiltered, colours included where it can tell them."""
        ...


@runtime_checkable
class WithRules(Protocol):
    """A detector whose confidences mean something else than those of GenEval's own."""

    @property
    def rules(self) -> RuleSettings | None:
        """The thresholds under which the rules are to read it; None for GenEval's."""
        ...


class SceneParser:
    """The reader of the built-in world as a detector."""

    def record(self) -> dict[str, Any]:
        return {"name": "scene parser", "revision": "1", "official": False}

    def detect(self, ids: Sequence[str], images: Sequence[Pixels]) -> list[list[Detection]]:
        return [parsed_detections(parse(image)) for image in images]


@dataclass(frozen=True)
class StoredDetections:
    """Detections from a file of JSON lines (``read_detections``).

    Attributes:
        by_id: of each picture, ``<prompt, five digits>/<picture, four digits>``.
        name: what found them, for the record.
    """

    by_id: Mapping[str, Sequence[Detection]]
    name: str
    revision: str = ""
    official: bool = False

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision, "official": self.official}

    def detect(self, ids: Sequence[str], images: Sequence[Pixels]) -> list[list[Detection]]:
        """
        Raises:
            ValueError: there are none of a picture.
        """
        absent = [name for name in ids if name not in self.by_id]
        if absent:
            raise ValueError(
                f"the detections of {self.name} lack {len(absent)} of {len(ids)} pictures, such as {absent[0]}. "
                "Detect objects in the pictures of this run."
            )
        return [list(self.by_id[name]) for name in ids]


@dataclass(frozen=True, kw_only=True)
class GenEval:
    """Prompts with their programs, ``samples`` pictures of each, judged by rules.

    Attributes:
        prompts: each with an ``id``.
        detector: None as long as nothing is judged.
        rewritten: the prompts in other words, one each; what they are called is ``rewriter``.
    """

    name: str
    title: str
    prompts: tuple[Metadata, ...]
    detector: Detector | None = None
    samples: int = 1
    seed: int = 0
    rules: RuleSettings = GENEVAL_RULES
    places: tuple[int, ...] = ()
    """Of each prompt in the whole list, which decides its seeds; in order if empty."""
    rewritten: tuple[str, ...] = ()
    rewriter: str = ""
    mark: str = ""
    """What stands behind the title: the split."""
    image_size: tuple[int, int] = (64, 64)
    """Of the drawings of references."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where the prompts come from; JSON-able."""
    version: int = 1
    needs: tuple[str, ...] = ("text_to_image",)

    @property
    def label(self) -> str:
        return self.title + self.mark

    @property
    def is_twin(self) -> bool:
        """Whether the prompts are of the built-in world."""
        return self.title == TWIN

    def config(self) -> dict[str, Any]:
        return {**self.source, "samples": self.samples, "seed": self.seed, "rewriter": self.rewriter}

    @cached_property
    def _expanded(self) -> dict[str, tuple[Metadata, str, int]]:
        """Program, wording and seed of every picture, by id."""
        found = {}
        for index, metadata in enumerate(self.prompts):
            wording = self.rewritten[index] if self.rewritten else metadata["prompt"]
            place = self.places[index] if self.places else index
            for number in range(self.samples):
                name = metadata["id"] if self.is_twin and self.samples == 1 else f"{metadata['id']}/{number:04d}"
                found[name] = (metadata, wording, self.seed + place * self.samples + number)
        return found

    def requests(self) -> list[Request]:
        """Picture k of prompt i has the seed ``seed + i * samples + k``."""
        return [
            Request(name, "image", (Text(wording),), seed, rewriter=self.rewriter)
            for name, (_, wording, seed) in self._expanded.items()
        ]

    def judge_record(self) -> dict[str, Any]:
        record = {"name": "none"} if self.detector is None else self.detector.record()
        return {"detector": record, "rules": asdict(self.rules)}

    def unready(self) -> str:
        if self.detector is not None:
            return ""
        return f"{self.name} needs a detector to judge its pictures: give --detections FILE or --detector WHICH"

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        if self.detector is None:
            raise ValueError(f"{self.unready()}.")
        images = [output for output in outputs if isinstance(output, np.ndarray)]
        found = self.detector.detect([request.id for request in requests], images)
        return [
            judge_detections(self._expanded[request.id][0], detections, self.rules)
            for request, detections in zip(requests, found, strict=True)
        ]

    def _rows(self, verdicts: Verdicts) -> list[TwinRow]:
        rows = []
        for name, (metadata, _, _) in self._expanded.items():
            if name in verdicts:
                verdict = verdicts[name] or {"correct": False, "reason": "missing"}
                rows.append(TwinRow(name, metadata["tag"], metadata["prompt"], verdict["correct"], verdict["reason"]))
        return rows

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return [Unit(row.id, row.tag, row.prompt, float(row.correct), row.reason) for row in self._rows(verdicts)]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        return replace(twin_table(self._rows(verdicts), contender), benchmark=self.label)

    def references(self) -> list[ScoreTable]:
        """Oracle and chance of the twin; nothing is known of what pictures of the real prompts could be."""
        if not self.is_twin:
            return []
        asked = [metadata for metadata, _, _ in self._expanded.values()]
        return [replace(table, benchmark=self.label) for table in twin_references(asked, self.seed)]

    @cached_property
    def _scenes(self) -> dict[str, dict[str, Any]]:
        asked = [metadata for metadata, _, _ in self._expanded.values()]
        made = twin_reference_scenes(asked, self.seed)
        return {name: dict(zip(self._expanded, scenes, strict=True)) for name, scenes in made.items()}

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        if not self.is_twin:
            raise ValueError(f"{self.name} has no {reference}: nobody knows a right photograph of its prompts.")
        return draw(self._scenes[reference][request.id], self.image_size)


def judge_detections(
    metadata: Metadata, detections: Sequence[Detection], rules: RuleSettings = OFFICIAL_RULES
) -> Verdict:
    """``{"correct", "reason"}`` of one picture; under ``OFFICIAL_RULES`` to the last bit as the official scorer.

    Under ``GENEVAL_RULES``, those of the twin, positions are computed in float64.
    """
    relations = None if rules == GENEVAL_RULES else official_relations
    verdict = evaluate_metadata(metadata, detections, settings=rules, relations=relations)
    return {"correct": verdict.correct, "reason": verdict.reason}


def official_relations(box_a: Box, box_b: Box, margin: float) -> tuple[str, ...]:
    """``rules.relations_between`` in float32, in which the official scorer computes; it decides on the threshold."""
    corners = np.array([box_a, box_b], np.float32).reshape(2, 2, 2)
    centers = corners.mean(axis=1)
    extents = np.abs(corners[:, 1] - corners[:, 0])
    offset = centers[0] - centers[1]
    revised = np.maximum(np.abs(offset) - np.float32(margin) * (extents[0] + extents[1]), 0) * np.sign(offset)
    if np.all(np.abs(revised) < 1e-3):
        return ()
    dx, dy = revised / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return tuple(name for name, value in holds.items() if value)


def twin_task(
    split: Split = "test",
    num_per_category: int = 60,
    seed: int = 0,
    samples: int = 1,
    image_size: tuple[int, int] = (64, 64),
    mark: str = "",
) -> GenEval:
    """The twin on the built-in world."""
    return GenEval(
        name="geneval",
        title=TWIN,
        prompts=tuple(twin_prompts(split, num_per_category, seed)),
        detector=SceneParser(),
        samples=samples,
        seed=seed,
        mark=mark,
        image_size=image_size,
        source={"split": split, "num_per_category": num_per_category},
    )


def geneval_task(
    prompts: str | Path,
    *,
    rewritten: str | Path | None = None,
    detector: Detector | None = None,
    num_per_category: int | None = None,
    samples: int = OFFICIAL_SAMPLES,
    seed: int = 0,
) -> GenEval:
    """The real benchmark.

    Args:
        prompts: ``evaluation_metadata.jsonl`` of GenEval.
        rewritten: the same prompts in other words, in the same order, in the same format.
        num_per_category: only the first prompts of each category.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line of a file is wrong; the message names it.
    """
    programs = read_prompts(prompts)
    wordings = [] if rewritten is None else [str(program["prompt"]) for program in read_prompts(rewritten)]
    if rewritten is not None and len(wordings) != len(programs):
        raise ValueError(
            f"{rewritten} has {len(wordings)} prompts, {prompts} has {len(programs)}: one is needed for each."
        )
    chosen, seen = [], dict.fromkeys(CATEGORIES, 0)
    for index, program in enumerate(programs):
        seen[program["tag"]] += 1
        if num_per_category is None or seen[program["tag"]] <= num_per_category:
            chosen.append(index)
    return GenEval(
        name="geneval-official",
        title="geneval",
        prompts=tuple({**programs[index], "id": f"{index:05d}"} for index in chosen),
        places=tuple(chosen),
        detector=detector,
        samples=samples,
        seed=seed,
        rules=(detector.rules if isinstance(detector, WithRules) else None) or OFFICIAL_RULES,
        rewritten=tuple(wordings[index] for index in chosen) if wordings else (),
        rewriter="" if rewritten is None else file_revision(rewritten),
        source={"prompts": file_revision(prompts), "num_per_category": num_per_category},
    )


def file_revision(path: str | Path) -> str:
    """Name and digest of a file."""
    return f"{Path(path).name}@{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"


def read_prompts(path: str | Path) -> list[Metadata]:
    """The programs of GenEval's ``evaluation_metadata.jsonl``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong, or a prompt stands twice.
    """
    programs: list[Metadata] = []
    lines: dict[str, int] = {}
    for number, record in json_lines(path):
        problem = _program_problem(record)
        if problem:
            raise ValueError(f"{path}, line {number}: {problem}.")
        said = json.dumps(record, sort_keys=True)
        if said in lines:
            raise ValueError(
                f"{path}, line {number}: the same prompt stands in line {lines[said]}. Remove one of them."
            )
        lines[said] = number
        programs.append(record)  # type: ignore[arg-type]
    if not programs:
        raise ValueError(f"{path} holds no prompts.")
    return programs


def _program_problem(record: Mapping[str, Any]) -> str:
    """What is wrong with a program; empty if nothing is."""
    for name in ("tag", "prompt", "include"):
        if name not in record:
            return f"{name!r} is missing"
    if record["tag"] not in CATEGORIES:
        return f"tag must be one of {', '.join(CATEGORIES)}, got {record['tag']!r}"
    if not isinstance(record["prompt"], str) or not record["prompt"].strip():
        return f"prompt must be a text, got {record['prompt']!r}"
    for key in ("include", "exclude"):
        clauses = record.get(key, [])
        if not isinstance(clauses, list) or not all(isinstance(clause, dict) for clause in clauses):
            return f"{key} must be a list of clauses, got {clauses!r}"
        for index, clause in enumerate(clauses):
            if not isinstance(clause.get("class"), str):
                return f"{key}[{index}] needs a class"
            count = clause.get("count")
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                return f"{key}[{index}].count must be a whole number of at least 1, got {count!r}"
            if "position" in clause and not _is_position(clause["position"], index):
                return (
                    f"{key}[{index}].position must be [relation, index of an earlier clause] with a relation of "
                    f"{', '.join(RELATIONS)}, got {clause['position']!r}"
                )
    return ""


def _is_position(value: Any, index: int) -> bool:
    if not isinstance(value, list) or len(value) != 2 or value[0] not in RELATIONS:
        return False
    return isinstance(value[1], int) and 0 <= value[1] < index
