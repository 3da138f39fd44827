"""GenEval 2 (arXiv 2512.16853): composed prompts, one picture each, and Soft-TIFA as the score.

Of every atom of a prompt one question is asked, and its score is the probability that the judge's first token gives to
the spellings of the right answer. The mean of a prompt's atoms (AM) tells of atoms, their geometric mean (GM) of
prompts: one atom that fails takes the prompt with it. Published numbers are of Qwen3-VL-8B-Instruct, times 100.
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
from diptych.evals.json_lines import json_lines
from diptych.evals.judges import JUDGED_AT_ONCE, Query, VisionJudge, ask_all
from diptych.evals.places import Place
from diptych.evals.protocol import Failure, Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.geneval import file_revision
from diptych.evals.tasks.published import NO_JUDGE, Published, first_of_each
from diptych.scenes.scores import ScoreTable, mean_score

OFFICIAL_JUDGE = "Qwen3-VL-8B-Instruct"
ONE_WORD = " Answer in one word."
"""Behind every question."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LEAST = 1e-300
"""A geometric mean does not go below it: the logarithm of 0 is none."""


@dataclass(frozen=True)
class Atom:
    """One question of a prompt with its answer."""

    question: str
    answer: str
    skill: str


@dataclass(frozen=True)
class AtomPrompt:
    """One prompt. ``atom_count`` is what the benchmark counts, which leaves out the articles that are asked for."""

    id: str
    prompt: str
    atom_count: int
    atoms: tuple[Atom, ...]


def answer_forms(answer: str) -> tuple[str, ...]:
    """The spellings of an answer: as it is, with a capital, each after a space, and a number in digits too."""
    word = answer.strip()
    forms = [word.lower(), word.capitalize()]
    if word.lower() in NUMBERS:
        forms.append(str(NUMBERS.index(word.lower())))
    return tuple(before + form for before in ("", " ") for form in forms)


def arithmetic_mean(scores: Sequence[float]) -> float:
    """AM of a prompt."""
    return float(np.mean(scores))


def geometric_mean(scores: Sequence[float]) -> float:
    """GM of a prompt."""
    return float(np.exp(np.mean(np.log(np.maximum(scores, LEAST)))))


def read_atoms(path: str | Path) -> tuple[AtomPrompt, ...]:
    """``geneval2_data.jsonl``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong, or a prompt stands twice, since pictures are found by their prompts.
    """
    found: list[AtomPrompt] = []
    lines: dict[str, int] = {}
    for number, record in json_lines(path):
        where = f"{path}, line {number}"
        item = _atom_prompt(record, f"{len(found):04d}", where)
        if item.prompt in lines:
            raise ValueError(f"{where}: the same prompt stands in line {lines[item.prompt]}. Remove one of them.")
        lines[item.prompt] = number
        found.append(item)
    if not found:
        raise ValueError(f"{path} holds no prompts.")
    return tuple(found)


def _atom_prompt(record: Mapping[str, Any], name: str, where: str) -> AtomPrompt:
    prompt, count = record.get("prompt"), record.get("atom_count")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where}: prompt must be a text, got {prompt!r}.")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{where}: atom_count must be a whole number of at least 1, got {count!r}.")
    pairs, skills = record.get("vqa_list"), record.get("skills")
    if not isinstance(pairs, list) or not pairs or not all(_is_pair(pair) for pair in pairs):
        raise ValueError(f"{where}: vqa_list must be a list of [question, answer], got {pairs!r}.")
    if not isinstance(skills, list) or len(skills) != len(pairs) or not all(isinstance(s, str) for s in skills):
        raise ValueError(f"{where}: skills must be a list of {len(pairs)} names, one a question, got {skills!r}.")
    atoms = tuple(Atom(pair[0], pair[1], skill) for pair, skill in zip(pairs, skills, strict=True))
    return AtomPrompt(name, prompt, count, atoms)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(word, str) and word for word in value)


@dataclass(frozen=True)
class AtomScores:
    """What GenEval 2's ``evaluation.py`` wrote: of each prompt in the order of the file, a score an atom."""

    by_prompt: tuple[tuple[float, ...], ...]
    name: str
    revision: str = ""

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision}


def read_atom_scores(path: str | Path) -> AtomScores:
    """The file that ``--output_file`` of the official script names.

    Raises:
        ValueError: it is no JSON list of lists of numbers from 0 to 1.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}).") from None
    if not isinstance(content, list):
        raise ValueError(f"{path}: a list of scores of each prompt is expected, got {type(content).__name__}.")
    for number, scores in enumerate(content):
        if not isinstance(scores, list) or not scores or not all(_is_share(score) for score in scores):
            raise ValueError(f"{path}, entry {number}: numbers from 0 to 1 are expected, got {scores!r}.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return AtomScores(tuple(tuple(map(float, scores)) for scores in content), "GenEval 2 evaluation.py", digest)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 + 1e-6


@dataclass(frozen=True, kw_only=True)
class SoftTifa(Published):
    """One picture for every prompt.

    Attributes:
        examiner: what looks at the pictures, or scores that the official script gave them.
    """

    prompts: tuple[AtomPrompt, ...]
    examiner: VisionJudge | AtomScores | None = None
    name: str = "geneval2"
    judged_at_once: int = JUDGED_AT_ONCE

    @cached_property
    def _asked(self) -> dict[str, AtomPrompt]:
        return {item.id: item for item in self.prompts}

    def requests(self) -> list[Request]:
        """Prompt i of the file has the seed ``seed + i``."""
        return [
            Request(name, "image", (Text(item.prompt),), self.seed + int(name)) for name, item in self._asked.items()
        ]

    def judge_record(self) -> dict[str, Any]:
        if self.examiner is None:
            return NO_JUDGE
        record = self.examiner.record()
        official = isinstance(self.examiner, AtomScores) or str(record.get("name")).endswith(OFFICIAL_JUDGE)
        return {"judge": record, "official": official, "question_ends": ONE_WORD.strip()}

    def unready(self) -> str:
        if self.examiner is not None:
            return ""
        return (
            f"{self.name} needs a judge that tells probabilities: give --judge, a model, URL#NAME, or a file of "
            "answers, or --verdicts the scores of the official script"
        )

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict | Failure]:
        if self.examiner is None:
            raise ValueError(f"{self.unready()}.")
        if isinstance(self.examiner, AtomScores):
            return [self._stored(self.examiner, self._asked[request.id]) for request in requests]
        queries = []
        for request, output in zip(requests, outputs, strict=True):
            assert isinstance(output, np.ndarray)
            for number, atom in enumerate(self._asked[request.id].atoms):
                told = atom.question + ONE_WORD
                queries.append(Query(f"{request.id}#{number}", output, told, answer_forms(atom.answer)))
        answers = ask_all(self.examiner, queries)
        verdicts: list[Verdict | Failure] = []
        for request in requests:
            own = [answers[f"{request.id}#{number}"] for number in range(len(self._asked[request.id].atoms))]
            failed = next((answer for answer in own if isinstance(answer, Failure)), None)
            scores = [answer.probability for answer in own if not isinstance(answer, Failure)]
            verdicts.append(failed or {"atoms": scores})
        return verdicts

    def _stored(self, scores: AtomScores, item: AtomPrompt) -> Verdict | Failure:
        place = int(item.id)
        if place >= len(scores.by_prompt):
            return Failure(f"the scores of {scores.name} end before prompt {place}")
        own = scores.by_prompt[place]
        if len(own) != len(item.atoms):
            raise ValueError(
                f"the scores of {scores.name}: prompt {place} has {len(item.atoms)} questions and {len(own)} scores. "
                "Give the scores of these prompts."
            )
        return {"atoms": list(own)}

    def units(self, verdicts: Verdicts) -> list[Unit]:
        """GM by prompt."""
        return [
            Unit(name, f"{item.atom_count} atoms", name, geometric_mean(verdict["atoms"]) if verdict else 0.0)
            for name, item in self._asked.items()
            if name in verdicts
            for verdict in (verdicts[name],)
        ]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        """GM by number of atoms, AM by skill, and both over all."""
        units = self.units(verdicts)
        rows = {}
        for category in sorted({unit.category for unit in units}, key=lambda text: int(text.split()[0])):
            rows[f"GM, {category}"] = mean_score([unit.value for unit in units if unit.category == category])
        by_skill: dict[str, list[tuple[str, float]]] = {}
        means = []
        for unit in units:
            item, verdict = self._asked[unit.id], verdicts[unit.id]
            scores = verdict["atoms"] if verdict else [0.0] * len(item.atoms)
            means.append(arithmetic_mean(scores))
            for atom, score in zip(item.atoms, scores, strict=True):
                by_skill.setdefault(atom.skill, []).append((unit.id, score))
        for skill, own in sorted(by_skill.items()):
            rows[f"AM, {skill}"] = mean_score([score for _, score in own], [name for name, _ in own])
        rows["AM"] = mean_score(means)
        details = {
            "overall_is": "the mean over prompts of the geometric mean of their atoms (Soft-TIFA GM); AM is the mean "
            "over prompts of the mean of their atoms. Published ones are 100 times as large."
        }
        return ScoreTable(self.label, contender, mean_score([unit.value for unit in units]), rows, details)

    def places(self) -> dict[str, Place]:
        return {name: Place(f"images/{name}.png") for name in self._asked}

    def companions(self) -> dict[str, str]:
        """The file that maps prompts to pictures, which the official script takes as ``--image_filepath_data``."""
        paths = {item.prompt: f"images/{name}.png" for name, item in self._asked.items()}
        return {"image_paths.json": json.dumps(paths, indent=2, ensure_ascii=False) + "\n"}


def geneval2_task(
    prompts: str | Path,
    *,
    examiner: VisionJudge | AtomScores | None = None,
    num_per_category: int | None = None,
    seed: int = 0,
) -> SoftTifa:
    """
    Args:
        num_per_category: only the first prompts of each number of atoms.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line of it is wrong.
    """
    chosen = first_of_each(read_atoms(prompts), lambda item: item.atom_count, num_per_category)
    source = {"prompts": file_revision(prompts), "num_per_category": num_per_category}
    return SoftTifa(prompts=chosen, examiner=examiner, seed=seed, source=source)
