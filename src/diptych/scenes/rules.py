"""The rules of GenEval (arXiv 2310.11513): does a set of detections satisfy the program behind a prompt?

One engine for two uses. The twin benchmark of the built-in world feeds it detections of ``parse`` (``twin.py``); the
real GenEval feeds it boxes of an object detector and colours of a classifier. The rules follow the official
``evaluation/evaluate_images.py``, including what is easy to get wrong:

- only the ``count`` most confident detections of a class are looked at; colours and positions are asked of those alone;
- "at least" means that further objects are not punished, except where an ``exclude`` clause says so (counting);
- a position must hold between *all* pairs of the two groups; it is not checked when the count or colour already failed;
- a position clause points to an earlier ``include`` clause by its index, and fails when that clause failed;
- offsets are shortened by a margin before they are divided by the length of the *unshortened* offset;
- both "left of" and "above" can hold at once.

Not taken over: the optional suppression of overlapping boxes, which the official setting (1.0) turns off.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypeAlias, TypedDict

Box: TypeAlias = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels, y down."""

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

COLOR_ORDER = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""The ten colours of GenEval, in the order in which reasons list them."""

Clause = TypedDict(
    "Clause",
    {
        "class": str,
        "count": int,
        "color": NotRequired[str],
        "position": NotRequired[Sequence[str | int]],
    },
)
"""One ``include`` or ``exclude`` clause; ``position`` is ``[relation, index of an earlier include clause]``."""


class Metadata(TypedDict):
    """The program of a prompt in GenEval's own schema (one line of ``evaluation_metadata.jsonl``)."""

    tag: str
    prompt: str
    include: Sequence[Clause]
    exclude: NotRequired[Sequence[Clause]]
    id: NotRequired[str]
    """Not in GenEval: names an entry of the twin; entries of one prompt differ in it."""


@dataclass(frozen=True)
class Detection:
    """One found object. ``color`` may stay ``None`` when a colour classifier is passed to the rules instead."""

    name: str
    confidence: float
    box: Box
    color: str | None = None


@dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """The constants of the official scorer."""

    threshold: float = 0.3
    """A detection counts when its confidence is strictly above this."""
    counting_threshold: float = 0.9
    """The same for prompts tagged ``counting``."""
    max_objects: int = 16
    """Detections kept per class, the most confident ones."""
    position_margin: float = 0.1
    """Share of the summed extents by which an offset is shortened before a relation is read from it."""


GENEVAL_RULES = RuleSettings()


@dataclass(frozen=True)
class Verdict:
    """``reason`` is empty when ``correct``, else a line for each failed clause, worded as in the official scorer."""

    correct: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.correct


RelationRule: TypeAlias = Callable[[Box, Box, float], tuple[str, ...]]
"""``(box a, box b, margin) -> relations of a to b``, as ``relations_between``."""

ColorClassifier: TypeAlias = Callable[[Sequence[Detection], str], Sequence[str]]
"""``(detections, class name) -> one colour for each``."""


def relations_between(box_a: Box, box_b: Box, margin: float = GENEVAL_RULES.position_margin) -> tuple[str, ...]:
    """How ``a`` lies relative to ``b``: none, one or two of ``RELATIONS``.

    offset = centre_a - centre_b; revised = sign(offset) * max(|offset| - margin * (extent_a + extent_b), 0), per axis;
    (dx, dy) = revised / ||offset||; left: dx < -0.5, right: dx > 0.5, above: dy < -0.5, below: dy > 0.5.
    Nothing holds where both revised offsets are under 1e-3 pixels.
    """
    offset_x = (box_a[0] + box_a[2] - box_b[0] - box_b[2]) / 2
    offset_y = (box_a[1] + box_a[3] - box_b[1] - box_b[3]) / 2
    extent_x = abs(box_a[2] - box_a[0]) + abs(box_b[2] - box_b[0])
    extent_y = abs(box_a[3] - box_a[1]) + abs(box_b[3] - box_b[1])
    revised_x = max(abs(offset_x) - margin * extent_x, 0.0)
    revised_y = max(abs(offset_y) - margin * extent_y, 0.0)
    if revised_x < 1e-3 and revised_y < 1e-3:
        return ()
    half = 0.5 * math.hypot(offset_x, offset_y)
    found: tuple[str, ...] = ()
    if revised_x > half:
        found = ("left of",) if offset_x < 0 else ("right of",)
    if revised_y > half:
        found += ("above",) if offset_y < 0 else ("below",)
    return found


def keep_detections(
    detections: Iterable[Detection], tag: str, settings: RuleSettings = GENEVAL_RULES
) -> dict[str, list[Detection]]:
    """The detections that count, by class, most confident first (ties: the later one first, as in the original)."""
    threshold = settings.counting_threshold if tag == "counting" else settings.threshold
    by_class: dict[str, list[Detection]] = {}
    for detection in detections:
        if detection.confidence > threshold:
            by_class.setdefault(detection.name, []).append(detection)
    for name, found in by_class.items():
        order = sorted(range(len(found)), key=lambda i: (-found[i].confidence, -i))
        by_class[name] = [found[i] for i in order[: settings.max_objects]]
    return by_class


def evaluate_metadata(
    metadata: Metadata | Mapping[str, object],
    detections: Iterable[Detection],
    *,
    color_of: ColorClassifier | None = None,
    settings: RuleSettings = GENEVAL_RULES,
    relations: RelationRule | None = None,
) -> Verdict:
    """Judge one image by its detections.

    Args:
        metadata: the program, GenEval's schema.
        detections: of all classes, in any order, unfiltered.
        color_of: names the colour of detections of one class; without it ``Detection.color`` is used.
        settings: thresholds; the official ones by default.
        relations: how boxes lie to each other; ``relations_between`` by default.

    Raises:
        ValueError: a position clause points to no earlier clause, or a colour is asked of a detection without one.
    """
    kept = keep_detections(detections, str(metadata["tag"]), settings)
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    include: Sequence[Clause] = metadata.get("include", ())  # type: ignore[assignment]
    exclude: Sequence[Clause] = metadata.get("exclude", ())  # type: ignore[assignment]
    for clause in include:
        name, count = clause["class"], clause["count"]
        found = kept.get(name, [])[:count]
        reason = None
        if len(found) < count:
            reason = f"expected {name}>={count}, found {len(found)}"
        else:
            if "color" in clause:
                reason = _color_reason(clause, found, color_of)
            if reason is None and "position" in clause:
                reason = _position_reason(
                    clause, found, groups, settings.position_margin, relations or relations_between
                )
        if reason is not None:
            reasons.append(reason)
        groups.append(found if reason is None else None)
    for clause in exclude:
        name, count = clause["class"], clause["count"]
        if len(kept.get(name, [])) >= count:
            reasons.append(f"expected {name}<{count}, found {len(kept[name])}")
    return Verdict(not reasons, "\n".join(reasons))


def _color_reason(clause: Clause, found: Sequence[Detection], color_of: ColorClassifier | None) -> str | None:
    """Why the most confident detections do not have the wanted colour, or ``None``."""
    name, count, wanted = clause["class"], clause["count"], clause["color"]
    if color_of is not None:
        colors = list(color_of(found, name))
    else:
        missing = [detection for detection in found if detection.color is None]
        if missing:
            raise ValueError(
                f"the prompt asks for a {wanted} {name}, but {len(missing)} detection(s) of {name} have no color. "
                "Give Detection.color, or pass color_of."
            )
        colors = [str(detection.color) for detection in found]
    tally = Counter(colors)
    if tally[wanted] >= count:
        return None
    listing = ", ".join(f"{tally[color]} {color}" for color in COLOR_ORDER if tally[color])
    return f"expected {wanted} {name}>={count}, found {tally[wanted]} {wanted}; and {listing}"


def _position_reason(
    clause: Clause,
    found: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    margin: float,
    relations: RelationRule,
) -> str | None:
    """Why the relation does not hold between all pairs, or ``None``."""
    relation, target = str(clause["position"][0]), int(clause["position"][1])
    if not 0 <= target < len(groups):
        raise ValueError(
            f"the position clause of {clause['class']!r} points to include clause {target}, "
            f"but only {len(groups)} clause(s) come before it. Put the target first."
        )
    group = groups[target]
    if group is None:
        return f"no target for {clause['class']} to be {relation}"
    for detection in found:
        for other in group:
            true = relations(detection.box, other.box, margin)
            if relation not in true:
                return f"expected {clause['class']} {relation} target, found {' and '.join(true)} target"
    return None
