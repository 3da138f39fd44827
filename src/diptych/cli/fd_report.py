"""What ``diptych fd`` prints and writes: a table, ``fd.json``, and ``fd.svg`` with one bar a representation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from diptych.frechet.interval import Estimate
from diptych.frechet.ratio import DistanceEstimate

if TYPE_CHECKING:
    from rich.console import Console

_LEFT, _WIDTH, _ROW, _BAR = 130, 640, 34, 18
_RIGHT = 150


@dataclass(frozen=True, kw_only=True)
class Score:
    """One representation."""

    features: str
    network: str
    preprocessing: str
    """Its fingerprint."""
    settings: dict[str, Any]
    dim: int
    counts: tuple[int | None, int | None]
    """Pictures of both sides."""
    pixels: dict[str, dict[str, int]]
    """Pictures of each side by what they came as: 8-bit, float, clamped, quantised."""
    distance: DistanceEstimate
    normaliser: float | None = None
    """FD(validation, reference)."""
    normaliser_source: str | None = None
    normaliser_relative_error: float | None = None
    """By rounding, where it is a printed constant."""
    fdr: float | None = None
    others: Mapping[str, Estimate] = field(default_factory=dict)
    """What ``--also`` asked for, by its printed name."""
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what is not a number is null."""
        values = asdict(self)
        values["distance"] = {key: value if math.isfinite(value) else None for key, value in values["distance"].items()}
        values["others"] = {
            name: {**asdict(found), "low": found.interval[0], "high": found.interval[1]}
            for name, found in self.others.items()
        }
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Score":
        """What `to_dict` was made of; raises ``KeyError`` or ``TypeError`` for anything else."""
        distance = {key: math.nan if value is None else value for key, value in values["distance"].items()}
        others = {
            name: Estimate(value=found["value"], standard_error=found["standard_error"])
            for name, found in values["others"].items()
        }
        known: dict[str, Any] = {
            **{one.name: values[one.name] for one in fields(cls)},
            "counts": tuple(values["counts"]),
            "distance": DistanceEstimate(**distance),
            "others": others,
            "warnings": tuple(values["warnings"]),
        }
        return cls(**known)


def print_table(scores: Sequence[Score], fdr_k: float | None, console: "Console") -> None:
    """One row a representation."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("features", "dim", "images", "reference", "FD", "95 % interval", "FDr"):
        table.add_column(title, justify="left" if title == "features" else "right", no_wrap=True)
    for score in scores:
        distance = score.distance
        known = math.isfinite(distance.low)
        interval = f"{number(distance.low)} – {number(distance.high)}" if known else "–"
        counts = ["?" if count is None else f"{count:,}" for count in score.counts]
        ratio = "–" if score.fdr is None else number(score.fdr)
        table.add_row(score.features, str(score.dim), *counts, number(distance.value), interval, ratio)
    console.print(table)
    if any(score.others for score in scores):
        more = Table(box=None, pad_edge=False)
        for title in ("features", "measure", "value", "95 % interval"):
            more.add_column(title, justify="left" if title in ("features", "measure") else "right", no_wrap=True)
        for score in scores:
            for name, found in score.others.items():
                low, high = found.interval
                more.add_row(score.features, name, number(found.value), f"{number(low)} – {number(high)}")
        console.print(more)
    if fdr_k is not None:
        console.print(f"FDr^{len(scores)} = {number(fdr_k)}")


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def bar_chart(scores: Sequence[Score], title: str) -> str:
    """A self-contained SVG: ratios on a linear axis from 0 where every score has one, else distances on a log axis."""
    has_ratios = all(score.fdr is not None for score in scores)
    values, intervals = [], []
    for score in scores:
        unit = (score.normaliser or 1.0) if has_ratios else 1.0
        values.append(score.distance.value / unit)
        low, high = score.distance.low / unit, score.distance.high / unit
        intervals.append((low, high) if math.isfinite(low) else None)
    largest = max([*values, *(pair[1] for pair in intervals if pair), 1.0 if has_ratios else 0.0, 1e-12])
    smallest = min(max(min(values), 1e-9), largest / 10)
    span = _WIDTH - _LEFT - _RIGHT

    def place(value: float) -> float:
        if has_ratios:
            return _LEFT + span * min(max(value / largest, 0.0), 1.0)
        base = math.log10(smallest) - 0.5
        share = (math.log10(max(value, 1e-12)) - base) / (math.log10(largest) - base)
        return _LEFT + span * min(max(share, 0.0), 1.0)

    height = 44 + _ROW * len(scores) + 24
    unit_name = "FDr, 1 is a fresh set of real images" if has_ratios else "FD, logarithmic axis"
    marks = [_text(8, 18, title, size=13, weight=600), _text(8, 36, unit_name, color="#666")]
    for index, (score, value, interval) in enumerate(zip(scores, values, intervals, strict=True)):
        top = 44 + _ROW * index
        middle = top + _BAR / 2
        marks.append(_text(_LEFT - 8, middle + 4, score.features[:20], anchor="end"))
        bar = f'<rect x="{_LEFT}" y="{top}" width="{place(value) - _LEFT:.1f}" height="{_BAR}" fill="#4c78a8"/>'
        marks.append(bar)
        label = number(value)
        if interval is not None:
            low, high = (place(end) for end in interval)
            marks.append(f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#222" stroke-width="2"/>')
            label += f" ({number(interval[0])} – {number(interval[1])})"
        end = max(place(value), place(interval[1]) if interval else 0.0)
        marks.append(_text(end + 6, middle + 4, label))
    if has_ratios:
        x = place(1.0)
        marks.append(f'<path d="M{x:.1f} 40V{height - 20}" stroke="#999" stroke-dasharray="3 3"/>')
    body = "\n".join(marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(
    x: float | int,
    y: float | int,
    text: str,
    *,
    anchor: str = "start",
    size: int = 11,
    weight: int = 400,
    color: str = "#222",
) -> str:
    from html import escape

    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{color}">{escape(text)}</text>'
    )
