"""Edit instructions: seven kinds, each with the exact target scene and with the inverse that leads back to the source.

Objects are named so that exactly one fits. Where something is to be put is said by a third of the picture ("to the top
left") or by a relation to another object ("left of the blue square"); the target scene has one position that fulfils
this, and scorers accept any that does (``scorers.py``). Applied to the target, the inverse gives back the source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from diptych.scenes.phrases import (
    PLACE_PHRASES,
    Mention,
    in_place,
    pick,
    place_of,
    refer,
    shuffled,
    weighted_order,
    with_article,
)
from diptych.scenes.relations import relations_of
from diptych.scenes.sample import MAX_OBJECTS, fits, place_objects
from diptych.scenes.scene import COLORS, SHAPES, SIZES, ObjectType, Scene, SceneObject
from diptych.scenes.split import TYPES

EDIT_KINDS = ("add", "remove", "recolor", "reshape", "resize", "move", "swap")

_EAGERNESS = (1.0, 1.5, 1.0, 1.0, 1.0, 1.0, 3.0)
"""Weights of the kinds when none is asked for; what few scenes allow is tried more, so that all kinds are learnt."""

LEAST_MOVE = 0.15
"""A move goes at least this far, as a fraction of the side."""

CLEAR_OF_PLACE = 0.1
"""An object is moved to a third of the picture only if it stood at least this far outside of it."""

_TRIES = 12
_PLAIN = ("type", "size type", "place type")
_SHORT = ("shape", "color", "type", "size type", "place type")

_DESTINATIONS = {
    place: f"to the {place} side" if place in ("left", "right") else f"to the {place}" for place in PLACE_PHRASES
}

_WORDS: dict[str, tuple[str, ...]] = {
    "add": ("add {0} {1}", "put {0} {1}", "draw {0} {1}"),
    "remove": ("remove the {0}", "delete the {0}", "take away the {0}"),
    "recolor": ("make the {0} {1}", "change the color of the {0} to {1}", "paint the {0} {1}"),
    "reshape": ("turn the {0} into {1}", "change the {0} into {1}", "make the {0} {1}"),
    "resize": ("make the {0} {1}", "change the size of the {0} to {1}", "resize the {0} to {1}"),
    "move": ("move the {0} {1}", "shift the {0} {1}"),
    "swap": ("swap the {0} and the {1}", "exchange the {0} and the {1}"),
}

AllowRule: TypeAlias = Callable[[Scene], bool]


@dataclass(frozen=True)
class Edit:
    """One instruction with the scene before and after it."""

    kind: str
    instruction: str
    source: Scene
    target: Scene
    changed_source: tuple[int, ...]
    """Objects of the source that the edit takes away or alters."""
    changed_target: tuple[int, ...]
    """Objects of the target that the edit brings or has altered. All others are equal in both scenes."""
    place: str | None = None
    """Where the instruction wants the changed object, as a third of the picture."""
    relation: tuple[str, int] | None = None
    """Or by a relation to object ``index`` of the target."""
    about: tuple[Mention, ...] = ()
    """Objects of the source that the instruction names, in its order."""
    inverse: "Edit | None" = None
    """Leads from the target back to exactly the source; ``None`` only in an edit that is itself an inverse."""

    def kept(self) -> list[tuple[int, int]]:
        """Pairs (index in the source, index in the target) of the objects that stay as they are."""
        before = [i for i in range(len(self.source.objects)) if i not in self.changed_source]
        after = [i for i in range(len(self.target.objects)) if i not in self.changed_target]
        return list(zip(before, after, strict=True))


def edit(
    scene: Scene,
    rng: np.random.Generator,
    kind: str | None = None,
    allow: AllowRule | None = None,
    types: Sequence[ObjectType] = TYPES,
) -> Edit:
    """An edit of a scene with its inverse, deterministic in the state of ``rng``.

    Args:
        kind: one of ``EDIT_KINDS``; without it one that the scene allows, in random order.
        allow: only targets that it accepts are made (``split.allowed_in_training`` for training).
        types: types of objects to add.

    Raises:
        ValueError: an unknown kind, or none was found (a swap in a scene of one object, no room, ``allow`` too strict).
    """
    if kind is not None and kind not in EDIT_KINDS:
        raise ValueError(f"edit: kind must be one of {', '.join(EDIT_KINDS)}, got {kind!r}.")
    for candidate in [kind] if kind is not None else weighted_order(rng, EDIT_KINDS, _EAGERNESS):
        for _ in range(_TRIES):
            made = _BUILDERS[candidate](scene, rng, types)
            if made is not None and fits(made.target) and (allow is None or allow(made.target)):
                return made
    raise ValueError(
        f"edit: no edit of kind {kind!r} found for a scene of {len(scene.objects)} object(s). "
        "Leave the kind open, or use another scene."
    )


def _say(rng: np.random.Generator, kind: str, *words: str) -> str:
    return pick(rng, _WORDS[kind]).format(*words)


def _name(scene: Scene, index: int, rng: np.random.Generator) -> str | None:
    """A name that fits one object only: mostly its type, sometimes less."""
    return refer(scene, index, _PLAIN if rng.random() < 0.75 else shuffled(rng, _SHORT))


def _pair(forward: Edit | None, backward: Edit | None) -> Edit | None:
    return None if forward is None or backward is None else replace(forward, inverse=backward)


def _with_object(scene: Scene, index: int, item: SceneObject) -> Scene:
    return Scene((*scene.objects[:index], item, *scene.objects[index + 1 :]), scene.background)


def _wanted_place(
    target: Scene, index: int, rng: np.random.Generator, before: SceneObject | None
) -> tuple[str | None, tuple[str, int] | None, str | None]:
    """Where object ``index`` lies, in words: (place, relation, name of the relation's other object).

    With ``before``, the object at its earlier position, only what was not true there is said. All ``None``: nothing is.
    """
    item = target.objects[index]
    place: str | None = place_of(item)
    if before is not None and in_place(before.x, before.y, place_of(item), CLEAR_OF_PLACE):
        place = None
    if place is not None and rng.random() < 0.6:
        return place, None, None
    for other in shuffled(rng, [i for i in range(len(target.objects)) if i != index]):
        rest = target.objects[other]
        earlier = () if before is None else relations_of(before, rest)
        relations = [r for r in relations_of(item, rest) if r not in earlier]
        # The name must fit one object whether the moved one is counted or not.
        without = Scene(tuple(o for i, o in enumerate(target.objects) if i != index), target.background)
        name = refer(target, other, ("type", "size type"))
        if relations and name is not None and refer(without, other - (other > index), ("type", "size type")) == name:
            return None, (pick(rng, relations), other), name
    return place, None, None


def _add(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> Edit | None:
    if len(scene.objects) >= MAX_OBJECTS:
        return None
    placed = place_objects(rng, [(*pick(rng, types), pick(rng, SIZES))], scene.objects)
    if placed is None:
        return None
    target = Scene((*scene.objects, *placed), scene.background)
    index = len(scene.objects)
    return _pair(_addition(scene, target, index, rng), _removal(target, scene, index, rng))


def _remove(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> Edit | None:
    if len(scene.objects) < 2:
        return None
    index = int(rng.random() * len(scene.objects))
    target = Scene((*scene.objects[:index], *scene.objects[index + 1 :]), scene.background)
    return _pair(_removal(scene, target, index, rng), _addition(target, scene, index, rng))


def _addition(source: Scene, target: Scene, index: int, rng: np.random.Generator) -> Edit:
    item = target.objects[index]
    place, relation, name = _wanted_place(target, index, rng, None)
    where = f"{relation[0]} the {name}" if relation is not None else PLACE_PHRASES[str(place)]
    words = _say(rng, "add", with_article(f"{item.size} {item.color} {item.shape}"), where)
    about = () if relation is None else (Mention(str(name), (relation[1] - (relation[1] > index),)),)
    return Edit("add", words, source, target, (), (index,), place, relation, about)


def _removal(source: Scene, target: Scene, index: int, rng: np.random.Generator) -> Edit | None:
    name = _name(source, index, rng)
    if name is None:
        return None
    return Edit("remove", _say(rng, "remove", name), source, target, (index,), (), about=(Mention(name, (index,)),))


def _altered(
    kind: str, attribute: str, values: Sequence[str]
) -> Callable[[Scene, np.random.Generator, Sequence[ObjectType]], Edit | None]:
    """A builder for the edits that give one object another value of one attribute."""

    def say(before: Scene, after: Scene, index: int, rng: np.random.Generator) -> Edit | None:
        name = _name(before, index, rng)
        if name is None:
            return None
        value = getattr(after.objects[index], attribute)
        words = _say(rng, kind, name, with_article(value) if kind == "reshape" else value)
        return Edit(kind, words, before, after, (index,), (index,), about=(Mention(name, (index,)),))

    def build(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> Edit | None:
        if not scene.objects:
            return None
        index = int(rng.random() * len(scene.objects))
        item = scene.objects[index]
        value = pick(rng, [value for value in values if value != getattr(item, attribute)])
        fields = {"shape": item.shape, "color": item.color, "size": item.size, attribute: value}
        target = _with_object(scene, index, SceneObject(**fields, x=item.x, y=item.y))
        return _pair(say(scene, target, index, rng), say(target, scene, index, rng))

    return build


def _move(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> Edit | None:
    if not scene.objects:
        return None
    index = int(rng.random() * len(scene.objects))
    item = scene.objects[index]
    others = [other for i, other in enumerate(scene.objects) if i != index]
    placed = place_objects(rng, [(item.shape, item.color, item.size)], others)
    if placed is None or (placed[0].x - item.x) ** 2 + (placed[0].y - item.y) ** 2 < LEAST_MOVE**2:
        return None
    target = _with_object(scene, index, placed[0])
    return _pair(_movement(scene, target, index, rng), _movement(target, scene, index, rng))


def _movement(source: Scene, target: Scene, index: int, rng: np.random.Generator) -> Edit | None:
    name = _name(source, index, rng)
    place, relation, other = _wanted_place(target, index, rng, source.objects[index])
    if name is None or (place is None and relation is None):
        return None
    where = f"{relation[0]} the {other}" if relation is not None else _DESTINATIONS[str(place)]
    about = [Mention(name, (index,))]
    if relation is not None:
        about.append(Mention(str(other), (relation[1],)))
    return Edit(
        "move", _say(rng, "move", name, where), source, target, (index,), (index,), place, relation, tuple(about)
    )


def _swap(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> Edit | None:
    """Two objects of different types exchange their centres."""
    if len(scene.objects) < 2:
        return None
    i, j = shuffled(rng, range(len(scene.objects)))[:2]
    first, second = scene.objects[i], scene.objects[j]
    if first.type == second.type:
        return None
    target = _with_object(scene, i, replace(first, x=second.x, y=second.y))
    target = _with_object(target, j, replace(second, x=first.x, y=first.y))

    def say(before: Scene, after: Scene) -> Edit | None:
        names = {index: refer(before, index, ("type", "size type")) for index in (i, j)}
        if None in names.values():
            return None
        about = tuple(Mention(str(names[index]), (index,)) for index in shuffled(rng, (i, j)))
        words = _say(rng, "swap", *(mention.phrase for mention in about))
        return Edit("swap", words, before, after, (i, j), (i, j), about=about)

    return _pair(say(scene, target), say(target, scene))


_BUILDERS: dict[str, Callable[[Scene, np.random.Generator, Sequence[ObjectType]], Edit | None]] = {
    "add": _add,
    "remove": _remove,
    "recolor": _altered("recolor", "color", COLORS),
    "reshape": _altered("reshape", "shape", SHAPES),
    "resize": _altered("resize", "size", SIZES),
    "move": _move,
    "swap": _swap,
}
