"""The figure of a comparison: for each measure a row a recipe, seeds as dots, their mean with its 95 % interval.

python scripts/study_figure.py runs/study --out docs/study.svg
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

from diptych.evals.charts import Axis, format_number
from diptych.evals.comparison import Cell, cells_of, pooled, pooled_fdr_k, read_cell
from diptych.evals.scores_file import title_of
from diptych.scenes.scores import Score

NAMES, PANEL, GAP, ROW, TOP = 170, 215, 30, 26, 48
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #333 } .small { font-size: 11px; fill: #777 }
  line { stroke: #ccc } .mean { stroke: #2563a8; stroke-width: 2.5 } circle { fill: #2563a8 } .seed { opacity: .4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .small { fill: #999 } line { stroke: #555 } .mean { stroke: #7db3ea } circle { fill: #7db3ea }
  }
"""

Measure = Callable[[list[Cell]], Score | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a comparison")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    asked = json.loads((arguments.run / "comparison.json").read_text())
    cells = [cell for folder in sorted((arguments.run / "cells").iterdir()) if (cell := read_cell(folder)) is not None]
    rows = {name: own for name in asked["recipes"] if (own := cells_of(cells, name))}
    arguments.out.write_text(figure(rows, measures_of(cells[0])))


def measures_of(cell: Cell) -> dict[str, Measure]:
    """Benchmarks of a cell, then FDr^k, then diversity in its last representation."""
    own = [table.benchmark for table in cell.tables if table.contender == cell.recipe]
    last = list(cell.diversity)[-1]

    def overall(benchmark: str) -> Measure:
        return lambda cells: pooled(
            [t.overall for c in cells for t in c.tables if (t.benchmark, t.contender) == (benchmark, c.recipe)]
        )

    return {
        **{title_of(benchmark): overall(benchmark) for benchmark in own},
        f"FDr^{len(cell.distances)} (1 is real)": pooled_fdr_k,
        f"diversity ({last})": lambda cells: pooled([c.diversity[last] for c in cells]),
    }


def figure(rows: dict[str, list[Cell]], measures: dict[str, Measure]) -> str:
    width = NAMES + len(measures) * (PANEL + GAP)
    height = TOP + len(rows) * ROW + 24
    marks = [
        f'<text x="{NAMES - 14}" y="{TOP + index * ROW + 17}" text-anchor="end">{escape(name.partition(":")[2])}</text>'
        for index, name in enumerate(rows)
    ]
    for index, (title, measure) in enumerate(measures.items()):
        marks += panel(title, list(rows.values()), measure, NAMES + index * (PANEL + GAP))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(marks) + "\n</svg>\n"
    )


def panel(title: str, rows: list[list[Cell]], measure: Measure, left: int) -> list[str]:
    """One measure: its scale begins at 0, or is logarithmic where the rows are twenty times apart."""
    means = [measure(cells) for cells in rows]
    known = [score for score in means if score is not None]
    low, high = min(score.low for score in known), max(score.high for score in known)
    is_log = low > 0 and high > 20 * low
    axis = Axis(low / 1.3 if is_log else 0.0, high * (1.3 if is_log else 1.05), left, left + PANEL, is_log)
    bottom = TOP + len(rows) * ROW
    marks = [f'<text x="{left}" y="{TOP - 18}">{escape(title)}</text>']
    for tick in axis.ticks(3):
        x = axis.place(tick)
        marks.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom}"/>')
        marks.append(
            f'<text class="small" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{format_number(tick)}</text>'
        )
    for index, (cells, mean) in enumerate(zip(rows, means, strict=True)):
        if mean is None:
            continue
        y = TOP + index * ROW + 12.5
        ends = [axis.place(min(max(end, axis.low), axis.high)) for end in (mean.low, mean.high)]
        marks.append(f'<line class="mean" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}"/>')
        for cell in cells:
            seed = measure([cell])
            assert seed is not None
            marks.append(f'<circle class="seed" cx="{axis.place(seed.value):.1f}" cy="{y}" r="3.5"/>')
        marks.append(f'<circle cx="{axis.place(mean.value):.1f}" cy="{y}" r="5"/>')
    return marks


if __name__ == "__main__":
    main()
