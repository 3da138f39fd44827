"""T2I-CompBench (arXiv 2307.06350; ++ adds 3-D and numeracy): eight categories, ten pictures a prompt.

What judges differs by category: colour, shape and texture are asked of a judge that tells probabilities (the official
one is BLIP-VQA), 2-D spatial and numeracy of a detector (UniDet). 3-D spatial, non-spatial and complex need a depth
network and CLIP, which are not here: their scores are read from what the official scripts wrote, as all others can be.
A category that the judge at hand cannot judge is left out of the table, which says so.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.example import Text
from diptych.evals.judges import JUDGED_AT_ONCE, Query, VisionJudge, ask_all
from diptych.evals.places import Place
from diptych.evals.protocol import Failure, Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.geneval import Detector
from diptych.evals.tasks.published import NO_JUDGE, Published, source_revision
from diptych.evals.tasks.t2i_rules import (
    MOST_CHUNKS,
    attribute_score,
    counted_objects,
    numeracy_score,
    simple_chunks,
    spatial_score,
    spatial_words,
    three_in_one,
)
from diptych.scenes.scores import ScoreTable, score_table

CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
ATTRIBUTES = ("color", "shape", "texture")
DETECTED = ("spatial", "numeracy")
OFFICIAL_SAMPLES = 10
RESULTS = {
    **dict.fromkeys(ATTRIBUTES, "annotation_blip"),
    "spatial": "labels/annotation_obj_detection_2d",
    "3d_spatial": "labels/annotation_obj_detection_3d",
    "numeracy": "annotation_num",
    "non_spatial": "annotation_clip",
    "complex": "annotation_3_in_1",
}
"""Folder of ``vqa_result.json`` below that of a category, as the official scripts write it."""
THREE = ("annotation_blip", "labels/annotation_obj_detection_2d", "annotation_clip")
"""What the 3-in-1 score is made of."""
YES = ("yes", "Yes", " yes", " Yes")
LONGEST_NAME = 255
"""Bytes of a file name."""


@dataclass(frozen=True)
class CompPrompt:
    """One prompt; ``index`` counts within its category."""

    category: str
    index: int
    prompt: str


def read_prompts(path: str | Path) -> tuple[CompPrompt, ...]:
    """``<category>_val.txt``, or a folder of such files, whose train files and lists of complex prompts are left alone.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: a file is of no category, or empty.
    """
    path = Path(path)
    files = [file for name in CATEGORIES if (file := path / f"{name}_val.txt").is_file()] if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"There is no {path} with <category>_val.txt. Give --prompts a file or the folder.")
    found: list[CompPrompt] = []
    for file in files:
        category = file.stem.removesuffix("_val").removesuffix("_train")
        if category not in CATEGORIES:
            raise ValueError(f"{file}: the name must be <category>_val.txt with one of {', '.join(CATEGORIES)}.")
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        own = [CompPrompt(category, index, line) for index, line in enumerate(filter(None, lines))]
        if not own:
            raise ValueError(f"{file} holds no prompts.")
        found += own
    return tuple(found)


@dataclass(frozen=True)
class CompResults:
    """Scores that the official scripts wrote: by category, in the order of the pictures."""

    by_category: Mapping[str, Sequence[float]]
    name: str
    revision: str

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision}


def read_comp_results(folder: str | Path) -> CompResults:
    """``<category>/<annotation…>/vqa_result.json`` of a folder, of the categories that are there.

    Where complex prompts have no 3-in-1 score it is made from the three that it needs, with the lists
    ``complex_val.txt``, ``complex_val_spatial.txt`` and ``complex_val_action.txt`` in the folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is wrong; the message names it.
    """
    folder = Path(folder)
    found: dict[str, list[float]] = {}
    digest = hashlib.sha256()
    for category, below in RESULTS.items():
        file = folder / category / below / "vqa_result.json"
        if file.is_file():
            found[category] = _answers(file)
            digest.update(file.read_bytes())
    parts = [folder / "complex" / below / "vqa_result.json" for below in THREE]
    if "complex" not in found and all(file.is_file() for file in parts):
        found["complex"] = _complex(folder, [_answers(file) for file in parts])
        for file in parts:
            digest.update(file.read_bytes())
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no <category>/…/vqa_result.json. Run T2I-CompBench's scripts on the exported pictures."
        )
    return CompResults(found, "T2I-CompBench scripts", digest.hexdigest()[:16])


def _answers(file: Path) -> list[float]:
    """The scores in the order of ``question_id``."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pairs = sorted((int(entry["question_id"]), float(entry["answer"])) for entry in content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: a list of question_id and answer is expected ({error!r}).") from None
    if [number for number, _ in pairs] != list(range(len(pairs))):
        raise ValueError(f"{file}: question_id must be 0 to {len(pairs) - 1}, each once. Score all pictures at once.")
    return [value for _, value in pairs]


def _complex(folder: Path, three: Sequence[Sequence[float]]) -> list[float]:
    lists = {}
    for name in ("complex_val", "complex_val_spatial", "complex_val_action"):
        file = folder / f"{name}.txt"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: it says what complex prompts hold. Put it there.")
        lists[name] = [line.split(".")[0].strip().lower() for line in file.read_text(encoding="utf-8").splitlines()]
    prompts, (attribute, spatial, action) = [line for line in lists["complex_val"] if line], three
    if len({len(attribute), len(spatial), len(action)}) != 1 or len(attribute) % len(prompts):
        raise ValueError(f"{folder}/complex: {len(attribute)}, {len(spatial)} and {len(action)} scores are not as many "
                         f"for each of {len(prompts)} prompts.")  # fmt: skip
    samples, scores = len(attribute) // len(prompts), []
    for place, values in enumerate(zip(attribute, spatial, action, strict=True)):
        prompt = prompts[place // samples]
        kind = "spatial" if prompt in lists["complex_val_spatial"] else ""
        kind = kind or ("action" if prompt in lists["complex_val_action"] else "")
        scores.append(three_in_one(*values, kind))
    return scores


@dataclass(frozen=True, kw_only=True)
class CompBench(Published):
    """``samples`` pictures of every prompt."""

    prompts: tuple[CompPrompt, ...]
    examiner: VisionJudge | Detector | CompResults | None = None
    samples: int = OFFICIAL_SAMPLES
    name: str = "t2i-compbench"
    judged_at_once: int = JUDGED_AT_ONCE

    def config(self) -> dict[str, Any]:
        return {**super().config(), "samples": self.samples}

    @cached_property
    def _asked(self) -> dict[str, CompPrompt]:
        """By category and the number that the picture has in its file name."""
        return {
            f"{item.category}/{item.index * self.samples + number:06d}": item
            for item in self.prompts
            for number in range(self.samples)
        }

    def requests(self) -> list[Request]:
        """The seed of a picture is ``seed`` and its number within the category together."""
        return [
            Request(name, "image", (Text(item.prompt),), self.seed + int(name[-6:]))
            for name, item in self._asked.items()
        ]

    @cached_property
    def _judged(self) -> tuple[str, ...]:
        """Categories that the judge at hand can judge."""
        if isinstance(self.examiner, CompResults):
            can: Sequence[str] = list(self.examiner.by_category)
        else:
            is_seen, is_found = isinstance(self.examiner, VisionJudge), isinstance(self.examiner, Detector)
            can = ATTRIBUTES if is_seen else DETECTED if is_found else ()
        there = {item.category for item in self.prompts}
        return tuple(name for name in CATEGORIES if name in can and name in there)

    def judge_record(self) -> dict[str, Any]:
        if self.examiner is None:
            return NO_JUDGE
        record: dict[str, Any] = {"judge": self.examiner.record(), "official": isinstance(self.examiner, CompResults)}
        if isinstance(self.examiner, VisionJudge):
            record["noun_phrases"] = "between commas, and, with"
        elif isinstance(self.examiner, Detector):
            record["nouns"] = "by rule"
        return record

    def unready(self) -> str:
        if self._judged:
            return ""
        if self.examiner is None:
            how = "give --judge (color, shape, texture), --detections (spatial, numeracy), or --verdicts FOLDER"
            return f"{self.name} needs a judge: {how} with what the official scripts wrote"
        return (
            f"{self.name}: the judge given can judge none of {', '.join({item.category: 0 for item in self.prompts})}"
        )

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict | Failure]:
        if self.unready():
            raise ValueError(f"{self.unready()}.")
        todo = [
            (request, output)
            for request, output in zip(requests, outputs, strict=True)
            if self._asked[request.id].category in self._judged
        ]
        if isinstance(self.examiner, CompResults):
            found = {request.id: self._stored(self.examiner, request.id) for request, _ in todo}
        elif isinstance(self.examiner, VisionJudge):
            found = self._asked_of(self.examiner, todo)
        else:
            assert isinstance(self.examiner, Detector)
            found = self._detected(self.examiner, todo)
        return [found.get(request.id, {"not_judged": True}) for request in requests]

    def _stored(self, results: CompResults, name: str) -> Verdict | Failure:
        category, place = self._asked[name].category, int(name[-6:])
        scores = results.by_category[category]
        number = sum(item.category == category for item in self.prompts) * self.samples
        if len(scores) != number:
            raise ValueError(
                f"the results of {results.name} hold {len(scores)} scores of {category}, this run {number} pictures. "
                "The scripts number pictures in order: export all of them, and score all."
            )
        return {"score": scores[place]}

    def _asked_of(self, examiner: VisionJudge, todo: Sequence[tuple[Request, Output]]) -> dict[str, Verdict | Failure]:
        queries = []
        for request, output in todo:
            assert isinstance(output, np.ndarray)
            for number, chunk in enumerate(simple_chunks(self._asked[request.id].prompt)[:MOST_CHUNKS]):
                queries.append(Query(f"{request.id}#{number}", output, f"{chunk}?", YES))
        answers = ask_all(examiner, queries)
        found: dict[str, Verdict | Failure] = {}
        for request, _ in todo:
            own = [answers[query.id] for query in queries if query.id.partition("#")[0] == request.id]
            failed = next((answer for answer in own if isinstance(answer, Failure)), None)
            values = [answer.probability or 0.0 for answer in own if not isinstance(answer, Failure)]
            found[request.id] = failed or {"score": attribute_score(values)}
        return found

    def _detected(self, detector: Detector, todo: Sequence[tuple[Request, Output]]) -> dict[str, Verdict | Failure]:
        names = [request.id for request, _ in todo]
        detections = detector.detect(names, [output for _, output in todo if isinstance(output, np.ndarray)])
        found: dict[str, Verdict | Failure] = {}
        for name, own in zip(names, detections, strict=True):
            item = self._asked[name]
            if item.category == "numeracy":
                wanted = counted_objects(item.prompt)
                found[name] = (
                    {"score": numeracy_score(wanted, own)}
                    if wanted
                    else Failure(f"{item.prompt!r} names no number of objects")
                )
            else:
                words = spatial_words(item.prompt)
                found[name] = (
                    {"score": spatial_score(*words, own)} if words else Failure(f"{item.prompt!r} has no relation")
                )
        return found

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return [
            Unit(
                name,
                item.category,
                f"{item.category}/{item.index}",
                verdict["score"] if (verdict := verdicts[name]) else 0.0,
            )
            for name, item in self._asked.items()
            if name in verdicts and item.category in self._judged
        ]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        units = self.units(verdicts)
        lacking = [name for name in CATEGORIES if name not in self._judged]
        details = {
            "overall_is": "the mean of the rows above it, which the benchmark itself does not have."
            + (f" Not judged: {', '.join(lacking)}." if lacking else ""),
        }
        return score_table(
            self.label,
            contender,
            [unit.category for unit in units],
            [unit.value for unit in units],
            [unit.group for unit in units],
            details=details,
        )

    def places(self) -> dict[str, Place]:
        """``<category>/samples/<prompt>_<number>.png``: the scripts read the prompt off the name of the file.

        Raises:
            ValueError: a prompt that would not come back whole.
        """
        found = {}
        for name, item in self._asked.items():
            file = f"{item.prompt}_{name[-6:]}.png"
            if "_" in item.prompt or "/" in item.prompt or len(file.encode()) > LONGEST_NAME:
                raise ValueError(
                    f"{self.name}: {item.prompt!r} is no file name from which the official scripts would read the "
                    f"prompt: it must have no _ and no / and at most {LONGEST_NAME} bytes with its number."
                )
            found[name] = Place(f"{item.category}/samples/{file}")
        return found


def compbench_task(
    prompts: str | Path,
    *,
    examiner: VisionJudge | Detector | CompResults | None = None,
    num_per_category: int | None = None,
    samples: int = OFFICIAL_SAMPLES,
    seed: int = 0,
) -> CompBench:
    """
    Args:
        num_per_category: only the first prompts of each category.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is wrong.
    """
    chosen = [item for item in read_prompts(prompts) if num_per_category is None or item.index < num_per_category]
    source = {"prompts": source_revision(prompts), "num_per_category": num_per_category}
    return CompBench(prompts=tuple(chosen), examiner=examiner, samples=samples, seed=seed, source=source)
