"""Instructions about several pictures: "the shape of image 1 in the color of image 2 left of the object of image 3".

An object taken from a picture keeps its size (with a borrowed colour: that of the picture that gives the shape), and
the background is that of image 1. Where objects stand is free but for the relation that is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diptych.scenes.phrases import pick
from diptych.scenes.program import relation_program, scene_program, types_program
from diptych.scenes.relations import relations_of
from diptych.scenes.rules import Metadata
from diptych.scenes.sample import place_objects
from diptych.scenes.scene import BACKGROUNDS, SIZES, ObjectType, Scene, SceneObject
from diptych.scenes.split import (
    NOVEL_TYPES,
    Split,
    allowed_in_training,
    types_allowed_together,
    types_of_split,
)

COMPOSITION_KINDS = ("bind", "relate", "bind_relate", "join")
_TRIES = 2000

_OPENERS = ("", "draw ", "a picture of ", "show ")


@dataclass(frozen=True)
class Composition:
    """References, the instruction about them, and one target scene that follows it."""

    kind: str
    instruction: str
    references: tuple[Scene, ...]
    target: Scene
    program: Metadata
    """What every correct picture fulfils."""


def composition(rng: np.random.Generator, kind: str | None = None, split: Split = "train") -> Composition:
    """A composition of a split, deterministic in the state of ``rng``.

    The split is about all references and the target at once: in training no two types anywhere in them are a held-out
    pair and no held-out triple holds in the target. In ``test`` at least one such pair or triple is there.

    Args:
        kind: one of ``COMPOSITION_KINDS``; at random without it.

    Raises:
        ValueError: an unknown kind.
    """
    if kind is not None and kind not in COMPOSITION_KINDS:
        raise ValueError(f"composition: kind must be one of {', '.join(COMPOSITION_KINDS)}, got {kind!r}.")
    chosen = kind if kind is not None else pick(rng, COMPOSITION_KINDS)
    for _ in range(_TRIES):
        made = _BUILDERS[chosen](rng, split)
        if made is not None and composition_in_split(made, split):
            return made
    raise RuntimeError(f"composition: no {chosen!r} of split {split!r} in {_TRIES} tries.")


def composition_in_split(made: Composition, split: Split) -> bool:
    """Whether a composition, references included, may be shown in training, or is an item of a held-out split."""
    types = {item.type for scene in (*made.references, made.target) for item in scene.objects}
    has_novel = not types.isdisjoint(NOVEL_TYPES)
    if split == "novel" or has_novel:
        return has_novel and split == "novel"
    allowed = types_allowed_together(types) and all(map(allowed_in_training, (*made.references, made.target)))
    return allowed == (split == "train")


def _reference(rng: np.random.Generator, split: Split) -> Scene | None:
    """A scene of one object."""
    objects = place_objects(rng, [(*pick(rng, types_of_split(split)), pick(rng, SIZES))])
    return None if objects is None else Scene(objects, pick(rng, BACKGROUNDS))


def _references(rng: np.random.Generator, split: Split, number: int) -> tuple[Scene, ...] | None:
    scenes = [scene for scene in (_reference(rng, split) for _ in range(number)) if scene is not None]
    types = [scene.objects[0].type for scene in scenes]
    if len(scenes) < number or (split == "train" and not types_allowed_together(types)):
        return None
    return tuple(scenes)


def _placed(rng: np.random.Generator, items: list[SceneObject], background: str) -> Scene | None:
    """The objects at new places."""
    objects = place_objects(rng, [(item.shape, item.color, item.size) for item in items])
    return None if objects is None else Scene(objects, background)


def _borrowed(shape_of: SceneObject, color_of: SceneObject) -> SceneObject:
    return SceneObject(shape_of.shape, color_of.color, shape_of.size, shape_of.x, shape_of.y)


def _bind(rng: np.random.Generator, split: Split) -> Composition | None:
    references = _references(rng, split, 2)
    if references is None:
        return None
    first, second = (scene.objects[0] for scene in references)
    target = _placed(rng, [_borrowed(first, second)], references[0].background)
    if target is None or first.shape == second.shape or first.color == second.color:
        return None
    words = pick(
        rng, ("the shape of image 1 in the color of image 2", "the shape of image 1 with the color of image 2")
    )
    words = pick(rng, _OPENERS) + words
    return Composition("bind", words, references, target, scene_program(target, "compose") | {"prompt": words})


def _relate(rng: np.random.Generator, split: Split) -> Composition | None:
    references = _references(rng, split, 2)
    if references is None:
        return None
    return _related(rng, "relate", references, [scene.objects[0] for scene in references], "the object of image 1")


def _bind_relate(rng: np.random.Generator, split: Split) -> Composition | None:
    references = _references(rng, split, 3)
    if references is None:
        return None
    first, second, third = (scene.objects[0] for scene in references)
    if first.shape == second.shape or first.color == second.color:
        return None
    items = [_borrowed(first, second), third]
    return _related(rng, "bind_relate", references, items, "the shape of image 1 in the color of image 2")


def _related(
    rng: np.random.Generator, kind: str, references: tuple[Scene, ...], items: list[SceneObject], subject: str
) -> Composition | None:
    """The first object in a relation to the second, which is that of the last reference."""
    target = _placed(rng, items, references[0].background)
    if target is None or items[0].type == items[1].type:
        return None
    relations = relations_of(target.objects[0], target.objects[1])
    if not relations:
        return None
    relation = pick(rng, relations)
    words = f"{pick(rng, _OPENERS)}{subject} {relation} the object of image {len(references)}"
    types: list[ObjectType] = [item.type for item in items]
    return Composition(
        kind, words, references, target, relation_program(types[0], relation, types[1], "compose", words)
    )


def _join(rng: np.random.Generator, split: Split) -> Composition | None:
    number = 2 + int(rng.random() * 2)
    references = _references(rng, split, number)
    if references is None:
        return None
    items = [scene.objects[0] for scene in references]
    target = _placed(rng, items, references[0].background)
    if target is None or len({item.type for item in items}) < number:
        return None
    images = "image 1 and image 2" if number == 2 else "image 1, image 2 and image 3"
    words = pick(rng, _OPENERS) + pick(rng, (f"the objects of {images} together", f"the objects of {images}"))
    return Composition("join", words, references, target, types_program([o.type for o in items], "compose", words))


_BUILDERS: dict[str, Callable[[np.random.Generator, Split], Composition | None]] = {
    "bind": _bind,
    "relate": _relate,
    "bind_relate": _bind_relate,
    "join": _join,
}
