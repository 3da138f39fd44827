"""The GenEval twin: prompts of six categories about the built-in world, judged by GenEval's rules on parsed pictures.

Wording and schema are GenEval's ("a photo of three red squares", "a photo of a red circle left of a blue square"), with
one choice of our own. In ``single_object``, ``two_object``, ``counting`` and ``position`` a class is an object *type*
("red circle"), so that a random picture is rarely right; in ``colors`` and ``color_attr`` the class is the shape and
the colour a field of the clause, as in GenEval, and the colour is asked of the most confident object of that shape. As
in GenEval, objects beyond those asked for are punished in ``counting`` only.

Split ``test`` takes two-type prompts from held-out pairs and triples; its one-type prompts (single object, counting,
colours) are of training types, so that nothing in them is unseen. In split ``novel`` every prompt has a novel type.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import numpy as np

from diptych.scenes.parse import ParseResult, parse
from diptych.scenes.parse_image import Picture
from diptych.scenes.phrases import counted, pick, type_name, with_article
from diptych.scenes.program import detections_of
from diptych.scenes.relations import BOX_SIDE
from diptych.scenes.rules import (
    GENEVAL_RULES,
    Clause,
    Detection,
    Metadata,
    RuleSettings,
    evaluate_metadata,
)
from diptych.scenes.sample import place_objects
from diptych.scenes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, ObjectType, Scene
from diptych.scenes.split import (
    NOVEL_TYPES,
    SPLITS,
    TRAINING_TYPES,
    Split,
    pairs_of_split,
    triples_of_split,
)

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COUNTS = (2, 3, 4)


def twin_prompts(split: Split = "test", num_per_category: int = 100, seed: int = 0) -> list[Metadata]:
    """Prompts with their programs, ``num_per_category`` of each category, each with an ``id``.

    Where a category has fewer different prompts than are asked for (56 single objects in ``test``), prompts come again
    with another id, as GenEval draws several pictures of each prompt; intervals are over different prompts.

    Raises:
        ValueError: an unknown split, or fewer than one prompt.
    """
    if split not in SPLITS:
        raise ValueError(f"twin_prompts: split must be one of {', '.join(SPLITS)}, got {split!r}.")
    if num_per_category < 1:
        raise ValueError(f"twin_prompts: num_per_category must be at least 1, got {num_per_category}.")
    prompts: list[Metadata] = []
    for code, category in enumerate(CATEGORIES):
        rng = np.random.default_rng([seed, SPLITS.index(split), code])
        choices = _choices(category, split)
        order = rng.permutation(len(choices)).tolist()
        for number in range(num_per_category):
            made = deepcopy(choices[order[number % len(order)]])
            made["id"] = f"{split}/{category}/{number:04d}"
            prompts.append(made)
    return prompts


@cache
def _choices(category: str, split: Split) -> tuple[Metadata, ...]:
    """All prompts of a category."""
    types = NOVEL_TYPES if split == "novel" else TRAINING_TYPES
    if category == "single_object":
        return tuple(_single(kind) for kind in types)
    if category == "counting":
        return tuple(_counting(kind, number) for kind in types for number in COUNTS)
    if category == "colors":
        return tuple(_colors(kind) for kind in types)
    if category == "position":
        return tuple(_position(*triple) for triple in triples_of_split(split))
    pairs = pairs_of_split(split)
    if category == "two_object":
        return tuple(_two(a, b) for a, b in pairs)
    return tuple(_color_attr(a, b) for a, b in pairs if a[0] != b[0] and a[1] != b[1])


def _single(kind: ObjectType) -> Metadata:
    name = type_name(kind)
    return {
        "tag": "single_object",
        "include": [{"class": name, "count": 1}],
        "prompt": f"a photo of {with_article(name)}",
    }


def _two(first: ObjectType, second: ObjectType) -> Metadata:
    names = [type_name(first), type_name(second)]
    return {
        "tag": "two_object",
        "include": [{"class": name, "count": 1} for name in names],
        "prompt": f"a photo of {with_article(names[0])} and {with_article(names[1])}",
    }


def _counting(kind: ObjectType, number: int) -> Metadata:
    name = type_name(kind)
    return {
        "tag": "counting",
        "include": [{"class": name, "count": number}],
        "exclude": [{"class": name, "count": number + 1}],
        "prompt": f"a photo of {counted(number, name)}",
    }


def _colors(kind: ObjectType) -> Metadata:
    return {
        "tag": "colors",
        "include": [{"class": kind[0], "count": 1, "color": kind[1]}],
        "prompt": f"a photo of {with_article(type_name(kind))}",
    }


def _position(first: ObjectType, relation: str, second: ObjectType) -> Metadata:
    a, b = type_name(first), type_name(second)
    return {
        "tag": "position",
        "include": [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}],
        "prompt": f"a photo of {with_article(a)} {relation} {with_article(b)}",
    }


def _color_attr(first: ObjectType, second: ObjectType) -> Metadata:
    return {
        "tag": "color_attr",
        "include": [{"class": shape, "count": 1, "color": color} for shape, color in (first, second)],
        "prompt": f"a photo of {with_article(type_name(first))} and {with_article(type_name(second))}",
    }


def parsed_detections(result: ParseResult) -> list[Detection]:
    """What the parser found, each object under the name of its shape and of its type, in pixels of a 256 px picture."""
    found: list[Detection] = []
    for item in result.detections:
        x0, y0, x1, y1 = (value * BOX_SIDE for value in item.box)
        for name in (item.shape, f"{item.color} {item.shape}"):
            found.append(Detection(name, item.score, (x0, y0, x1, y1), item.color))
    return found


@dataclass(frozen=True)
class TwinRow:
    """The verdict on one picture; the fields of a line of GenEval's result file."""

    id: str
    tag: str
    prompt: str
    correct: bool
    reason: str


def judge_detections(
    metadata: Metadata, detections: Iterable[Detection], settings: RuleSettings = GENEVAL_RULES
) -> TwinRow:
    """The row of one prompt whose detections are known."""
    verdict = evaluate_metadata(metadata, detections, settings=settings)
    return TwinRow(metadata.get("id", ""), metadata["tag"], metadata["prompt"], verdict.correct, verdict.reason)


def judge_image(metadata: Metadata, image: Picture, settings: RuleSettings = GENEVAL_RULES) -> TwinRow:
    """Parse a picture and judge it by the program of its prompt."""
    return judge_detections(metadata, parsed_detections(parse(image)), settings)


def types_asked(metadata: Metadata, rng: np.random.Generator) -> list[ObjectType]:
    """The types that a program names, each as often as it wants it; what it leaves open is drawn."""
    types: list[ObjectType] = []
    for clause in metadata["include"]:
        types += [_type_of(clause, rng)] * clause["count"]
    return types


def _type_of(clause: Clause, rng: np.random.Generator) -> ObjectType:
    words = clause["class"].split(" ")
    if len(words) == 2 and words[0] in COLORS and words[1] in SHAPES:
        return (words[1], words[0])
    if len(words) == 1 and words[0] in SHAPES:
        return (words[0], clause.get("color") or pick(rng, COLORS))
    raise ValueError(f"{clause['class']!r} is neither a shape nor a type (color and shape) of the built-in world.")


def satisfying_scene(metadata: Metadata, rng: np.random.Generator) -> Scene:
    """A random scene of just the objects that a prompt asks for, so that its drawing is a correct picture.

    Raises:
        ValueError: a class that the built-in world does not have, or a program that no scene was found for.
    """
    for _ in range(500):
        descriptions = [(*kind, pick(rng, SIZES)) for kind in types_asked(metadata, rng)]
        objects = place_objects(rng, descriptions)
        if objects is None:
            continue
        scene = Scene(objects, pick(rng, BACKGROUNDS))
        if evaluate_metadata(metadata, detections_of(scene)):
            return scene
    raise ValueError(f"no scene found that satisfies the prompt {metadata['prompt']!r}.")


def oracle_scenes(prompts: Sequence[Metadata], seed: int = 0) -> list[Scene]:
    """For each prompt a scene that satisfies it: the row ``oracle``."""
    return [satisfying_scene(metadata, np.random.default_rng([seed, i])) for i, metadata in enumerate(prompts)]
