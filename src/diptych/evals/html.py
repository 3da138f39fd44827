"""HTML and SVG built from elements, so that every piece of text is escaped by construction."""

from collections.abc import Iterable
from html import escape
from typing import TypeAlias


class Html(str):
    """Markup. Everything else that becomes part of an element is text, and is escaped."""

    __slots__ = ()


Child: TypeAlias = "str | Html | int | Iterable[Child] | None"
AttributeValue: TypeAlias = str | int | float | bool | None

_VOID = frozenset({"br", "col", "hr", "img", "link", "meta"})
"""Elements without content and end tag."""


def element(name: str, /, *children: Child, **attributes: AttributeValue) -> Html:
    """``<name attribute="value">children</name>``.

    A trailing underscore in an attribute's name is dropped (``class_``), other underscores become dashes
    (``stroke_width``). ``True`` writes the bare name; ``None`` and ``False`` leave the attribute out.
    """
    start = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    if name in _VOID:
        return Html(start)
    return Html(f"{start}{join(children)}</{name}>")


def join(children: Child) -> Html:
    """Markup of several children; ``None`` is nothing."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str | int):
        return Html(escape(str(children)))
    return Html("".join(join(child) for child in children))


def _attribute(key: str, value: AttributeValue) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    # SVG's camel-case names have no underscores, so they pass unchanged.
    if value is True:
        return f" {name}"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
