"""GEdit-Bench (arXiv 2504.17761): edits that people asked for, in English and in Chinese, marked by VIEScore.

As the official scripts do it: SC is the lower of two marks of 0 to 10 (was it done, was nothing else), PQ the lower of
two (naturalness, artefacts), an edit's score is ``sqrt(SC * PQ)``, that of a group the mean over its edits, and overall
the mean of eleven groups; the same again over the edits of the intersection subset. The languages are apart.

Differs where a judge's answer holds no marks: the official scorer asks once more and then draws a number at random;
here the edit counts as missing and is asked again another time.
"""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from diptych.data.example import LazyImage, Pixels, pil_to_pixels
from diptych.evals.judges import Answer, Query, StoredAnswers, VisionJudge
from diptych.evals.manifest import content_hash
from diptych.evals.protocol import Failure
from diptych.evals.task import Verdict
from diptych.evals.tasks.geneval import file_revision
from diptych.evals.tasks.judged_edits import EditItem, JudgedEdits, in_size_of, source_of
from diptych.evals.tasks.published import first_of_each
from diptych.evals.tasks.wise import weighted_mean
from diptych.scenes.scores import ScoreTable, mean_score

Language: TypeAlias = Literal["en", "cn"]
GROUPS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
OFFICIAL_JUDGE = "gpt-4.1"
TOP_MARK = 10
_DELIMITER = "||V^=^V||"
_COLUMNS = ("task_type", "key", "instruction", "instruction_language", "Intersection_exist")
_SCORE_COLUMNS = ("edited_image", "sementics_score", "quality_score", "instruction_language")
"""Of the official tables, spelt as there."""


def marks_in(text: str) -> list[float]:
    """The marks of an answer: a JSON object with ``score``, between VIEScore's delimiters or not, or a bare list."""
    if text.count(_DELIMITER) == 2:
        text = text.split(_DELIMITER)[1]
    inner = text[text.find("{") : text.rfind("}") + 1]
    if inner:
        try:
            given = json.loads(inner.replace("\n", ""))["score"]
        except (ValueError, KeyError, TypeError):
            listed = re.search(r"score\W*\[([\d\s,.]*)\]", inner)
            given = [float(word) for word in re.findall(r"\d+(?:\.\d+)?", listed[1])] if listed else []
        marks = given if isinstance(given, list) else [given]
    elif re.fullmatch(r"\[\d+, ?\d+\]", bare := text[text.find("[") : text.rfind("]") + 1]):
        marks = json.loads(bare)
    else:
        marks = [int(text)] if text.strip().isdigit() else []
    numbers = all(isinstance(mark, int | float) and not isinstance(mark, bool) for mark in marks)
    return [float(mark) for mark in marks] if numbers else []


@dataclass(frozen=True)
class VieMarking:
    """Two answers: SC about both pictures, PQ about the edited one alone."""

    official_judge: str = OFFICIAL_JUDGE
    instructions: str = "diptych 1"

    def queries(self, item: EditItem, edited: Pixels) -> list[Query]:
        """The edited picture in the size of its source, as the official scorer shows it."""
        source = source_of(item)
        shown = in_size_of(edited, source)
        about_edit = (
            "You see a picture before and after an edit. Give two whole numbers from 0 to 10: how well the edit was "
            "done as told, and how well everything else was kept.\n"
            f"The edit: {item.instruction}\n"
        )
        about_picture = (
            "Give two whole numbers from 0 to 10 for this picture: how natural it looks, and how free of artefacts.\n"
        )
        form = 'Answer with {"score": [first, second], "reasoning": "in one sentence"} and nothing else.'
        return [
            Query(f"{item.id}#SC", shown, about_edit + form, max_new_tokens=256, before=(source,)),
            Query(f"{item.id}#PQ", shown, about_picture + form, max_new_tokens=256),
        ]

    def verdict(self, item: EditItem, texts: Mapping[str, str]) -> Verdict | Failure:
        lowest = {}
        for what in ("SC", "PQ"):
            marks = marks_in(texts[what])
            if not marks or not all(0 <= mark <= TOP_MARK for mark in marks):
                return Failure(f"the judge was to give two marks from 0 to {TOP_MARK} and said {texts[what]!r}")
            lowest[what] = min(marks)
        return {"value": math.sqrt(lowest["SC"] * lowest["PQ"]) / TOP_MARK, **lowest}

    def table(self, label: str, contender: str, marked: Sequence[tuple[EditItem, Verdict | None]]) -> ScoreTable:
        by_group = _by_group(marked)
        overall = weighted_mean(by_group, dict.fromkeys(by_group, 1.0))
        common = _by_group([(item, verdict) for item, verdict in marked if item.about["is_in_intersection"]])
        details: dict[str, Any] = {
            "overall_is": f"the mean of the groups of sqrt(SC * PQ), in tenths: times {TOP_MARK} it is the published "
            "scale of 0 to 10.",
            "published_overall": overall.value * TOP_MARK,
        }
        for what, name in (("SC", "semantics"), ("PQ", "quality")):
            details[f"published_{name}"] = _macro(
                [(item.category, float(verdict[what]) if verdict else 0.0) for item, verdict in marked]
            )
        if common:
            details["published_overall_of_the_intersection"] = TOP_MARK * float(
                np.mean([np.mean(own) for own in common.values()])
            )
        return ScoreTable(label, contender, overall, {name: mean_score(own) for name, own in by_group.items()}, details)


def _by_group(marked: Sequence[tuple[EditItem, Verdict | None]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for item, verdict in marked:
        found.setdefault(item.category, []).append(verdict["value"] if verdict else 0.0)
    return {name: found[name] for name in GROUPS if name in found}


def _macro(values: Sequence[tuple[str, float]]) -> float:
    """The mean of the means of groups."""
    groups = dict.fromkeys(name for name, _ in values)
    return float(np.mean([np.mean([value for own, value in values if own == name]) for name in groups]))


def read_wishes(folder: str | Path, language: Language) -> tuple[EditItem, ...]:
    """The rows of one language in the data set's parquet files, whose pictures are read when they are needed.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: a column is missing, a value is wrong, or a key stands twice.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError("gedit reads parquet files, which takes pyarrow: pip install 'diptych[data]'.") from None
    folder = Path(folder)
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"There are no parquet files in {folder}. Give --images the data set GEdit-Bench.")
    found: dict[str, EditItem] = {}
    for file in files:
        lacking = [name for name in (*_COLUMNS, "input_image") if name not in parquet.read_schema(file).names]
        if lacking:
            raise ValueError(f"{file}: columns {', '.join(lacking)} are missing. Give the data set GEdit-Bench.")
        for place, row in enumerate(parquet.read_table(file, columns=list(_COLUMNS)).to_pylist()):
            where = f"{file}, row {place}"
            if row["instruction_language"] != language:
                continue
            if row["task_type"] not in GROUPS:
                raise ValueError(f"{where}: task_type must be one of {', '.join(GROUPS)}, got {row['task_type']!r}.")
            if row["key"] in found:
                raise ValueError(f"{where}: key {row['key']!r} stands twice. Remove one of them.")
            about = {"is_in_intersection": bool(row["Intersection_exist"])}
            picture = LazyImage(f"{file.name}|{place}|{row['key']}", partial(_picture, str(file), place))
            official = f"fullset/{row['task_type']}/{language}/{row['key']}.png"
            found[row["key"]] = EditItem(row["key"], picture, row["instruction"], row["task_type"], official, about)
    if not found:
        raise ValueError(f"{folder} holds no instructions in the language {language!r}.")
    return tuple(found.values())


def _picture(file: str, place: int) -> Pixels:
    """The source of one row; a row group is read at a time."""
    import pyarrow.parquet as parquet

    table = parquet.ParquetFile(file)
    start = 0
    for group in range(table.num_row_groups):
        number = table.metadata.row_group(group).num_rows
        if place < start + number:
            stored = table.read_row_group(group, columns=["input_image"])["input_image"][place - start].as_py()
            return pil_to_pixels(Image.open(io.BytesIO(stored["bytes"])))
        start += number
    raise ValueError(f"{file} has no row {place}.")


def gedit_task(
    images: str | Path,
    language: Language,
    *,
    examiner: VisionJudge | None = None,
    num_per_category: int | None = None,
    seed: int = 0,
) -> JudgedEdits:
    """The benchmark in one language.

    Args:
        images: the data set ``stepfun-ai/GEdit-Bench``, a folder with its parquet files.
        num_per_category: only the first edits of each group.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: a file is wrong; the message names the row.
    """
    chosen = first_of_each(read_wishes(images, language), lambda item: item.category, num_per_category)
    digest = content_hash([[item.id, item.instruction] for item in chosen])[:16]
    return JudgedEdits(
        name=f"gedit-{language}",
        items=chosen,
        marking=VieMarking(),
        examiner=examiner,
        seed=seed,
        source={"edits": digest, "num_edits": len(chosen), "language": language},
    )


def write_sources(task: JudgedEdits, target: str | Path) -> int:
    """Writes ``<key>_SRCIMG.png`` beside each edited picture, which the official scorer reads; how many."""
    for item in task.items:
        file = Path(target) / item.file
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source_of(item)).save(file.with_name(f"{item.id}_SRCIMG.png"))
    return len(task.items)


def read_gedit_scores(folder: str | Path) -> StoredAnswers:
    """The tables ``<model>_<group>_gpt_score.csv`` of the official ``test_gedit_score.py``.

    They do not say who judged; a folder above them is called after it: ``gpt4o``, which is GPT-4.1, or ``qwen25vl``.

    Raises:
        FileNotFoundError: there are no such tables.
        ValueError: a column is missing or a number is none; the message names the line.
    """
    folder = Path(folder)
    files = [file for file in sorted(folder.glob("*_gpt_score.csv")) if "_combined_" not in file.name]
    if not files:
        raise FileNotFoundError(f"There is no *_gpt_score.csv in {folder}.")
    found: dict[str, Answer] = {}
    for file in files:
        with file.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            lacking = [name for name in _SCORE_COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise ValueError(f"{file}, line 1: columns {', '.join(lacking)} are missing.")
            for row in reader:
                for what, column in (("SC", "sementics_score"), ("PQ", "quality_score")):
                    if not re.fullmatch(r"\d+(\.\d+)?", row[column]):
                        raise ValueError(f"{file}, line {reader.line_num}: {column} is no number: {row[column]!r}.")
                    mark = json.dumps({"score": [float(row[column])]})
                    found[f"{Path(row['edited_image']).stem}#{what}"] = Answer(mark)
    parts = folder.resolve().parts
    judge = OFFICIAL_JUDGE if "gpt4o" in parts else "Qwen2.5-VL-72B" if "qwen25vl" in parts else folder.name
    revision = content_hash([file_revision(file) for file in files])[:16]
    return StoredAnswers(found, judge, revision)
