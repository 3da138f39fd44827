"""Questions that depend on each other, as DPG-Bench asks them: reading them, and scoring the answers.

A question is answered 1 where the judge says yes. One that depends on a question whose score is 0 is 0 itself; this is
done in the order of the questions and on the scores as they are by then, so that zeros are handed on.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.data.example import Pixels
from diptych.evals.json_lines import json_lines

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
"""Of ``dpg_bench.csv``, those that count."""


@dataclass(frozen=True)
class Proposition:
    """One question of a prompt."""

    id: int
    parents: tuple[int, ...]
    """Ids of the questions that must be yes; 0 stands for none."""
    category: str
    """``entity - whole``; what stands before the dash is the broad category."""
    question: str

    @property
    def broad(self) -> str:
        return self.category.split("-")[0].strip()


@dataclass(frozen=True)
class DensePrompt:
    """A long prompt with its questions; without any where only the prompt is known."""

    id: str
    prompt: str
    propositions: tuple[Proposition, ...] = ()


def graph_scores(propositions: Sequence[Proposition], answers: Mapping[int, bool]) -> dict[int, float]:
    """The score of each question, 0 where a question that it depends on has 0.

    Raises:
        KeyError: a question depends on one that is not among them.
    """
    scores = {item.id: float(answers[item.id]) for item in propositions}
    for item in propositions:
        if any(parent != 0 and scores[parent] == 0 for parent in item.parents):
            scores[item.id] = 0.0
    return scores


def official_tiles(picture: Pixels, resolution: int, pic_num: int = 4) -> list[Pixels]:
    """What the official scorer cuts out of a grid when it is told ``--resolution`` and ``--pic-num``.

    The side of a tile is what it is told, not what the picture says: with a wrong one it cuts across tiles, or beyond
    the picture, where there is black. Nothing warns of it.

    Args:
        resolution: side of one tile in pixels.
    """
    if not 1 <= pic_num <= 4:
        raise ValueError(f"pic_num must be 1 to 4, got {pic_num}.")
    if resolution < 1:
        raise ValueError(f"resolution must be the side of one tile in pixels, got {resolution}.")
    image, side = Image.fromarray(picture), resolution
    corners = [(0, 0), (side, 0), (0, side), (side, side)][:pic_num]
    return [np.asarray(image.crop((left, top, left + side, top + side))) for left, top in corners]


def read_graphs(path: str | Path) -> tuple[tuple[DensePrompt, ...], dict[str, int]]:
    """The prompts of ``dpg_bench.csv`` as the official scorer understands them, and how many it loses.

    It passes over the first row of data. A prompt that depends on a question lost thereby cannot be scored, and the
    official mean is without it; it is left out here too. Where the rows of a prompt do not stand together the last
    block counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a row is wrong; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Give --prompts dpg_bench.csv, from ELLA's repository.")
    texts: dict[str, str] = {}
    found: dict[str, list[Proposition]] = {}
    previous, skipped = "", 0
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(f"{path}, line 1: columns {', '.join(lacking)} are missing. Give dpg_bench.csv.")
        for number, row in enumerate(reader):
            where = f"{path}, line {reader.line_num}"
            name, item = row["item_id"], _proposition(row, where)
            if not name:
                raise ValueError(f"{where}: item_id is missing.")
            if row["text"]:
                texts.setdefault(name, row["text"])
            if number == 0:
                skipped = 1
                continue
            if name != previous:
                found[name] = []
            if item.id in {other.id for other in found[name]}:
                raise ValueError(f"{where}: proposition {item.id} of {name} stands twice. Remove one of the lines.")
            found[name].append(item)
            previous = name
    prompts = [DensePrompt(name, texts.get(name, ""), tuple(items)) for name, items in found.items()]
    without = [prompt.id for prompt in prompts if not prompt.prompt.strip()]
    if without:
        raise ValueError(f"{path}: {without[0]} has no text. Every prompt needs one in its first row.")
    whole = tuple(prompt for prompt in prompts if _is_whole(prompt))
    if not whole:
        raise ValueError(f"{path} holds no prompts that can be scored.")
    return whole, {"rows_passed_over": skipped, "prompts_left_out": len(prompts) - len(whole)}


def _is_whole(prompt: DensePrompt) -> bool:
    ids = {0, *(item.id for item in prompt.propositions)}
    return all(ids.issuperset(item.parents) for item in prompt.propositions)


def _proposition(row: Mapping[str, str | None], where: str) -> Proposition:
    try:
        number = int(row["proposition_id"] or "")
    except ValueError:
        raise ValueError(f"{where}: proposition_id must be a whole number, got {row['proposition_id']!r}.") from None
    try:
        parents = tuple(int(word) for word in (row["dependency"] or "").split(","))
    except ValueError:
        raise ValueError(
            f"{where}: dependency must be whole numbers with commas between, got {row['dependency']!r}."
        ) from None
    question = row["question_natural_language"] or ""
    if not question.strip():
        raise ValueError(f"{where}: question_natural_language is missing.")
    return Proposition(number, parents, (row["tuple"] or "").split("(")[0].strip(), question)


def read_dense_prompts(path: str | Path) -> tuple[DensePrompt, ...]:
    """Prompts without questions, to be drawn and judged elsewhere: JSON lines with ``id`` and ``prompt``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong, or an id stands twice.
    """
    found: dict[str, DensePrompt] = {}
    for number, record in json_lines(path):
        for key in ("id", "prompt"):
            if not isinstance(record.get(key), str) or not record[key].strip():
                raise ValueError(f"{path}, line {number}: {key} must be a text, got {record.get(key)!r}.")
        if record["id"] in found:
            raise ValueError(f"{path}, line {number}: the id {record['id']!r} stands twice. Remove one of the lines.")
        found[record["id"]] = DensePrompt(record["id"], record["prompt"])
    if not found:
        raise ValueError(f"{path} holds no prompts.")
    return tuple(found.values())
