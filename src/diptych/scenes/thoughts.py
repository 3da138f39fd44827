"""What may be thought about pictures that are looked at: first what is seen, then what follows from it.

    Are there more circles than rings?
    c2 small pink circle c2, f5 large pink ring f5, on gray; circle c2 small pink circle; ring f5 large pink ring

    make the circle blue
    c2 small pink circle c2, f5 large pink ring f5, on gray; circle c2 small pink circle; c2 small blue circle; c2 small
    blue circle, f5 large pink ring, on gray

A picture is always read in the same order, whatever is asked, so that reading is one skill, learnt from every example.
What is asked are then steps from words to words: for each thing that is spoken of, the objects that it can mean; for an
edit, what is new; and the target in the order of the source, so that all but what is new is copied.
"""

from collections.abc import Sequence

from diptych.scenes.compose import Composition
from diptych.scenes.edits import Edit
from diptych.scenes.layouts import layout_text, object_text, reading_order, reading_text
from diptych.scenes.phrases import Mention
from diptych.scenes.questions import Question
from diptych.scenes.scene import Scene

NOTHING = "no object"
"""Stands where what is spoken of is not there, and where nothing is new."""


def question_thought(scene: Scene, question: Question, is_seen: bool = False) -> tuple[str, str]:
    """What is seen, and the objects that the question's phrases can mean, in the order of the phrases.

    Args:
        is_seen: an earlier thought has told what is seen; the first text is empty then.
    """
    seen = "" if is_seen else reading_text(scene)
    return seen, "; ".join(_mention_text(scene, mention) for mention in question.about)


def edit_thought(made: Edit) -> tuple[str, str]:
    """What is seen; then the objects that are named, those that are new, and the target: what stays in the order of the
    source, what is altered in its place there, what is added at the end."""
    places = dict(made.kept())
    if len(made.changed_source) == len(made.changed_target):
        places |= dict(zip(made.changed_source, made.changed_target, strict=True))
    after = [places[index] for index in reading_order(made.source) if index in places]
    added = [index for index in range(len(made.target.objects)) if index not in after]
    steps = [_mention_text(made.source, mention) for mention in made.about]
    steps += [_objects_text(made.target, [index for index in (*after, *added) if index in made.changed_target])]
    return reading_text(made.source), "; ".join([*steps, layout_text(made.target, order=[*after, *added])])


def composition_thought(made: Composition) -> tuple[str, str]:
    """What is seen in every reference, and the target, its objects in the order in which they are asked for."""
    seen = "; ".join(reading_text(scene) for scene in made.references)
    return seen, layout_text(made.target, order=range(len(made.target.objects)))


def _mention_text(scene: Scene, mention: Mention) -> str:
    return f"{mention.phrase} {_objects_text(scene, mention.objects)}"


def _objects_text(scene: Scene, indices: Sequence[int]) -> str:
    """Some objects of a scene, as they are read."""
    shown = [index for index in reading_order(scene) if index in indices]
    return ", ".join(object_text(scene.objects[index]) for index in shown) or NOTHING
