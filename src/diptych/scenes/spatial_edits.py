"""Edits told in numbers: "move the red circle 20% of the width to the right", each with its one exact target scene.

Four of the seven operations of GSI-Bench (arXiv 2604.20570, section 3) in two dimensions: ``move`` an object by a share
of the side, ``place`` it at a distance from another one, ``scale`` and ``remove``; and ``point``, its centre at told
coordinates, which is ours. Left out are rotations, because every object here stands upright, receptacles, because
objects never touch, and changes of the viewpoint.

Distances are whole multiples of ``STEP`` per cent. Training never names a number of ``HELD_OUT``, so that tests know
whether numbers are understood or recalled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from diptych.scenes.edits import AllowRule, Edit
from diptych.scenes.phrases import Mention, pick, refer, shuffled
from diptych.scenes.sample import fits
from diptych.scenes.scene import SIZES, Scene, SceneObject, size_radius
from diptych.scenes.split import SPLITS, Split, may_follow, split_scene

SPATIAL_OPERATIONS = ("move", "place", "point", "scale", "remove")

STEP = 5
"""All told distances are multiples of this, in per cent of the side."""
LEAST, MOST = 10, 60
"""Shortest and longest told distance, in per cent of the side."""
HELD_OUT = (20, 35)
"""Numbers that no training instruction holds."""

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""In steps of (x, y), y down."""
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
_RELATIONS = {"left of": "left", "right of": "right", "above": "up", "below": "down"}
_ENDS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}

_WORDS: dict[str, tuple[str, ...]] = {
    "move": ("move the {0} {1}% of the {2} {3}", "shift the {0} {3} by {1}% of the {2}"),
    "place": ("place the {0} {1} the {2}, {3}% of the {4} from center to center",),
    "point": ("place the {0} with its center {1}% from the left and {2}% from the top",),
    "scale up": ("enlarge the {0} by {1}%", "scale up the {0} by {1}%"),
    "scale down": ("shrink the {0} by {1}%", "scale down the {0} by {1}%"),
    "remove": ("remove the {0}",),
}
_FORMS = ("type", "size type", "place type")
_NEAREST = 0.1
"""Nothing is moved by less than this, as a fraction of the side."""
_TRIES = 40
_TRIES_FOR_SCENE = 400


@dataclass(frozen=True)
class SpatialEdit:
    """An edit with the numbers that its instruction tells."""

    operation: str
    edit: Edit
    """Source, target, instruction; its ``inverse`` is given for ``move`` and ``scale``, which words can take back."""
    numbers: tuple[int, ...]
    """In per cent."""

    @property
    def index(self) -> int:
        """The object that the instruction is about, in the source."""
        return self.edit.changed_source[0]

    @property
    def is_held_out(self) -> bool:
        """Whether it tells a number that training never does."""
        return not set(self.numbers).isdisjoint(HELD_OUT)


@dataclass(frozen=True)
class SpatialItem:
    """A spatial edit of a fixed set."""

    id: str
    spatial: SpatialEdit


def spatial_edit(
    scene: Scene,
    rng: np.random.Generator,
    operation: str | None = None,
    allow: AllowRule | None = None,
    held_out: bool = True,
) -> SpatialEdit:
    """A spatial edit of a scene, deterministic in the state of ``rng``.

    Args:
        operation: one of ``SPATIAL_OPERATIONS``; without it one that the scene allows, in random order.
        allow: only targets that it accepts are made.
        held_out: whether numbers of ``HELD_OUT`` may be told; training says no.

    Raises:
        ValueError: an unknown operation, or none was found (no second object to place beside, no room).
    """
    if operation is not None and operation not in SPATIAL_OPERATIONS:
        raise ValueError(f"spatial_edit: operation must be one of {', '.join(SPATIAL_OPERATIONS)}, got {operation!r}.")
    for candidate in [operation] if operation is not None else shuffled(rng, SPATIAL_OPERATIONS):
        for _ in range(_TRIES):
            made = _BUILDERS[candidate](scene, rng)
            if made is None or not fits(made.edit.target) or (made.is_held_out and not held_out):
                continue
            if allow is None or allow(made.edit.target):
                return made
    raise ValueError(
        f"spatial_edit: no edit of operation {operation!r} found for a scene of {len(scene.objects)} object(s). "
        "Leave the operation open, or use another scene."
    )


def spatial_items(
    split: Split = "test", num_per_operation: int = 60, seed: int = 0, operations: Sequence[str] = SPATIAL_OPERATIONS
) -> list[SpatialItem]:
    """Spatial edits of scenes of a split, equally many of each operation, each of another scene.

    An item depends on seed, split, operation and its number alone. Items of split ``train`` tell no held-out number.

    Raises:
        ValueError: an unknown split or operation, or fewer than one item.
    """
    if split not in SPLITS:
        raise ValueError(f"spatial_items: split must be one of {', '.join(SPLITS)}, got {split!r}.")
    if num_per_operation < 1:
        raise ValueError(f"spatial_items: num_per_operation must be at least 1, got {num_per_operation}.")
    for operation in operations:
        if operation not in SPATIAL_OPERATIONS:
            raise ValueError(
                f"spatial_items: operation must be one of {', '.join(SPATIAL_OPERATIONS)}, got {operation!r}."
            )
    items = []
    for operation in operations:
        for index in range(num_per_operation):
            entropy = [seed, SPLITS.index(split), *b"spatial", SPATIAL_OPERATIONS.index(operation), index]
            made = spatial_edit_of_split(np.random.default_rng(entropy), split, operation)
            items.append(SpatialItem(f"{split}/spatial/{operation}/{index:04d}", made))
    return items


def spatial_edit_of_split(
    rng: np.random.Generator, split: Split, operation: str | None = None, max_objects: int = 6
) -> SpatialEdit:
    """A scene of a split with a spatial edit whose target the split allows."""
    allow = partial(may_follow, split=split)
    for _ in range(_TRIES_FOR_SCENE):
        scene = split_scene(rng, split, max_objects=max_objects)
        try:
            return spatial_edit(scene, rng, operation, allow, held_out=split != "train")
        except ValueError:
            continue
    raise RuntimeError(f"spatial_edit_of_split: no {operation} in {_TRIES_FOR_SCENE} scenes of split {split!r}.")


def _with(scene: Scene, index: int, item: SceneObject) -> Scene:
    return Scene((*scene.objects[:index], item, *scene.objects[index + 1 :]), scene.background)


def _any(scene: Scene, rng: np.random.Generator) -> tuple[int, str] | None:
    """An object and a name that fits it alone."""
    if not scene.objects:
        return None
    index = int(rng.random() * len(scene.objects))
    name = refer(scene, index, _FORMS)
    return None if name is None else (index, name)


def _distance(rng: np.random.Generator) -> int:
    return STEP * int(LEAST // STEP + rng.random() * (MOST // STEP - LEAST // STEP + 1))


def _side(direction: str) -> str:
    return "width" if DIRECTIONS[direction][0] else "height"


def _altered(
    operation: str, words: str, source: Scene, target: Scene, about: Sequence[Mention], inverse: Edit | None = None
) -> Edit:
    """An edit of the object that is named first."""
    objects = about[0].objects
    return Edit(operation, words, source, target, objects, objects, about=tuple(about), inverse=inverse)


def _moved(item: SceneObject, direction: str, percent: int) -> SceneObject:
    dx, dy = DIRECTIONS[direction]
    return replace(item, x=item.x + dx * percent / 100, y=item.y + dy * percent / 100)


def _move(scene: Scene, rng: np.random.Generator) -> SpatialEdit | None:
    chosen = _any(scene, rng)
    if chosen is None:
        return None
    index, name = chosen
    direction, percent = pick(rng, tuple(DIRECTIONS)), _distance(rng)
    target = _with(scene, index, _moved(scene.objects[index], direction, percent))
    back = refer(target, index, _FORMS) if fits(target) else None
    if back is None:
        return None

    def say(subject: str, way: str) -> str:
        return pick(rng, _WORDS["move"]).format(subject, percent, _side(way), _ENDS[way])

    words = say(name, direction)
    inverse = _altered("move", say(back, _OPPOSITE[direction]), target, scene, [Mention(back, (index,))])
    return SpatialEdit("move", _altered("move", words, scene, target, [Mention(name, (index,))], inverse), (percent,))


def _place(scene: Scene, rng: np.random.Generator) -> SpatialEdit | None:
    """At a distance from another object, in line with it."""
    chosen = _any(scene, rng)
    if chosen is None or len(scene.objects) < 2:
        return None
    index, name = chosen
    other = pick(rng, [i for i in range(len(scene.objects)) if i != index])
    other_name = refer(scene, other, ("type", "size type"))
    # The name must fit one object whether the moved one is counted or not.
    without = Scene((*scene.objects[:index], *scene.objects[index + 1 :]), scene.background)
    if other_name is None or refer(without, other - (other > index), ("type", "size type")) != other_name:
        return None
    relation, percent = pick(rng, tuple(_RELATIONS)), _distance(rng)
    anchor, item = scene.objects[other], scene.objects[index]
    spot = _moved(anchor, _RELATIONS[relation], percent)
    if _is_near(item, spot.x, spot.y):
        return None
    words = pick(rng, _WORDS["place"]).format(name, relation, other_name, percent, _side(_RELATIONS[relation]))
    target = _with(scene, index, replace(item, x=spot.x, y=spot.y))
    about = [Mention(name, (index,)), Mention(other_name, (other,))]
    return SpatialEdit("place", _altered("place", words, scene, target, about), (percent,))


def _point(scene: Scene, rng: np.random.Generator) -> SpatialEdit | None:
    chosen = _any(scene, rng)
    if chosen is None:
        return None
    index, name = chosen
    across, down = (STEP * int(1 + rng.random() * (100 // STEP - 1)) for _ in range(2))
    item = scene.objects[index]
    if _is_near(item, across / 100, down / 100):
        return None
    words = pick(rng, _WORDS["point"]).format(name, across, down)
    target = _with(scene, index, replace(item, x=across / 100, y=down / 100))
    return SpatialEdit("point", _altered("point", words, scene, target, [Mention(name, (index,))]), (across, down))


def _is_near(item: SceneObject, x: float, y: float) -> bool:
    return (item.x - x) ** 2 + (item.y - y) ** 2 < _NEAREST**2


def _scale(scene: Scene, rng: np.random.Generator) -> SpatialEdit | None:
    """From one of the three sizes to another: the number is the rounded change of the radius."""
    chosen = _any(scene, rng)
    if chosen is None:
        return None
    index, name = chosen
    item = scene.objects[index]
    size = pick(rng, [size for size in SIZES if size != item.size])
    target = _with(scene, index, replace(item, size=size))
    back = refer(target, index, _FORMS)
    if back is None:
        return None

    def say(subject: str, before: str, after: str) -> tuple[str, int]:
        change = size_radius(after) / size_radius(before) - 1
        percent = round(100 * abs(change))
        return pick(rng, _WORDS["scale up" if change > 0 else "scale down"]).format(subject, percent), percent

    words, percent = say(name, item.size, size)
    inverse = _altered("scale", say(back, size, item.size)[0], target, scene, [Mention(back, (index,))])
    return SpatialEdit("scale", _altered("scale", words, scene, target, [Mention(name, (index,))], inverse), (percent,))


def _remove(scene: Scene, rng: np.random.Generator) -> SpatialEdit | None:
    chosen = _any(scene, rng)
    if chosen is None or len(scene.objects) < 2:
        return None
    index, name = chosen
    target = Scene((*scene.objects[:index], *scene.objects[index + 1 :]), scene.background)
    words, about = _WORDS["remove"][0].format(name), (Mention(name, (index,)),)
    return SpatialEdit("remove", Edit("remove", words, scene, target, (index,), (), about=about), ())


_BUILDERS: dict[str, Callable[[Scene, np.random.Generator], SpatialEdit | None]] = {
    "move": _move,
    "place": _place,
    "point": _point,
    "scale": _scale,
    "remove": _remove,
}
