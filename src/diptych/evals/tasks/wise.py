"""WISE (arXiv 2503.07265): prompts that need knowledge of the world, one picture each, marked by a language model.

Two scales that are not comparable, and two tasks: ``wise`` is that of the paper, three marks of 0 to 2, and
``wise-verified`` that of WISE_Verified, right or wrong, on partly rewritten prompts. Both are weighted means of six
categories, which the ids of the prompts tell.

The judge is told what to mark in words of this package. Published numbers rest on the words and the judge of the
repository: what its scripts wrote is read as a file of answers (``read_marks``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from diptych.data.example import Text
from diptych.evals.json_lines import json_lines
from diptych.evals.judges import JUDGED_AT_ONCE, Answer, Query, StoredAnswers, VisionJudge, ask_all, yes_or_no
from diptych.evals.places import Place
from diptych.evals.protocol import Failure, Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.published import NO_JUDGE, Published, first_of_each, source_revision
from diptych.scenes.scores import NUM_BOOTSTRAP, Score, ScoreTable, bootstrap_means, mean_score, wilson_interval

Scale: TypeAlias = Literal["legacy", "verified"]
OFFICIAL_JUDGES: Mapping[Scale, str] = {"legacy": "gpt-4o-2024-05-13", "verified": "Qwen3.5-35B-A3B"}

RANGES = {
    "culture": (1, 400),
    "time": (401, 567),
    "space": (568, 700),
    "biology": (701, 800),
    "physics": (801, 900),
    "chemistry": (901, 1000),
}
"""First and last prompt of each category."""

WEIGHTS: Mapping[Scale, Mapping[str, float]] = {
    "legacy": {"culture": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1},
    "verified": {"culture": 0.4, "time": 0.12, "space": 0.12, "biology": 0.12, "physics": 0.12, "chemistry": 0.12},
}
MARKS = {"consistency": 7, "realism": 2, "aesthetic_quality": 1}
"""Tenths that each mark weighs in a WiScore; each is 0, 1 or 2."""

_MARK = re.compile(r"(consistency|realism|aesthetic quality)[\s*:]*([0-9])(?![0-9.])", re.IGNORECASE)
_NO_MARK = 999
"""What the official script writes where an answer holds no mark."""

INSTRUCTIONS: Mapping[Scale, str] = {
    "legacy": (
        "This picture was drawn from a prompt. Mark it strictly.\n"
        "Prompt: {prompt}\nWhat the prompt means: {explanation}\n"
        "Consistency: 2 if the picture shows everything that is meant, 1 if a part of it, 0 if it misses the point.\n"
        "Realism: 2 if it could be a photograph, 1 if there are small faults, 0 if it is clearly artificial.\n"
        "Aesthetic Quality: 2 if it is outstanding, 1 if it is decent, 0 if it is poor.\n"
        "Answer in three lines and nothing else:\nConsistency: <mark>\nRealism: <mark>\nAesthetic Quality: <mark>"
    ),
    "verified": (
        "This picture was drawn from a prompt.\nPrompt: {prompt}\nWhat the prompt means: {explanation}\n"
        "Does the picture show what is meant, in every respect? Answer yes or no."
    ),
}
INSTRUCTIONS_REVISION = "diptych 1"


@dataclass(frozen=True)
class KnowledgePrompt:
    """One prompt."""

    id: int
    prompt: str
    explanation: str
    subcategory: str = ""

    @property
    def category(self) -> str:
        return next(name for name, (first, last) in RANGES.items() if first <= self.id <= last)


def read_knowledge(path: str | Path) -> tuple[KnowledgePrompt, ...]:
    """A JSON file of prompts, or a folder of several, in the order of their ids.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: an entry is wrong, or an id stands twice.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"There is no file {path}. Give --prompts a JSON file of WISE, or the folder of them.")
    found: dict[int, KnowledgePrompt] = {}
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON ({error}).") from None
        if not isinstance(content, list):
            raise ValueError(f"{file}: a JSON array of prompts is expected, got {type(content).__name__}.")
        for number, entry in enumerate(content):
            item = _prompt(entry, f"{file}, entry {number}")
            if item.id in found:
                raise ValueError(f"{file}, entry {number}: prompt_id {item.id} stands twice. Remove one of them.")
            found[item.id] = item
    if not found:
        raise ValueError(f"{path} holds no prompts.")
    return tuple(found[number] for number in sorted(found))


def _prompt(entry: Any, where: str) -> KnowledgePrompt:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: a JSON object is expected, got {type(entry).__name__}.")
    number = entry.get("prompt_id")
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 1000:
        raise ValueError(f"{where}: prompt_id must be a whole number from 1 to 1000, got {number!r}.")
    for key in ("Prompt", "Explanation"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ValueError(f"{where}: {key} must be a text, got {entry.get(key)!r}.")
    return KnowledgePrompt(number, entry["Prompt"], entry["Explanation"], str(entry.get("Subcategory", "")))


def wiscore(consistency: int, realism: int, aesthetic_quality: int) -> float:
    """``(0.7 C + 0.2 R + 0.1 A) / 2``, from marks of 0 to 2."""
    marks = {"consistency": consistency, "realism": realism, "aesthetic_quality": aesthetic_quality}
    return sum(MARKS[name] * mark for name, mark in marks.items()) / 20


def marks_in(text: str) -> dict[str, int] | None:
    """The three marks of an answer; None where one is missing or above 2. Of two for one thing the last counts."""
    found = {name.lower().replace(" ", "_"): int(mark) for name, mark in _MARK.findall(text)}
    return found if set(found) == set(MARKS) and max(found.values()) <= 2 else None


@dataclass(frozen=True, kw_only=True)
class Wise(Published):
    """One picture for every prompt."""

    name: str = field(init=False, default="")
    scale: Scale
    prompts: tuple[KnowledgePrompt, ...]
    examiner: VisionJudge | None = None
    judged_at_once: int = JUDGED_AT_ONCE

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", "wise" if self.scale == "legacy" else "wise-verified")

    def config(self) -> dict[str, Any]:
        return {**super().config(), "scale": self.scale}

    @cached_property
    def _asked(self) -> dict[str, KnowledgePrompt]:
        return {str(prompt.id): prompt for prompt in self.prompts}

    def requests(self) -> list[Request]:
        """The seed of a prompt is ``seed`` and its id together."""
        return [Request(name, "image", (Text(item.prompt),), self.seed + item.id) for name, item in self._asked.items()]

    def judge_record(self) -> dict[str, Any]:
        if self.examiner is None:
            return NO_JUDGE
        record, is_stored = self.examiner.record(), isinstance(self.examiner, StoredAnswers)
        return {
            "judge": record,
            "official": is_stored and record.get("name") == OFFICIAL_JUDGES[self.scale],
            "scale": self.scale,
            "instructions": "the file's" if is_stored else INSTRUCTIONS_REVISION,
        }

    def unready(self) -> str:
        if self.examiner is not None:
            return ""
        return f"{self.name} needs a judge of its pictures: give --judge, a model, URL#NAME, or a file of answers"

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict | Failure]:
        if self.examiner is None:
            raise ValueError(f"{self.unready()}.")
        queries = []
        for request, output in zip(requests, outputs, strict=True):
            assert isinstance(output, np.ndarray)
            item = self._asked[request.id]
            told = INSTRUCTIONS[self.scale].format(prompt=item.prompt, explanation=item.explanation)
            queries.append(Query(f"{request.id}#{self.scale}", output, told, max_new_tokens=64))
        answers = ask_all(self.examiner, queries)
        return [self._verdict(answers[query.id]) for query in queries]

    def _verdict(self, answer: Answer | Failure) -> Verdict | Failure:
        if isinstance(answer, Failure):
            return answer
        if self.scale == "verified":
            is_right = yes_or_no(answer.text)
            if is_right is None:
                return Failure(f"the judge was to say yes or no and said {answer.text!r}")
            return {"score": float(is_right)}
        marks = marks_in(answer.text)
        if marks is None:
            return Failure(f"the judge was to give three marks from 0 to 2 and said {answer.text!r}")
        return {"score": wiscore(**marks), **marks}

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return [
            Unit(name, item.category, name, verdict["score"] if (verdict := verdicts[name]) else 0.0)
            for name, item in self._asked.items()
            if name in verdicts
        ]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        units = self.units(verdicts)
        by_category = {name: [unit.value for unit in units if unit.category == name] for name in RANGES}
        by_category = {name: values for name, values in by_category.items() if values}
        weights = {name: WEIGHTS[self.scale][name] for name in by_category}
        overall = weighted_mean(by_category, weights)
        lacking = [name for name in RANGES if name not in by_category]
        said = ", ".join(f"{weight:g} {name}" for name, weight in weights.items())
        details: dict[str, Any] = {
            "overall_is": f"the weighted mean of the categories ({said}) on the {self.scale} scale from 0 to 1."
            + (f" {', '.join(lacking)} are not among the prompts; the other weights are scaled up." if lacking else "")
        }
        if self.scale == "legacy":
            means = {}
            for mark in MARKS:
                means[mark] = float(np.mean([(verdicts[unit.id] or {}).get(mark, 0) for unit in units]))
            details["mean_marks_of_2"] = means
        return ScoreTable(
            self.label, contender, overall, {name: mean_score(values) for name, values in by_category.items()}, details
        )

    def places(self) -> dict[str, Place]:
        return {name: Place(f"{name}.png") for name in self._asked}


def weighted_mean(values: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> Score:
    """A weighted mean of category means, with a bootstrap within every category.

    Where all values are 0, or all are 1, the interval is Wilson's for all of them together.

    Args:
        weights: by category; they need not sum to 1.
    """
    total = sum(weights[name] for name in values)
    value = sum(weights[name] * float(np.mean(own)) for name, own in values.items()) / total
    number = sum(len(own) for own in values.values())
    if value in (0.0, 1.0):
        return Score(value, *wilson_interval(value, number), number, number)
    drawn = sum(
        weights[name] / total * bootstrap_means(own, None, NUM_BOOTSTRAP, np.random.default_rng([0, *name.encode()]))
        for name, own in values.items()
    )
    low, high = np.quantile(np.asarray(drawn), (0.025, 0.975)).tolist()
    return Score(value, low, high, number, number)


def read_marks(path: str | Path) -> StoredAnswers:
    """What WISE's ``gpt_eval.py`` wrote: a ``*_scores_results.jsonl``, or a folder of several.

    The files do not say who marked: a first line ``{"judge": NAME}`` does, as in other files of answers.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: a line is wrong; the message names it.
    """
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} holds no *_scores_results.jsonl of WISE.")
    found: dict[str, Answer] = {}
    name = ""
    for file in files:
        for number, record in json_lines(file):
            where = f"{file}, line {number}"
            if "judge" in record:
                name = str(record["judge"])
                continue
            marks = [record.get(key) for key in MARKS]
            if not isinstance(record.get("prompt_id"), int) or not all(isinstance(m, int | float) for m in marks):
                raise ValueError(f"{where}: prompt_id, {', '.join(MARKS)} must be numbers, got {record!r}.")
            key = f"{record['prompt_id']}#legacy"
            if key in found:
                raise ValueError(f"{where}: prompt_id {record['prompt_id']} stands twice. Remove one of the lines.")
            said = [
                f"{mark.replace('_', ' ')}: {'no mark' if value == _NO_MARK else int(value)}"
                for mark, value in zip(MARKS, marks, strict=True)
                if value is not None
            ]
            found[key] = Answer("\n".join(said))
    if not found:
        raise ValueError(f"{path} holds no marks.")
    revision = ", ".join(source_revision(file) for file in files)
    return StoredAnswers(found, name or f"file {path.name}", revision)


def wise_task(
    prompts: str | Path,
    scale: Scale,
    *,
    examiner: VisionJudge | None = None,
    num_per_category: int | None = None,
    seed: int = 0,
) -> Wise:
    """
    Args:
        num_per_category: only the first prompts of each category.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an entry of a file is wrong.
    """
    chosen = first_of_each(read_knowledge(prompts), lambda item: item.category, num_per_category)
    source = {"prompts": source_revision(prompts), "num_per_category": num_per_category}
    return Wise(scale=scale, prompts=chosen, examiner=examiner, seed=seed, source=source)
