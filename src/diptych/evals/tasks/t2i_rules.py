"""The rules by which T2I-CompBench turns answers and detections into scores; pure functions.

A detector's finds are looked at in the order of their confidence, and of each class the first counts. Quirks are kept:
``on top of`` without an article is known as a relation and never scores; a spatial score below 0.5 is 0.
"""

import re
from collections.abc import Sequence

from diptych.scenes.rules import Box, Detection

MOST_CHUNKS = 8
RELATIONS = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
)
"""The first of these that a prompt holds is its relation."""
CLOSE = 150.0
"""Pixels within which things are next to each other, on either axis."""
OVERLAP = 0.1
"""Intersection over union from which a position counts less."""
NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
PERSONS = ("girl", "boy", "man", "woman")
RENAMED = {
    **dict.fromkeys(PERSONS, "person"),
    "ship": "boat",
    "telivision": "tv",
    "goldfish": "fish",
    "painting": "picture",
}
"""What objects of counting prompts are called in the detector's classes; of spatial prompts persons alone."""

_PLURALS = {"people": "person", "men": "man", "women": "woman", "mice": "mouse", "knives": "knife", "geese": "goose"}
_COUNTED = re.compile(rf"\b({'|'.join(NUMBERS)})\s+([a-z][a-z' -]*?)(?=,|\.|;| and |$)", re.IGNORECASE)
_CHUNK = re.compile(r"\s*(?:,|;|\band\b|\bwith\b|\.)\s*", re.IGNORECASE)


def attribute_score(probabilities: Sequence[float]) -> float:
    """The product of the probabilities of yes, one for each noun phrase; 1 for what the prompt does not have."""
    score = 1.0
    for value in probabilities[:MOST_CHUNKS]:
        score *= value
    return score


def simple_chunks(prompt: str) -> list[str]:
    """The noun phrases of ``a green bench and a blue bowl``: what stands between commas, "and" and "with".

    The official scorer takes spaCy's; the two agree on prompts of this form.
    """
    return [chunk for chunk in _CHUNK.split(prompt.strip()) if chunk]


def spatial_words(prompt: str) -> tuple[str, str, str] | None:
    """(first object, relation, second object) of ``a giraffe next to a lamp``; None where there is no relation.

    Of the first phrase the first word after the article, of the second the last, as the first and last noun.
    """
    relation = next((word for word in RELATIONS if word in prompt), None)
    if relation is None:
        return None
    before, _, after = prompt.rstrip(". ").partition(relation)
    first = [word for word in before.lower().split() if word not in ("a", "an", "the")]
    second = after.lower().split()
    if not first or not second:
        return None
    return first[0], relation, second[-1]


def overlap(first: Box, second: Box) -> float:
    """Intersection over union."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    shared = width * height
    union = _area(first) + _area(second) - shared
    return shared / union if union else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def position_score(relation: str, first: Box, second: Box) -> float:
    """How far the first box is where the relation has it, from 0 to 1."""
    dx = (second[0] + second[2] - first[0] - first[2]) / 2
    dy = (second[1] + second[3] - first[1] - first[3]) / 2
    if relation in ("next to", "on side of", "near"):
        return 1.0 if abs(dx) < CLOSE or abs(dy) < CLOSE else CLOSE / max(abs(dx), abs(dy))
    along, across = (dx, dy) if relation in ("on the right of", "on the left of") else (dy, dx)
    sign = {"on the right of": -1, "on the left of": 1, "on the bottom of": -1, "on the top of": 1}.get(relation, 0)
    if along * sign <= 0 or abs(along) <= abs(across):
        return 0.0
    shared = overlap(first, second)
    return 1.0 if shared < OVERLAP else OVERLAP / shared


def spatial_score(first: str, relation: str, second: str, detections: Sequence[Detection]) -> float:
    """2-D spatial: a quarter for the confidence in each object, half for their position; below 0.5 it is 0."""
    found: dict[str, Detection] = {}
    for item in sorted(detections, key=lambda item: -item.confidence):
        found.setdefault(item.name, item)
    one, two = (found.get("person" if name in PERSONS else name) for name in (first, second))
    score = 0.25 * sum(item.confidence for item in (one, two) if item is not None)
    if one is not None and two is not None:
        score += position_score(relation, one.box, two.box) / 2
    return score if score >= 0.5 else 0.0


def counted_objects(prompt: str) -> list[tuple[int, str]]:
    """Numbers and objects of ``two dogs and a sea lion``, in the singular.

    The official scorer looks the singular up in a list of its own; here it is made by rule.
    """
    return [(NUMBERS[number.lower()], _singular(noun.lower(), number)) for number, noun in _COUNTED.findall(prompt)]


def _singular(noun: str, number: str) -> str:
    if NUMBERS[number.lower()] == 1:
        return noun
    *before, last = noun.split()
    if last in _PLURALS:
        last = _PLURALS[last]
    elif last.endswith("ies"):
        last = f"{last[:-3]}y"
    elif last.endswith(("ses", "xes", "ches", "shes")) or last.endswith("oes"):
        last = last[:-2]
    else:
        last = last.removesuffix("s")
    return " ".join([*before, last])


def same_object(first: Box, second: Box) -> bool:
    """Whether two boxes of a class are one find: nine tenths of either, or of both together, are shared.

    Sides count their last pixel too.
    """
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]) + 1)
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second)]
    shared = width * height
    return any(shared / whole > 0.9 for whole in (*areas, sum(areas) - shared))


def numeracy_score(wanted: Sequence[tuple[int, str]], detections: Sequence[Detection]) -> float:
    """Of each object half for being there and half for its exact number, averaged.

    Raises:
        ValueError: nothing is wanted.
    """
    if not wanted:
        raise ValueError("numeracy_score: the prompt names no number of objects.")
    kept: list[tuple[str, Box]] = []
    for item in sorted(detections, key=lambda item: -item.confidence):
        if not any(name == item.name and same_object(item.box, box) for name, box in kept):
            kept.append((item.name, item.box))
    names, score = [name for name, _ in kept], 0.0
    for number, noun in wanted:
        noun = RENAMED.get(noun, noun)
        if noun not in names:
            names = [noun if noun in name else name for name in names]
        if noun in names:
            score += 0.5 + 0.5 * (names.count(noun) == number)
    return score / len(wanted)


def three_in_one(attribute: float, spatial: float, action: float, kind: str) -> float:
    """Of complex prompts: the mean of the scores of what a prompt holds.

    Args:
        kind: ``spatial`` (attribute and spatial), ``action`` (attribute and action), or anything else for all three.
    """
    if kind == "spatial":
        return (attribute + spatial) / 2
    return (attribute + action) / 2 if kind == "action" else (attribute + spatial + action) / 3
