"""What may be thought about pictures that are looked at: first what is seen, then what follows from it.

    c2 small pink circle, f5 large pink ring, on gray; c2 small pink circle; f5 large pink ring      (a question)
    c2 small pink circle, f5 large pink ring, on gray; c2 small pink circle, b7 large pink ring, on gray    (an edit)

A picture is always read in the same order, whatever is asked, so that reading is one skill, learnt from every example;
what is asked is then a step from words to words. The second step names, for each thing that a question speaks of, the
objects that it can mean; or, for an edit, the target in the order of the source, so that all but one thing is copied.
"""

from collections.abc import Sequence

from diptych.scenes.compose import Composition
from diptych.scenes.edits import Edit
from diptych.scenes.layouts import layout_text, object_text, reading_order
from diptych.scenes.questions import Question
from diptych.scenes.scene import Scene

NOTHING = "no object"
"""Stands where a question speaks of something that is not there."""


def question_thought(scene: Scene, question: Question, is_seen: bool = False) -> tuple[str, str]:
    """What is seen, and the objects that the question's phrases can mean, in the order of the phrases.

    Args:
        is_seen: an earlier thought has told what is seen; the first text is empty then.
    """
    order = reading_order(scene)
    groups = [[index for index in order if index in group] for group in question.about]
    return "" if is_seen else layout_text(scene), "; ".join(_objects_text(scene, group) for group in groups)


def edit_thought(made: Edit) -> tuple[str, str]:
    """What is seen, and the target: what stays in the order of the source, what is new at the end."""
    places = dict(made.kept())
    if len(made.changed_source) == len(made.changed_target):
        places |= dict(zip(made.changed_source, made.changed_target, strict=True))
    after = [places[index] for index in reading_order(made.source) if index in places]
    added = [index for index in range(len(made.target.objects)) if index not in after]
    return layout_text(made.source), layout_text(made.target, order=[*after, *added])


def composition_thought(made: Composition) -> tuple[str, str]:
    """What is seen in every reference, and the target, its objects in the order in which they are asked for."""
    seen = "; ".join(layout_text(scene) for scene in made.references)
    return seen, layout_text(made.target, order=range(len(made.target.objects)))


def _objects_text(scene: Scene, indices: Sequence[int]) -> str:
    return ", ".join(object_text(scene.objects[index]) for index in indices) or NOTHING
