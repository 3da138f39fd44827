"""The reader of the built-in world as a judge: questions with one answer, read from a picture without a network.

It knows these wordings, in which ``<thing>`` is a shape, a colour with a shape, either with a size before it, or
``object``, and ``<where>`` is a ninth of the picture or a relation:

- Is there a <thing> [in the top left]?
- Are there three <things>?  How many <things> are there?
- Is the <thing> left of the <thing>?
- Is the background white?
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from diptych.data.example import Pixels
from diptych.evals.judges import Answer, Query
from diptych.evals.protocol import Failure
from diptych.scenes.parse import parse
from diptych.scenes.phrases import NUMBER_WORDS, PLACE_PHRASES, plural
from diptych.scenes.phrases import place_of as place_of_object
from diptych.scenes.relations import relations_of
from diptych.scenes.rules import RELATIONS
from diptych.scenes.scene import COLORS, SHAPES, SIZES, Scene, SceneObject

_THING = rf"((?:(?:{'|'.join(SIZES)}) )?(?:(?:{'|'.join(COLORS)}) )?(?:{'|'.join((*SHAPES, 'object'))}))"
_THINGS = _THING[:-1] + "(?:es|s))"
_PLACES = {phrase: place for place, phrase in PLACE_PHRASES.items()}
_NUMBERS = {word: number for number, word in enumerate(NUMBER_WORDS)}


class SceneJudge:
    """Answers about pictures of the built-in world, exactly as far as the parser reads them."""

    def record(self) -> dict[str, Any]:
        return {"name": "scene parser", "revision": "1"}

    def ask(self, queries: Sequence[Query]) -> list[Answer | Failure]:
        scene_of = lru_cache(maxsize=None)(lambda content, shape: parse(_pixels(content, shape)).scene)
        answers: list[Answer | Failure] = []
        for query in queries:
            image = np.ascontiguousarray(query.image)
            text = answer_about(scene_of(image.tobytes(), image.shape), query.question)
            if text is None:
                answers.append(Failure(f"the scene parser does not understand {query.question!r}"))
            elif query.forms:
                answers.append(Answer(text, float(text in {form.strip().lower() for form in query.forms})))
            else:
                answers.append(Answer(text))
        return answers


def _pixels(content: bytes, shape: tuple[int, ...]) -> Pixels:
    return np.frombuffer(content, np.uint8).reshape(shape)


def answer_about(scene: Scene, question: str) -> str | None:
    """``yes``, ``no`` or a number in digits; None where the wording is not known."""
    for pattern, rule in _RULES:
        if match := pattern.fullmatch(question):
            return rule(scene, *match.groups())
    return None


def _fits(item: SceneObject, thing: str) -> bool:
    """Whether an object is what a phrase names."""
    own = {item.size, item.color, item.shape, "object"}
    return own.issuperset(thing.split())


def _is_there(scene: Scene, thing: str, place: str | None) -> str:
    fitting = [item for item in scene.objects if _fits(item, thing)]
    if place is not None:
        fitting = [item for item in fitting if place_of_object(item) == _PLACES[place]]
    return "yes" if fitting else "no"


def _how_many(scene: Scene, things: str) -> str:
    thing = _singular(things)
    return str(sum(_fits(item, thing) for item in scene.objects))


def _are_there(scene: Scene, number: str, things: str) -> str:
    return "yes" if int(_how_many(scene, things)) == _NUMBERS[number] else "no"


def _is_where(scene: Scene, thing: str, relation: str, other: str) -> str:
    """Whether it holds of any two objects that are named so."""
    firsts, seconds = ([item for item in scene.objects if _fits(item, name)] for name in (thing, other))
    holds = any(relation in relations_of(a, b) for a in firsts for b in seconds if a is not b)
    return "yes" if holds else "no"


def _background(scene: Scene, color: str) -> str:
    return "yes" if scene.background == color else "no"


def _singular(things: str) -> str:
    *before, noun = things.split()
    return " ".join([*before, next(shape for shape in (*SHAPES, "object") if plural(shape) == noun)])


_RULES: tuple[tuple[re.Pattern[str], Callable[..., str]], ...] = (
    (re.compile(rf"Is there an? {_THING}(?: ({'|'.join(PLACE_PHRASES.values())}))?\?"), _is_there),
    (re.compile(rf"Are there ({'|'.join(NUMBER_WORDS)}) {_THINGS}\?"), _are_there),
    (re.compile(rf"How many {_THINGS} are there\?"), _how_many),
    (re.compile(rf"Is the {_THING} ({'|'.join(RELATIONS)}) the {_THING}\?"), _is_where),
    (re.compile(r"Is the background (\w+)\?"), _background),
)
