"""Which compositions are for training and which are held out, by a fixed hash; and scenes of either kind.

An object type is (shape, colour); 64 exist. Three rules make the split. They are about *every* object of a scene, so
distractors, results of edits and references of compositions are covered:

- **novel types**: eight types, each shape once and each colour once, never occur in training (split ``novel``);
- **pairs**: one in eight of the unordered sets of two different training types is never seen in one training scene;
- **triples**: one in eight of the (type, relation, type) never holds between two objects of a training scene. A
  relation and its mirror ("a left of b", "b right of a") are one triple; relations are those of the rule engine.

Split ``test`` is made of the held-out pairs and triples of *training types*, each of which occurs in training. Two
objects of the same type are never held out: they form no set of two types, and counting needs them. So prompts of
``test`` about one type (single object, counting, colours) ask for nothing unseen, and reports say so.
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diptych.scenes.phrases import pick, type_name
from diptych.scenes.relations import box_at, relations_of
from diptych.scenes.rules import OPPOSITE, RELATIONS, Box, relations_between
from diptych.scenes.sample import MIN_GAP, place_objects
from diptych.scenes.scene import BACKGROUNDS, COLORS, SHAPES, SIZE_RADIUS, SIZES, ObjectType, Scene, SceneObject

Split: TypeAlias = Literal["train", "test", "novel"]
SPLITS: tuple[Split, ...] = ("train", "test", "novel")

HELD_OUT_ONE_IN = 8
"""One pair, and one triple, of this many is held out."""

TYPES: tuple[ObjectType, ...] = tuple((shape, color) for shape in SHAPES for color in COLORS)
NOVEL_TYPES: tuple[ObjectType, ...] = tuple(
    (shape, COLORS[(3 * index + 7) % len(COLORS)]) for index, shape in enumerate(SHAPES)
)
"""A fixed diagonal: each shape once and each colour once."""
TRAINING_TYPES: tuple[ObjectType, ...] = tuple(kind for kind in TYPES if kind not in NOVEL_TYPES)

OBJECT_COUNT_WEIGHTS = (0.25, 0.35, 0.20, 0.12, 0.05, 0.03)
"""How often a scene has 1, 2, ... 6 objects; mostly few, as prompts have."""
SAME_TYPE_SHARE = (0.0, 0.2, 0.4, 0.5, 0.3, 0.3)
"""How often all objects of a scene of 1, 2, ... 6 objects are of one type, so that counting is learnt."""
REPEAT_SHARE = 0.15
"""In the other scenes, how often an object repeats the type of an earlier one."""

FILLED_AT_MOST = 0.45
"""Sizes are drawn again while the discs of the objects, half a gap wider each, fill more of the picture than this."""

_AREAS = {size: math.pi * (radius + MIN_GAP / 2) ** 2 for size, radius in SIZE_RADIUS.items()}
_TYPE_INDEX = {kind: index for index, kind in enumerate(TYPES)}
_TRIES_PER_OBJECT = 60
_TRIES_PER_SCENE = 500


def _is_chosen(text: str) -> bool:
    digest = blake2b(f"diptych scenes 1|{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


@cache
def _held_out_pairs() -> NDArray[np.bool_]:
    """[type, type], symmetric; only pairs of different training types can be held out."""
    table = np.zeros((len(TYPES), len(TYPES)), bool)
    training = sorted(_TYPE_INDEX[kind] for kind in TRAINING_TYPES)
    for position, i in enumerate(training):
        for j in training[:position]:
            names = sorted((type_name(TYPES[i]), type_name(TYPES[j])))
            table[i, j] = table[j, i] = _is_chosen("pair|" + "|".join(names))
    return table


@cache
def _held_out_triples() -> NDArray[np.bool_]:
    """[relation, type, type]; a triple is held out by its own hash or because its pair is."""
    pairs = _held_out_pairs()
    table = np.zeros((len(RELATIONS), len(TYPES), len(TYPES)), bool)
    training = [_TYPE_INDEX[kind] for kind in TRAINING_TYPES]
    for relation in ("left of", "above"):
        forward, mirror = RELATIONS.index(relation), RELATIONS.index(OPPOSITE[relation])
        for i in training:
            for j in training:
                if i != j:
                    text = f"triple|{type_name(TYPES[i])}|{relation}|{type_name(TYPES[j])}"
                    table[forward, i, j] = table[mirror, j, i] = bool(pairs[i, j]) or _is_chosen(text)
    return table


@cache
def _blocked() -> dict[tuple[ObjectType, ObjectType], frozenset[str] | None]:
    """For every ordered pair of types the relations that training forbids; ``None`` forbids the pair itself."""
    pairs, triples = _held_out_pairs(), _held_out_triples()
    table: dict[tuple[ObjectType, ObjectType], frozenset[str] | None] = {}
    for i, a in enumerate(TYPES):
        for j, b in enumerate(TYPES):
            never = bool(pairs[i, j]) or a in NOVEL_TYPES or b in NOVEL_TYPES
            relations = frozenset(r for k, r in enumerate(RELATIONS) if triples[k, i, j])
            table[a, b] = None if never else relations
    return table


def pair_is_held_out(first: ObjectType, second: ObjectType) -> bool:
    """Whether the unordered set of two types belongs to split ``test``."""
    return bool(_held_out_pairs()[_TYPE_INDEX[first], _TYPE_INDEX[second]])


def triple_is_held_out(first: ObjectType, relation: str, second: ObjectType) -> bool:
    """Whether "first relation second" belongs to split ``test``, by its own hash or because its pair does."""
    return bool(_held_out_triples()[RELATIONS.index(relation), _TYPE_INDEX[first], _TYPE_INDEX[second]])


@cache
def pairs_of_split(split: Split) -> tuple[tuple[ObjectType, ObjectType], ...]:
    """All ordered pairs of different types that a split has: a pair and its reverse are both listed."""
    is_novel = np.array([kind in NOVEL_TYPES for kind in TYPES])
    either_novel = is_novel[:, None] | is_novel
    held_out = _held_out_pairs()
    chosen = {"train": ~either_novel & ~held_out, "test": held_out, "novel": either_novel}[split]
    return tuple((TYPES[i], TYPES[j]) for i, j in np.argwhere(chosen).tolist() if i != j)


@cache
def triples_of_split(split: Split) -> tuple[tuple[ObjectType, str, ObjectType], ...]:
    """All triples of different types that a split has: a triple and its mirror are both listed."""
    is_novel = np.array([kind in NOVEL_TYPES for kind in TYPES])
    either_novel = np.broadcast_to(is_novel[:, None] | is_novel, (len(RELATIONS), len(TYPES), len(TYPES)))
    held_out = _held_out_triples()
    chosen = {"train": ~either_novel & ~held_out, "test": held_out, "novel": either_novel}[split]
    places = np.argwhere(chosen.transpose(1, 0, 2)).tolist()
    return tuple((TYPES[i], RELATIONS[k], TYPES[j]) for i, k, j in places if i != j)


def types_allowed_together(types: Iterable[ObjectType]) -> bool:
    """Whether training may show these types in one context (a scene, or the references of one composition)."""
    distinct = list(dict.fromkeys(types))
    blocked = _blocked()
    return all(kind not in NOVEL_TYPES for kind in distinct) and all(
        blocked[a, b] is not None for i, a in enumerate(distinct) for b in distinct[:i]
    )


def allowed_in_training(scene: Scene) -> bool:
    """Whether a scene holds no novel type, no held-out pair and no held-out triple, among any of its objects."""
    blocked = _blocked()
    objects = scene.objects
    if any(item.type in NOVEL_TYPES for item in objects):
        return False
    for i, item in enumerate(objects):
        for other in objects[:i]:
            relations = blocked[item.type, other.type]
            if relations is None:
                return False
            if relations and not relations.isdisjoint(relations_of(item, other)):
                return False
    return True


def has_novel_type(scene: Scene) -> bool:
    """Whether a scene shows one of the eight types of split ``novel``."""
    return any(item.type in NOVEL_TYPES for item in scene.objects)


def in_split(scene: Scene, split: Split) -> bool:
    """Whether a scene may be shown in training, or is an item of one of the two held-out splits."""
    if split == "novel":
        return has_novel_type(scene)
    return not has_novel_type(scene) and allowed_in_training(scene) == (split == "train")


def may_follow(scene: Scene, split: Split) -> bool:
    """Whether a scene may come out of an edit of a scene of a split: training stays in training, ``test`` without novel
    types; the result of an edit of a held-out scene need not be held out itself."""
    return split == "novel" or (allowed_in_training(scene) if split == "train" else not has_novel_type(scene))


def types_of_split(split: Split) -> tuple[ObjectType, ...]:
    """The types that scenes and texts of a split may mention."""
    return TYPES if split == "novel" else TRAINING_TYPES


def split_scene(
    rng: np.random.Generator,
    split: Split = "train",
    *,
    num_objects: int | None = None,
    min_objects: int = 1,
    max_objects: int = len(OBJECT_COUNT_WEIGHTS),
) -> Scene:
    """Draw a scene of a split, deterministic in the state of ``rng``.

    Training scenes are built object by object, so that no more than single objects are drawn again. Scenes of ``test``
    hold at least one held-out pair or triple and so at least two objects; those of ``novel`` at least one novel type.

    Args:
        num_objects: 1 to 6 (2 to 6 for ``test``); drawn with ``OBJECT_COUNT_WEIGHTS`` without it.
        min_objects, max_objects: cut that distribution off.

    Raises:
        ValueError: an unknown split, or a number of objects that the split cannot have.
    """
    least = 2 if split == "test" else 1
    most = len(OBJECT_COUNT_WEIGHTS)
    if split not in SPLITS:
        raise ValueError(f"split_scene: split must be one of {', '.join(SPLITS)}, got {split!r}.")
    for name, value in (("num_objects", num_objects), ("max_objects", max_objects)):
        if value is not None and not least <= value <= most:
            raise ValueError(f"split_scene: {name} must be {least} to {most} in split {split!r}, got {value}.")
    if not 1 <= min_objects <= max_objects:
        raise ValueError(f"split_scene: min_objects must be 1 to max_objects = {max_objects}, got {min_objects}.")
    count = num_objects if num_objects is not None else _draw_count(rng, max(least, min_objects), max_objects)
    for _ in range(_TRIES_PER_SCENE):
        scene = _draw_scene(rng, count, split)
        if scene is not None:
            return scene
    raise RuntimeError(f"split_scene: no {split} scene of {count} objects in {_TRIES_PER_SCENE} tries.")


def training_scene(rng: np.random.Generator) -> Scene:
    """A random scene that training may show."""
    return split_scene(rng, "train")


def _draw_count(rng: np.random.Generator, least: int, most: int) -> int:
    weights = OBJECT_COUNT_WEIGHTS[least - 1 : most]
    left = rng.random() * sum(weights)
    for count, weight in enumerate(weights, start=least):
        left -= weight
        if left < 0:
            return count
    return most


def _draw_scene(rng: np.random.Generator, count: int, split: Split) -> Scene | None:
    """One try: sizes and places first, then types that the split allows there."""
    sizes = [SIZES[int(value * len(SIZES))] for value in rng.random(count).tolist()]
    while count > 3 and sum(_AREAS[size] for size in sizes) > FILLED_AT_MOST:
        sizes = [SIZES[int(value * len(SIZES))] for value in rng.random(count).tolist()]
    spots = place_objects(rng, [(SHAPES[0], COLORS[0], size) for size in sizes])
    if spots is None:
        return None
    types = _draw_types(rng, spots, split)
    if types is None:
        return None
    objects = tuple(
        SceneObject(shape, color, spot.size, spot.x, spot.y) for (shape, color), spot in zip(types, spots, strict=True)
    )
    scene = Scene(objects, pick(rng, BACKGROUNDS))
    return None if split == "test" and allowed_in_training(scene) else scene


def _draw_types(rng: np.random.Generator, spots: Sequence[SceneObject], split: Split) -> list[ObjectType] | None:
    """Types for objects whose sizes and places are given."""
    pool = types_of_split(split)
    first = pick(rng, NOVEL_TYPES if split == "novel" else pool)
    if len(spots) == 1 or rng.random() < SAME_TYPE_SHARE[len(spots) - 1]:
        return [first] * len(spots)
    blocked = _blocked()
    types: list[ObjectType] = []
    boxes: list[Box] = []
    for spot in spots:
        for _ in range(_TRIES_PER_OBJECT):
            repeats = len(types) > 0 and rng.random() < REPEAT_SHARE
            kind = first if not types else pick(rng, types if repeats else pool)
            box = box_at(kind[0], spot.size, spot.x, spot.y)
            if split != "train" or _may_join(kind, box, types, boxes, blocked):
                break
        else:
            return None
        types.append(kind)
        boxes.append(box)
    return types


def _may_join(
    kind: ObjectType,
    box: Box,
    types: Sequence[ObjectType],
    boxes: Sequence[Box],
    blocked: dict[tuple[ObjectType, ObjectType], frozenset[str] | None],
) -> bool:
    """Whether training allows one more object beside those that stand."""
    for other_kind, other_box in zip(types, boxes, strict=True):
        relations = blocked[kind, other_kind]
        if relations is None:
            return False
        if relations and not relations.isdisjoint(relations_between(box, other_box)):
            return False
    return True
