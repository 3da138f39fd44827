"""Draws a scene: exact-area anti-aliasing at any size, numpy only.

A shape is cut into horizontal strips in its own coordinates (a few per pixel), each with one or two spans. The area
that a strip shares with a pixel is (vertical overlap) x (horizontal overlap), so the coverage of a whole patch is one
small matrix product, smooth and exact for every sub-pixel position. Rectangles need one strip only.

Every shape lies inside the unit circle and touches it: the radius of an object is that of its bounding circle.
"""

import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from diptych.scenes.scene import SHAPES, Scene, SceneObject, size_radius

COLOR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (237, 0, 0),
    "orange": (255, 119, 30),
    "yellow": (240, 240, 0),
    "green": (0, 183, 27),
    "blue": (1, 109, 228),
    "purple": (110, 20, 200),
    "pink": (255, 95, 215),
    "brown": (118, 80, 10),
}
"""Found by a search that maximises the smallest distance between any two of these and the backgrounds (124 of 255)."""

BACKGROUND_RGB: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (125, 125, 125),
    "beige": (220, 200, 150),
}

Interval: TypeAlias = tuple[float, float]
SpanRule: TypeAlias = Callable[[float], list[Interval]]
Outline: TypeAlias = tuple[tuple[float, ...], bool, SpanRule]
"""Heights where the rule changes, whether every section between them is a rectangle, and the spans at a height."""


def _polygon_rule(points: list[tuple[float, float]]) -> SpanRule:
    def spans(y: float) -> list[Interval]:
        crossings = []
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if (y0 <= y) != (y1 <= y):
                crossings.append(x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        crossings.sort()
        return list(zip(crossings[::2], crossings[1::2], strict=True))

    return spans


def _polygon(points: list[tuple[float, float]]) -> Outline:
    return tuple(sorted({round(y, 12) for _, y in points})), False, _polygon_rule(points)


def _half_chord(radius: float, y: float) -> float:
    return math.sqrt(max(radius * radius - y * y, 0.0))


RING_HOLE = 0.55
"""Inner radius of a ring over its outer radius."""


def _ring(y: float) -> list[Interval]:
    outer, inner = _half_chord(1.0, y), _half_chord(RING_HOLE, y)
    return [(-outer, -inner), (inner, outer)] if inner > 0 else [(-outer, outer)]


def _star() -> Outline:
    radii = (1.0, 0.45) * 5
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    return _polygon([(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)])


def _heart() -> Outline:
    """Two discs side by side and the tangents from them to a tip, scaled into the unit circle."""
    lobe_x, lobe_radius, tip = 0.5, 0.56, 1.25
    reach = math.hypot(lobe_x, tip)
    angle = math.atan2(tip, -lobe_x) - math.acos(lobe_radius / reach)
    tangent_x, tangent_y = lobe_x + lobe_radius * math.cos(angle), lobe_radius * math.sin(angle)
    cleft = -math.sqrt(lobe_radius**2 - lobe_x**2)
    low, high = -tip, tip  # the centre of the bounding circle is as far from the tip as from the far side of a lobe
    for _ in range(60):
        centre = (low + high) / 2
        if math.hypot(lobe_x, centre) + lobe_radius > tip - centre:
            high = centre
        else:
            low = centre
    scale = tip - centre

    def spans(unit_y: float) -> list[Interval]:
        y = unit_y * scale + centre
        chord = _half_chord(lobe_radius, y)
        if y < cleft:
            inner, outer = (lobe_x - chord) / scale, (lobe_x + chord) / scale
            return [(-outer, -inner), (inner, outer)]
        half = (lobe_x + chord if y < tangent_y else tangent_x * (tip - y) / (tip - tangent_y)) / scale
        return [(-half, half)]

    heights = (-lobe_radius, cleft, tangent_y, tip)
    return tuple((y - centre) / scale for y in heights), False, spans


def _outlines() -> dict[str, Outline]:
    half = math.sqrt(0.5)
    arm, reach = 1 / 3, math.sqrt(8) / 3  # of the cross: arm**2 + reach**2 = 1
    equilateral = math.sqrt(0.75)
    return {
        "circle": ((-1.0, 1.0), False, lambda y: [(-_half_chord(1.0, y), _half_chord(1.0, y))]),
        "square": ((-half, half), True, lambda y: [(-half, half)]),
        "triangle": _polygon([(0.0, -1.0), (equilateral, 0.5), (-equilateral, 0.5)]),
        "diamond": _polygon([(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)]),
        "star": _star(),
        "cross": ((-reach, -arm, arm, reach), True, lambda y: [(-arm, arm)] if abs(y) > arm else [(-reach, reach)]),
        "heart": _heart(),
        "ring": ((-1.0, -RING_HOLE, RING_HOLE, 1.0), False, _ring),
    }


_OUTLINES = _outlines()
assert tuple(_OUTLINES) == SHAPES


@lru_cache(maxsize=256)
def strips(shape: str, count: int) -> tuple[Float[ndarray, "strips 2"], Float[ndarray, "strips spans 2"]]:
    """(top, bottom) and spans (left, right) of about ``count`` horizontal strips of a shape, in units of its radius."""
    heights, is_rectangles, spans = _OUTLINES[shape]
    edges: list[float] = [heights[0]]
    for low, high in itertools.pairwise(heights):
        parts = 1 if is_rectangles else max(1, round(count * (high - low) / (heights[-1] - heights[0])))
        edges += [low + (high - low) * (i + 1) / parts for i in range(parts)]
    rows = [spans((top + bottom) / 2) for top, bottom in itertools.pairwise(edges)]
    most = max(len(row) for row in rows)
    padded = [[*row, *[(0.0, 0.0)] * (most - len(row))] for row in rows]
    vertical = np.array([edges[:-1], edges[1:]], np.float32).T
    horizontal = np.array(padded, np.float32)
    vertical.setflags(write=False)
    horizontal.setflags(write=False)
    return vertical, horizontal


def _overlap(
    start: Float[ndarray, " intervals"], end: Float[ndarray, " intervals"], cells: int
) -> Float[ndarray, "intervals cells"]:
    """Length that each interval [start, end] shares with the unit cells 0..cells-1."""
    cell = np.arange(cells, dtype=np.float32)
    low = np.maximum(start[:, None], cell)
    high = np.minimum(end[:, None], cell + 1)
    high -= low
    return np.maximum(high, 0, out=high)


def coverage(
    shape: str, center_x: float, center_y: float, radius: float, width: int, height: int
) -> tuple[slice, slice, Float[ndarray, "rows cols"]]:
    """Share of every pixel that a shape covers, all lengths in pixels; only the patch around the shape is computed.

    Returns:
        The rows and columns of the patch inside a picture of ``height`` x ``width``, and the coverage there, in [0, 1].
    """
    x0, x1 = max(math.floor(center_x - radius), 0), min(math.ceil(center_x + radius), width)
    y0, y1 = max(math.floor(center_y - radius), 0), min(math.ceil(center_y + radius), height)
    if x0 >= x1 or y0 >= y1:
        return slice(0, 0), slice(0, 0), np.zeros((0, 0), np.float32)
    # Powers of two keep the cache small; four strips a pixel for small shapes, two for large ones.
    count = 2 ** math.ceil(math.log2(max((4 if radius < 64 else 2) * 2 * radius, 16)))
    vertical, horizontal = strips(shape, count)
    tall = vertical * np.float32(radius) + np.float32(center_y - y0)
    wide = horizontal * np.float32(radius) + np.float32(center_x - x0)
    rows = _overlap(tall[:, 0], tall[:, 1], y1 - y0)
    cols = _overlap(wide[:, 0, 0], wide[:, 0, 1], x1 - x0)
    for span in range(1, wide.shape[1]):
        cols += _overlap(wide[:, span, 0], wide[:, span, 1], x1 - x0)
    return slice(y0, y1), slice(x0, x1), rows.T @ cols


@lru_cache
def shape_extent(shape: str) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the tight box around a shape of radius 1 about its centre."""
    heights, _, spans = _OUTLINES[shape]
    # The widest place is a corner, at one of the heights, or inside a round section, where fine strips find it.
    corners = [end for y in heights for side in (-1e-6, 1e-6) for span in spans(y + side) for end in span]
    half_width = round(max(*corners, float(strips(shape, 256)[1].max())), 5)
    return -half_width, heights[0], half_width, heights[-1]


def object_box(item: SceneObject) -> tuple[float, float, float, float]:
    """The tight box (x0, y0, x1, y1) around an object in a square picture, in fractions of the side."""
    radius = size_radius(item.size)
    left, top, right, bottom = (edge * radius for edge in shape_extent(item.shape))
    return item.x + left, item.y + top, item.x + right, item.y + bottom


def picture_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture; an int means a square.

    Raises:
        ValueError: a side is not positive.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"draw: size must be positive, a side or (height, width), got {size!r}.")
    return height, width


def draw(scene: Scene, size: int | tuple[int, int] = 64) -> UInt8[ndarray, "height width 3"]:
    """Draw a scene as an RGB picture; the same geometry at any resolution.

    Args:
        size: side, or (height, width). In a picture that is not square, centres stay fractions of width and height
            while radii follow the shorter side, so that shapes keep their proportions.

    Raises:
        ValueError: a side is not positive.
    """
    height, width = picture_size(size)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = BACKGROUND_RGB[scene.background]
    for item in scene.objects:
        radius = size_radius(item.size) * min(height, width)
        rows, cols, share = coverage(item.shape, item.x * width, item.y * height, radius, width, height)
        under = canvas[rows, cols].astype(np.float32)
        over = np.array(COLOR_RGB[item.color], np.float32) - under
        over *= share[:, :, None]
        over += under
        over += 0.5
        canvas[rows, cols] = over.astype(np.uint8)
    return canvas
