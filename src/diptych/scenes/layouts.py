"""Layouts: a scene in words that leave nothing open but a few pixels, as a model may think before it draws.

``c3 small red circle, f6 large blue star, on beige`` names square, size, colour and shape of every object. The square
stands first, as in Pix2Seq (arXiv 2109.10852): once it is written, the words after it have one object to look at.
Squares are those of a chessboard, ``a`` to ``h`` from left to right and ``1`` to ``8`` from top to bottom.
"""

import re

from diptych.scenes.phrases import referents, type_name
from diptych.scenes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject

SQUARES_PER_SIDE = 8
_FORMS = ("shape", "color", "size shape", "size color", "size type", "place shape", "place color", "place type")
_COLUMNS = "abcdefgh"
_OBJECT = re.compile(
    rf"([{_COLUMNS}])([1-{SQUARES_PER_SIDE}]) ({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
)
_BACKGROUND = re.compile(rf"on ({'|'.join(BACKGROUNDS)})")


def layout_text(scene: Scene, about: str = "") -> str:
    """The layout of a scene: first the objects that a text is about, in its order, then the others from left to right.

    Args:
        about: a caption ("a red circle left of a star"), an instruction or a question ("Is the circle left of the
            star?"); it names objects by type, or after "the" by any phrase that fits one alone.
    """
    names = [referents(scene, form) for form in _FORMS] if "the " in about else []

    def order(index: int) -> tuple[int, float, float]:
        item = scene.objects[index]
        phrases = [type_name(item.type), *(f"the {known[index]}" for known in names if index in known)]
        places = [at for phrase in phrases if (at := about.find(phrase)) >= 0]
        return (min(places, default=len(about)), item.x, item.y)

    items = [scene.objects[index] for index in sorted(range(len(scene.objects)), key=order)]
    told = [f"{square_of(item)} {item.size} {type_name(item.type)}" for item in items]
    return ", ".join([*told, f"on {scene.background}"])


def square_of(item: SceneObject) -> str:
    """The square of an object's centre."""
    column, row = (min(SQUARES_PER_SIDE - 1, int(value * SQUARES_PER_SIDE)) for value in (item.x, item.y))
    return f"{_COLUMNS[column]}{row + 1}"


def parse_layout(text: str) -> Scene | None:
    """The scene that a layout tells, every object in the middle of its square; None for anything else."""
    *items, last = text.strip().split(", ")
    background = _BACKGROUND.fullmatch(last)
    found = [_OBJECT.fullmatch(item) for item in items]
    if background is None or not all(found):
        return None
    objects = tuple(
        SceneObject(
            shape,
            color,
            size,
            (_COLUMNS.index(column) + 0.5) / SQUARES_PER_SIDE,
            (int(row) - 0.5) / SQUARES_PER_SIDE,
        )
        for column, row, size, color, shape in (match.groups() for match in found if match is not None)
    )
    return Scene(objects, background.group(1))
