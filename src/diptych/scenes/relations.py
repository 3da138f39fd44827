"""Boxes of the objects of a scene and the relations between them, by the benchmark's rule engine (``rules.py``)."""

from functools import cache

from diptych.scenes.draw import object_box
from diptych.scenes.rules import Box, relations_between
from diptych.scenes.scene import Scene, SceneObject

BOX_SIDE = 256.0
"""Boxes of scenes are given in pixels of a picture of this side; relations do not depend on it."""


@cache
def _extents(shape: str, size: str) -> Box:
    """The box of an object whose centre is the origin, in units of ``BOX_SIDE``."""
    x0, y0, x1, y1 = object_box(SceneObject(shape, "red", size, 0.0, 0.0))
    return (x0 * BOX_SIDE, y0 * BOX_SIDE, x1 * BOX_SIDE, y1 * BOX_SIDE)


def box_at(shape: str, size: str, x: float, y: float) -> Box:
    """The tight box of a shape at a centre, in pixels of a picture of side ``BOX_SIDE``."""
    left, top, right, bottom = _extents(shape, size)
    center_x, center_y = x * BOX_SIDE, y * BOX_SIDE
    return (center_x + left, center_y + top, center_x + right, center_y + bottom)


def box_of(item: SceneObject) -> Box:
    """The tight box of an object, in pixels of a picture of side ``BOX_SIDE``."""
    return box_at(item.shape, item.size, item.x, item.y)


def relations_of(item: SceneObject, other: SceneObject) -> tuple[str, ...]:
    """How ``item`` lies relative to ``other``: none, one or two of ``rules.RELATIONS``."""
    return relations_between(box_of(item), box_of(other))


def group_relations(scene: Scene, group: list[int], other: list[int]) -> tuple[str, ...]:
    """The relations that hold between every object of one group and every object of another."""
    boxes = [box_of(item) for item in scene.objects]
    common: tuple[str, ...] | None = None
    for i in group:
        for j in other:
            found = relations_between(boxes[i], boxes[j])
            common = found if common is None else tuple(r for r in common if r in found)
            if not common:
                return ()
    return common or ()
