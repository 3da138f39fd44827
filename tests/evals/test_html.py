"""Elements: text is escaped by construction."""

import pytest

from diptych.evals.html import Html, element, join


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & b", '"quoted"', "it's", "</p>"])
def test_text_and_attributes_are_escaped(text: str):
    markup = element("p", text, title=text)
    for character in "<>\"'":
        assert character not in markup.removeprefix('<p title="').removesuffix("</p>").replace('">', "", 1)
    assert element("p", element("b", text)).count("<b>") == 1


def test_markup_is_not_escaped_twice():
    assert join([element("b", "x"), " & ", None, 3, ["y", Html("<hr>")]]) == "<b>x</b> &amp; 3y<hr>"


def test_attributes():
    assert element("a", class_="x", aria_label="y", hidden=True, open=False, rel=None) == (
        '<a class="x" aria-label="y" hidden></a>'
    )
    assert element("line", x1=1.23456, x2=2.0, y1=3) == '<line x1="1.23" x2="2" y1="3"></line>'


def test_empty_elements_have_no_end():
    assert element("img", src="data:,") == '<img src="data:,">'
