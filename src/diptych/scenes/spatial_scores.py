"""How well a picture obeys a spatial edit, after GSI-Bench (arXiv 2604.20570) and its released scorer, in two
dimensions.

Four numbers in [0, 1] for every picture: ``IC`` whether the instruction was followed, ``SA`` how exactly, ``EL``
whether all else was left alone, ``AC`` whether things still look as they should.

    move, place, point   SA = 0.3 * IoU + 0.7 * exp(-ln(sqrt(d / d*))^2), halved where the number of objects changed;
                         IC = SA > 0.05
    scale                SA = exp(-mean over both axes of ln(s / s*)^2);   IC = ||s - 1|| > 0.2
    remove               SA = clip(1 - 0.3 * (before - after - 1), 0, 1) if the object is gone, else 0;   IC = SA >= 0.5

``d`` is how far the object went and ``d*`` how far it was told to, ``s`` by what factor its box grew along each axis,
the box being the measured one. The gate, as published: IC and SA are 0 where EL is too low to judge; EL and AC are 0
where IC is 0; and all four are 0 where AC is. SA is not taken away where IC is 0: a scaling that is not done at all
keeps the SA of the factor 1.

Differs from the original: everything is read by the parser instead of detectors, so boxes are in two dimensions;
objects of all types are counted; EL is the share of pixels outside of the object's boxes that look unchanged (CIE
1976), instead of 1 - LPIPS, and its gate is ``LOCALITY``; AC is the agreement of what is there, by shape and colour,
with what should be (F1), instead of a language model's mark.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray

from diptych.scenes.color_difference import color_difference
from diptych.scenes.doundo import TOLERANCE
from diptych.scenes.draw import draw, object_box
from diptych.scenes.edit_checks import check_edit
from diptych.scenes.parse import ParseResult, parse
from diptych.scenes.rules import Box
from diptych.scenes.scene import Scene, SceneObject
from diptych.scenes.spatial_edits import SpatialEdit

SPATIAL = "spatial-compliance"

IOU_WEIGHT, DISTANCE_WEIGHT = 0.3, 0.7
MOVE_COMPLIES = 0.05
"""A move counts from this accuracy on: it mostly means that the object moved."""
SCALE_COMPLIES = 0.2
"""Norm over the axes of the relative change from which a scaling counts."""
REMOVE_COMPLIES = 0.5
REMOVED_TOO_MUCH = 0.3
"""What every object beyond the one costs that is gone."""
GONE = 0.1
"""An object is gone where nothing of its type overlaps its box by more than this IoU."""
LEAST_MOVE = 0.2
"""Share of the told distance below which an object was not moved."""
LOCALITY = 0.7
"""Pictures of which less is left alone are not judged: the original asks for SSIM > 0.6 and LPIPS < 0.3."""

_TINY = 1e-5
_MARGIN = 0.03
"""Around boxes whose inside is not compared, as a fraction of the side."""
_SAME_PLACE = 0.02
"""Distance, as a fraction of the side, within which an object is where it was."""


@dataclass(frozen=True)
class Columns:
    """The four numbers, in [0, 1]."""

    compliance: float
    accuracy: float
    locality: float
    appearance: float

    @property
    def average(self) -> float:
        return (self.compliance + self.accuracy + self.locality + self.appearance) / 4


@dataclass(frozen=True)
class SpatialScore:
    """What is said of one picture."""

    gated: Columns
    """As published."""
    ungated: Columns
    """Every number for itself."""
    is_exact: bool
    """Done as told within the tolerances of ``edit_checks``, and everything else as it was."""
    distance_error: float | None
    """From where the object is to where it should be, as a fraction of the side; None where nothing is moved to a
    place, or no object of that shape and colour is there."""


def spatial_score(
    spatial: SpatialEdit, image: UInt8[ndarray, "height width 3"], tolerance: float = TOLERANCE
) -> SpatialScore:
    """Judges the picture that a spatial edit led to.

    Args:
        tolerance: largest colour difference of a pixel that looks unchanged.
    """
    edit = spatial.edit
    read = parse(image)
    found = list(zip(read.scene.objects, _boxes(read), strict=True))
    target = edit.source.objects[spatial.index]
    chosen = _counterpart(spatial, found)
    locality = _locality(
        image, draw(edit.source, image.shape[:2]), [object_box(target), *(c[1] for c in chosen)], tolerance
    )
    num_before, num_after = len(edit.source.objects), len(found)
    distance_error = None
    if spatial.operation == "remove":
        accuracy = _removed(target, found, num_before - num_after)
        complies = accuracy >= REMOVE_COMPLIES
    elif spatial.operation == "scale":
        accuracy, complies = _scaled(spatial, chosen)
    else:
        accuracy = _moved(spatial, chosen) * (1.0 if num_before == num_after else 0.5)
        complies = accuracy > MOVE_COMPLIES
        distance_error = _distance_error(spatial, read.scene)
    ungated = Columns(float(complies), accuracy, locality, agreement(edit.target, read.scene))
    return SpatialScore(gate(ungated), ungated, check_edit(edit, image, scene=read.scene).correct, distance_error)


def gate(columns: Columns, least_locality: float = LOCALITY) -> Columns:
    """The numbers as the original publishes them: one failure takes others away."""
    if columns.locality <= least_locality:
        columns = replace(columns, compliance=0.0, accuracy=0.0)
    if columns.compliance == 0:
        return replace(columns, locality=0.0, appearance=0.0)
    return Columns(0.0, 0.0, 0.0, 0.0) if columns.appearance == 0 else columns


def log_accuracy(ratio: float) -> float:
    """``exp(-ln(sqrt(ratio))^2)``: 1 for the told distance, 0.887 for half and for twice of it."""
    return math.exp(-(math.log(math.sqrt(ratio) + _TINY) ** 2))


def box_iou(first: Box, second: Box) -> float:
    """Area that two boxes share, over the area of both."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


def agreement(wanted: Scene, found: Scene) -> float:
    """F1 of the objects of two scenes by shape and colour, wherever they are; 1 where both are empty."""
    first, second = (Counter(item.type for item in scene.objects) for scene in (wanted, found))
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0


def _boxes(read: ParseResult) -> list[Box]:
    """The measured box of every object, in fractions of the sides."""
    boxes = []
    for item in read.scene.objects:
        near = [d for d in read.detections if (d.shape, d.color, d.size) == (item.shape, item.color, item.size)]
        boxes.append(min(near, key=lambda d: _off(d.box, object_box(item))).box)
    return boxes


def _off(first: Box, second: Box) -> float:
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))


def _counterpart(spatial: SpatialEdit, found: list[tuple[SceneObject, Box]]) -> list[tuple[SceneObject, Box]]:
    """The object that the edit led to, as far as one of its shape and colour is there; at most one."""
    edit = spatial.edit
    target = edit.source.objects[spatial.index]
    same = [pair for pair in found if pair[0].type == target.type]
    if spatial.operation == "remove":
        return []
    if spatial.operation == "scale":
        others = [item for index, item in enumerate(edit.source.objects) if index != spatial.index]
        return _nearest([pair for pair in same if not _stood(pair[0], others)], target)
    ideal = edit.target.objects[edit.changed_target[0]]
    told = _between(target, ideal)
    moved = [
        pair
        for pair in same
        if not _stood(pair[0], edit.source.objects) and _between(pair[0], target) > LEAST_MOVE * told
    ]
    return _nearest(moved, ideal)


def _stood(item: SceneObject, before: "tuple[SceneObject, ...] | list[SceneObject]") -> bool:
    """Whether an object is one of those that were there, at its place."""
    return any(item.type == other.type and _between(item, other) <= _SAME_PLACE for other in before)


def _nearest(pairs: list[tuple[SceneObject, Box]], to: SceneObject) -> list[tuple[SceneObject, Box]]:
    return sorted(pairs, key=lambda pair: _between(pair[0], to))[:1]


def _between(first: SceneObject, second: SceneObject) -> float:
    return math.hypot(first.x - second.x, first.y - second.y)


def _moved(spatial: SpatialEdit, chosen: list[tuple[SceneObject, Box]]) -> float:
    edit = spatial.edit
    target, ideal = edit.source.objects[spatial.index], edit.target.objects[edit.changed_target[0]]
    if not chosen:
        return DISTANCE_WEIGHT * log_accuracy(0.0)
    item, box = chosen[0]
    went = _between(item, target) / _between(ideal, target)
    return IOU_WEIGHT * box_iou(box, object_box(ideal)) + DISTANCE_WEIGHT * log_accuracy(went)


def _scaled(spatial: SpatialEdit, chosen: list[tuple[SceneObject, Box]]) -> tuple[float, bool]:
    edit = spatial.edit
    before, ideal = (
        object_box(edit.source.objects[spatial.index]),
        object_box(edit.target.objects[edit.changed_target[0]]),
    )
    box = chosen[0][1] if chosen else before
    factors = [_extent(box, axis) / _extent(before, axis) for axis in (0, 1)]
    told = [_extent(ideal, axis) / _extent(before, axis) for axis in (0, 1)]
    errors = [math.log(factor / right) ** 2 for factor, right in zip(factors, told, strict=True)]
    return math.exp(-sum(errors) / 2), math.hypot(*(factor - 1 for factor in factors)) > SCALE_COMPLIES


def _extent(box: Box, axis: int) -> float:
    return box[2 + axis] - box[axis]


def _removed(target: SceneObject, found: list[tuple[SceneObject, Box]], num_gone: int) -> float:
    own = object_box(target)
    if any(item.type == target.type and box_iou(box, own) > GONE for item, box in found):
        return 0.0
    return min(max(1 - REMOVED_TOO_MUCH * (num_gone - 1), 0.0), 1.0)


def _distance_error(spatial: SpatialEdit, read: Scene) -> float | None:
    """Of the nearest object of that shape and colour that is not one of the others."""
    edit = spatial.edit
    ideal = edit.target.objects[edit.changed_target[0]]
    others = [item for index, item in enumerate(edit.source.objects) if index != spatial.index]
    same = [item for item in read.objects if item.type == ideal.type and not _stood(item, others)]
    return min((_between(item, ideal) for item in same), default=None)


def _locality(
    image: UInt8[ndarray, "height width 3"],
    source: UInt8[ndarray, "height width 3"],
    boxes: list[Box],
    tolerance: float,
) -> float:
    """Share of the pixels outside of some boxes that look as they did."""
    outside = ~np.any([_inside(box, image.shape[0], image.shape[1]) for box in boxes], axis=0)
    return float((color_difference(image, source)[outside] <= tolerance).mean()) if outside.any() else 1.0


def _inside(box: Box, height: int, width: int) -> Bool[ndarray, "height width"]:
    """The pixels that a box touches, with a margin for what was measured a little too small."""
    rows, cols = np.arange(height), np.arange(width)
    in_rows = (rows + 1 > (box[1] - _MARGIN) * height) & (rows < (box[3] + _MARGIN) * height)
    in_cols = (cols + 1 > (box[0] - _MARGIN) * width) & (cols < (box[2] + _MARGIN) * width)
    return in_rows[:, None] & in_cols[None]
