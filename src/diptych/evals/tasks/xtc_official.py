"""XTC-Bench (arXiv 2604.25072) itself: its bundles of photographs, captions and questions.

Answers and drawings are made here. What a drawing shows is read by the official pipeline (segmentation, scene graph,
attributes, matching) and both sides are marked by its language model, none of which is part of this package:
``--export`` writes drawings and answers as that pipeline reads them, ``--verdicts`` reads the two files that its judge
wrote, and the sums are those of the twin (``scenes.consistency``): AW-CCTA with floor, coverage and intervals.

Differs in that a fact that was marked on one side only is not passed over: what is missing counts as wrong. Marks are
of 0 to 5, in fifths, so that ``u`` and ``g`` are no mere right or wrong here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from diptych.data.example import ImageIn, Text
from diptych.evals.json_lines import json_lines
from diptych.evals.manifest import EvaluationFolder, write_whole
from diptych.evals.places import Place
from diptych.evals.protocol import Failure, Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.doundo_official import file_image
from diptych.evals.tasks.geneval import file_revision
from diptych.evals.tasks.published import NO_JUDGE, Published
from diptych.scenes.consistency import FactScore, consistency_table
from diptych.scenes.scores import ScoreTable

KINDS = {
    "label_to_attribute": "attribute",
    "attributes_to_label": "label",
    "label_attributes_to_relationship": "relation",
}
"""Our kind of fact by the official type; questions of other types (counting) are not scored."""
_SHORT, _RELATIONS = " Answer in no more than 3 words.", " Answer with the matching relationship(s)."
UNMATCHED = "None."
"""What is looked up in a drawing that has no such object, attribute or relation."""
OFFICIAL_SEED = 42
MAX_NEW_TOKENS = 64
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class OfficialFact:
    """One question of the benchmark; ``id`` is its place in the file of questions, as the pipeline numbers it."""

    id: int
    image_id: str
    kind: str
    question: str
    answer: str

    @property
    def asked(self) -> str:
        """As the official script words it."""
        return self.question + (_RELATIONS if self.kind == "relation" else _SHORT)


@dataclass(frozen=True)
class Bundle:
    """Photographs and captions by image, and the questions about them."""

    captions: Mapping[str, str]
    pictures: Mapping[str, Path]
    facts: tuple[OfficialFact, ...]
    revision: str


def read_bundle(folder: str | Path, number: int | None = None) -> Bundle:
    """A bundle such as ``gt-1000-coco``: ``images``, ``6_prompt_generation/prompts.json`` and ``vqa_questions``.

    Args:
        number: only so many pictures, the first.

    Raises:
        FileNotFoundError: a part of it, or a picture, is missing.
        ValueError: a file is wrong; the message names the entry.
    """
    folder = Path(folder)
    prompts, questions = (
        _only(folder / "6_prompt_generation", "prompts.json"),
        _only(folder / "vqa_questions", "*.json"),
    )
    captions = _captions(prompts)
    facts = [fact for fact in _facts(questions) if fact.image_id in captions]
    if not facts:
        raise ValueError(f"{questions} asks about none of the pictures that {prompts} has captions of.")
    chosen = list(dict.fromkeys(fact.image_id for fact in facts))[:number]
    pictures = {name: _picture(folder / "images", name) for name in chosen}
    return Bundle(
        {name: captions[name] for name in chosen},
        pictures,
        tuple(fact for fact in facts if fact.image_id in pictures),
        f"{folder.resolve().name}: {file_revision(prompts)}, {file_revision(questions)}",
    )


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder} holds {len(found)} files {pattern}, one is expected. Give --images a bundle of XTC-Bench, such "
            "as gt-1000-coco."
        )
    return found[0]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: this is no JSON ({error}).") from None


def _captions(path: Path) -> dict[str, str]:
    content = _json(path)
    entries = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: a list of image_id and prompt is expected.")
    found: dict[str, str] = {}
    for place, entry in enumerate(entries):
        name, told = (entry.get("image_id"), entry.get("prompt")) if isinstance(entry, dict) else (None, None)
        if name is None or not isinstance(told, str) or not told.strip():
            raise ValueError(f"{path}, entry {place}: image_id and prompt are expected, got {entry!r}.")
        if str(name) in found:
            raise ValueError(f"{path}, entry {place}: image_id {name!r} stands twice. Remove one of them.")
        found[str(name)] = told.strip()
    return found


def _facts(path: Path) -> list[OfficialFact]:
    content = _json(path)
    entries = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path}: an object with a list "questions" is expected.')
    found = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(entry.get(key) is None for key in ("image_id", "question", "answer")):
            raise ValueError(f"{path}, question {place}: image_id, question and answer are expected, got {entry!r}.")
        if kind := KINDS.get(str(entry.get("question_type"))):
            name, said = str(entry["image_id"]), entry["answer"]
            told = ", ".join(map(str, said)) if isinstance(said, list) else str(said)
            found.append(OfficialFact(place, name, kind, str(entry["question"]), told))
    return found


def _picture(folder: Path, name: str) -> Path:
    """The photograph of an image id, which COCO pads to twelve digits."""
    for stem in (name, name.zfill(12)):
        for suffix in _SUFFIXES:
            if (path := folder / f"{stem}{suffix}").is_file():
                return path
    raise FileNotFoundError(f"There is no picture {folder / name}.jpg, which questions are asked about.")


@dataclass(frozen=True)
class FactMarks:
    """What the official judge wrote: of either side a mark from 0 to 1 by question, None where it gave none."""

    answers: Mapping[int, float | None]
    drawings: Mapping[int, float | None]
    unmatched: frozenset[int]
    """Questions to which a drawing has no answer."""
    revision: str

    def record(self) -> dict[str, Any]:
        return {"name": "XTC-Bench llm_judge.py", "revision": self.revision}


def read_fact_marks(folder: str | Path) -> FactMarks:
    """A folder with one ``scored_<model>.jsonl`` (answers) and one ``ige_scored_<model>.jsonl`` (drawings).

    Raises:
        FileNotFoundError: one of them is missing, or there are several.
        ValueError: a line is wrong; the message names it.
    """
    folder = Path(folder)
    files = []
    for pattern in ("scored_*.jsonl", "ige_scored_*.jsonl"):
        found = sorted(folder.glob(pattern))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{folder} holds {len(found)} files {pattern}, one is expected. Run XTC-Bench's steps 9 to 19 on what "
                "--export wrote, and put both files into one folder."
            )
        files.append(found[0])
    (answers, _), (drawings, unmatched) = (_marks(file) for file in files)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    return FactMarks(answers, drawings, frozenset(unmatched), digest)


def _marks(path: Path) -> tuple[dict[int, float | None], list[int]]:
    found: dict[int, float | None] = {}
    unmatched = []
    for line, record in json_lines(path):
        where, name, mark = f"{path}, line {line}", record.get("question_id"), record.get("score")
        if not str(name).isdigit():
            raise ValueError(f"{where}: question_id must be a whole number, got {name!r}.")
        if int(str(name)) in found:
            raise ValueError(f"{where}: question_id {name} stands twice. Remove one of the lines.")
        is_mark = isinstance(mark, int | float) and not isinstance(mark, bool) and 0 <= mark <= 1
        if mark is not None and not is_mark:
            raise ValueError(f"{where}: score must be a number from 0 to 1, or null, got {mark!r}.")
        found[int(str(name))] = None if mark is None else float(mark)
        if record.get("model_answer") == UNMATCHED:
            unmatched.append(int(str(name)))
    return found, unmatched


@dataclass(frozen=True, kw_only=True)
class ConsistencyOfficial(Published):
    """Every question asked once about its photograph, and one drawing of every caption."""

    name: str = "xtc-official"
    bundle: Bundle
    marks: FactMarks | None = None
    needs: tuple[str, ...] = ("image_to_text", "text_to_image")

    @cached_property
    def _facts(self) -> dict[str, OfficialFact]:
        return {f"{fact.image_id}/question-{fact.id:06d}": fact for fact in self.bundle.facts}

    def requests(self) -> list[Request]:
        """Every drawing has the same seed, as in the original."""
        pictures = {name: ImageIn(file_image(path)) for name, path in self.bundle.pictures.items()}
        settings = {"max_new_tokens": MAX_NEW_TOKENS}
        drawn = [
            Request(f"{name}/drawing", "image", (Text(caption),), OFFICIAL_SEED + self.seed)
            for name, caption in self.bundle.captions.items()
        ]
        return drawn + [
            Request(name, "text", (pictures[fact.image_id], Text(fact.asked)), settings=settings)
            for name, fact in self._facts.items()
        ]

    def judge_record(self) -> dict[str, Any]:
        return NO_JUDGE if self.marks is None else self.marks.record()

    def unready(self) -> str:
        if self.marks is not None:
            return ""
        return (
            f"{self.name} is judged by the official pipeline: write its drawings and answers with --export DIR, and "
            "give --verdicts the folder of scored_*.jsonl and ige_scored_*.jsonl"
        )

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict | Failure]:
        if self.marks is None:
            raise ValueError(f"{self.unready()}.")
        return [self._verdict(self.marks, request) for request in requests]

    def _verdict(self, marks: FactMarks, request: Request) -> Verdict | Failure:
        if request.kind == "text":
            mark = marks.answers.get(self._facts[request.id].id)
            return Failure("the official judge gave no mark") if mark is None else {"u": mark}
        image = request.id.removesuffix("/drawing")
        own = [fact.id for fact in self.bundle.facts if fact.image_id == image]
        if not any(marks.drawings.get(name) is not None for name in own):
            return Failure("the official judge gave no mark")
        return {
            "g": {str(name): marks.drawings.get(name) or 0.0 for name in own},
            "unmatched": [name for name in own if name in marks.unmatched or name not in marks.drawings],
        }

    def facts(self, verdicts: Verdicts) -> list[FactScore]:
        """Every fact of which both sides are there or missing; what is missing is wrong."""
        found = []
        for name, fact in self._facts.items():
            drawing = f"{fact.image_id}/drawing"
            if name not in verdicts or drawing not in verdicts:
                continue
            answered, drawn = verdicts[name], verdicts[drawing]
            g = drawn["g"][str(fact.id)] if drawn else 0.0
            matched = drawn is not None and fact.id not in drawn["unmatched"]
            found.append(FactScore(
                group=fact.image_id, kind=fact.kind, u=answered["u"] if answered else 0.0, g=g, matched=matched,
                g_unrejected=g, id=name,
            ))  # fmt: skip
        return found

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return [Unit(fact.id, fact.kind, fact.group, fact.weighted) for fact in self.facts(verdicts)]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        table = consistency_table(self.facts(verdicts), contender, self.label)
        return replace(table, details={**table.details, "min_similarity": None, "without_rejection": None})

    def places(self) -> dict[str, Place]:
        return {f"{name}/drawing": Place(f"{name}.jpg") for name in self.bundle.captions}


def export_answers(
    folder: EvaluationFolder, task: ConsistencyOfficial, keys: Mapping[str, str], target: str | Path
) -> int:
    """Writes ``answers.jsonl``, which ``llm_judge.py`` takes as ``--pred_jsonl``; how many answers there were."""
    rows, lines = folder.rows(), []
    official = {ours: theirs for theirs, ours in KINDS.items()}
    for name, fact in task._facts.items():
        row = rows.get(keys[name])
        if row is not None and row.text is not None:
            lines.append(json.dumps({
                "question_id": fact.id, "question_type": official[fact.kind], "question": fact.question,
                "gt_answer": fact.answer, "model_answer": row.text, "image_id": fact.image_id,
            }, ensure_ascii=False))  # fmt: skip
    write_whole(Path(target) / "answers.jsonl", ("\n".join(lines) + "\n").encode())
    return len(lines)


def consistency_official(
    images: str | Path, *, marks: FactMarks | None = None, number: int | None = None, seed: int = 0
) -> ConsistencyOfficial:
    """
    Args:
        images: a bundle.
        number: only so many pictures, the first.

    Raises:
        FileNotFoundError: a part of the bundle is missing.
        ValueError: a file of it is wrong.
    """
    bundle = read_bundle(images, number)
    source = {"bundle": bundle.revision, "num_pictures": len(bundle.pictures), "num_questions": len(bundle.facts)}
    return ConsistencyOfficial(bundle=bundle, marks=marks, seed=seed, source=source)
