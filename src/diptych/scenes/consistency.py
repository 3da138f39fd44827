"""Does a model draw what it would answer? XTC-Bench (arXiv 2604.25072) on the built-in world.

Fact by fact: ``u`` is whether a question about the picture of a scene is answered right, ``g`` whether the fact holds
in a drawing made from the scene's caption, which tells every fact. Agreement alone (CCTA) rewards being wrong twice, so
the headline weighs it by how right both are: AW-CCTA = mean((1 - |g - u|) * (g + u) / 2). Beside it stands the floor
``p_u * p_g`` that independent abilities of equal strength would reach.

Differs from the paper: the scene graph of a drawing is read by the exact parser and answers are compared exactly, so
``u`` and ``g`` are 0 or 1; a node is matched only to one that shares its shape or its colour (the paper matches
everything of one label); quadrants are named by who is right; of the drawn relations one must be the asked one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.scenes.phrases import NUMBER_WORDS, PLACE_PHRASES, place_of, plural, type_name, with_article
from diptych.scenes.questions import DIRECTIONS, Question
from diptych.scenes.relations import relations_of
from diptych.scenes.scene import COLORS, SHAPES, SIZES, Scene, SceneObject
from diptych.scenes.scores import NUM_BOOTSTRAP, Score, ScoreTable, wilson_interval
from diptych.scenes.split import SPLITS, Split, split_scene

CONSISTENCY = "consistency"
FACT_KINDS = ("attribute", "label", "relation")
THRESHOLD = 0.6
"""From here on a score is right in the quadrants, as in the paper."""
MIN_SIMILARITY = 0.5
"""A drawn object that shares neither shape nor colour is no match."""
MIN_OBJECTS, MAX_OBJECTS = 2, 3

_TRIES = 2000


@dataclass(frozen=True)
class Fact:
    """One thing that is true of a scene, as a question."""

    kind: str
    """``attribute``: colour or size of a named object; ``label``: the shape of what has a colour; ``relation``."""
    question: Question
    attribute: str
    """``color``, ``size``, ``shape`` or ``relation``."""
    object: int
    other: int | None = None
    """Of a relation, what the object stands in relation to."""

    @property
    def objects(self) -> tuple[int, ...]:
        return (self.object,) if self.other is None else (self.object, self.other)


@dataclass(frozen=True)
class ConsistencyItem:
    """A scene, the caption it is drawn from, and the facts that are asked."""

    id: str
    scene: Scene
    caption: str
    facts: tuple[Fact, ...]


def consistency_items(split: Split = "test", number: int = 60, seed: int = 0) -> list[ConsistencyItem]:
    """Scenes of two or three objects, all of different shapes and different colours, with all their facts.

    Raises:
        ValueError: an unknown split, or fewer than one scene.
    """
    if split not in SPLITS:
        raise ValueError(f"consistency_items: split must be one of {', '.join(SPLITS)}, got {split!r}.")
    if number < 1:
        raise ValueError(f"consistency_items: number must be at least 1, got {number}.")
    items = []
    for index in range(number):
        rng = np.random.default_rng([seed, SPLITS.index(split), *CONSISTENCY.encode(), index])
        scene = _scene(rng, split)
        items.append(ConsistencyItem(f"{split}/{CONSISTENCY}/{index:04d}", scene, told(scene), facts_of(scene)))
    return items


def _scene(rng: np.random.Generator, split: Split) -> Scene:
    for _ in range(_TRIES):
        scene = split_scene(rng, split, min_objects=MIN_OBJECTS, max_objects=MAX_OBJECTS)
        number = len(scene.objects)
        if number == len({item.shape for item in scene.objects}) == len({item.color for item in scene.objects}):
            return scene
    raise RuntimeError(f"consistency_items: no {split} scene of different objects in {_TRIES} tries.")


def told(scene: Scene) -> str:
    """A caption that tells all facts, in the wording of the long captions."""
    number = len(scene.objects)
    sentences = [f"The background is {scene.background}. There are {NUMBER_WORDS[number]} {plural('object')}."]
    for item in scene.objects:
        name = with_article(f"{item.size} {item.color} {item.shape}")
        sentences.append(f"There is {name} {PLACE_PHRASES[place_of(item)]}.")
    for i, j in _related(scene):
        first, second = scene.objects[i], scene.objects[j]
        relation = relations_of(first, second)[0]
        sentences.append(f"The {type_name(first.type)} is {relation} the {type_name(second.type)}.")
    return " ".join(sentences)


def facts_of(scene: Scene) -> tuple[Fact, ...]:
    """Colour by shape, size by type and shape by colour of every object, and relations that are the only one."""
    facts = []
    for index, item in enumerate(scene.objects):
        color = Question(f"What color is the {item.shape}?", item.color, "color", COLORS)
        size = Question(f"What size is the {type_name(item.type)}?", item.size, "size", SIZES)
        shape = Question(f"What shape is the {item.color} object?", item.shape, "shape", SHAPES)
        facts += [
            Fact("attribute", color, "color", index),
            Fact("attribute", size, "size", index),
            Fact("label", shape, "shape", index),
        ]
    for i, j in _related(scene):
        first, second = scene.objects[i], scene.objects[j]
        text = f"Where is the {type_name(first.type)} relative to the {type_name(second.type)}?"
        answer = DIRECTIONS[relations_of(first, second)[0]]
        asked = Question(text, answer, "relation", tuple(DIRECTIONS.values()))
        facts.append(Fact("relation", asked, "relation", i, j))
    return tuple(facts)


def _related(scene: Scene) -> list[tuple[int, int]]:
    """Pairs of objects between which exactly one relation holds."""
    number = len(scene.objects)
    pairs = [(i, j) for i in range(number) for j in range(i + 1, number)]
    return [(i, j) for i, j in pairs if len(relations_of(scene.objects[i], scene.objects[j])) == 1]


def match_objects(
    wanted: Sequence[SceneObject], drawn: Sequence[SceneObject], min_similarity: float = MIN_SIMILARITY
) -> list[int | None]:
    """For every wanted object the drawn one that it is, or None: the assignment of largest total similarity.

    Similarity is half for an equal shape and half for an equal colour; of equally similar ones the nearer is taken.

    Args:
        min_similarity: pairs below it are not matched; 0 matches whatever is there.
    """
    values = [[_closeness(item, other) for other in drawn] for item in wanted]
    # As many candidates as there are wanted objects are enough for a best assignment of all.
    candidates = [
        [i for i in sorted(range(len(row)), key=row.__getitem__, reverse=True) if row[i] >= min_similarity][
            : len(wanted)
        ]
        for row in values
    ]
    best: tuple[float, list[int | None]] = (-1.0, [None] * len(wanted))

    def extend(index: int, taken: list[int | None], total: float) -> None:
        nonlocal best
        if index == len(wanted):
            if total > best[0]:
                best = (total, list(taken))
            return
        for place in candidates[index]:
            if place not in taken:
                extend(index + 1, [*taken, place], total + values[index][place])
        extend(index + 1, [*taken, None], total)

    extend(0, [], 0.0)
    return best[1]


def _closeness(a: SceneObject, b: SceneObject) -> float:
    """Similarity, and a thousandth at most for being near."""
    return _similarity(a, b) + 1e-3 * (1 - math.hypot(a.x - b.x, a.y - b.y) / 2)


def _similarity(a: SceneObject, b: SceneObject) -> float:
    return 0.5 * (a.shape == b.shape) + 0.5 * (a.color == b.color)


def fact_holds(fact: Fact, drawn: Scene, matches: Sequence[int | None]) -> bool:
    """Whether a drawing shows a fact; False where one of its objects has no match."""
    places = [matches[index] for index in fact.objects]
    if any(place is None for place in places):
        return False
    found = [drawn.objects[place] for place in places if place is not None]
    if fact.attribute == "relation":
        return fact.question.answer in [DIRECTIONS[relation] for relation in relations_of(*found)]
    return bool(getattr(found[0], fact.attribute) == fact.question.answer)


@dataclass(frozen=True)
class FactScore:
    """One fact in one drawing of its scene."""

    group: str
    """The scene: its facts are not independent."""
    kind: str
    u: float
    g: float
    matched: bool
    g_unrejected: float = 0.0
    """``g`` when objects are matched without a threshold."""
    id: str = field(default="", compare=False)

    @property
    def agreement(self) -> float:
        return 1 - abs(self.g - self.u)

    @property
    def weighted(self) -> float:
        return self.agreement * (self.g + self.u) / 2


def consistency_numbers(facts: Sequence[FactScore]) -> dict[str, float | None]:
    """All numbers of the protocol; ``cir`` is None where no fact is agreed upon.

    ``aw_ccta = ccta * mean((g + u) / 2) + covariance`` holds exactly.
    """
    u, g = np.array([fact.u for fact in facts]), np.array([fact.g for fact in facts])
    agreement, joint = 1 - np.abs(g - u), (g + u) / 2
    right_u, right_g = u >= THRESHOLD, g >= THRESHOLD
    both, neither = float(np.mean(right_u & right_g)), float(np.mean(~right_u & ~right_g))
    return {
        "ccta": float(agreement.mean()),
        "aw_ccta": float((agreement * joint).mean()),
        "covariance": float((agreement * joint).mean() - agreement.mean() * joint.mean()),
        "p_u": float(u.mean()),
        "p_g": float(g.mean()),
        "floor": float(u.mean() * g.mean()),
        "excess": float((agreement * joint).mean() - u.mean() * g.mean()),
        "both_right": both,
        "both_wrong": neither,
        "und_only": float(np.mean(right_u & ~right_g)),
        "gen_only": float(np.mean(~right_u & right_g)),
        "cir": both / (both + neither) if both + neither > 0 else None,
        "coverage": float(np.mean([fact.matched for fact in facts])),
    }


def consistency_table(
    facts: Sequence[FactScore], contender: str, benchmark: str = CONSISTENCY, num: int = NUM_BOOTSTRAP, seed: int = 0
) -> ScoreTable:
    """AW-CCTA over all facts as the overall score, by kind, and beside it what it must be read with.

    Intervals are a bootstrap over scenes.

    Raises:
        ValueError: no facts.
    """
    if not facts:
        raise ValueError("consistency_table: there are no facts to average.")
    table = _scene_sums(facts)

    def interval(what: str, sums: NDArray[np.float64] = table) -> Score:
        return _interval(sums, what, num, seed)

    by_kind = {kind: [fact for fact in facts if fact.kind == kind] for kind in FACT_KINDS}
    rows = {kind: interval("weighted", _scene_sums(own)) for kind, own in by_kind.items() if own}
    rows |= {
        "answered right": interval("u"),
        "drawn right": interval("g"),
        "floor": interval("floor"),
        "objects matched": interval("matched"),
        "raw agreement": interval("agreement"),
    }
    return ScoreTable(benchmark, contender, interval("weighted"), rows, _details(facts, interval("excess")))


def _details(facts: Sequence[FactScore], excess: Score) -> dict[str, Any]:
    matched = [fact for fact in facts if fact.matched]
    unrejected = [
        FactScore(fact.group, fact.kind, fact.u, fact.g_unrejected, fact.matched, fact.g_unrejected) for fact in facts
    ]
    return {
        "overall_is": "AW-CCTA, the mean over all facts.",
        "all_facts": consistency_numbers(facts),
        "matched_facts_only": consistency_numbers(matched) if matched else None,
        "without_rejection": consistency_numbers(unrejected),
        "excess": {"value": excess.value, "low": excess.low, "high": excess.high},
        "threshold": THRESHOLD,
        "min_similarity": MIN_SIMILARITY,
    }


def _scene_sums(facts: Sequence[FactScore]) -> NDArray[np.float64]:
    """A row for each scene: number of facts, and sums of u, g, weighted and raw agreement, and matches."""
    sums: dict[str, list[float]] = {}
    for fact in facts:
        entry = sums.setdefault(fact.group, [0.0] * 6)
        for place, value in enumerate((1.0, fact.u, fact.g, fact.weighted, fact.agreement, float(fact.matched))):
            entry[place] += value
    # Sorted by content, so that neither the order nor the names of scenes decide what is drawn.
    return np.array(sorted(sums.values()))


def _interval(table: NDArray[np.float64], what: str, num: int, seed: int) -> Score:
    """A number with its interval over scenes; Wilson's where all facts agree at 0 or 1."""
    value = float(_statistic(table.sum(axis=0), what))
    if what != "excess" and value in (0.0, 1.0):
        low, high = wilson_interval(value, len(table))
    else:
        drawn = np.random.default_rng(seed).integers(len(table), size=(num, len(table)))
        means = _statistic(table[drawn].sum(axis=1), what)
        low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return Score(value, min(low, value), max(high, value), round(table[:, 0].sum()), len(table))


def _statistic(sums: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    count, u, g, weighted, agreement, matched = np.moveaxis(sums, -1, 0)
    found: Mapping[str, NDArray[np.float64]] = {
        "u": u / count,
        "g": g / count,
        "weighted": weighted / count,
        "agreement": agreement / count,
        "matched": matched / count,
        "floor": u * g / count**2,
        "excess": weighted / count - u * g / count**2,
    }
    return found[what]
