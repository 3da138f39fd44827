"""The report page: one HTML file with everything inside, which a browser shows without any request.

Style sheet, charts (inline SVG) and pictures (PNG as base64) are part of the file, there is no script, and a content
security policy forbids loading anything, so that a prompt in the page can do no harm.
"""

import base64
import io
import json
import os
from collections.abc import Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path

from PIL import Image

from diptych import __version__
from diptych.data.example import load_pixels
from diptych.data.picture_files import read_picture
from diptych.evals.charts import format_estimate, interval_track, line_chart
from diptych.evals.html import Html, element, join
from diptych.evals.report_data import (
    Answer,
    Edit,
    Estimate,
    Filmstrip,
    Gallery,
    Headline,
    Part,
    Picture,
    ReportData,
    ScoreBoard,
    Table,
)
from diptych.evals.run_folder import report_data_from_run

MAX_SHOWN_SIDE = 768
"""Larger pictures are embedded at this size; the files beside the report keep theirs."""


def write_report(report: ReportData | str | Path, path: str | Path | None = None) -> Path:
    """Writes the page whole or not at all and returns its path.

    Args:
        report: what to show, or a run folder to read it from.
        path: the file; ``report.html`` in the run folder if that is given.

    Raises:
        FileNotFoundError: there is no such run folder, or a picture is missing.
        ValueError: the folder is no run folder, a picture cannot be read, or ``path`` is missing.
    """
    if isinstance(report, ReportData):
        if path is None:
            raise ValueError("write_report needs the path of the file to write when it is given ReportData.")
        data = report
    else:
        data = report_data_from_run(report)
        path = Path(report) / "report.html" if path is None else path
    path = Path(path)
    page = render_report(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        # Half of a surrogate pair, as from a terminal with another encoding, has no UTF-8 form.
        unfinished.write_bytes(page.encode("utf-8", "replace"))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def render_report(data: ReportData) -> str:
    """The page as text. Sections without content do not appear."""
    sections = [(title, body) for title, body in _sections(data) if body]
    style = resources.files("diptych.evals").joinpath("report.css").read_text("utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", data.title),
        # An empty icon keeps browsers from asking for one.
        element("link", rel="icon", href="data:,"),
        element("style", Html(style)),
    )
    anchors = [(_anchor(title), title) for title, _ in sections]
    main = element(
        "main",
        _header(data),
        element("nav", [element("a", title, href=f"#{anchor}") for anchor, title in anchors]) if anchors else None,
        _cards(data.headlines),
        [
            element("section", element("h2", title, id=anchor), body)
            for (anchor, title), (_, body) in zip(anchors, sections, strict=True)
        ],
        element("footer", f"Written by diptych {__version__}."),
    )
    return f"<!doctype html>\n{element('html', head, element('body', main), lang='en')}\n"


def _sections(data: ReportData) -> list[tuple[str, Html]]:
    # With one gallery or table the section's title is enough.
    return [
        ("Drawings", join([_gallery(gallery) for gallery in data.galleries])),
        ("Edits", join([_edits(who, list(some)) for who, some in groupby(data.edits, lambda edit: edit.system)])),
        ("Questions", join([_answers(who, list(some)) for who, some in groupby(data.answers, lambda a: a.system)])),
        ("Scores", join([_score_board(table) for table in data.score_boards])),
        (
            "Training curves",
            element("div", [line_chart(chart) for chart in data.charts], class_="grid charts")
            if data.charts
            else Html(""),
        ),
        (data.filmstrips_title, join([_filmstrip(strip) for strip in data.filmstrips])),
        (data.tables_title, join([_table(table) for table in data.tables])),
        ("Model", _parts(data.parts)),
        ("Recipe and files", _recipe_and_files(data)),
    ]


def _header(data: ReportData) -> Html:
    details = None
    if data.environment:
        brief = " · ".join(f"{key} {value}" for key, value in data.environment.items())
        entries = [(element("dt", key), element("dd", value)) for key, value in data.environment.items()]
        details = element(
            "details",
            element("summary", "Environment", element("span", brief), class_="brief"),
            element("dl", entries),
        )
    return element(
        "header",
        element("p", data.created, class_="when") if data.created else None,
        element("h1", data.title),
        element("p", data.summary, class_="summary") if data.summary else None,
        _command(data.command) if data.command else None,
        details,
    )


def _command(command: str) -> Html:
    """The command line; it breaks between words, not after the dashes of a flag."""
    words = [[element("span", word), " "] for word in command.split(" ")]
    return element("pre", words, class_="command")


def _cards(headlines: Sequence[Headline]) -> Html | None:
    has_systems = any(headline.system for headline in headlines)
    cards = [_card(headline, has_systems) for headline in headlines]
    return element("div", cards, class_="grid cards") if cards else None


def _card(headline: Headline, has_system: bool) -> Html:
    estimate = headline.estimate
    lines: list[Html | None] = [
        # Kept empty beside cards that have one, so that the numbers stand in one line.
        element("div", headline.system or "\u00a0", class_="system") if has_system else None,
        element("div", headline.label, class_="label"),
    ]
    if estimate is None:
        lines.append(element("div", headline.text, class_="number words"))
    else:
        lines.append(element("div", f"{estimate.value:.3f}", class_="number"))
        lines.append(interval_track([(headline.label, estimate, "c0")], goal=headline.goal))
        if estimate.low is not None and estimate.high is not None:
            lines.append(element("div", f"95 %: {estimate.low:.2f} – {estimate.high:.2f}", class_="interval"))
        if headline.goal is not None:
            met = estimate.value >= headline.goal
            lines.append(
                element(
                    "div",
                    f"goal {headline.goal:.2f} ",
                    element("b", "✓ met" if met else "✗ missed", class_="met" if met else "missed"),
                    class_="detail",
                )
            )
    lines.append(element("div", headline.detail, class_="detail") if headline.detail else None)
    return element("div", lines, class_="card")


def _gallery(gallery: Gallery) -> Html:
    drawings = [
        element(
            "div",
            _picture(drawing.image, drawing.prompt),
            element("p", _verdict(drawing.is_right), drawing.prompt),
            element("p", drawing.detail, class_="detail") if drawing.detail else None,
            class_="drawing",
        )
        for drawing in gallery.drawings
    ]
    return join([_heading(gallery.title, gallery.note), element("div", drawings, class_="grid gallery")])


def _edits(system: str, edits: Sequence[Edit]) -> Html:
    return join([_heading(system, ""), element("div", [_edit(edit) for edit in edits], class_="grid edits")])


def _edit(edit: Edit) -> Html:
    stages = [("source", edit.source), ("result", edit.result), ("target", edit.target)]
    pictures = [
        element("figure", _picture(image, f"{name} of: {edit.instruction}"), element("figcaption", name))
        for name, image in stages
        if image is not None
    ]
    return element(
        "div",
        element("p", _verdict(edit.is_right), element("b", edit.instruction)),
        element("div", pictures, class_="triple"),
        element("p", edit.detail, class_="note") if edit.detail else None,
        class_="edit",
    )


def _answers(system: str, answers: Sequence[Answer]) -> Html:
    pairs = []
    for answer in answers:
        expected = None
        if answer.expected is not None and answer.is_right is not True:
            expected = element("p", f"expected: {answer.expected}", class_="detail")
        pairs.append(
            element(
                "div",
                _picture(answer.image, answer.question),
                element(
                    "div",
                    element("p", answer.question, class_="question"),
                    element("p", _verdict(answer.is_right), answer.answer or "(no answer)", class_="answer"),
                    expected,
                ),
                class_="pair",
            )
        )
    scored = [answer.is_right for answer in answers if answer.is_right is not None]
    note = f"{sum(scored)} of the {len(scored)} shown are right." if scored else ""
    return join([_heading(system, note), element("div", pairs, class_="grid answers")])


def _score_board(table: ScoreBoard) -> Html:
    # The systems under test are coloured; what they are compared with stays grey.
    tested = [system for system in table.systems if system not in table.references]
    styles = {system: f"c{index % 6}" for index, system in enumerate(tested)}
    tracks = []
    for row in table.rows:
        dots = [(system, row.scores[system], styles[system]) for system in tested if system in row.scores]
        ticks = [(system, row.scores[system].value) for system in table.references if system in row.scores]
        tracks.append(interval_track(dots, ticks) if dots else Html(""))
    has_plot = any(tracks)  # distances and rewards have no scale from 0 to 1
    head = element(
        "tr",
        element("th", ""),
        [
            element(
                "th",
                _bullet(styles.get(system), is_needed=len(tested) > 1),
                system,
            )
            for system in table.systems
        ],
        element("th", element("span", "0"), element("span", "1"), class_="plot") if has_plot else None,
    )
    rows = []
    for row, track in zip(table.rows, tracks, strict=True):
        cells = [_score_cell(row.scores.get(system), system in table.references) for system in table.systems]
        plot = element("td", track, class_="plot") if has_plot else None
        rows.append(element("tr", element("td", row.name), cells, plot, class_="total" if row.is_total else None))
    body = element("table", element("thead", head), element("tbody", rows), class_="scores")
    return join([_heading(table.title, table.note), element("div", body, class_="scroll")])


def _bullet(style: str | None, is_needed: bool) -> Html | None:
    """The sign by which a column's marks are known in the plot; systems to compare with are ticks."""
    if style is None:
        return element("i", class_="bullet line-bullet ref")
    return element("i", class_=f"bullet {style}") if is_needed else None


def _score_cell(estimate: Estimate | None, is_reference: bool) -> Html:
    style = "reference" if is_reference else None
    if estimate is None:
        return element("td", "–", class_=style)
    interval = None
    if estimate.low is not None and estimate.high is not None:
        interval = element("small", f"{estimate.low:.2f} – {estimate.high:.2f}")
    hint = format_estimate(estimate) + (f", {estimate.count:,} examples" if estimate.count is not None else "")
    return element("td", f"{estimate.value:.3f}", interval, class_=style, title=hint)


def _filmstrip(strip: Filmstrip) -> Html:
    heading = _heading(strip.title, strip.note)
    if not strip.captions:
        sheets = [
            element(
                "figure", element("figcaption", frame.label), [_picture(image, frame.label) for image in frame.images]
            )
            for frame in strip.frames
        ]
        return join([heading, element("div", sheets, class_="sheets")])
    head = element("tr", element("th", ""), [element("th", frame.label) for frame in strip.frames])
    rows = [
        element(
            "tr",
            element("td", caption),
            [element("td", _picture(frame.images[index], f"{caption}, {frame.label}")) for frame in strip.frames],
        )
        for index, caption in enumerate(strip.captions)
    ]
    return join(
        [heading, element("div", element("table", element("thead", head), element("tbody", rows)), class_="strip")]
    )


def _table(table: Table) -> Html:
    head = element("tr", element("th", ""), [element("th", name) for name in table.columns])
    rows = [element("tr", [element("td", cell) for cell in row]) for row in table.rows]
    body = element("table", element("thead", head), element("tbody", rows), class_="parts")
    return join([_heading(table.title, table.note), element("div", body, class_="scroll")])


def _parts(parts: Sequence[Part]) -> Html:
    if not parts:
        return Html("")
    names = ("Part", "Kind", "Parameters", "Trainable", "Type", "Trained in")
    rows = [
        element(
            "tr",
            element("td", part.name),
            element("td", part.kind),
            element("td", f"{part.num_parameters:,}"),
            element(
                "td", f"{part.num_trainable:,}" if part.num_trainable else element("span", "frozen", class_="frozen")
            ),
            element("td", part.dtype),
            element("td", part.trained_in),
        )
        for part in parts
    ]
    total = element(
        "tr",
        element("td", "all"),
        element("td"),
        element("td", f"{sum(part.num_parameters for part in parts):,}"),
        element("td", f"{sum(part.num_trainable for part in parts):,}"),
        element("td"),
        element("td"),
        class_="total",
    )
    head = element("thead", element("tr", [element("th", name) for name in names]))
    table = element("table", head, element("tbody", rows, total), class_="parts")
    return element("div", table, class_="scroll")


def _recipe_and_files(data: ReportData) -> Html:
    recipe = files = None
    if data.recipe is not None:
        text = json.dumps(data.recipe, indent=2, ensure_ascii=False, default=str)
        recipe = element("details", element("summary", "Full recipe"), element("pre", text))
    if data.files:
        files = element(
            "ul",
            [
                element(
                    "li",
                    element("a", file.path, href=_relative_link(file.path)),
                    element("span", file.detail) if file.detail else None,
                )
                for file in data.files
            ],
            class_="files",
        )
    return join([files, recipe])


def _heading(title: str, note: str) -> list[Html]:
    heading = [element("h3", title)] if title else []
    return [*heading, element("p", note, class_="note")] if note else heading


def _verdict(is_right: bool | None) -> Html | None:
    if is_right is None:
        return None
    name = "right" if is_right else "wrong"
    return join(
        [
            element(
                "span",
                "✓" if is_right else "✗",
                class_=f"verdict {'met' if is_right else 'missed'}",
                title=name,
                aria_label=name,
            ),
            " ",
        ]
    )


def _picture(picture: Picture, alt: str) -> Html:
    image = read_picture(picture) if isinstance(picture, Path) else Image.fromarray(load_pixels(picture))
    image.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return element("img", src=source, alt=alt[:200], width=image.width, height=image.height, class_="picture")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _relative_link(path: str) -> str:
    """A link that stays beside the report, whatever the file is called."""
    return "./" + "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 128) or chr(byte) in "/._-" else f"%{byte:02X}"
        for byte in path.encode("utf-8", "replace")
    )
