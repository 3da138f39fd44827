"""ImgEdit-Bench (arXiv 2505.20275), the basic suite: 737 edits of nine types, three marks of 1 to 5 each.

As the official scripts do it: an edit's score is the mean of its marks, rounded to two decimals, that of a type is the
mean over its edits, and what is published as overall the mean of the types. That the second and the third mark are no
higher than the first is asked of the judge in words and enforced nowhere; here too it is only counted how often a judge
does not keep to it, and what the scores were if they were cut.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.example import Pixels
from diptych.evals.judges import Answer, Query, StoredAnswers, VisionJudge
from diptych.evals.manifest import content_hash
from diptych.evals.protocol import Failure
from diptych.evals.task import Verdict
from diptych.evals.tasks.doundo_official import file_image
from diptych.evals.tasks.geneval import file_revision
from diptych.evals.tasks.judged_edits import EditItem, JudgedEdits, source_of
from diptych.evals.tasks.published import first_of_each
from diptych.evals.tasks.wise import weighted_mean
from diptych.scenes.scores import ScoreTable, mean_score

TYPES = ("replace", "add", "adjust", "remove", "style", "action", "extract", "background", "compose")
OFFICIAL_JUDGE = "gpt-4o"
TOP_MARK = 5
OWN_WORDS = "diptych 1"
_PLACEHOLDER = "<edit_prompt>"
_MARKS = {
    "style": ("Style Fidelity", "Content Preservation", "Rendering Quality"),
    "action": ("Action Fidelity", "Identity Preservation", "Visual & Anatomical Coherence"),
    "extract": ("Object Identity", "Mask Precision", "Visual Quality"),
}
_OTHER_MARKS = ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Integrity")


def marks_in(text: str) -> list[int]:
    """The marks of an answer: lines of ``name: number``, as the official script reads them."""
    parts = [line.strip().split(": ") for line in text.splitlines()]
    return [int(part[1]) for part in parts if len(part) == 2 and part[1].isdigit()]


@dataclass(frozen=True)
class ImgEditMarking:
    """Three marks by one answer.

    Attributes:
        words: what the judge is told, by type; this package's own where there are none.
    """

    words: Mapping[str, str] = field(default_factory=dict)
    revision: str = OWN_WORDS
    official_judge: str = OFFICIAL_JUDGE

    @property
    def instructions(self) -> str:
        return self.revision

    def queries(self, item: EditItem, edited: Pixels) -> list[Query]:
        told = self.words.get(item.category) or _own_words(item.category)
        told = told.replace(_PLACEHOLDER, item.instruction)
        return [Query(f"{item.id}#marks", edited, told, max_new_tokens=256, before=(source_of(item),))]

    def verdict(self, item: EditItem, texts: Mapping[str, str]) -> Verdict | Failure:
        marks = marks_in(texts["marks"])
        if not marks or not all(1 <= mark <= TOP_MARK for mark in marks):
            return Failure(f"the judge was to give three marks from 1 to {TOP_MARK} and said {texts['marks']!r}")
        mean = round(sum(marks) / len(marks), 2)
        return {"value": mean / TOP_MARK, "marks": marks}

    def table(self, label: str, contender: str, marked: Sequence[tuple[EditItem, Verdict | None]]) -> ScoreTable:
        by_type: dict[str, list[float]] = {}
        for item, verdict in marked:
            by_type.setdefault(item.category, []).append(verdict["value"] if verdict else 0.0)
        by_type = {name: by_type[name] for name in TYPES if name in by_type}
        overall = weighted_mean(by_type, dict.fromkeys(by_type, 1.0))
        there = [(item, verdict["marks"]) for item, verdict in marked if verdict]
        capped: dict[str, list[float]] = {name: [] for name in by_type}
        for item, verdict in marked:
            marks = verdict["marks"] if verdict else [0]
            capped[item.category].append(float(np.mean([min(mark, marks[0]) for mark in marks])))
        details = {
            "overall_is": f"the mean of the types, in fifths: times {TOP_MARK} it is the published scale of 1 to 5.",
            "published_scale": {name: round(float(np.mean(own)) * TOP_MARK, 2) for name, own in by_type.items()},
            "published_overall": round(overall.value * TOP_MARK, 2),
            "marks_above_the_first": sum(max(marks) > marks[0] for _, marks in there),
            "overall_if_they_were_cut": round(float(np.mean([np.mean(own) for own in capped.values()])), 2),
            "answers_without_three_marks": sum(len(marks) != 3 for _, marks in there),
        }
        return ScoreTable(label, contender, overall, {name: mean_score(own) for name, own in by_type.items()}, details)


def _own_words(kind: str) -> str:
    names = _MARKS.get(kind, _OTHER_MARKS)
    form = "\n".join(f"{name}: <mark>" for name in names)
    return (
        "You see a picture before and after an edit. Mark the edit strictly, with whole numbers from 1, failed, to 5, "
        f"flawless.\nThe edit: {_PLACEHOLDER}\n"
        f"{names[0]}: was all that was asked for done, and nothing else?\n"
        f"{names[1]} and {names[2]}: is the picture sound in this respect? Neither may be above the first mark.\n"
        f"Answer in three lines and nothing else:\n{form}"
    )


def read_edits(path: str | Path, images: str | Path) -> tuple[EditItem, ...]:
    """``basic_edit.json`` with the pictures it names.

    Raises:
        FileNotFoundError: there is no such file, or a picture is missing.
        ValueError: an entry is wrong; the message names it.
    """
    path, images = Path(path), Path(images)
    content = _json_object(path)
    found = []
    for key, entry in content.items():
        where = f"{path}, {key!r}"
        for name in ("id", "prompt", "edit_type"):
            if not isinstance(entry, dict) or not isinstance(entry.get(name), str) or not entry[name].strip():
                raise ValueError(f"{where}: {name} must be a text.")
        if entry["edit_type"] not in TYPES:
            raise ValueError(f"{where}: edit_type must be one of {', '.join(TYPES)}, got {entry['edit_type']!r}.")
        picture = images / entry["id"]
        if not picture.is_file():
            raise FileNotFoundError(f"{where}: there is no picture {picture}. Give --images the original pictures.")
        found.append(EditItem(key, file_image(picture), entry["prompt"], entry["edit_type"], f"{key}.png"))
    if not found:
        raise ValueError(f"{path} holds no edits.")
    return tuple(found)


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is expected, got {type(content).__name__}.")
    return content


def imgedit_task(
    prompts: str | Path,
    images: str | Path,
    *,
    examiner: VisionJudge | None = None,
    num_per_category: int | None = None,
    seed: int = 0,
) -> JudgedEdits:
    """The basic suite.

    Args:
        prompts: ``basic_edit.json``, or the folder ``Benchmark/Basic`` of the repository, whose ``prompts.json`` then
            is what the judge is told.
        images: folder of the original pictures.
        num_per_category: only the first edits of each type.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is wrong; the message names the entry.
    """
    prompts = Path(prompts)
    folder, file = (prompts, prompts / "basic_edit.json") if prompts.is_dir() else (None, prompts)
    marking = ImgEditMarking()
    if folder is not None and (folder / "prompts.json").is_file():
        words = _json_object(folder / "prompts.json")
        lacking = [name for name in TYPES if _PLACEHOLDER not in str(words.get(name, ""))]
        if lacking:
            raise ValueError(f"{folder / 'prompts.json'}: {lacking[0]!r} must be a text with {_PLACEHOLDER} in it.")
        marking = ImgEditMarking(words, file_revision(folder / "prompts.json"))
    chosen = first_of_each(read_edits(file, images), lambda item: item.category, num_per_category)
    digest = content_hash([[item.id, item.instruction, item.category] for item in chosen])[:16]
    return JudgedEdits(
        name="imgedit",
        items=chosen,
        marking=marking,
        are_official_words=bool(marking.words),
        examiner=examiner,
        seed=seed,
        source={"edits": digest, "num_edits": len(chosen)},
    )


def read_imgedit_answers(path: str | Path) -> StoredAnswers:
    """``result.json`` of the official ``basic_bench.py``: the judge's answer by key.

    The file does not say who judged; ``"judge": NAME`` may be added to it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    content = _json_object(Path(path))
    judge = content.pop("judge", f"file {Path(path).name}")
    # Where a request failed the script writes {"error": TEXT}; such an edit has no answer.
    found = {f"{key}#marks": Answer(text) for key, text in content.items() if isinstance(text, str)}
    if not found:
        raise ValueError(f"{path} holds no answers. Give the result.json of ImgEdit's basic_bench.py.")
    return StoredAnswers(found, str(judge), file_revision(path))
