"""Judges that look: a picture and a question go in, an answer comes out, with its probability where that is asked for.

One small protocol for DPG-Bench, WISE, T2I-CompBench, GenEval 2 and whatever asks about pictures. Behind it stands a
model of diptych, a server, a file of answers that were given elsewhere, or the reader of the built-in world
(``evals.scene_judge``).

A judge that cannot be reached stops the judging; what it said before is kept and not asked again. One question that it
lets lapse, or answers in another form than it was told to, leaves its picture without a verdict: the picture counts as
missing, with the reason, and is judged again the next time.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from diptych.data.example import ImageIn, Part, Pixels, Text
from diptych.evals.json_lines import json_lines
from diptych.evals.protocol import Contender, Failure, Output, Request, WithLogLikelihood

JUDGED_AT_ONCE = 4
"""Pictures between two times that verdicts are written: each may stand for dozens of questions."""


@dataclass(frozen=True)
class Query:
    """One question about one picture, or about one beside others."""

    id: str
    """``<id of the sample>#<what is asked>``, unique within a task."""
    image: Pixels
    question: str
    """All that the judge is told."""
    forms: tuple[str, ...] = ()
    """Where a probability is wanted: the spellings of one answer, whose probabilities as first token are summed."""
    max_new_tokens: int = 16
    before: tuple[Pixels, ...] = ()
    """Pictures that are shown ahead of it, such as the source of an edit."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The pictures, and then the question."""
        return (*(ImageIn(picture) for picture in (*self.before, self.image)), Text(self.question))


@dataclass(frozen=True)
class Answer:
    """What a judge said."""

    text: str = ""
    """Empty where only a probability was asked for."""
    probability: float | None = None
    """That the answer is one of the query's ``forms``."""


@runtime_checkable
class VisionJudge(Protocol):
    """Answers questions about pictures."""

    def record(self) -> dict[str, Any]:
        """JSON-able: ``name`` and ``revision``, which go into the record of every score."""
        ...

    def ask(self, queries: Sequence[Query]) -> Sequence[Answer | Failure]:
        """An answer to each.

        Raises:
            OSError: the judge cannot be reached.
            ValueError: it can never answer such questions.
        """
        ...


@runtime_checkable
class WithFirstTokens(Protocol):
    """A contender that can tell how likely the first tokens of an answer are."""

    def first_tokens(self, requests: Sequence[Request]) -> Sequence["Mapping[str, float] | Vocabulary | Failure"]:
        """For each request probabilities by token, of the likeliest ones at least."""
        ...


class ContenderJudge:
    """Any contender of the harness that can answer questions about pictures.

    Probabilities come from the first tokens where it tells them, and from log-likelihoods of the spellings otherwise.

    Raises:
        ValueError: it cannot see.
    """

    def __init__(self, contender: Contender) -> None:
        if "image_to_text" not in contender.capabilities:
            raise ValueError(
                f"--judge: {contender.name} cannot judge pictures: it can do {', '.join(contender.capabilities)}. "
                "Give a model that can do image_to_text."
            )
        self.contender = contender

    def record(self) -> dict[str, Any]:
        identity = self.contender.identity()
        return {"name": self.contender.name, "revision": identity.get("fingerprint") or json.dumps(identity)}

    def ask(self, queries: Sequence[Query]) -> list[Answer | Failure]:
        found: dict[str, Answer | Failure] = {}
        for wanted in dict.fromkeys((bool(query.forms), query.max_new_tokens) for query in queries):
            own = [query for query in queries if (bool(query.forms), query.max_new_tokens) == wanted]
            answers = self._probabilities(own) if wanted[0] else self._texts(own)
            found.update(zip([query.id for query in own], answers, strict=True))
        return [found[query.id] for query in queries]

    def _texts(self, queries: Sequence[Query]) -> list[Answer | Failure]:
        given = {"max_new_tokens": queries[0].max_new_tokens, "temperature": 0.0}
        settings = self.contender.settings("text", given)
        requests = [Request(query.id, "text", query.parts, settings=settings) for query in queries]
        outputs = self.contender.write(requests)
        _check_number(self.contender.name, len(requests), len(outputs))
        return [_as_answer(output) for output in outputs]

    def _probabilities(self, queries: Sequence[Query]) -> list[Answer | Failure]:
        if isinstance(self.contender, WithFirstTokens):
            settings = self.contender.settings("text", {"temperature": 0.0})
            requests = [Request(query.id, "text", query.parts, settings=settings) for query in queries]
            tokens = self.contender.first_tokens(requests)
            _check_number(self.contender.name, len(requests), len(tokens))
            return [
                own if isinstance(own, Failure) else Answer(probability=sum_of_forms(own, query.forms))
                for query, own in zip(queries, tokens, strict=True)
            ]
        if not isinstance(self.contender, WithLogLikelihood) or "log_likelihood" not in self.contender.capabilities:
            raise ValueError(
                f"--judge: {self.contender.name} tells no probabilities, which this benchmark needs of its judge. Give "
                "a model of diptych, a server that returns log-probabilities, or a file of answers."
            )
        settings = self.contender.settings("log_likelihood", {})
        requests = []
        for query in queries:
            choices = tuple(dict.fromkeys(form.strip() for form in query.forms))
            parts = query.parts
            requests.append(Request(query.id, "log_likelihood", parts, settings=settings, choices=choices))
        outputs = self.contender.log_likelihood(requests)
        _check_number(self.contender.name, len(requests), len(outputs))
        return [
            Answer(probability=min(sum(math.exp(value) for value in output), 1.0))
            if isinstance(output, tuple)
            else Failure(f"the judge gave no log-likelihoods: {output!r}")
            for output in outputs
        ]


@runtime_checkable
class Vocabulary(Protocol):
    """Probabilities of first tokens where the whole vocabulary is known."""

    def probability_of(self, forms: Sequence[str]) -> float:
        """That the first token is the first one of any of several spellings; each token counts once."""
        ...


def sum_of_forms(tokens: Mapping[str, float] | Vocabulary, forms: Sequence[str]) -> float:
    """The probability of any of several spellings, by their tokens; a spelling that is not listed adds nothing."""
    if isinstance(tokens, Vocabulary):
        return tokens.probability_of(forms)
    return min(sum(tokens.get(form, 0.0) for form in dict.fromkeys(forms)), 1.0)


def _as_answer(output: Output) -> Answer | Failure:
    if isinstance(output, Failure):
        return Failure(f"the judge gave no answer: {output.reason}")
    return Answer(output) if isinstance(output, str) else Failure("the judge's answer is no text")


def _check_number(name: str, asked: int, answered: int) -> None:
    if asked != answered:
        raise ValueError(f"--judge: {name} was asked {asked} questions and gave {answered} answers.")


def ask_all(judge: VisionJudge, queries: Sequence[Query]) -> dict[str, Answer | Failure]:
    """Answers by id of the query.

    Raises:
        ValueError: there are not as many answers as questions, or two questions have one id.
    """
    answers = judge.ask(queries)
    _check_number(str(judge.record().get("name")), len(queries), len(answers))
    found = {query.id: answer for query, answer in zip(queries, answers, strict=True)}
    if len(found) != len(queries):
        raise ValueError("two questions to the judge have one id.")
    return found


def yes_or_no(text: str) -> bool | None:
    """What the first word of an answer says; None where it is neither yes nor no."""
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return {"yes": True, "no": False}.get(words[0]) if words else None


@dataclass(frozen=True)
class StoredAnswers:
    """Answers from a file (``read_answers``), so that what a judge said elsewhere can be scored here.

    Attributes:
        by_id: by ``Query.id``, or by ``<id of the sample>#<the question>``.
        name: who answered, for the record.
    """

    by_id: Mapping[str, Answer]
    name: str
    revision: str = ""

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision}

    def ask(self, queries: Sequence[Query]) -> list[Answer | Failure]:
        """An answer that is not in the file is a ``Failure``.

        Raises:
            ValueError: there is not one of them.
        """
        found: list[Answer | Failure] = []
        for query in queries:
            sample = query.id.partition("#")[0]
            answer = self.by_id.get(query.id) or self.by_id.get(f"{sample}#{query.question}")
            if answer is None:
                found.append(Failure(f"the answers of {self.name} lack {query.id}"))
            elif query.forms and answer.probability is None:
                found.append(Failure(f"the answer of {self.name} to {query.id} has no probability"))
            else:
                found.append(answer)
        return found


def read_answers(path: str | Path) -> StoredAnswers:
    """A file of JSON lines ``{"id", "answer"}``, or ``{"id", "probability"}``, or both.

    A first line ``{"judge": NAME, "revision": TEXT}`` says who answered; without it the file's own name stands for it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong, or two lines answer one question.
    """
    found: dict[str, Answer] = {}
    lines: dict[str, int] = {}
    about: dict[str, Any] = {}
    for number, record in json_lines(path):
        where = f"{path}, line {number}"
        if not found and "judge" in record:
            about = record
            continue
        name = record.get("id")
        if not isinstance(name, str) or not name:
            raise ValueError(f'{where}: which question is it? Give "id": "<sample>#<question>".')
        if name in found:
            raise ValueError(f"{where}: line {lines[name]} answers the same question, {name}. Remove one of them.")
        found[name], lines[name] = _stored_answer(record, where), number
    if not found:
        raise ValueError(f"{path} holds no answers.")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return StoredAnswers(
        found, str(about.get("judge") or f"file {Path(path).name}"), str(about.get("revision") or digest)
    )


def _stored_answer(record: Mapping[str, Any], where: str) -> Answer:
    text, probability = record.get("answer"), record.get("probability")
    if text is None and probability is None:
        raise ValueError(f'{where}: there is neither an "answer" nor a "probability".')
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: answer must be a text, got {text!r}.")
    if probability is not None:
        is_number = isinstance(probability, int | float) and not isinstance(probability, bool)
        if not is_number or not 0 <= probability <= 1:
            raise ValueError(f"{where}: probability must be a number from 0 to 1, got {probability!r}.")
    return Answer(text or "", None if probability is None else float(probability))


def write_answers(path: str | Path, about: Mapping[str, Any], by_id: Mapping[str, Answer]) -> None:
    """Writes what ``read_answers`` reads.

    Args:
        about: ``judge`` and ``revision``.
    """
    lines = [json.dumps(dict(about))]
    for name, answer in by_id.items():
        record: dict[str, Any] = {"id": name}
        if answer.text:
            record["answer"] = answer.text
        if answer.probability is not None:
            record["probability"] = answer.probability
        lines.append(json.dumps(record, ensure_ascii=False))
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
