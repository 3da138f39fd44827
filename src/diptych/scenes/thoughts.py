"""What may be thought about pictures that are looked at: what is seen and what of it is meant, then what follows.

    Are there more circles than rings?
    c2 small pink circle 1 c2, f5 large pink ring 2 f5, g2 small pink star, on gray

    make the circle blue
    c2 small pink circle 1 c2, f5 large pink ring, on gray; 1 c2 small blue circle; c2 small blue circle, f5 large pink
    ring, on gray

A picture is always read in the same order, whatever is asked, so that reading is one skill, learnt from every example;
each object is compared with the request as soon as it is told. What follows is a step from words to words: what an edit
makes new, and the target in the order of the source, so that all but what is new is copied.
"""

from diptych.scenes.compose import Composition
from diptych.scenes.edits import Edit
from diptych.scenes.layouts import layout_text, object_text, reading_order, reading_text
from diptych.scenes.questions import Question
from diptych.scenes.scene import Scene

NOTHING = "no object"
"""Stands where an edit makes nothing new."""


def question_thought(scene: Scene, question: Question) -> str:
    """What is seen, with the numbers of the question's phrases behind what they can mean."""
    return reading_text(scene, question.about)


def edit_thought(made: Edit) -> str:
    """What is seen; what is new, by the numbers of the instruction's phrases; and the target: what stays in the order
    of the source, what is altered in its place there, what is added at the end."""
    places = dict(made.kept())
    if len(made.changed_source) == len(made.changed_target):
        places |= dict(zip(made.changed_source, made.changed_target, strict=True))
    after = [places[index] for index in reading_order(made.source) if index in places]
    added = [index for index in range(len(made.target.objects)) if index not in after]
    numbers = {places[index]: f"{number} " for number, (_, (index,)) in enumerate(made.about, 1) if index in places}
    new = [numbers.get(index, "") + object_text(made.target.objects[index]) for index in made.changed_target]
    target = layout_text(made.target, order=[*after, *added])
    return "; ".join([reading_text(made.source, made.about), ", ".join(sorted(new)) or NOTHING, target])


def composition_thought(made: Composition) -> str:
    """What is seen in every reference, and the target, its objects in the order in which they are asked for."""
    target = layout_text(made.target, order=range(len(made.target.objects)))
    return "; ".join([*map(reading_text, made.references), target])
