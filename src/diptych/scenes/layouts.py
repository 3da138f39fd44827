"""Layouts: a scene in words that leave nothing open but a few pixels, as a model may think before it draws.

``c3 small red circle, f6 large blue star, on beige`` names square, size, colour and shape of every object. The square
stands first, as in Pix2Seq (arXiv 2109.10852): once it is written, the words after it have one object to look at.
Squares are those of a chessboard, ``a`` to ``h`` from left to right and ``1`` to ``8`` from top to bottom.
"""

import re
from collections.abc import Collection, Sequence

from diptych.scenes.phrases import type_name
from diptych.scenes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject

SQUARES_PER_SIDE = 8
_COLUMNS = "abcdefgh"
_OBJECT = re.compile(
    rf"([{_COLUMNS}])([1-{SQUARES_PER_SIDE}]) ({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
    r"( 1 \1\2)?"
)
_BACKGROUND = re.compile(rf"on ({'|'.join(BACKGROUNDS)})")


def layout_text(scene: Scene, about: str = "", order: Sequence[int] | None = None) -> str:
    """The layout of a scene: first the objects that a caption is about, in its order, then the others as they are read.

    Args:
        about: a caption such as "a red circle left of a star", which names objects by type.
        order: indices of all objects, where another order is wanted.
    """

    def first_named(index: int) -> int:
        at = about.find(type_name(scene.objects[index].type))
        return at if at >= 0 else len(about)

    if order is None:
        order = sorted(reading_order(scene), key=first_named)
    return ", ".join([*(object_text(scene.objects[index]) for index in order), f"on {scene.background}"])


def reading_text(scene: Scene, meant: Collection[int] = ()) -> str:
    """What is seen in a picture: the layout from left to right, with a mark behind each object that is meant.

    ``c3 small red circle 1 c3, f6 large blue star, on beige`` where the first object is meant. Whether it is gets told
    where its words have just been written, not looked up later (docs/scenes.md has what that gained); the square stands
    behind the mark too, so that what is meant can be repeated from there on.
    """

    def told(index: int) -> str:
        item = scene.objects[index]
        return object_text(item) + (f" 1 {square_of(item)}" if index in meant else "")

    return ", ".join([*map(told, reading_order(scene)), f"on {scene.background}"])


def reading_order(scene: Scene) -> list[int]:
    """Objects from left to right, by index."""
    return sorted(range(len(scene.objects)), key=lambda index: (scene.objects[index].x, scene.objects[index].y))


def object_text(item: SceneObject) -> str:
    """``c3 small red circle``."""
    return f"{square_of(item)} {item.size} {type_name(item.type)}"


def square_of(item: SceneObject) -> str:
    """The square of an object's centre."""
    column, row = (min(SQUARES_PER_SIDE - 1, int(value * SQUARES_PER_SIDE)) for value in (item.x, item.y))
    return f"{_COLUMNS[column]}{row + 1}"


def parse_layout(text: str) -> Scene | None:
    """The scene that a layout or reading tells, every object in the middle of its square; None for anything else."""
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
        for column, row, size, color, shape, _ in (match.groups() for match in found if match is not None)
    )
    return Scene(objects, background.group(1))
