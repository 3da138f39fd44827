"""The cells of a comparison, recipes x training seeds, read back and summed up over seeds.

A cell is a folder with a run and a ``cell.json``, which is there once the run is trained and scored.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.evals.diversity import mean_over_seeds
from diptych.evals.report_data import Chart, Line
from diptych.evals.run_cost import RunCost, read_losses
from diptych.evals.scores_file import REFERENCES
from diptych.scenes.scores import Score, ScoreTable

CELL_FILE = "cell.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A recipe trained with one seed and scored.

    Attributes:
        tables: its own scores, and the reference rows where it was asked for them.
        stage_scores: a benchmark after each stage: ``{benchmark: {stage: score}}``.
        diversity: by representation.
        diversity_of_real: the same of real pictures that fit the prompts.
        distances: FD by representation, with ``fdr``, its ratio to that of fresh real pictures.
        prompts: what was drawn for the grid; picture k of prompt i is ``pictures/ii-k.png``.
    """

    folder: Path
    recipe: str
    seed: int
    cost: RunCost
    tables: tuple[ScoreTable, ...] = ()
    stage_scores: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    diversity: Mapping[str, Score] = field(default_factory=dict)
    diversity_of_real: Mapping[str, Score] = field(default_factory=dict)
    distances: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    num_noises: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)
    """All of ``cell.json``."""

    def picture(self, prompt: int, noise: int) -> Path:
        return self.folder / "pictures" / f"{prompt:02d}-{noise}.png"


def read_cell(folder: str | Path) -> Cell | None:
    """A cell, or None where it is not finished.

    Raises:
        ValueError: its file is damaged.
    """
    folder = Path(folder)
    file = folder / CELL_FILE
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return Cell(
            folder=folder,
            recipe=record["recipe"],
            seed=record["seed"],
            cost=RunCost.from_dict(record["cost"]),
            tables=tuple(ScoreTable.from_dict(entry) for entry in record["tables"]),
            stage_scores={name: _scores(entry) for name, entry in record["stage_scores"].items()},
            diversity=_scores(record["diversity"]),
            diversity_of_real=_scores(record["diversity_of_real"]),
            distances=record["distances"],
            prompts=tuple(record["prompts"]),
            num_noises=record["num_noises"],
            record=record,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error!r}). Delete it: the cell is then scored again.") from None


def _scores(entry: Mapping[str, Any]) -> dict[str, Score]:
    return {name: Score(**score) for name, score in entry.items()}


def cells_of(cells: Sequence[Cell], recipe: str) -> list[Cell]:
    """The cells of one recipe in the order of their seeds."""
    return sorted((cell for cell in cells if cell.recipe == recipe), key=lambda cell: cell.seed)


def pooled_tables(cells: Sequence[Cell], recipes: Sequence[str]) -> list[ScoreTable]:
    """Every benchmark: a table a recipe, means over its seeds with `mean_over_seeds`' intervals, then references."""
    benchmarks = dict.fromkeys(table.benchmark for cell in cells for table in cell.tables)
    found: list[ScoreTable] = []
    for benchmark in benchmarks:
        for recipe in recipes:
            own = [t for cell in cells_of(cells, recipe) for t in cell.tables
                   if t.benchmark == benchmark and t.contender == recipe]  # fmt: skip
            if own:
                categories = {
                    name: mean_over_seeds([table.categories[name] for table in own], most=1.0)
                    for name in own[0].categories
                }
                overall = mean_over_seeds([table.overall for table in own], most=1.0)
                found.append(ScoreTable(benchmark, recipe, overall, categories, own[0].details))
        references: dict[str, ScoreTable] = {}
        for table in (table for cell in cells for table in cell.tables):
            if table.benchmark == benchmark and table.contender in REFERENCES:
                references.setdefault(table.contender, table)
        found += references.values()
    return found


def pooled(scores: Sequence[Score | None], most: float = math.inf) -> Score | None:
    """The mean over the seeds that have a score."""
    known = [score for score in scores if score is not None]
    return mean_over_seeds(known, most) if known else None


def pooled_distance(cells: Sequence[Cell], name: str, value: str) -> Score | None:
    """FD (``value``) or FDr (``fdr``) over seeds; the samples' interval is the distance's, in the same unit."""
    scores = []
    for cell in cells:
        entry = cell.distances.get(name)
        if entry is None or entry[value] is None:
            continue
        unit = entry[value] / entry["value"] if entry["value"] else 1.0
        scores.append(Score(entry[value], entry["low"] * unit, entry["high"] * unit, entry["count"], entry["count"]))
    return pooled(scores)


def pooled_fdr_k(cells: Sequence[Cell]) -> Score | None:
    """FDr^k over seeds; its samples' half is the mean of those of its k ratios, as if their errors were one."""
    scores = []
    for cell in cells:
        own = [entry for entry in cell.distances.values() if entry["fdr"] is not None]
        if own:
            rows = [[entry[end] * entry["fdr"] / entry["value"] for end in ("value", "low", "high")] for entry in own]
            value, low, high = (sum(row[index] for row in rows) / len(rows) for index in range(3))
            scores.append(Score(value, low, high, own[0]["count"], own[0]["count"]))
    return pooled(scores)


def first_drawing_stage(recipe: Mapping[str, Any]) -> str | None:
    """The first stage that trains an image head, by a recipe's JSON: neither text alone nor the generation space."""
    for name, stage in recipe["stages"].items():
        learnt = {objective for objective, weight in stage["objectives"].items() if weight > 0}
        if learnt - {"text", "reconstruction", "labels"}:
            return str(name)
    return None


def before_drawing(recipe: Mapping[str, Any]) -> str | None:
    """The last stage that trained text before any stage that learns to draw; None where both began at once."""
    drawing = first_drawing_stage(recipe)
    last = None
    for name, stage in recipe["stages"].items():
        if name == drawing:
            return last
        if stage["objectives"].get("text", 0) > 0:
            last = str(name)
    return None


def loss_charts(cells: Sequence[Cell], recipes: Sequence[str]) -> tuple[Chart, ...]:
    """A chart for each loss term: the mean over seeds of every recipe that has it, in a band from least to most."""
    by_term: dict[str, dict[str, list[dict[int, float]]]] = {}
    for recipe in recipes:
        for cell in cells_of(cells, recipe):
            for term, points in read_losses(cell.folder / "run").items():
                by_term.setdefault(term, {}).setdefault(recipe, []).append(dict(points))
    charts = []
    for term, found in by_term.items():
        lines = []
        for recipe in recipes:  # those without the term too, so that colours are the same in all charts
            runs = found.get(recipe, [{}])
            xs = sorted(set.intersection(*(set(run) for run in runs)))
            columns = [[run[x] for run in runs] for x in xs]
            several = len(runs) > 1
            lines.append(
                Line(
                    name=recipe,
                    x=tuple(xs),
                    y=tuple(sum(values) / len(values) for values in columns),
                    low=tuple(min(values) for values in columns) if several else (),
                    high=tuple(max(values) for values in columns) if several else (),
                )
            )
        charts.append(Chart(title=term, x_label="examples of the run", y_label="loss", lines=tuple(lines)))
    return tuple(charts)
