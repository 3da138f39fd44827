"""Captions of scenes. Every statement is true of the scene; relations are those of the benchmark's rule engine.

Styles: ``short`` names all objects by type and number and is worded like the prompts of the benchmark; ``placed`` is
``short`` that says where things are, by the relation of two types or by a place for each; ``paraphrase`` says the
same as ``short`` in many other ways, with a size, a place or the background now and then; ``long`` describes every
object with size and place in several sentences; ``layout`` says all there is to know in a line (`scenes.layouts`).
"""

from typing import Literal, TypeAlias, get_args

import numpy as np

from diptych.scenes.layouts import layout_text
from diptych.scenes.phrases import (
    NUMBER_WORDS,
    PLACE_PHRASES,
    RELATION_PHRASES,
    counted,
    group_by_type,
    join_list,
    pick,
    place_of,
    plural,
    refer,
    shuffled,
    type_name,
    with_article,
)
from diptych.scenes.relations import group_relations, relations_of
from diptych.scenes.scene import ObjectType, Scene

CaptionStyle: TypeAlias = Literal["short", "placed", "long", "paraphrase", "layout", "mixed"]
CAPTION_STYLES: tuple[CaptionStyle, ...] = get_args(CaptionStyle)

SHORT_SHARE = 0.6
PARAPHRASE_SHARE = 0.25
"""How often these styles are drawn under ``mixed``; the rest is ``long``."""

_OPENERS = ("a picture of", "an image of", "a drawing of", "a photo showing", "a picture that shows", "an image with")
_SIZE_SHARE = 0.3
_BACKGROUND_SHARE = 0.25
_RELATION_SHARE = 0.5
_RELATION_IN_PLACED_SHARE = 0.7


def caption(scene: Scene, rng: np.random.Generator, style: str = "short") -> str:
    """A true caption, deterministic in the state of ``rng``.

    Args:
        style: one of ``CAPTION_STYLES``.

    Raises:
        ValueError: an unknown style.
    """
    if style not in CAPTION_STYLES:
        raise ValueError(f"caption: style must be one of {', '.join(CAPTION_STYLES)}, got {style!r}.")
    chosen = pick_style(rng) if style == "mixed" else style
    if chosen == "layout":
        return layout_text(scene)
    if not scene.objects:
        return _empty_caption(scene, chosen)
    if chosen == "long":
        return _long(scene, rng)
    if chosen == "paraphrase":
        return _paraphrase(scene, rng)
    if chosen == "placed":
        return _placed_caption(scene, rng)
    return short_caption(scene, rng)


def pick_style(rng: np.random.Generator) -> CaptionStyle:
    """A style drawn as ``mixed`` draws it."""
    value = rng.random()
    return "short" if value < SHORT_SHARE else "paraphrase" if value < SHORT_SHARE + PARAPHRASE_SHARE else "long"


def short_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Every object by type and number, half of the time after "a photo of"; two types often with their relation."""
    body = _relation_body(scene, rng) if rng.random() < _RELATION_SHARE else None
    if body is None:
        body = join_list([counted(n, type_name(kind)) for kind, n in shuffled(rng, list(group_by_type(scene).items()))])
    return f"a photo of {body}" if rng.random() < 0.5 else body


def _placed_caption(scene: Scene, rng: np.random.Generator) -> str:
    """The relation of two types where one holds, mostly; else every object with its place, several alike by number."""
    body = _relation_body(scene, rng) if rng.random() < _RELATION_IN_PLACED_SHARE else None
    if body is None:
        groups = shuffled(rng, list(group_by_type(scene).items()))
        places = {item.type: PLACE_PHRASES[place_of(item)] for item in scene.objects}
        body = join_list([counted(n, type_name(kind)) + (f" {places[kind]}" if n == 1 else "") for kind, n in groups])
    return f"a photo of {body}" if rng.random() < 0.5 else body


def _empty_caption(scene: Scene, style: str) -> str:
    return (
        f"The background is {scene.background}. There are no objects."
        if style == "long"
        else (f"an empty {scene.background} background")
    )


def _two_groups(scene: Scene) -> tuple[ObjectType, ObjectType, list[int], list[int]] | None:
    """The types of a scene that has exactly two, with the objects of each."""
    groups = list(group_by_type(scene))
    if len(groups) != 2:
        return None
    first, second = groups
    members = [[i for i, item in enumerate(scene.objects) if item.type == kind] for kind in groups]
    return first, second, members[0], members[1]


def _relation_body(scene: Scene, rng: np.random.Generator) -> str | None:
    """``a red circle left of two blue squares`` where two types are there and a relation holds between all pairs."""
    found = _two_groups(scene)
    if found is None:
        return None
    first, second, some, others = found
    if rng.random() < 0.5:
        first, second, some, others = second, first, others, some
    relations = group_relations(scene, some, others)
    if not relations:
        return None
    return f"{counted(len(some), type_name(first))} {pick(rng, relations)} {counted(len(others), type_name(second))}"


def _noun(kind: ObjectType, count: int, rng: np.random.Generator) -> str:
    """``two red circles`` in one of several spellings."""
    shape, color = kind
    value = rng.random()
    if value < 0.6:
        return counted(count, type_name(kind))
    if value < 0.8:
        return counted(count, f"{color}-colored {shape}")
    return f"{counted(count, shape)} in {color}"


def _paraphrase(scene: Scene, rng: np.random.Generator) -> str:
    body = _related_paraphrase(scene, rng) if rng.random() < _RELATION_SHARE else None
    is_clause = body is not None and " there " in body
    if body is None:
        body = join_list(
            [_group_noun(scene, kind, n, rng) for kind, n in shuffled(rng, list(group_by_type(scene).items()))]
        )
    if rng.random() < _BACKGROUND_SHARE:
        body = f"{body} on a {scene.background} background"
    if is_clause:
        return body
    value = rng.random()
    if value < 0.5:
        return f"{pick(rng, _OPENERS)} {body}"
    if value < 0.75:
        plural_verb = not body.startswith(("a ", "an "))
        return f"there {'are' if plural_verb else 'is'} {body}"
    return body


def _group_noun(scene: Scene, kind: ObjectType, count: int, rng: np.random.Generator) -> str:
    """The objects of one type; a single one now and then with its size or place."""
    if count > 1:
        return _noun(kind, count, rng)
    item = next(item for item in scene.objects if item.type == kind)
    value = rng.random()
    if value < _SIZE_SHARE:
        return with_article(f"{item.size} {type_name(kind)}")
    if value < _SIZE_SHARE + 0.2:
        return f"{with_article(type_name(kind))} {PLACE_PHRASES[place_of(item)]}"
    return _noun(kind, 1, rng)


def _related_paraphrase(scene: Scene, rng: np.random.Generator) -> str | None:
    """The relation of two types in words that the benchmark does not use."""
    found = _two_groups(scene)
    if found is None:
        return None
    first, second, some, others = found
    if rng.random() < 0.5:
        first, second, some, others = second, first, others, some
    relations = group_relations(scene, some, others)
    if not relations:
        return None
    spelling = pick(rng, RELATION_PHRASES[pick(rng, relations)])
    subject, target = _noun(first, len(some), rng), _noun(second, len(others), rng)
    value = rng.random()
    if value < 0.5:
        return f"{subject} {spelling} {target}"
    if value < 0.75:
        return f"{spelling} {target} there {'is' if len(some) == 1 else 'are'} {subject}"
    return f"{target} with {subject} {spelling} {'it' if len(others) == 1 else 'them'}"


def _long(scene: Scene, rng: np.random.Generator) -> str:
    """Sentences: background and number of objects, one for each object, up to two relations."""
    number = len(scene.objects)
    told = f"{NUMBER_WORDS[number]} {'object' if number == 1 else plural('object')}"
    if rng.random() < 0.5:
        sentences = [f"A picture with {told} on a {scene.background} background."]
    else:
        sentences = [f"The background is {scene.background}.", f"There {'is' if number == 1 else 'are'} {told}."]
    for item in shuffled(rng, scene.objects):
        noun = with_article(f"{item.size} {item.color} {item.shape}")
        place = PLACE_PHRASES[place_of(item)]
        form = int(rng.random() * 3)
        if form == 0:
            sentences.append(f"{_capital(noun)} is {place}.")
        elif form == 1:
            sentences.append(f"There is {noun} {place}.")
        else:
            sentences.append(f"{_capital(place)} is {noun}.")
    return " ".join(sentences + _relation_sentences(scene, rng))


def _relation_sentences(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Up to two relations between objects that have an unambiguous name."""
    names = [refer(scene, index, ("type", "size type")) for index in range(len(scene.objects))]
    known = shuffled(rng, [index for index, name in enumerate(names) if name])
    pairs = [(i, j) for place, i in enumerate(known) for j in known[:place]]
    sentences: list[str] = []
    for i, j in shuffled(rng, pairs)[:2]:
        relations = relations_of(scene.objects[i], scene.objects[j])
        if relations:
            spelling = pick(rng, RELATION_PHRASES[pick(rng, relations)])
            sentences.append(f"The {names[i]} is {spelling} the {names[j]}.")
    return sentences


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
