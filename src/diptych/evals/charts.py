"""Line charts as inline SVG and interval tracks as positioned boxes, coloured by the page's style sheet.

Hand-written because a chart of a report needs little: it must follow light and dark, stay readable from 360 to 1100 px,
weigh a few kilobytes and load nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from diptych.evals.html import Html, element
from diptych.evals.report_data import Chart, Estimate, Line, Number

Point: TypeAlias = tuple[Number, Number]

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _BOTTOM = 46, 14, 42
_TOP, _TOP_WITH_MARKS = 26, 40
MAX_POINTS = 240
"""A line with more points is averaged in equal stretches of x."""
_SMOOTHED_FROM = 60
"""A line with at least so many points gets a smoothed line over a faint raw one."""
_LOG_RATIO = 12.0
"""Losses that fall by more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Axis:
    """Maps values to a length in pixels and names round values."""

    low: Number
    high: Number
    start: Number
    end: Number
    is_log: bool = False

    def place(self, value: Number) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low * 1e-9))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the axis, about ``count`` of them."""
        if not self.is_log:
            return _round_values(self.low, self.high, count)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            values = [step * 10.0**decade for decade in decades for step in steps]
            inside = [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
            if len(inside) <= count + 2:
                break
        return inside if len(inside) >= 2 else _round_values(self.low, self.high, count)


def line_chart(chart: Chart) -> Html:
    """A figure: title, legend with each line's last value, and the lines between labelled axes.

    A line without a finite point is left out, and keeps its colour from others. A chart without any says so instead.
    """
    lines = [(index, line, _thinned(line.finite_points())) for index, line in enumerate(chart.lines)]
    drawn = [(index, line, points) for index, line, points in lines if points]
    heading = element("figcaption", element("h3", chart.title), _legend(chart, drawn))
    if not drawn:
        return element("figure", heading, element("p", "No finite value was recorded.", class_="note"), class_="chart")
    x_axis, y_axis = _axes(chart, [points for *_, points in drawn])
    marks: list[Html] = []
    for index, line, _ in drawn:
        marks.extend(_draw_band(line, x_axis, y_axis, color_class(chart, index)))
    for index, _, points in drawn:
        marks.extend(_draw_line(points, x_axis, y_axis, color_class(chart, index)))
    svg = element(
        "svg",
        _grid(chart, x_axis, y_axis),
        element("g", marks),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{chart.title}: {chart.y_label} against {chart.x_label}",
    )
    note = element("p", chart.note, class_="note") if chart.note else None
    return element("figure", heading, svg, note, class_="chart")


def interval_track(
    estimates: Sequence[tuple[str, Estimate, str]],
    references: Sequence[tuple[str, Number]] = (),
    goal: Number | None = None,
) -> Html:
    """A bar from 0 to 1 with a dot and a whisker for each estimate, one below the other.

    Args:
        estimates: name, estimate and style class of each.
        references: name and value of what is compared with, drawn as ticks.
        goal: drawn as a longer tick.

    Empty where an estimate lies outside: a reward has no such scale.
    """
    if any(not 0 <= estimate.value <= 1 for _, estimate, _ in estimates):
        return Html("")
    marks = [element("i", class_="tick", style=_at(value), title=f"{name}: {value:.3f}") for name, value in references]
    if goal is not None:
        marks.append(element("i", class_="goal", style=_at(goal), title=f"goal: {goal:.2f}"))
    rows = []
    for name, estimate, style in estimates:
        row = []
        if estimate.low is not None and estimate.high is not None:
            left, right = _percent(estimate.low), _percent(estimate.high)
            row.append(element("i", class_="whisker", style=f"left:{left:.2f}%;width:{right - left:.2f}%"))
        spoken = f"{name}: {format_estimate(estimate)}"
        row.append(element("i", class_="dot", style=_at(estimate.value), title=spoken))
        rows.append(element("div", row, class_=f"row {style}"))
    label = "; ".join(f"{name}: {format_estimate(estimate)}" for name, estimate, _ in estimates)
    return element("div", element("div", marks, rows, class_="rail"), class_="track", role="img", aria_label=label)


def _at(value: Number) -> str:
    return f"left:{_percent(value):.2f}%"


def _percent(value: Number) -> float:
    return 100 * min(max(value, 0.0), 1.0)


def color_class(chart: Chart, index: int) -> str:
    """The style class of a chart's line: ``c0`` to ``c5`` for categories, ``v0`` to ``v4`` for levels."""
    if chart.colors == "categories":
        return f"c{index % 6}"
    last = max(len(chart.lines) - 1, 1)
    return f"v{round(4 * min(index, last) / last)}"


def format_number(value: Number) -> str:
    """A number as short as an axis wants it: 0.05, 2.5, 1,200, 15k, 3M."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 10_000:
        return f"{value / 1e3:.3g}k"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 0.001:
        return f"{value:.3g}"
    return f"{value:.0e}".replace("e-0", "e−").replace("e-", "e−")


def format_estimate(estimate: Estimate) -> str:
    """``0.93 [0.90, 0.95]``, or the number alone."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _legend(chart: Chart, drawn: Sequence[tuple[int, Line, list[Point]]]) -> Html:
    entries = [
        element(
            "li",
            element("i", class_=f"swatch {color_class(chart, index)}"),
            line.name,
            " ",
            element("b", format_number(_last_value(points))),
        )
        for index, line, points in drawn
    ]
    return element("ul", entries, class_="legend")


def _axes(chart: Chart, lines: Sequence[list[Point]]) -> tuple[Axis, Axis]:
    xs = [x for points in lines for x, _ in points] + [x for x, _ in chart.marks]
    # The smoothed lines decide the height: one spike must not flatten everything else.
    ys = [y for points in lines for _, y in _smoothed(points)]
    low, high = min(ys), max(ys)
    is_log = not chart.starts_at_zero and low > 0 and high / low > _LOG_RATIO
    if is_log:
        low, high = low / 1.15, high * 1.15
    else:
        if chart.starts_at_zero or 0 <= low < 0.4 * high:
            low = min(low, 0.0)
        room = (high - low or abs(high) or 1.0) * 0.06
        low, high = (low if low == 0 else low - room), high + room
    x_low, x_high = min(xs), max(xs)
    if 0 < x_low < 0.1 * x_high:
        x_low = 0
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    x_axis = Axis(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    return x_axis, Axis(low, high, HEIGHT - _BOTTOM, _TOP_WITH_MARKS if chart.marks else _TOP, is_log)


def _grid(chart: Chart, x_axis: Axis, y_axis: Axis) -> list[Html]:
    marks = []
    for value in y_axis.ticks():
        y = y_axis.place(value)
        marks.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        marks.append(element("text", format_number(value), x=_LEFT - 7, y=y + 4, text_anchor="end"))
    for x_mark, name in chart.marks:
        x = x_axis.place(x_mark)
        marks.append(element("line", x1=x, x2=x, y1=y_axis.end - 14, y2=HEIGHT - _BOTTOM, class_="mark"))
        side = "end" if x > WIDTH * 0.8 else "start"
        x_name = x + (4 if side == "start" else -4)
        marks.append(element("text", name, x=x_name, y=y_axis.end - 5, text_anchor=side, class_="mark-name"))
    base = HEIGHT - _BOTTOM
    marks.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=base, y2=base, class_="axis"))
    for value in x_axis.ticks(6):
        x = x_axis.place(value)
        marks.append(element("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        marks.append(element("text", format_number(value), x=x, y=base + 17, text_anchor="middle"))
    marks.append(element("text", chart.x_label, x=WIDTH - _RIGHT, y=HEIGHT - 6, text_anchor="end", class_="label"))
    unit = f"{chart.y_label} (log scale)" if y_axis.is_log else chart.y_label
    marks.append(element("text", unit, x=0, y=12, class_="label"))
    return marks


def _draw_line(points: list[Point], x_axis: Axis, y_axis: Axis, style: str) -> list[Html]:
    def path(values: list[Point]) -> str:
        # Values beyond the axis are drawn at its edge.
        top, bottom = y_axis.end, y_axis.start
        shown = [(x, y) for x, y in values if y > 0 or not y_axis.is_log]
        return "M" + "L".join(f"{x_axis.place(x):.1f} {min(max(y_axis.place(y), top), bottom):.1f}" for x, y in shown)

    if len(points) == 1:
        x, y = points[0]
        return [element("circle", cx=x_axis.place(x), cy=y_axis.place(y), r=3, class_=style)]
    if len(points) < _SMOOTHED_FROM:
        return [element("path", d=path(points), class_=f"line {style}")]
    return [
        element("path", d=path(points), class_=f"line raw {style}"),
        element("path", d=path(_smoothed(points)), class_=f"line {style}"),
    ]


def _draw_band(line: Line, x_axis: Axis, y_axis: Axis, style: str) -> list[Html]:
    """The area between the edges of a line's band, cut at the axes; smoothed like the line."""
    band = [edge for edge in line.finite_band() if edge[1] > 0 or not y_axis.is_log]
    if len(band) < 2:
        return []
    low = _smoothed(_thinned([(x, edge) for x, edge, _ in band]))
    high = _smoothed(_thinned([(x, edge) for x, _, edge in band]))
    top, bottom = y_axis.end, y_axis.start
    corners = [(x_axis.place(x), min(max(y_axis.place(y), top), bottom)) for x, y in [*low, *reversed(high)]]
    return [element("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners), class_=f"band {style}")]


def _smoothed(points: list[Point]) -> list[Point]:
    """A moving average over a twentieth of the points; short lines as they are."""
    if len(points) < _SMOOTHED_FROM:
        return points
    reach = len(points) // 40
    ys = [y for _, y in points]
    averaged = []
    for index, (x, _) in enumerate(points):
        # Near the start the window shrinks, so that the line keeps its first fall.
        window = ys[index - min(reach, index) : index + min(reach, index) + 1]
        averaged.append((x, sum(window) / len(window)))
    return averaged


def _last_value(points: list[Point]) -> float:
    """The mean of the last twentieth of the points."""
    last = points[-max(1, len(points) // 20) :]
    return sum(y for _, y in last) / len(last)


def _thinned(points: list[Point]) -> list[Point]:
    if len(points) <= MAX_POINTS:
        return points
    edges = [len(points) * index // MAX_POINTS for index in range(MAX_POINTS + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _round_values(low: Number, high: Number, count: int) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
