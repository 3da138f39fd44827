"""Questions about scenes with exact answers of one or two words.

Answers are balanced where a constant would otherwise score well: yes and no are drawn before the question is made, a
form of words is only used where the scene allows both, and counts are drawn before the thing that is counted. Objects
are named so that exactly one fits; relations are those of the benchmark's rule engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diptych.scenes.phrases import (
    PLACES,
    Mention,
    describe,
    pick,
    place_of,
    plural,
    referents,
    shuffled,
    type_name,
    weighted_order,
    with_article,
)
from diptych.scenes.relations import relations_of
from diptych.scenes.rules import OPPOSITE, RELATIONS
from diptych.scenes.scene import COLORS, SHAPES, SIZES, ObjectType, Scene, SceneObject
from diptych.scenes.split import TYPES

QUESTION_KINDS = ("existence", "color", "shape", "size", "count", "relation", "comparison")
"""The kinds that are scored."""
TRAINING_QUESTION_KINDS = (*QUESTION_KINDS, "place")
"""And one more for training: where an object is must be read before relations can be."""
YES_NO = ("yes", "no")
DIRECTIONS = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
COUNTS = tuple(str(number) for number in range(7))

_EAGERNESS = (1.0, 1.0, 1.0, 1.0, 1.0, 2.5, 1.0)
"""Weights of the kinds when none is asked for; what few scenes allow is tried more, so that all kinds are learnt."""

COUNT_WEIGHTS = (1.0, 1.0, 2.5, 4.0, 5.0, 6.0, 6.0)
"""How much an answer 0, 1, ... 6 is preferred where a scene allows several; flattens the answers over many scenes."""


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the answers that its wording admits."""

    text: str
    answer: str
    kind: str
    choices: tuple[str, ...]
    about: tuple[Mention, ...] = ()
    """What the question speaks of, in its order."""
    asked: str = ""
    """What is asked of two phrases whether it holds, as a word of the question: a relation, ``larger``, ``more``,
    ``same color``."""


def question(
    scene: Scene, rng: np.random.Generator, kind: str | None = None, types: Sequence[ObjectType] = TYPES
) -> Question:
    """A question about a scene, deterministic in the state of ``rng``.

    Args:
        kind: one of ``TRAINING_QUESTION_KINDS``; without it one of ``QUESTION_KINDS`` that the scene allows, in random
            order.
        types: absent types that may be asked for; training passes those of its split.

    Raises:
        ValueError: an unknown kind, or one that the scene does not allow (no relation in a scene of one object).
    """
    if kind is not None and kind not in TRAINING_QUESTION_KINDS:
        raise ValueError(f"question: kind must be one of {', '.join(TRAINING_QUESTION_KINDS)}, got {kind!r}.")
    for candidate in [kind] if kind is not None else weighted_order(rng, QUESTION_KINDS, _EAGERNESS):
        built = _BUILDERS[candidate](scene, rng, types)
        if built is not None:
            return Question(built.text, built.answer, candidate, built.choices, built.about, built.asked)
    raise ValueError(f"question: this scene of {len(scene.objects)} object(s) allows no question of kind {kind!r}.")


class _Built(NamedTuple):
    """A question whose kind is known by its builder's name; ``None`` stands where the scene does not allow the kind."""

    text: str
    answer: str
    choices: tuple[str, ...]
    about: tuple[Mention, ...]
    asked: str = ""


def _existence(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> _Built | None:
    if not scene.objects:
        return None
    form = pick(rng, ("type", "type", "shape", "color", "size type"))
    answer = pick(rng, YES_NO)
    there = {describe(item, form) for item in scene.objects}
    if answer == "yes":
        phrase = describe(pick(rng, scene.objects), form)
    else:
        absent = (_absent_phrase(scene, form, rng, types) for _ in range(100))
        found = next((phrase for phrase in absent if phrase not in there), None)
        if found is None:
            return None
        phrase = found
    return _Built(f"Is there {with_article(phrase)}?", answer, YES_NO, (_mention(scene, phrase, (form,)),))


def _mention(scene: Scene, phrase: str, forms: Sequence[str] = ("shape", "color", "type")) -> Mention:
    """The objects that a phrase of one of the forms describes; ``object`` is any."""
    found = [any(describe(item, form) == phrase for form in forms) for item in scene.objects]
    return Mention(phrase, tuple(index for index, fits in enumerate(found) if fits or phrase == "object"))


def _absent_phrase(scene: Scene, form: str, rng: np.random.Generator, types: Sequence[ObjectType]) -> str:
    """A phrase of the given form, often of parts that are in the scene, so that it cannot be answered from parts."""
    if form == "shape":
        return pick(rng, SHAPES)
    if form == "color":
        return f"{pick(rng, COLORS)} object"
    value = rng.random()
    first, second = pick(rng, scene.objects), pick(rng, scene.objects)
    kind = (first.shape, second.color)
    if value < 0.25:
        kind = (first.shape, pick(rng, COLORS))
    elif value < 0.5:
        kind = (pick(rng, SHAPES), first.color)
    if value > 0.85 or kind not in types:
        kind = pick(rng, types)
    return type_name(kind) if form == "type" else f"{pick(rng, SIZES)} {type_name(kind)}"


def _attribute(
    attribute: str, wording: str, forms: Sequence[str], choices: tuple[str, ...]
) -> Callable[[Scene, np.random.Generator, Sequence[ObjectType]], _Built | None]:
    """A builder for "what is the attribute of the one object that fits a phrase"."""

    def build(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> _Built | None:
        for form in shuffled(rng, forms):
            names = referents(scene, form)
            if names:
                index = pick(rng, list(names))
                answer = getattr(scene.objects[index], attribute)
                return _Built(wording.format(names[index]), answer, choices, (Mention(names[index], (index,)),))
        return None

    return build


def _count(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> _Built | None:
    nouns: dict[int, list[str]] = {}
    tally: dict[str, int] = {}
    for item in scene.objects:
        for form in ("shape", "color", "type"):
            phrase = describe(item, form)
            tally[phrase] = tally.get(phrase, 0) + 1
    for phrase, number in tally.items():
        nouns.setdefault(number, []).append(phrase)
    for phrase in (pick(rng, SHAPES), f"{pick(rng, COLORS)} object", type_name(pick(rng, types))):
        if phrase not in tally:
            nouns.setdefault(0, []).append(phrase)
    nouns.setdefault(len(scene.objects), []).append("object")
    answers = sorted(nouns)
    left = rng.random() * sum(COUNT_WEIGHTS[number] for number in answers)
    chosen = answers[-1]
    for number in answers:
        left -= COUNT_WEIGHTS[number]
        if left < 0:
            chosen = number
            break
    noun = pick(rng, nouns[chosen])
    return _Built(f"How many {plural(noun)} are there?", str(chosen), COUNTS, (_mention(scene, noun),))


def _place(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> _Built | None:
    for form in shuffled(rng, ("type", "type", "shape", "color", "size type")):
        names = referents(scene, form)
        if names:
            index = pick(rng, list(names))
            place = place_of(scene.objects[index])
            return _Built(f"Where is the {names[index]}?", place, PLACES, (Mention(names[index], (index,)),))
    return None


def _named_pair(
    scene: Scene, rng: np.random.Generator, accept: Callable[[SceneObject, SceneObject], bool]
) -> tuple[SceneObject, SceneObject, tuple[Mention, Mention]] | None:
    """Two objects that ``accept`` takes and that have unambiguous names, in random order."""
    for form in (*shuffled(rng, ("type", "shape")), "size type"):
        names = referents(scene, form)
        pairs = [(i, j) for i in names for j in names if i != j and accept(scene.objects[i], scene.objects[j])]
        if pairs:
            i, j = pick(rng, pairs)
            return scene.objects[i], scene.objects[j], (Mention(names[i], (i,)), Mention(names[j], (j,)))
    return None


def _relation(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> _Built | None:
    for form in shuffled(rng, (_where, _is_it_there)):
        built = form(scene, rng)
        if built is not None:
            return built
    return None


def _where(scene: Scene, rng: np.random.Generator) -> _Built | None:
    """Only of pairs with a single relation, so that there is one answer."""
    pair = _named_pair(scene, rng, lambda a, b: len(relations_of(a, b)) == 1)
    if pair is None:
        return None
    item, other, about = pair
    name, other_name = (mention.phrase for mention in about)
    answer = DIRECTIONS[relations_of(item, other)[0]]
    return _Built(f"Where is the {name} relative to the {other_name}?", answer, tuple(DIRECTIONS.values()), about)


def _is_it_there(scene: Scene, rng: np.random.Generator) -> _Built | None:
    pair = _named_pair(scene, rng, lambda a, b: len(relations_of(a, b)) > 0)
    if pair is None:
        return None
    item, other, about = pair
    name, other_name = (mention.phrase for mention in about)
    relations = relations_of(item, other)
    answer = pick(rng, YES_NO)
    if answer == "yes":
        relation = pick(rng, relations)
    elif rng.random() < 0.5:
        relation = OPPOSITE[pick(rng, relations)]
    else:
        relation = pick(rng, [r for r in RELATIONS if r not in relations])
    return _Built(f"Is the {name} {relation} the {other_name}?", answer, YES_NO, about, relation)


def _comparison(scene: Scene, rng: np.random.Generator, types: Sequence[ObjectType]) -> _Built | None:
    for form in shuffled(rng, (_compare_sizes, _which_is_larger, _compare_counts, _compare_attribute)):
        built = form(scene, rng)
        if built is not None:
            return built
    return None


def _compare_sizes(scene: Scene, rng: np.random.Generator) -> _Built | None:
    pair = _named_pair(scene, rng, lambda a, b: a.size != b.size)
    if pair is None or pair[2][0].phrase.startswith(SIZES):  # a name that tells the size would give the answer away
        return None
    item, other, about = pair
    name, other_name = (mention.phrase for mention in about)
    word = pick(rng, ("larger", "smaller"))
    is_larger = SIZES.index(item.size) > SIZES.index(other.size)
    answer = YES_NO[int(is_larger != (word == "larger"))]
    return _Built(f"Is the {name} {word} than the {other_name}?", answer, YES_NO, about, word)


def _which_is_larger(scene: Scene, rng: np.random.Generator) -> _Built | None:
    pair = _named_pair(scene, rng, lambda a, b: a.size != b.size)
    if pair is None or pair[2][0].phrase.startswith(SIZES):  # a name that tells the size would give the answer away
        return None
    item, other, about = pair
    name, other_name = (mention.phrase for mention in about)
    word = pick(rng, ("larger", "smaller"))
    is_larger = SIZES.index(item.size) > SIZES.index(other.size)
    answer = name if is_larger == (word == "larger") else other_name
    return _Built(f"Which is {word}, the {name} or the {other_name}?", answer, (name, other_name), about, word)


def _compare_counts(scene: Scene, rng: np.random.Generator) -> _Built | None:
    """More circles than squares? Both orders are equally likely, and so are yes and no."""
    words, attribute = pick(rng, ((SHAPES, "shape"), (COLORS, "color")))
    values = [getattr(item, attribute) for item in scene.objects]
    pairs = [(a, b) for a in sorted(set(values)) for b in words if values.count(a) > values.count(b)]
    if not pairs:
        return None
    more, fewer = pick(rng, pairs)
    answer = pick(rng, YES_NO)
    first, second = (more, fewer) if answer == "yes" else (fewer, more)
    nouns = [word if attribute == "shape" else f"{word} object" for word in (first, second)]
    about = tuple(_mention(scene, noun) for noun in nouns)
    return _Built(f"Are there more {plural(nouns[0])} than {plural(nouns[1])}?", answer, YES_NO, about, "more")


def _compare_attribute(scene: Scene, rng: np.random.Generator) -> _Built | None:
    """Whether two objects share a colour, shape or size, where the scene has pairs of both kinds."""
    attribute, form = pick(rng, (("color", "shape"), ("shape", "color"), ("size", "type")))
    names = referents(scene, form)
    by_answer: dict[str, list[tuple[int, int]]] = {"yes": [], "no": []}
    for i in names:
        for j in names:
            if i != j:
                same = getattr(scene.objects[i], attribute) == getattr(scene.objects[j], attribute)
                by_answer["yes" if same else "no"].append((i, j))
    if not all(by_answer.values()):
        return None
    answer = pick(rng, YES_NO)
    i, j = pick(rng, by_answer[answer])
    about = tuple(Mention(names[at], (at,)) for at in (i, j))
    same = f"same {attribute}"
    return _Built(f"Are the {names[i]} and the {names[j]} the {same}?", answer, YES_NO, about, same)


_BUILDERS: dict[str, Callable[[Scene, np.random.Generator, Sequence[ObjectType]], _Built | None]] = {
    "existence": _existence,
    "color": _attribute("color", "What color is the {}?", ("shape", "size shape", "place shape"), COLORS),
    "shape": _attribute("shape", "What shape is the {}?", ("color", "size color", "place color"), SHAPES),
    "size": _attribute("size", "What size is the {}?", ("type", "type", "shape", "color", "place type"), SIZES),
    "count": _count,
    "relation": _relation,
    "comparison": _comparison,
    "place": _place,
}
