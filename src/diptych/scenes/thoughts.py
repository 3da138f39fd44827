"""What may be thought about pictures that are looked at: what is seen and what of it is meant, then what follows.

    Is the circle left of the ring?
    circle; c2 small pink circle 1 c2, f5 large pink ring, on gray; ring; c2 small pink circle, f5 large pink ring 1 f5,
    on gray; c2 small pink circle, f5 large pink ring; left of; left of 1, above, smaller, same color

    make the circle blue
    circle; c2 small pink circle 1 c2, f5 large pink ring, on gray; c2 small blue circle; c2 small blue circle, f5 large
    pink ring, on gray

A picture is always read in the same order, once for every phrase of the request, which is repeated before it: so
reading and comparing with the phrase just written are two skills, learnt from every example. What follows are steps
from words to words: two objects side by side, what is asked about them, and all that holds between them, the asked one
with a mark; what an edit makes new, and the target in the order of the source, so that all but what is new is copied.
"""

from collections.abc import Sequence

from diptych.scenes.compose import Composition
from diptych.scenes.edits import Edit
from diptych.scenes.layouts import layout_text, object_text, reading_order, reading_text
from diptych.scenes.phrases import Mention
from diptych.scenes.questions import Question
from diptych.scenes.relations import relations_of
from diptych.scenes.scene import SIZES, Scene, SceneObject

NOTHING = "no object"
"""Stands where an edit makes nothing new."""


def question_thought(scene: Scene, question: Question) -> str:
    """What is seen and meant; of two phrases then how what they mean compares, the first with the second."""
    return "; ".join([*_looks(scene, question.about), *_compared(scene, question)])


def edit_thought(made: Edit) -> str:
    """What is seen and meant; what is new, in the order of the instruction; and the target: what stays in the order of
    the source, what is altered in its place there, what is added at the end."""
    places = dict(made.kept())
    if len(made.changed_source) == len(made.changed_target):
        places |= dict(zip(made.changed_source, made.changed_target, strict=True))
    after = [places[index] for index in reading_order(made.source) if index in places]
    added = [index for index in range(len(made.target.objects)) if index not in after]
    named = [places[index] for mention in made.about for index in mention.objects if index in places]
    new = [object_text(made.target.objects[index]) for index in [*named, *added] if index in made.changed_target]
    target = layout_text(made.target, order=[*after, *added])
    return "; ".join([*_looks(made.source, made.about), ", ".join(new) or NOTHING, target])


def composition_thought(made: Composition) -> str:
    """What is seen in every reference, and the target, its objects in the order in which they are asked for."""
    target = layout_text(made.target, order=range(len(made.target.objects)))
    return "; ".join([*map(reading_text, made.references), target])


def _compared(scene: Scene, question: Question) -> list[str]:
    """Two objects side by side and what holds between them; of several objects to a phrase the numbers. A word that the
    question has is repeated before and gets the mark where it holds."""
    if len(question.about) != 2:
        return []
    first, second = ([scene.objects[index] for index in mention.objects] for mention in question.about)
    if len(first) == len(second) == 1:
        told, facts = [", ".join(map(object_text, (*first, *second)))], _facts(*first, *second)
    else:
        facts = [str(len(first)), str(len(second)), *(["more"] if len(first) > len(second) else [])]
        told = []
    marked = [f"{fact} 1" if fact == question.asked else fact for fact in facts]
    return [*told, *([question.asked] if question.asked else []), ", ".join(marked)]


def _facts(item: SceneObject, other: SceneObject) -> list[str]:
    sizes = SIZES.index(item.size) - SIZES.index(other.size)
    size = "larger" if sizes > 0 else "smaller" if sizes else "same size"
    same = [f"same {name}" for name in ("color", "shape") if getattr(item, name) == getattr(other, name)]
    return [*relations_of(item, other), size, *same]


def _looks(scene: Scene, mentions: Sequence[Mention]) -> list[str]:
    """Every phrase and the picture read with it; the picture alone where there is no phrase."""
    return [text for mention in mentions for text in (mention.phrase, reading_text(scene, mention.objects))] or [
        reading_text(scene)
    ]
