"""DPG-Bench (ELLA, arXiv 2403.05135, section 4): long prompts, and questions about them that depend on each other.

The twin asks about scenes of the built-in world and needs no network; the real one reads ``dpg_bench.csv``. What looks
at the pictures is any ``VisionJudge``; the official one is mPLUG-large.

Follows the official scorer in what it counts: exactly "yes", zeros that are handed on, the mean of a prompt's pictures
and then of prompts, and categories from the last picture's answers before any is set to zero. Differs in that a missing
picture counts as wrong, where the official one drops the prompt, and in that pictures are judged one by one instead of
being cut out of a grid, which goes wrong with a wrong ``--resolution``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.example import Text
from diptych.evals.judges import JUDGED_AT_ONCE, Answer, Query, StoredAnswers, VisionJudge, ask_all, yes_or_no
from diptych.evals.places import Place
from diptych.evals.protocol import Failure, Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.dense_graphs import DensePrompt, graph_scores, read_dense_prompts, read_graphs
from diptych.evals.tasks.geneval import file_revision
from diptych.evals.tasks.published import NO_JUDGE, Published
from diptych.scenes.scores import Score, ScoreTable, mean_score

OFFICIAL_JUDGE = "mPLUG-large (damo/mplug_visual-question-answering_coco_large_en)"
OFFICIAL_SAMPLES = 4
"""Pictures a prompt: the tiles of a grid of two by two."""

_DETAIL = re.compile(r"(.*), \((\d+), (\d+), (\d+), (\d+)\), (.*), ([^,]*)")
"""A line of the official ``*_detail.txt``: picture, corners of the tile, question, answer."""


@dataclass(frozen=True, kw_only=True)
class DenseGraph(Published):
    """Prompts with their questions, ``samples`` pictures of each.

    Attributes:
        examiner: what looks at the pictures; None as long as nothing is judged.
    """

    name: str = "dpg-official"
    label: str = "dpg"
    prompts: tuple[DensePrompt, ...]
    examiner: VisionJudge | None = None
    samples: int = OFFICIAL_SAMPLES
    rewritten: Mapping[str, str] = field(default_factory=dict)
    """The prompts in other words, by id; what they are called is ``rewriter``."""
    rewriter: str = ""
    judged_at_once: int = JUDGED_AT_ONCE

    def config(self) -> dict[str, Any]:
        return {**super().config(), "samples": self.samples, "rewriter": self.rewriter}

    @cached_property
    def _asked(self) -> dict[str, DensePrompt]:
        return {f"{prompt.id}/{number:04d}": prompt for prompt in self.prompts for number in range(self.samples)}

    def requests(self) -> list[Request]:
        """Picture k of prompt i has the seed ``seed + i * samples + k``."""
        return [
            Request(
                name,
                "image",
                (Text(self.rewritten.get(prompt.id, prompt.prompt)),),
                self.seed + place,
                rewriter=self.rewriter,
            )
            for place, (name, prompt) in enumerate(self._asked.items())
        ]

    @property
    def is_exact(self) -> bool:
        """Only the answer "yes" counts as yes, and every other one as no, as in the official scorer."""
        return self.examiner is not None and self.examiner.record().get("name") == OFFICIAL_JUDGE

    def judge_record(self) -> dict[str, Any]:
        if self.examiner is None:
            return NO_JUDGE
        rule = "exactly 'yes'" if self.is_exact else "the first word, yes or no"
        return {"judge": self.examiner.record(), "official": self.is_exact, "counts_as_yes": rule}

    def unready(self) -> str:
        if not all(prompt.propositions for prompt in self.prompts):
            return (
                f"{self.name} has prompts without questions: give --prompts dpg_bench.csv to judge here, or write the "
                "grids for the official scorer with --export DIR"
            )
        if self.examiner is None:
            return f"{self.name} needs a judge of its pictures: give --judge, a model, URL#NAME, or a file of answers"
        return ""

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict | Failure]:
        if self.examiner is None or self.unready():
            raise ValueError(f"{self.unready()}.")
        queries = []
        for request, output in zip(requests, outputs, strict=True):
            assert isinstance(output, np.ndarray)
            propositions = self._asked[request.id].propositions
            queries += [Query(f"{request.id}#{item.id}", output, item.question) for item in propositions]
        answers = ask_all(self.examiner, queries)
        return [self._verdict(request.id, answers) for request in requests]

    def _verdict(self, name: str, answers: Mapping[str, Answer | Failure]) -> Verdict | Failure:
        propositions, said = self._asked[name].propositions, {}
        for item in propositions:
            answer = answers[f"{name}#{item.id}"]
            if isinstance(answer, Failure):
                return answer
            is_yes = answer.text == "yes" if self.is_exact else yes_or_no(answer.text)
            if is_yes is None:
                return Failure(f"the judge was to say yes or no to {item.question!r} and said {answer.text!r}")
            said[item.id] = is_yes
        scores = graph_scores(propositions, said)
        return {
            "score": sum(scores.values()) / len(scores),
            "yes": {str(name): int(value) for name, value in said.items()},
        }

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return [
            Unit(name, "dpg", prompt.id, verdict["score"] if (verdict := verdicts[name]) else 0.0)
            for name, prompt in self._asked.items()
            if name in verdicts
        ]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        by_prompt: dict[str, list[float]] = {}
        for unit in self.units(verdicts):
            by_prompt.setdefault(unit.group, []).append(unit.value)
        overall = mean_score([float(np.mean(values)) for values in by_prompt.values()])
        broad, fine = (self._categories(verdicts, is_broad) for is_broad in (True, False))
        details = {
            "overall_is": "the mean over prompts of the mean over their pictures, with zeros handed on. Categories are "
            "shares of yes in the last picture of each prompt before that, as the official scorer prints them.",
            "categories_in_detail": {name: score.value for name, score in fine.items()},
        }
        return ScoreTable(self.label, contender, overall, broad, details)

    def _categories(self, verdicts: Verdicts, is_broad: bool) -> dict[str, Score]:
        """Shares of yes by category in each prompt's last picture, as they were before any was set to zero."""
        found: dict[str, list[tuple[str, float]]] = {}
        last = {prompt.id: name for name, prompt in self._asked.items() if name in verdicts}
        for prompt in self.prompts:
            if prompt.id not in last:
                continue
            verdict = verdicts[last[prompt.id]]
            for item in prompt.propositions:
                value = float(verdict["yes"][str(item.id)]) if verdict else 0.0
                found.setdefault(item.broad if is_broad else item.category, []).append((prompt.id, value))
        return {
            name: mean_score([value for _, value in found[name]], [group for group, _ in found[name]])
            for name in sorted(found)
        }

    def places(self) -> dict[str, Place]:
        """One file a prompt; of several pictures a grid of two by two.

        Raises:
            ValueError: more pictures than the grid has places.
        """
        if self.samples > 4:
            raise ValueError(f"{self.name}: the official grid has room for 4 pictures a prompt, not {self.samples}.")
        found = {}
        for name, prompt in self._asked.items():
            tile = divmod(int(name[-4:]), 2)
            found[name] = Place(f"{prompt.id}.png", *(() if self.samples == 1 else (tile, (2, 2))))
        return found


def dpg_task(
    prompts: str | Path,
    *,
    rewritten: str | Path | None = None,
    examiner: VisionJudge | None = None,
    number: int | None = None,
    samples: int = OFFICIAL_SAMPLES,
    seed: int = 0,
) -> DenseGraph:
    """The real benchmark.

    Args:
        prompts: ``dpg_bench.csv``, or JSON lines with ``id`` and ``prompt`` where it is judged elsewhere.
        rewritten: JSON lines with the same ids and other prompts.
        number: only so many prompts, the first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line of a file is wrong; the message names it.
    """
    lost: dict[str, int] = {}
    if Path(prompts).suffix == ".csv":
        asked, lost = read_graphs(prompts)
    else:
        asked = read_dense_prompts(prompts)
    wordings = {} if rewritten is None else {item.id: item.prompt for item in read_dense_prompts(rewritten)}
    without = [item.id for item in asked if rewritten is not None and item.id not in wordings]
    if without:
        raise ValueError(f"{rewritten} lacks {len(without)} of {len(asked)} prompts, such as {without[0]}.")
    return DenseGraph(
        prompts=asked[:number],
        examiner=examiner,
        samples=samples,
        seed=seed,
        source={"prompts": file_revision(prompts), "number": number, **lost},
        rewritten=wordings,
        rewriter="" if rewritten is None else file_revision(rewritten),
    )


def read_details(path: str | Path) -> StoredAnswers:
    """The ``*_detail.txt`` of the official scorer: every answer that mPLUG-large gave.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    found: dict[str, Answer] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        match = _DETAIL.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{path}, line {number}: 'picture, (left, top, right, bottom), question, answer' is expected, got "
                f"{line[:80]!r}."
            )
        left, top, right, bottom = (int(match[index]) for index in (2, 3, 4, 5))
        own = right - left
        if own < 1 or bottom - top != own or left not in (0, own) or top not in (0, own):
            raise ValueError(f"{path}, line {number}: ({left}, {top}, {right}, {bottom}) is no tile of a grid.")
        sample = f"{Path(match[1]).name.split('.')[0]}/{2 * (top // own) + left // own:04d}"
        found[f"{sample}#{match[6]}"] = Answer(match[7])
    if not found:
        raise ValueError(f"{path} holds no answers.")
    return StoredAnswers(found, OFFICIAL_JUDGE, file_revision(path))
