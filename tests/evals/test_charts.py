"""Charts: values land where the axes say, and no input breaks them."""

import math
import re
from xml.etree import ElementTree

import pytest

from diptych.evals.charts import MAX_POINTS, Axis, format_estimate, format_number, interval_track, line_chart
from diptych.evals.report_data import Chart, Estimate, Line


def _chart(*lines: Line, **options: object) -> Chart:
    return Chart(title="Loss", x_label="step", y_label="nats", lines=lines, **options)


def _svg(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(chart)).find("svg")


def _points(path: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split())) for pair in path.get("d").removeprefix("M").split("L")]


def _tick_places(svg: ElementTree.Element, anchor: str, axis: str) -> dict[str, float]:
    marked = [text for text in svg.iter("text") if text.get("text-anchor") == anchor and text.get("class") is None]
    return {text.text: float(text.get(axis)) for text in marked}


def test_points_lie_where_the_ticks_say():
    svg = _svg(_chart(Line(name="a", x=(0.0, 10.0, 20.0), y=(1.0, 2.0, 3.0))))
    (path,) = svg.iter("path")
    xs, ys = _tick_places(svg, "middle", "x"), _tick_places(svg, "end", "y")
    for (x, y), name_x, name_y in zip(_points(path), ("0", "10", "20"), ("1", "2", "3"), strict=True):
        assert x == pytest.approx(xs[name_x], abs=0.1)
        assert y + 4 == pytest.approx(ys[name_y], abs=0.1)


def test_a_loss_that_falls_far_gets_a_logarithmic_axis():
    svg = _svg(_chart(Line(name="a", x=(0.0, 1.0, 2.0), y=(10.0, 1.0, 0.1))))
    (path,) = svg.iter("path")
    heights = [y for _, y in _points(path)]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert "nats (log scale)" in [text.text for text in svg.iter("text")]


@pytest.mark.parametrize(
    ("xs", "ys"),
    [
        ((), ()),
        ((1.0,), (2.0,)),
        ((0.0, 1.0), (0.0, 0.0)),
        ((0.0, 1.0), (5.0, 5.0)),
        ((0.0, 1.0, 2.0), (1.0, math.nan, math.inf)),
        ((0.0, 1.0), (-3.0, 1e-12)),
        ((0.0, 1.0), (1e-9, 1e9)),
        ((0.0, 0.0), (1.0, 2.0)),
        (tuple(map(float, range(5000))), tuple(math.exp(-x / 500) for x in range(5000))),
    ],
)
@pytest.mark.parametrize("starts_at_zero", [False, True])
def test_any_series_gives_a_finite_drawing(xs: tuple[float, ...], ys: tuple[float, ...], starts_at_zero: bool):
    chart = _chart(Line(name="a", x=xs, y=ys), starts_at_zero=starts_at_zero, marks=((0.0, "stage"),))
    markup = line_chart(chart)
    assert not re.search(r"\b(nan|inf)\b", markup)
    figure = ElementTree.fromstring(markup)
    if not xs:
        assert "No finite value" in "".join(figure.itertext())
        return
    for path in figure.iter("path"):
        points = _points(path)
        assert len(points) <= MAX_POINTS
        assert all(-1 <= x <= 481 and -1 <= y <= 271 for x, y in points)


def test_long_lines_are_smoothed_over_a_faint_raw_line():
    ys = tuple(1.0 + (-1) ** step * 0.5 for step in range(1000))
    svg = _svg(_chart(Line(name="a", x=tuple(map(float, range(1000))), y=ys)))
    raw, smooth = svg.iter("path")
    assert "raw" in raw.get("class") and "raw" not in smooth.get("class")


def test_the_legend_says_where_each_line_ended():
    ys = (9.0,) * 95 + (1.0, 2.0, 3.0, 4.0, 5.0)
    figure = ElementTree.fromstring(line_chart(_chart(Line(name="flow", x=tuple(map(float, range(100))), y=ys))))
    assert [item.text for item in figure.iter("b")] == ["3"]


def test_lines_of_levels_go_from_dark_to_light():
    lines = [Line(name=str(index), x=(0.0, 1.0), y=(0.0, float(index + 1))) for index in range(3)]
    classes = [path.get("class") for path in _svg(_chart(*lines, colors="levels")).iter("path")]
    assert classes == ["line v0", "line v2", "line v4"]


def test_interval_track_places_dot_whisker_reference_and_goal():
    estimate = Estimate(value=0.5, low=0.25, high=0.75)
    track = ElementTree.fromstring(interval_track([("mine", estimate, "c0")], [("chance", 0.125)], goal=0.8))
    styles = {mark.get("class"): mark.get("style") for mark in track.iter("i")}
    assert styles == {
        "tick": "left:12.50%",
        "goal": "left:80.00%",
        "whisker": "left:25.00%;width:50.00%",
        "dot": "left:50.00%",
    }
    assert track.get("aria-label") == "mine: 0.500 [0.250, 0.750]"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (2.5, "2.5"), (150, "150"), (1200, "1,200"), (15_000, "15k"), (3.2e6, "3.2M")],
)
def test_format_number(value: float, text: str):
    assert format_number(value) == text


def test_format_estimate_without_interval():
    assert format_estimate(Estimate(value=0.5)) == "0.500"


@pytest.mark.parametrize("bounds", [(0.1, 3.7), (1e-6, 2e-6), (-5, 5), (0, 1e7), (99.1, 99.2)])
def test_ticks_are_round_few_and_inside(bounds: tuple[float, float]):
    axis = Axis(*bounds, 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(bounds[0] - 1e-9 <= tick <= bounds[1] + 1e-9 for tick in ticks)
    assert all(0 <= axis.place(tick) <= 100.001 for tick in ticks)


def test_a_band_lies_around_its_line_and_within_the_axes():
    line = Line(name="a", x=(0.0, 1.0, 2.0), y=(1.0, 2.0, 3.0), low=(0.5, 1.5, 2.5), high=(1.5, 2.5, 300.0))
    svg = _svg(_chart(line))
    (polygon,), (path,) = svg.iter("polygon"), svg.iter("path")
    corners = [tuple(map(float, corner.split(","))) for corner in polygon.get("points").split()]
    assert len(corners) == 6 and all(0 <= x <= 480 and 0 <= y <= 270 for x, y in corners)
    for (x, y), (low_x, low_y), (high_x, high_y) in zip(_points(path), corners[:3], corners[:2:-1], strict=True):
        assert (low_x, high_x) == (x, x) and low_y > y > high_y


def test_a_band_needs_both_edges_at_every_point():
    with pytest.raises(ValueError, match=r"both edges at all of its 2 points, or none, got 2 and 1 values"):
        Line(name="a", x=(0.0, 1.0), y=(1.0, 2.0), low=(0.0, 1.0), high=(2.0,))


def test_a_line_without_points_leaves_the_colours_of_others_as_they_are():
    empty, line = Line(name="empty", x=(), y=()), Line(name="full", x=(1, 2), y=(1.0, 2.0))
    drawn = str(line_chart(Chart(title="t", x_label="x", y_label="y", lines=(empty, line))))
    assert "full" in drawn and "empty" not in drawn and "c1" in drawn and "c0" not in drawn
