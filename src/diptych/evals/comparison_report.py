"""A comparison as a page, as Markdown tables and as JSON: the same numbers three times."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from diptych.evals.comparison import (
    Cell,
    before_drawing,
    cells_of,
    loss_charts,
    pooled,
    pooled_distance,
    pooled_fdr_k,
    pooled_tables,
)
from diptych.evals.report_data import FileLink, Filmstrip, Frame, Headline, Picture, ReportData, Table
from diptych.evals.run_folder import format_duration
from diptych.evals.scores_file import estimate_of, score_boards, title_of
from diptych.scenes.scores import Score

FORMAT_VERSION = 1
NUM_SHOWN_NOISES = 2
UNDERSTANDING = "question-answering"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was to be compared and what there is of it.

    Attributes:
        recipes: by name, as JSON values, with the steps that the budget gave them.
        budget: such as ``examples=20000``.
        uncounted: stages that the budget does not count.
        failed: cells without a result, and why.
        num_missing: cells that were not tried, since the comparison was stopped.
        facts: versions, device, settings of the scoring.
    """

    folder: Path
    recipes: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    budget: str
    uncounted: Sequence[str]
    cells: Sequence[Cell]
    failed: Mapping[str, str]
    num_missing: int
    command: str
    facts: Mapping[str, Any]

    def of(self, recipe: str) -> list[Cell]:
        """Finished cells of a recipe."""
        return cells_of(self.cells, recipe)


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Everything that is not a score from 0 to 1: what was used, understanding kept, diversity, distances, failures."""
    tables = [_budget_table(comparison), _cost_table(comparison), _understanding_table(comparison),
              _diversity_table(comparison), _distance_table(comparison), _failed_table(comparison)]  # fmt: skip
    return [table for table in tables if table is not None and table.rows]


def _budget_table(comparison: Comparison) -> Table:
    rows = []
    for recipe, config in comparison.recipes.items():
        steps = ", ".join(f"{name} {stage['num_steps']:,} x {stage['batch_size']}" for name, stage in
                          config["stages"].items())  # fmt: skip
        cells, without = comparison.of(recipe), comparison.uncounted
        if cells:
            flops = _mean([cell.cost.flops(without) for cell in cells])
            used = (f"{cells[0].cost.examples(without):,}", _number(flops),
                    format_duration(_mean([cell.cost.seconds(without) for cell in cells]) or 0.0))  # fmt: skip
        else:
            used = ("–", "–", "–")
        rows.append((recipe, f"{len(cells)} of {len(comparison.seeds)}", steps, *used))
    kind = comparison.budget.partition("=")[0]
    how = {
        "examples": "Every run sees as many examples",
        "flops": "Every run has as many FLOPs of training steps, by those of a first step of each stage, measured",
        "minutes": "Every run has as many minutes of training steps by the speed that was measured before on this "
        "machine; it is stopped by steps and not by the clock, so that it can be repeated",
    }[kind]
    free = f" Not counted are the stages {', '.join(comparison.uncounted)}." if comparison.uncounted else ""
    return Table(
        title="Budget",
        columns=("finished", "steps x batch", "examples", "FLOPs", "training time"),
        rows=tuple(rows),
        note=f"{comparison.budget}. {how}: the stages of a recipe are scaled together, to half a step of the last."
        f"{free} On the right is what the counted stages of a run really used, as a mean over seeds.",
    )


def _cost_table(comparison: Comparison) -> Table:
    rows = []
    for recipe in comparison.recipes:
        cells = comparison.of(recipe)
        if not cells:
            continue
        costs = [cell.cost for cell in cells]
        examples, flops = costs[0].examples(), _mean([cost.flops() for cost in costs])
        seconds = _mean([cost.seconds() for cost in costs]) or 0.0
        memory = _mean([cost.peak_memory for cost in costs])
        rows.append(
            (
                recipe,
                f"{costs[0].parameters:,}",
                f"{costs[0].trained_parameters:,}",
                _number(None if flops is None else flops / examples),
                f"{examples / seconds:,.1f}" if seconds else "–",
                "–" if memory is None else f"{memory / 2**30:.2f} GiB",
            )
        )
    return Table(
        title="Cost of training",
        columns=("parameters", "trained", "FLOPs an example", "examples/s", "peak memory"),
        rows=tuple(rows),
        note="All stages, the uncounted ones too. FLOPs are those of matrix products and attention, forward and "
        "backward, in the first step of each stage. Memory is that of tensors on a GPU, else of the whole process. "
        "Cells that ran side by side share the machine.",
    )


def _understanding_table(comparison: Comparison) -> Table | None:
    stages = dict.fromkeys(stage for cell in comparison.cells for stage in cell.stage_scores.get(UNDERSTANDING, {}))
    rows = []
    for recipe, config in comparison.recipes.items():
        cells = comparison.of(recipe)
        scores = [cell.stage_scores.get(UNDERSTANDING, {}) for cell in cells]
        if not any(scores):
            continue
        by_stage = [_estimate(pooled([own.get(stage) for own in scores], most=1.0)) for stage in stages]
        last, before = list(config["stages"])[-1], before_drawing(config)
        gains = [] if before is None else [own[last].value - own[before].value for own in scores
                                           if last in own and before in own]  # fmt: skip
        kept = f"{_mean(gains):+.3f}" if gains else "–"
        spread = f" ({min(gains):+.3f} to {max(gains):+.3f})" if len(gains) > 1 else ""
        rows.append((recipe, *by_stage, kept + spread))
    if not rows:
        return None
    return Table(
        title="Understanding kept or lost",
        columns=(*stages, "gained by generation"),
        rows=tuple(rows),
        note="Question answering after every stage. On the right is the score at the end less that after the last "
        "stage before any drawing was learnt, the same questions, with the least and the most over seeds; – where "
        "both were learnt at once.",
    )


def _diversity_table(comparison: Comparison) -> Table | None:
    names = dict.fromkeys(name for cell in comparison.cells for name in cell.diversity)
    rows = []
    for recipe in comparison.recipes:
        cells = comparison.of(recipe)
        if any(cell.diversity for cell in cells):
            rows.append((recipe, *(_estimate(pooled([cell.diversity.get(name) for cell in cells])) for name in names)))
    if not rows:
        return None
    first = next(cell for cell in comparison.cells if cell.diversity)
    real = ""
    if first.diversity_of_real:
        rows.append(("real pictures", *(_estimate(first.diversity_of_real.get(name)) for name in names)))
        real = "Real pictures fit the prompts and vary in all that they leave open. "
    return Table(
        title="Diversity",
        columns=tuple(names),
        rows=tuple(rows),
        note=f"Mean over {len(first.prompts)} prompts of the mean Euclidean distance between the features of two of "
        f"the {first.num_noises} pictures of one prompt, drawn from different noise. {real}A model that ignores its "
        "prompt can have more.",
    )


def _distance_table(comparison: Comparison) -> Table | None:
    names = list(dict.fromkeys(name for cell in comparison.cells for name in cell.distances))
    rows = []
    for recipe in comparison.recipes:
        cells = comparison.of(recipe)
        if any(cell.distances for cell in cells):
            cells_by_name = [
                value for name in names for value in (_estimate(pooled_distance(cells, name, "value")),
                                                      _estimate(pooled_distance(cells, name, "fdr")))
            ]  # fmt: skip
            rows.append((recipe, *cells_by_name, _estimate(pooled_fdr_k(cells))))
    if not rows:
        return None
    count = next(entry["count"] for cell in comparison.cells for entry in cell.distances.values())
    return Table(
        title="Fréchet distance",
        columns=(*(title for name in names for title in (f"FD {name}", f"FDr {name}")), f"FDr^{len(names)}"),
        rows=tuple(rows),
        note=f"Of the {count} scored drawings from real pictures; less is better. FDr is in units of the distance "
        "from those of as many real pictures that fit the same prompts: 1 is what real pictures have. Distances of so "
        "few pictures are biased upwards, alike for all rows.",
    )


def _failed_table(comparison: Comparison) -> Table:
    rows = tuple((name, reason) for name, reason in comparison.failed.items())
    return Table(title="Failed cells", columns=("why",), rows=rows, note="The same command tries them again.")


def comparison_report(comparison: Comparison) -> ReportData:
    """The page."""
    names = list(comparison.recipes)
    tables = pooled_tables(comparison.cells, names)
    now = datetime.now()
    done, total = len(comparison.cells), len(names) * len(comparison.seeds)
    missing = f" {len(comparison.failed)} failed." if comparison.failed else ""
    missing += f" {comparison.num_missing} are still to be done." if comparison.num_missing else ""
    seeds = ", ".join(map(str, comparison.seeds))
    return ReportData(
        title=f"{len(names)} recipes side by side" if len(names) > 1 else names[0],
        summary=f"{comparison.budget} for each run, seeds {seeds}. {done} of {total} runs are finished.{missing} "
        "Intervals are for both seeds and samples.",
        created=f"{now:%A} {now.day} {now:%B %Y, %H:%M}",
        command=comparison.command,
        environment={key.replace("_", " "): str(value) for key, value in comparison.facts.items()},
        headlines=tuple(
            Headline(label=title_of(table.benchmark), system=table.contender, estimate=estimate_of(table.overall))
            for table in tables
            if table.contender in names
        ),
        score_boards=score_boards(tables),
        charts=loss_charts(comparison.cells, names),
        filmstrips=_grids(comparison),
        filmstrips_title="Same prompts, same noise",
        tables=tuple(comparison_tables(comparison)),
        tables_title="Budget, cost and more",
        files=(
            FileLink(path="compare.json", detail="every number"),
            FileLink(path="compare.md", detail="the tables as text"),
            FileLink(path="cells", detail="a folder for each run: recipe, log, run, pictures, scores"),
        ),
    )


def _grids(comparison: Comparison) -> tuple[Filmstrip, ...]:
    """A strip for each of the first noises: a row a prompt, a column a recipe, each by its first finished seed."""
    shown = [cells[0] for recipe in comparison.recipes if (cells := comparison.of(recipe)) and cells[0].prompts]
    if not shown:
        return ()
    prompts = shown[0].prompts
    strips = []
    for noise in range(min(NUM_SHOWN_NOISES, *(cell.num_noises for cell in shown))):
        frames = []
        for cell in shown:
            images: tuple[Picture, ...] = tuple(cell.picture(index, noise) for index in range(len(prompts)))
            frames.append(Frame(label=f"{cell.recipe}, seed {cell.seed}", images=images))
        strips.append(Filmstrip(title=f"Noise {noise}", frames=tuple(frames), captions=prompts))
    return tuple(strips)


def markdown(comparison: Comparison) -> str:
    """All tables with their intervals, as GitHub shows them."""
    blocks = [f"# {', '.join(comparison.recipes)}", f"`{comparison.command}`"]
    for board in score_boards(pooled_tables(comparison.cells, list(comparison.recipes))):
        rows = tuple((row.name, *(_interval(row.scores.get(system)) for system in board.systems)) for row in board.rows)
        blocks.append(_block(Table(title=board.title, columns=board.systems, rows=rows, note=board.note)))
    blocks += [_block(table) for table in comparison_tables(comparison)]
    return "\n\n".join(blocks) + "\n"


def _block(table: Table) -> str:
    lines = [
        "| | " + " | ".join(map(_cell, table.columns)) + " |",
        "| --- |" + " ---: |" * len(table.columns),
        *("| " + " | ".join(map(_cell, row)) + " |" for row in table.rows),
    ]
    return "\n\n".join(filter(None, [f"## {table.title}", table.note, "\n".join(lines)]))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, JSON-able: what was asked, each cell as it was written, and what the tables say."""
    names = list(comparison.recipes)
    return {
        "format_version": FORMAT_VERSION,
        "command": comparison.command,
        "budget": comparison.budget,
        "uncounted": list(comparison.uncounted),
        "seeds": list(comparison.seeds),
        "recipes": dict(comparison.recipes),
        "facts": dict(comparison.facts),
        "scores": [table.to_dict() for table in pooled_tables(comparison.cells, names)],
        "tables": [asdict(table) for table in comparison_tables(comparison)],
        "cells": [dict(cell.record) for cell in comparison.cells],
        "failed": dict(comparison.failed),
        "num_missing": comparison.num_missing,
    }


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _estimate(score: Score | None) -> str:
    return "–" if score is None else f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


def _interval(estimate: Any) -> str:
    if estimate is None:
        return "–"
    if estimate.low is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.2f} to {estimate.high:.2f})"
