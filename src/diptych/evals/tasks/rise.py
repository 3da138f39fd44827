"""RISEBench (arXiv 2504.02826): 360 edits that need reasoning about time, causes, space and logic.

As the official ``gpt_eval.py`` of 23 April 2026 and later: the headline is the share of edits that are right in every
respect that applies, five of five; a weighted score stands beside it. Marks are of 1 to 5; for logic a judge says 0 or
1, which become 1 and 5. An edit without a readable answer is not right, and is left out of the weighted score.

One quirk of the weighted score is kept apart: where any item of the file is marked ``consistency_free``, the script
takes a mark that is absent for true and so weighs every edit but those of logic as if consistency did not apply.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.example import LazyImage, Pixels, load_pixels
from diptych.evals.judges import Answer, Query, StoredAnswers, VisionJudge
from diptych.evals.manifest import content_hash
from diptych.evals.protocol import Failure
from diptych.evals.task import Verdict
from diptych.evals.tasks.doundo_official import file_image
from diptych.evals.tasks.geneval import file_revision
from diptych.evals.tasks.judged_edits import EditItem, JudgedEdits, source_of
from diptych.evals.tasks.published import first_of_each
from diptych.scenes.scores import ScoreTable, mean_score

CATEGORIES = ("temporal_reasoning", "causal_reasoning", "spatial_reasoning", "logical_reasoning")
LOGIC = "logical_reasoning"
OFFICIAL_JUDGE = "gpt-4.1-2025-04-14"
ASPECTS = {"consistency": "judge1", "reasoning": "judge2", "quality": "judge3"}
"""What is marked, and the key of each answer in the official results."""

_ONE_SCORE = re.compile(r"\*?\*?Final Score\*?\*?:?\s*([\d*\s,\n]*)", re.IGNORECASE)
_MORE_SCORES = re.compile(r"\*?\*?Final Scores\*?\*?:?\s*([\d*\s,\n]*)", re.IGNORECASE)


def marks_in(text: str) -> list[int]:
    """The numbers after the first ``Final Score`` that has any, else after ``Final Scores``; as the script reads it."""
    for pattern in (_ONE_SCORE, _MORE_SCORES):
        for match in pattern.findall(text):
            numbers = re.findall(r"\d+", match.replace("\n", " "))
            if numbers:
                return [int(number) for number in numbers]
    return []


def weighted_score(marks: Mapping[str, int], category: str, is_consistency_free: bool) -> float:
    """0.3 consistency + 0.5 reasoning + 0.2 quality, other weights where one does not apply, from 1 to 5.

    Halved, to no less than 1, where the reasoning is 1.
    """
    if category == LOGIC:
        score = 0.3 * marks["consistency"] + 0.7 * marks["reasoning"]
    elif is_consistency_free:
        score = 0.2 * marks["quality"] + 0.8 * marks["reasoning"]
    else:
        score = 0.3 * marks["consistency"] + 0.5 * marks["reasoning"] + 0.2 * marks["quality"]
    return max(score * 0.5, 1.0) if marks["reasoning"] == 1 else score


@dataclass(frozen=True)
class RiseMarking:
    """Up to three answers, one an aspect."""

    official_judge: str = OFFICIAL_JUDGE
    instructions: str = "diptych 1"

    def queries(self, item: EditItem, edited: Pixels) -> list[Query]:
        before = source_of(item)
        reference: LazyImage | None = item.about.get("reference_picture")
        shown = before if reference is None else load_pixels(reference)
        told = _own_words(item)
        pictures = {"consistency": (shown,), "reasoning": (shown,), "quality": ()}
        return [
            Query(f"{item.id}#{what}", edited, told[what], max_new_tokens=512, before=pictures[what])
            for what in aspects_of(item)
        ]

    def verdict(self, item: EditItem, texts: Mapping[str, str]) -> Verdict | Failure:
        found: list[int] = []
        for what in aspects_of(item):
            numbers = marks_in(texts[what])
            if not numbers:
                return Failure(f"the judge was to end with 'Final Score: <mark>' on {what} and said {texts[what]!r}")
            found += numbers
        if item.category == LOGIC:
            found = [4 * min(number, 1) + 1 for number in found]
        if len(found) != len(aspects_of(item)) or not all(1 <= mark <= 5 for mark in found):
            return Failure(f"the judge was to give one mark from 1 to 5 an aspect and gave {found}")
        marks = dict(zip(aspects_of(item), found, strict=True))
        return {"value": float(all(mark == 5 for mark in found)), "marks": marks}

    def table(self, label: str, contender: str, marked: Sequence[tuple[EditItem, Verdict | None]]) -> ScoreTable:
        values = [verdict["value"] if verdict else 0.0 for _, verdict in marked]
        rows = {}
        for category in CATEGORIES:
            own = [value for (item, _), value in zip(marked, values, strict=True) if item.category == category]
            if own:
                rows[category.removesuffix("_reasoning")] = mean_score(own)
        there = [(item, verdict["marks"]) for item, verdict in marked if verdict]
        has_free = any(item.about["is_consistency_free"] for item, _ in marked)
        told = [weighted_score(marks, item.category, item.about["is_consistency_free"]) for item, marks in there]
        ran = [weighted_score(marks, item.category, has_free) for item, marks in there]
        means = {}
        for what in ASPECTS:
            given = [marks[what] for _, marks in there if what in marks]
            if given:
                means[what] = float(np.mean(given))
        details: dict[str, Any] = {
            "overall_is": "the share of edits with five of five in every respect that applies.",
            "mean_marks": means,
        }
        if there:
            details["weighted_score"] = float(np.mean(told))
            details["weighted_score_in_percent"] = 25 * (float(np.mean(told)) - 1)
            details["weighted_score_as_the_script_computes_it"] = float(np.mean(ran))
        return ScoreTable(label, contender, mean_score(values), rows, details)


def aspects_of(item: EditItem) -> tuple[str, ...]:
    """What is marked of an edit, in the order of the official answers."""
    if item.category == LOGIC:
        return ("consistency", "reasoning")
    return ("reasoning", "quality") if item.about["is_consistency_free"] else ("consistency", "reasoning", "quality")


def _own_words(item: EditItem) -> dict[str, str]:
    if item.category == LOGIC:
        scale, right = "0, no, or 1, yes", "Answer in one word whether so"
    else:
        scale, right = "a whole number from 1, not at all, to 5, entirely", "Judge strictly"
    end = f"{right}, and end with a line 'Final Score: <mark>', where the mark is {scale}."
    asked = f"The instruction was: {item.instruction}\n"
    reference = item.about.get("reference")
    expected = f"What is expected: {reference}\n" if reference else "The first picture shows what is expected.\n"
    return {
        "consistency": f"The second picture was made from the first one. {asked}Is everything that the instruction "
        f"does not touch as it was? {end}",
        "reasoning": f"The last picture is the result of an instruction. {asked}{expected}Does it show what is "
        f"expected? {end}",
        "quality": f"Is this picture sharp, free of distortions, and plausible? {end}",
    }


def read_reasoning_edits(path: str | Path, images: str | Path) -> tuple[EditItem, ...]:
    """``data_total.json`` with the pictures it names.

    Raises:
        FileNotFoundError: there is no such file, or a picture is missing.
        ValueError: an entry is wrong, or an index stands twice; the message names it.
    """
    path, images = Path(path), Path(images)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}).") from None
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: a JSON array of edits is expected.")
    found: dict[str, EditItem] = {}
    for number, entry in enumerate(content):
        where = f"{path}, entry {number}"
        for name in ("index", "category", "instruction", "image"):
            if not isinstance(entry, dict) or not isinstance(entry.get(name), str) or not entry[name].strip():
                raise ValueError(f"{where}: {name} must be a text.")
        if entry["category"] not in CATEGORIES:
            raise ValueError(f"{where}: category must be one of {', '.join(CATEGORIES)}, got {entry['category']!r}.")
        if entry["index"] in found:
            raise ValueError(f"{where}: index {entry['index']!r} stands twice. Remove one of them.")
        found[entry["index"]] = _item(entry, images, where)
    return tuple(found.values())


def _item(entry: Mapping[str, Any], images: Path, where: str) -> EditItem:
    def picture(name: str) -> LazyImage:
        if not (images / name).is_file():
            raise FileNotFoundError(f"{where}: there is no picture {images / name}. Give --images the folder data.")
        return file_image(images / name)

    has_reference = entry.get("reference_img") is not None and entry["category"] in CATEGORIES[2:]
    reference_text = entry.get("reference_txt") if entry["category"] == LOGIC else entry.get("reference")
    if entry["category"] == LOGIC and reference_text is not None:
        has_reference = False  # the script looks for the text first
    if not has_reference and not reference_text:
        raise ValueError(f"{where}: what is expected of it? A reference is missing.")
    return EditItem(
        entry["index"],
        picture(entry["image"]),
        entry["instruction"],
        entry["category"],
        f"images/{entry['category']}/{entry['index']}.png",
        {
            "is_consistency_free": entry.get("consistency_free") is not None and entry["category"] != LOGIC,
            "reference": None if has_reference else reference_text,
            "reference_picture": picture(entry["reference_img"]) if has_reference else None,
        },
    )


def rise_task(
    prompts: str | Path,
    images: str | Path,
    *,
    examiner: VisionJudge | None = None,
    num_per_category: int | None = None,
    seed: int = 0,
) -> JudgedEdits:
    """The benchmark.

    Args:
        prompts: ``data_total.json``.
        images: the folder ``data`` with the pictures.
        num_per_category: only the first edits of each category.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is wrong; the message names the entry.
    """
    chosen = first_of_each(read_reasoning_edits(prompts, images), lambda item: item.category, num_per_category)
    digest = content_hash([[item.id, item.instruction] for item in chosen])[:16]
    return JudgedEdits(
        name="rise",
        items=chosen,
        marking=RiseMarking(),
        examiner=examiner,
        seed=seed,
        source={"edits": digest, "num_edits": len(chosen)},
    )


def read_rise_answers(path: str | Path) -> StoredAnswers:
    """The answers of the official ``gpt_eval.py``, whose ``<model>.pkl`` is a dictionary, saved as JSON.

    ``{index: {"judge1": TEXT or null, "judge2": TEXT, "judge3": TEXT}}``; ``"judge": NAME`` may be added.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    content = json.loads(path.read_text(encoding="utf-8"))
    judge = content.pop("judge", f"file {path.name}")
    found = {}
    for index, said in content.items():
        for what, key in ASPECTS.items():
            if isinstance(said, dict) and isinstance(said.get(key), str):
                found[f"{index}#{what}"] = Answer(said[key])
    if not found:
        raise ValueError(f"{path} holds no answers. Give what RISEBench's gpt_eval.py kept, as JSON.")
    return StoredAnswers(found, str(judge), file_revision(path))
