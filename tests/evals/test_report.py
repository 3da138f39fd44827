"""The report page: self-contained, harmless whatever the prompts say, and complete with any of its sections missing."""

import base64
import io
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.picture_files import save_png
from diptych.evals.html import _VOID
from diptych.evals.report import render_report, write_report
from diptych.evals.report_data import (
    Answer,
    Chart,
    Drawing,
    Edit,
    Estimate,
    FileLink,
    Filmstrip,
    Frame,
    Gallery,
    Headline,
    Line,
    Part,
    ReportData,
    ScoreBoard,
    ScoreRow,
)
from diptych.scenes.draw import draw
from diptych.scenes.scene import Scene, SceneObject

EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)> \" ' & \udce9 🎨 שלום"
URL = re.compile(r"(?:https?:)?//[\w.]", re.IGNORECASE)


class Page(HTMLParser):
    """Reads a page, checks that its elements are closed in order, and collects what tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def _picture(color: str = "red") -> np.ndarray:
    return draw(Scene((SceneObject("circle", color, "large", 0.5, 0.5),)), 64)


def _estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.03, high=value + 0.02, count=60)


def full_report(text: str) -> ReportData:
    """Every section, with ``text`` wherever a user or a model may write."""
    steps = tuple(range(0, 1000, 10))
    losses = tuple(2.0 / (1 + step / 50) for step in steps)
    return ReportData(
        title=f"A run {text}",
        summary=f"What it is about {text}",
        created="Friday 3 January 2025, 14:05",
        command=f"diptych train blip3o:tiny {text}",
        environment={"Python": "3.11.2", text: text},
        headlines=(
            Headline(label=f"Generation {text}", system=text, estimate=_estimate(0.7), goal=0.6),
            Headline(label="Questions", estimate=_estimate(0.7), goal=0.8, detail=text),
            Headline(label="Time", text=f"7 min {text}"),
        ),
        galleries=(
            Gallery(
                title=f"Model {text}",
                note=text,
                drawings=(
                    Drawing(image=_picture(), prompt=f"a circle {text}", is_right=True),
                    Drawing(image=_picture("blue"), prompt="a square", is_right=False, detail=f"found {text}"),
                ),
            ),
        ),
        score_boards=(
            ScoreBoard(
                title=f"GenEval twin {text}",
                note=text,
                systems=("mine", text, "oracle", "chance"),
                references=("oracle", "chance"),
                rows=(
                    ScoreRow(
                        name=f"counting {text}",
                        scores={"mine": _estimate(0.512), text: _estimate(0.9), "chance": Estimate(value=0.05)},
                    ),
                    ScoreRow(
                        name="overall", scores={"mine": _estimate(0.634), "oracle": _estimate(0.97)}, is_total=True
                    ),
                ),
            ),
        ),
        charts=(
            Chart(
                title=f"Loss {text}",
                x_label=f"step {text}",
                y_label=f"nats {text}",
                lines=(Line(name=text, x=steps, y=losses),),
                marks=((500, text),),
                note=text,
            ),
        ),
        filmstrips=(
            Filmstrip(
                title=f"Stage {text}",
                captions=(f"a circle {text}", "a red circle"),
                frames=(
                    Frame(label=f"step 0 {text}", images=(_picture(), _picture("blue"))),
                    Frame(label="step 500", images=(_picture(), _picture("blue"))),
                ),
                note=text,
            ),
            Filmstrip(title="Sheets", captions=(), frames=(Frame(label=text, images=(_picture(),)),)),
        ),
        answers=(
            Answer(image=_picture(), question=f"What? {text}", answer=text, expected=text, is_right=False),
            Answer(image=_picture(), question="And this?", answer="", expected="a circle"),
            Answer(image=_picture(), question="Colour?", answer="red", expected="red", is_right=True),
        ),
        edits=(
            Edit(source=_picture(), instruction=f"make it blue {text}", result=_picture("blue"), is_right=True),
            Edit(
                source=_picture(),
                instruction="x",
                result=_picture(),
                target=_picture("blue"),
                is_right=False,
                detail=text,
            ),
        ),
        parts=(
            Part(
                name=f"backbone {text}",
                kind=text,
                num_parameters=1_234_567,
                num_trainable=7,
                dtype="float32",
                trained_in=text,
            ),
            Part(name="encoder", kind="ViT", num_parameters=1000),
        ),
        recipe={"name": text, "stages": {text: {"num_steps": 5}}},
        files=(FileLink(path=f"samples/{text}.png", detail=text), FileLink(path="recipe.json")),
    )


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_report(full_report(EVIL)).encode("utf-8", "replace").decode())


def test_user_text_stays_text(page: Page):
    tags = {tag for tag, _, _ in page.attributes}
    assert "script" not in tags and "iframe" not in tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 30


def test_nothing_is_loaded_from_anywhere(page: Page):
    loading = [(tag, name, value) for tag, name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert len(loading) > 10
    for tag, name, value in loading:
        assert value.startswith(("data:", "#")) or (tag == "a" and value.startswith("./")), (tag, name, value[:60])
    assert not [
        value for _, name, value in page.attributes if name == "style" and ("url(" in value or URL.search(value))
    ]
    assert (
        "meta",
        "content",
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    ) in page.attributes


def test_the_style_sheet_loads_nothing():
    style = re.search(r"<style>(.*?)</style>", render_report(ReportData(title="x")), re.DOTALL)
    assert style and len(style[1]) > 5000
    assert "url(" not in style[1] and "@import" not in style[1] and not URL.search(style[1])
    assert "prefers-color-scheme: dark" in style[1]


def test_what_the_page_says():
    page = Page(render_report(full_report("")))
    for words in (
        "goal 0.60 ✓ met",
        "goal 0.80 ✗ missed",
        "95 %: 0.67 – 0.72",
        "0.512 0.48 – 0.53",
        "1 of the 2 shown are right.",
        "And this? (no answer) expected: a circle",
        "all 1,235,567 7",
        "encoder ViT 1,000 frozen",
        "step 500",
    ):
        assert words in page.text, words
    assert "Colour? ✓ red expected" not in page.text
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert {link[1:] for link in links if link.startswith("#")} == set(page.ids)


def test_pictures_are_embedded_as_they_are(page: Page):
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 2 + 4 + 1 + 3 + 5
    first = Image.open(io.BytesIO(base64.b64decode(sources[0].removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(first), _picture())


def test_large_pictures_and_files_are_embedded_smaller(tmp_path: Path):
    path = save_png(np.zeros((900, 1800, 3), np.uint8), tmp_path / "big.png")
    data = ReportData(title="x", galleries=(Gallery(title="g", drawings=(Drawing(image=path, prompt="p"),)),))
    sizes = {name: value for tag, name, value in Page(render_report(data)).attributes if tag == "img"}
    assert (sizes["width"], sizes["height"]) == ("768", "384")


@pytest.mark.parametrize("left_out", [field.name for field in fields(ReportData) if field.name != "title"])
def test_any_section_may_be_missing(left_out: str):
    full = full_report("x")
    empty = ReportData(title="x")
    page = Page(render_report(replace(full, **{left_out: getattr(empty, left_out)})))
    assert page.text.startswith("A run x" if left_out != "created" else "")


def test_neighbours_stand_under_the_name_of_their_system():
    answers = tuple(
        Answer(image=_picture(), question="q", answer="a", is_right=is_right, system=system)
        for system, is_right in (("first", True), ("first", True), ("second", False), ("second", None))
    )
    page = Page(render_report(ReportData(title="x", answers=answers)))
    assert "first 2 of the 2 shown are right." in page.text
    assert "second 0 of the 1 shown are right." in page.text


def test_a_report_with_nothing_but_a_title():
    page = Page(render_report(ReportData(title="Only this")))
    assert page.text.startswith("Only this Only this Written by diptych")


def test_an_empty_gallery_chart_or_board_does_no_harm():
    data = ReportData(
        title="x",
        galleries=(Gallery(title="none", drawings=()),),
        charts=(Chart(title="c", x_label="x", y_label="y", lines=()),),
        score_boards=(ScoreBoard(title="s", rows=(), systems=()),),
        filmstrips=(Filmstrip(title="f", frames=(), captions=()),),
    )
    assert "No finite value was recorded." in Page(render_report(data)).text


def test_writing_is_whole_or_not_at_all(tmp_path: Path):
    path = write_report(full_report(EVIL), tmp_path / "new" / "report.html")
    before = path.read_bytes()
    Page(before.decode("utf-8"))
    broken = ReportData(
        title="x", galleries=(Gallery(title="g", drawings=(Drawing(image=tmp_path / "no.png", prompt=""),)),)
    )
    with pytest.raises(FileNotFoundError, match=r"There is no picture .*no\.png"):
        write_report(broken, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_report_data_without_a_path_is_refused():
    with pytest.raises(ValueError, match="needs the path of the file to write"):
        write_report(ReportData(title="x"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Estimate(value=0.5, low=0.4), "both ends of its interval"),
        (lambda: Estimate(value=0.5, low=0.6, high=0.5), "low must not exceed"),
        (lambda: Headline(label="a"), "either an estimate or a text"),
        (lambda: Headline(label="a", text="b", estimate=Estimate(value=1.0)), "either an estimate or a text"),
        (lambda: Line(name="a", x=(1.0,), y=()), "as many x as y, got 1 and 0"),
        (
            lambda: Filmstrip(title="a", captions=("b",), frames=(Frame(label="c", images=()),)),
            "0 images for 1 captions",
        ),
    ],
)
def test_report_data_says_what_does_not_fit(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
