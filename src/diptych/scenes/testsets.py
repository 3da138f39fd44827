"""Fixed sets of questions, edits and compositions to score a model on, of any split, decided by a seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from diptych.scenes.compose import COMPOSITION_KINDS, Composition, composition
from diptych.scenes.edits import EDIT_KINDS, Edit, edit
from diptych.scenes.questions import QUESTION_KINDS, Question, question
from diptych.scenes.scene import Scene
from diptych.scenes.split import SPLITS, Split, may_follow, split_scene, types_of_split

T = TypeVar("T")

_TRIES = 200


@dataclass(frozen=True)
class QuestionItem:
    """A question about one scene."""

    id: str
    scene: Scene
    question: Question


@dataclass(frozen=True)
class EditItem:
    """An edit to be made; source and target are in ``edit``."""

    id: str
    edit: Edit


@dataclass(frozen=True)
class CompositionItem:
    """A composition to be drawn."""

    id: str
    composition: Composition


def question_items(
    split: Split = "test", num_per_kind: int = 100, seed: int = 0, kinds: Sequence[str] = QUESTION_KINDS
) -> list[QuestionItem]:
    """Questions about scenes of a split, equally many of each kind, each about another scene."""

    def make(rng: np.random.Generator, kind: str) -> tuple[Scene, Question]:
        scene = split_scene(rng, split)
        return scene, question(scene, rng, kind, types_of_split(split))

    made = _collect(make, split, "question", kinds, QUESTION_KINDS, num_per_kind, seed)
    return [QuestionItem(name, scene, asked) for name, (scene, asked) in made]


def edit_items(
    split: Split = "test", num_per_kind: int = 50, seed: int = 0, kinds: Sequence[str] = EDIT_KINDS
) -> list[EditItem]:
    """Edits of scenes of a split, equally many of each kind, each of another scene."""

    def make(rng: np.random.Generator, kind: str) -> Edit:
        allow = partial(may_follow, split=split)
        return edit(split_scene(rng, split), rng, kind, allow, types_of_split(split))

    return [EditItem(*item) for item in _collect(make, split, "edit", kinds, EDIT_KINDS, num_per_kind, seed)]


def composition_items(
    split: Split = "test", num_per_kind: int = 50, seed: int = 0, kinds: Sequence[str] = COMPOSITION_KINDS
) -> list[CompositionItem]:
    """Compositions of a split, equally many of each kind."""

    def make(rng: np.random.Generator, kind: str) -> Composition:
        return composition(rng, kind, split)

    made = _collect(make, split, "composition", kinds, COMPOSITION_KINDS, num_per_kind, seed)
    return [CompositionItem(*item) for item in made]


def _collect(
    make: Callable[[np.random.Generator, str], T],
    split: Split,
    what: str,
    kinds: Sequence[str],
    known: Sequence[str],
    number: int,
    seed: int,
) -> list[tuple[str, T]]:
    """(id, item) for every kind and number; an item depends on seed, split, kind and its number alone."""
    if split not in SPLITS:
        raise ValueError(f"{what}_items: split must be one of {', '.join(SPLITS)}, got {split!r}.")
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"{what}_items: kind must be one of {', '.join(known)}, got {kind!r}.")
    made = []
    for kind in kinds:
        for index in range(number):
            rng = np.random.default_rng([seed, SPLITS.index(split), *what.encode(), known.index(kind), index])
            made.append((f"{split}/{what}/{kind}/{index:04d}", _first(make, rng, kind)))
    return made


def _first(make: Callable[[np.random.Generator, str], T], rng: np.random.Generator, kind: str) -> T:
    """The first item that can be made; a scene may not allow the kind asked for."""
    for _ in range(_TRIES - 1):
        try:
            return make(rng, kind)
        except ValueError:
            continue
    return make(rng, kind)
