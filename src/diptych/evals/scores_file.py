"""``scores.json``: what ``diptych evaluate`` and the end of a run write, and how a report and a terminal show it.

A result is a ``diptych.scenes.scores.ScoreTable``: one benchmark, one contender (a model, or a reference row such as
oracle, chance or copy-input), an overall score and one a category, each with its interval.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.evals.report_data import Estimate, Headline, ScoreBoard, ScoreRow
from diptych.scenes.scores import Score, ScoreTable

SCORES_FILE = "scores.json"
FORMAT_VERSION = 1
REFERENCES = ("oracle", "chance", "constant", "copy-input")
"""Contenders that only show what a score means."""

EXPLAINED = {
    "geneval-twin": (
        "GenEval twin",
        "Share of pictures in which every object, count, colour and position is as the prompt says, by the rules of "
        "GenEval on a programmatic reading of the picture.",
    ),
    "question-answering": ("Question answering", "Share of questions about a picture with the exact answer."),
    "editing": ("Editing", "Share of edits that were done as told and left everything else alone."),
    "multi-reference": ("Multi-reference", "Share of pictures composed as told from several reference pictures."),
    "consistency": (
        "Cross-task consistency",
        "Do answers about a picture and drawings of it agree, fact by fact, because both are right (AW-CCTA)? Facts "
        "answered right times facts drawn right is the floor, which independent abilities reach; raw agreement (CCTA) "
        "also counts being wrong on both sides.",
    ),
    "xtc-official": (
        "XTC-Bench",
        "AW-CCTA on photographs: do answers and drawings agree, fact by fact, because both are right, as the official "
        "judge marks them? The floor is what independent abilities of this strength reach.",
    ),
    "do-undo": (
        "Do and undo",
        "How far was each edit done, and how much of the source came back when it was taken back from the model's own "
        "picture? Both must be: whoever does nothing has 0. Rows after the kinds of edits are what that is made of.",
    ),
    "spatial-compliance": (
        "Spatial compliance",
        "Edits told in numbers: were they followed (IC), how exactly (SA), was all else left alone (EL) and do things "
        "still look as they should (AC)? Rows without a note are gated as published: one failure takes others away.",
    ),
    "dense-prompts": (
        "Dense prompts",
        "Captions that tell all, and questions about each that depend on each other: shares of yes, where what depends "
        "on a no is a no.",
    ),
    "dpg": ("DPG-Bench", "Shares of questions about long prompts that the judge answers with yes; see the judge."),
    "wise": ("WISE", "WiScore of prompts that need knowledge of the world, on the scale of the paper, from 0 to 1."),
    "wise-verified": ("WISE Verified", "Share of prompts that need knowledge of the world and were drawn right."),
    "geneval2": ("GenEval 2", "Soft-TIFA: how likely the judge finds the right answer about each atom of a prompt."),
    "t2i-compbench": ("T2I-CompBench", "Composed prompts; how a picture is judged differs by category."),
    "hpsv2": ("HPSv2", "How well people would like the pictures, as a reward model has it: 100 times a cosine."),
    "hpsv3": ("HPSv3", "How well people would like the pictures, as a reward model has it."),
    "image-reward": ("ImageReward", "How well people would like the pictures, as a reward model has it."),
    "imgedit": ("ImgEdit", "Edits of nine types, the mean of three marks by a judge, in fifths of the highest mark."),
    "gedit-en": ("GEdit (English)", "Edits marked by a judge for what was done and how it looks, in tenths."),
    "gedit-cn": ("GEdit (Chinese)", "Edits marked by a judge for what was done and how it looks, in tenths."),
    "rise": ("RISEBench", "Share of edits that a judge finds right in every respect that applies."),
    "geneval": ("GenEval", "Share of pictures that GenEval's rules accept on what a detector found in them."),
    "retrieval": (
        "Retrieval",
        "Share of held-out pictures whose own caption is the nearest of all, and of captions whose own picture is.",
    ),
}
"""Title and meaning of benchmarks."""

CATEGORIES = {"single_object": "single object", "two_object": "two objects", "color_attr": "attribute binding"}
"""Tags of GenEval that are no words."""


def write_scores(tables: Sequence[ScoreTable], path: str | Path, about: Mapping[str, Any] | None = None) -> Path:
    """Writes results whole or not at all.

    Args:
        about: JSON-able facts that belong to them: model, fingerprint, versions, seconds.
    """
    path = Path(path)
    content = {"format_version": FORMAT_VERSION, **(about or {}), "tables": [table.to_dict() for table in tables]}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read_scores(path: str | Path) -> list[ScoreTable]:
    """The results that ``write_scores`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or of a newer format.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There are no scores at {path}. `diptych evaluate` writes them.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version > FORMAT_VERSION:
            raise ValueError(f"it has format version {version}, this diptych reads up to {FORMAT_VERSION}")
        return [ScoreTable.from_dict(entry) for entry in content["tables"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as scores: {error!s}. Evaluate the model again.") from None


def score_boards(tables: Sequence[ScoreTable]) -> tuple[ScoreBoard, ...]:
    """One board a benchmark, with a column for each contender; references come last."""
    boards = []
    for benchmark in dict.fromkeys(table.benchmark for table in tables):
        own = [table for table in tables if table.benchmark == benchmark]
        own.sort(key=lambda table: table.contender in REFERENCES)
        categories = dict.fromkeys(name for table in own for name in table.categories)
        rows = [
            ScoreRow(
                name=CATEGORIES.get(category, category.replace("_", " ")),
                scores={
                    table.contender: estimate_of(table.categories[category])
                    for table in own
                    if category in table.categories
                },
            )
            for category in categories
        ]
        overall = {table.contender: estimate_of(table.overall) for table in own}
        if len(rows) != 1:
            rows.append(ScoreRow(name="overall", scores=overall, is_total=True))
        boards.append(
            ScoreBoard(
                title=title_of(benchmark),
                rows=tuple(rows),
                systems=tuple(table.contender for table in own),
                references=tuple(table.contender for table in own if table.contender in REFERENCES),
                note=_note(benchmark, own),
            )
        )
    return tuple(boards)


def headlines_of(tables: Sequence[ScoreTable], goals: Mapping[str, float] | None = None) -> tuple[Headline, ...]:
    """The overall scores of everything that is no reference row.

    Args:
        goals: by benchmark.
    """
    return tuple(
        Headline(
            label=title_of(table.benchmark),
            system=table.contender,
            estimate=estimate_of(table.overall),
            goal=(goals or {}).get(table.benchmark),
        )
        for table in tables
        if table.contender not in REFERENCES
    )


def title_of(benchmark: str) -> str:
    """What people call a benchmark; ``name (split)`` keeps its split."""
    name, separator, split = benchmark.partition(" (")
    return f"{EXPLAINED[name][0]}{separator}{split}" if name in EXPLAINED else benchmark


def _note(benchmark: str, tables: Sequence[ScoreTable]) -> str:
    name = benchmark.partition(" (")[0]
    sentences = [EXPLAINED[name][1]] if name in EXPLAINED else []
    own_rule = next((table.details["overall_is"] for table in tables if "overall_is" in table.details), None)
    if own_rule is not None:
        sentences.append(f"Overall is {own_rule}")
    elif any(len(table.categories) > 1 for table in tables):
        sentences.append("Overall is the mean of the rows above it.")
    return " ".join([*sentences, "Small figures are 95 % intervals."])


def estimate_of(score: Score) -> Estimate:
    """A score as reports show it."""
    return Estimate(value=score.value, low=score.low, high=score.high, count=score.num_items)
