"""Words for objects, counts, places and relations, shared by captions, questions and edit instructions."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from diptych.scenes.scene import ObjectType, Scene, SceneObject

T = TypeVar("T")

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")

PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
"""The picture in thirds, row by row; an object is where its centre is."""

PLACE_PHRASES = {
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "center": "in the center",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}

RELATION_PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""Spellings of each relation of the rule engine; the first is the one of the benchmark's prompts."""


class Mention(NamedTuple):
    """A phrase and the objects of a scene that it can mean."""

    phrase: str
    objects: tuple[int, ...]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One option, uniformly; several times faster than ``rng.choice``."""
    return options[int(rng.random() * len(options))]


def shuffled(rng: np.random.Generator, options: Sequence[T]) -> list[T]:
    """The options in random order."""
    order = rng.random(len(options)).argsort().tolist()
    return [options[i] for i in order]


def weighted_order(rng: np.random.Generator, options: Sequence[T], weights: Sequence[float]) -> list[T]:
    """The options in random order, each next one drawn by weight (the order of exponential arrival times)."""
    arrivals = -np.log1p(-rng.random(len(options))) / np.asarray(weights)
    return [options[i] for i in arrivals.argsort().tolist()]


def with_article(noun: str) -> str:
    """``a red circle``, ``an orange star``."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str) -> str:
    """``red circles``, ``blue crosses``."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def type_name(kind: ObjectType) -> str:
    """``("circle", "red")`` is a ``red circle``; also the class name of a type in the twin benchmark."""
    return f"{kind[1]} {kind[0]}"


def counted(count: int, noun: str) -> str:
    """``a red circle``, ``three red circles``."""
    return with_article(noun) if count == 1 else f"{NUMBER_WORDS[count]} {plural(noun)}"


def join_list(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def place_at(x: float, y: float) -> str:
    """The third of the picture, per axis, that holds a point."""
    column = 0 if x < 1 / 3 else 2 if x > 2 / 3 else 1
    row = 0 if y < 1 / 3 else 2 if y > 2 / 3 else 1
    return PLACES[3 * row + column]


def in_place(x: float, y: float, place: str, slack: float = 0.0) -> bool:
    """Whether a point lies in a third of the picture, widened by ``slack`` (a fraction of the side)."""
    row, column = divmod(PLACES.index(place), 3)
    return all(third / 3 - slack <= value <= (third + 1) / 3 + slack for value, third in ((x, column), (y, row)))


def place_of(item: SceneObject) -> str:
    """The place of an object's centre."""
    return place_at(item.x, item.y)


def group_by_type(scene: Scene) -> dict[ObjectType, int]:
    """How many objects of each type, in order of first appearance."""
    groups: dict[ObjectType, int] = {}
    for item in scene.objects:
        kind = (item.shape, item.color)
        groups[kind] = groups.get(kind, 0) + 1
    return groups


def describe(item: SceneObject, form: str) -> str:
    """A noun phrase that is true of an object; whether it fits that one alone depends on the scene.

    Args:
        form: what is told: ``shape``, ``color`` or ``type`` (both), alone or after ``size `` or ``place ``.
    """
    if form == "shape":
        return item.shape
    if form == "color":
        return f"{item.color} object"
    if form == "type":
        return f"{item.color} {item.shape}"
    detail, rest = form.split(" ")
    if detail == "size":
        return f"{item.size} {describe(item, rest)}"
    return f"{describe(item, rest)} {PLACE_PHRASES[place_of(item)]}"


def referents(scene: Scene, form: str) -> dict[int, str]:
    """Noun phrases of one form that fit exactly one object, by the object's index."""
    phrases = [describe(item, form) for item in scene.objects]
    return {index: phrase for index, phrase in enumerate(phrases) if phrases.count(phrase) == 1}


def refer(scene: Scene, index: int, forms: Sequence[str]) -> str | None:
    """The first form that fits object ``index`` alone, or ``None``."""
    item = scene.objects[index]
    for form in forms:
        phrase = describe(item, form)
        if sum(describe(other, form) == phrase for other in scene.objects) == 1:
            return phrase
    return None
