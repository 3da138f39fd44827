"""Random scenes: which objects, and where, so that nothing overlaps.

The stated bound on occlusion is zero: the bounding circles of any two objects are at least ``MIN_GAP`` apart and at
least ``MARGIN`` inside the picture. At 64 px the gap is 2.9 px, which survives a blur of one pixel.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from diptych.scenes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, ObjectType, Scene, SceneObject, size_radius

MIN_GAP = 0.045
"""Smallest distance between two bounding circles, as a fraction of the side."""

MARGIN = 0.02
"""Smallest distance from a bounding circle to the edge of the picture, as a fraction of the side."""

COUNT_WEIGHTS = (0.26, 0.26, 0.20, 0.13, 0.09, 0.06)
"""How often a random scene has 1, 2, ... 6 objects."""

MAX_OBJECTS = len(COUNT_WEIGHTS)

Description = tuple[str, str, str]
"""(shape, colour, size)"""

_TRIES_PER_OBJECT = 40
_TRIES_PER_SCENE = 12
_TRIES_FOR_TYPES = 10_000
_TOLERANCE = 1e-9


def fits(scene: Scene) -> bool:
    """Whether a scene keeps the bounds: at most six objects, ``MIN_GAP`` between them, ``MARGIN`` to the edge."""
    objects = scene.objects
    if len(objects) > MAX_OBJECTS:
        return False
    for i, item in enumerate(objects):
        radius = size_radius(item.size)
        inset = radius + MARGIN - _TOLERANCE
        if not (inset <= item.x <= 1 - inset and inset <= item.y <= 1 - inset):
            return False
        for other in objects[:i]:
            least = radius + size_radius(other.size) + MIN_GAP - _TOLERANCE
            if math.hypot(item.x - other.x, item.y - other.y) < least:
                return False
    return True


def place_objects(
    rng: np.random.Generator, descriptions: Sequence[Description], fixed: Iterable[SceneObject] = ()
) -> tuple[SceneObject, ...] | None:
    """Place objects at random, uniformly over the free area, next to ``fixed`` ones; None if no room was found.

    Large objects are placed first; the result is in the order of ``descriptions``. The number of tries is bounded.
    """
    standing = [(item.x, item.y, size_radius(item.size)) for item in fixed]
    order = sorted(range(len(descriptions)), key=lambda i: -size_radius(descriptions[i][2]))
    for _ in range(_TRIES_PER_SCENE):
        placed: dict[int, SceneObject] = {}
        circles = list(standing)
        for index in order:
            shape, color, size = descriptions[index]
            spot = _free_spot(rng, size_radius(size), circles)
            if spot is None:
                break
            placed[index] = SceneObject(shape, color, size, *spot)
            circles.append((*spot, size_radius(size)))
        else:
            return tuple(placed[index] for index in range(len(descriptions)))
    return None


def _free_spot(
    rng: np.random.Generator, radius: float, circles: list[tuple[float, float, float]]
) -> tuple[float, float] | None:
    inset = radius + MARGIN
    for _ in range(_TRIES_PER_OBJECT):
        x, y = (inset + (1 - 2 * inset) * value for value in rng.random(2).tolist())
        if all(math.hypot(x - cx, y - cy) >= radius + cr + MIN_GAP for cx, cy, cr in circles):
            return x, y
    return None


def _pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _draw_types(
    rng: np.random.Generator,
    count: int,
    given: tuple[ObjectType, ...],
    allow: Callable[[Sequence[ObjectType]], bool] | None,
) -> tuple[ObjectType, ...]:
    for _ in range(_TRIES_FOR_TYPES):
        missing = count - len(given)
        types = (*given, *((_pick(rng, SHAPES), _pick(rng, COLORS)) for _ in range(missing)))
        if allow is None or allow(types):
            return types
        if missing == 0:
            raise ValueError(f"sample_scene: allow() refuses the given types {list(given)}. Pass others, or no allow.")
    raise ValueError(
        f"sample_scene: allow() refused {_TRIES_FOR_TYPES} random sets of {count} types that contain {list(given)}. "
        "Ask for fewer objects or a weaker rule."
    )


def sample_scene(
    rng: np.random.Generator,
    *,
    num_objects: int | None = None,
    types: Sequence[ObjectType] | None = None,
    allow: Callable[[Sequence[ObjectType]], bool] | None = None,
    background: str | None = None,
) -> Scene:
    """Draw a random scene that ``fits``, deterministic in the state of ``rng``.

    Sizes are uniform; where they do not fit together, the largest objects are made one size smaller until they do.

    Args:
        num_objects: 1 to 6; without it ``len(types)``, or at random with ``COUNT_WEIGHTS``.
        types: these (shape, colour) pairs come first, in order; objects beyond them are of random types.
        allow: the types of the scene are drawn again until this accepts them (a rule of a split).
        background: a name in ``BACKGROUNDS``; at random without it.

    Raises:
        ValueError: ``num_objects`` is out of range or smaller than ``types``; ``allow`` accepts nothing.
    """
    given = tuple(types or ())
    if num_objects is not None:
        count = num_objects
    elif given:
        count = len(given)
    else:
        count = 1 + int(np.searchsorted(np.cumsum(COUNT_WEIGHTS), rng.random()))
    if not max(len(given), 1) <= count <= MAX_OBJECTS:
        raise ValueError(
            f"sample_scene: the number of objects must be {max(len(given), 1)} to {MAX_OBJECTS}, got {count}."
        )
    if background is None:
        background = _pick(rng, BACKGROUNDS)
    chosen = _draw_types(rng, count, given, allow)
    sizes = [int(value) for value in rng.integers(len(SIZES), size=count)]
    while True:
        descriptions = [(shape, color, SIZES[size]) for (shape, color), size in zip(chosen, sizes, strict=True)]
        objects = place_objects(rng, descriptions)
        if objects is not None:
            return Scene(objects, background)
        if max(sizes) > 0:  # six small ones always have room (they fill a quarter), so the loop ends
            sizes[sizes.index(max(sizes))] -= 1
