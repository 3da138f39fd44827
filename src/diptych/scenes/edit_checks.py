"""Judges the picture that an edit led to: was the instruction followed, and was everything else left alone?

Stated tolerances, as fractions of the side: objects that stay must be found within ``center`` of where they were, with
the same type and size class. An object that was recoloured, reshaped, resized or swapped is expected at the centre of
the target within ``center``. One that was added or moved may stand anywhere that fulfils the instruction: its centre in
the named third of the picture widened by ``place``, or the named relation by the benchmark's rule engine. Nothing else
may be there, the background keeps its name, and at most ``background_share`` of the background pixels away from objects
may differ from the source by more than ``background_change`` (of 255, in any channel).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diptych.scenes.draw import draw
from diptych.scenes.edits import Edit
from diptych.scenes.parse import parse
from diptych.scenes.phrases import in_place
from diptych.scenes.relations import relations_of
from diptych.scenes.scene import Scene, SceneObject, size_radius


@dataclass(frozen=True, kw_only=True)
class EditTolerance:
    """How exact an edited picture must be."""

    center: float = 0.05
    """Distance of a centre from its expected position, as a fraction of the side (3.2 px of 64)."""
    place: float = 0.05
    """How far outside the named third of the picture a centre may lie, as a fraction of the side."""
    background_change: int = 32
    """Difference in a channel, of 255, up to which a background pixel counts as unchanged."""
    background_share: float = 0.02
    """Share of the background pixels that may differ by more."""
    object_margin: float = 0.05
    """Pixels this close to an object are not compared, as a fraction of the side."""


DEFAULT_TOLERANCE = EditTolerance()


@dataclass(frozen=True)
class EditVerdict:
    """``correct`` is both: followed and preserved. ``reason`` says what failed first."""

    followed: bool
    preserved: bool
    reason: str = ""

    @property
    def correct(self) -> bool:
        return self.followed and self.preserved


def check_edit(
    edit: Edit,
    image: NDArray[np.uint8],
    tolerance: EditTolerance = DEFAULT_TOLERANCE,
    scene: Scene | None = None,
) -> EditVerdict:
    """Judge an edited picture, uint8 [side, side, 3] of any size, by the edit that was asked for.

    Args:
        scene: what the parser reads in the picture, where that is known already.
    """
    scene = parse(image).scene if scene is None else scene
    found, background = list(scene.objects), scene.background
    reasons: list[str] = []
    standing: dict[int, SceneObject] = {}
    for _, index in edit.kept():
        wanted = edit.target.objects[index]
        match = _nearest(wanted, found, tolerance.center)
        if match is None:
            reasons.append(f"the {wanted.size} {wanted.color} {wanted.shape} did not stay as it was")
        else:
            standing[index] = match
            found.remove(match)
    if background != edit.source.background:
        reasons.append(f"the background turned from {edit.source.background} to {background}")
    elif (share := changed_background(edit, image, found, tolerance)) > tolerance.background_share:
        reasons.append(f"{share:.1%} of the background changed")
    preserved = not reasons
    failure = _follow_failure(edit, found, standing, tolerance)
    if failure is not None:
        reasons.append(failure)
    return EditVerdict(failure is None, preserved, "; ".join(reasons))


def _nearest(wanted: SceneObject, found: list[SceneObject], within: float) -> SceneObject | None:
    """The closest object of the same shape, colour and size that is near enough."""
    same = [item for item in found if (item.type, item.size) == (wanted.type, wanted.size)]
    near = [item for item in same if math.hypot(item.x - wanted.x, item.y - wanted.y) <= within]
    return min(near, key=lambda item: math.hypot(item.x - wanted.x, item.y - wanted.y), default=None)


def _follow_failure(
    edit: Edit, found: list[SceneObject], standing: dict[int, SceneObject], tolerance: EditTolerance
) -> str | None:
    """Why what is left in the picture is not what the instruction wants, or ``None``."""
    if len(found) != len(edit.changed_target):
        return f"expected {len(edit.changed_target)} new or altered object(s), found {len(found)}"
    is_free = edit.place is not None or edit.relation is not None
    rest = list(found)
    for index in edit.changed_target:
        wanted = edit.target.objects[index]
        match = _nearest(wanted, rest, 2.0 if is_free else tolerance.center)
        if match is None:
            return f"no {wanted.size} {wanted.color} {wanted.shape} where it should be"
        rest.remove(match)
        if edit.place is not None and not in_place(match.x, match.y, edit.place, tolerance.place):
            return f"the {wanted.color} {wanted.shape} is not at the {edit.place}"
        if edit.relation is not None:
            relation, other = edit.relation
            if other not in standing or relation not in relations_of(match, standing[other]):
                return f"the {wanted.color} {wanted.shape} is not {relation} its target"
    return None


def changed_background(
    edit: Edit, image: NDArray[np.uint8], found: list[SceneObject], tolerance: EditTolerance = DEFAULT_TOLERANCE
) -> float:
    """Share of the background, away from all objects before and after, that is no longer as it was in the source.

    Args:
        found: objects in the picture beyond those that stayed, wherever they are.
    """
    height, width = image.shape[:2]
    before = draw(Scene((), edit.source.background), (height, width))
    rows, cols = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    is_background = np.ones((height, width), bool)
    for item in (*edit.source.objects, *edit.target.objects, *found):
        reach = size_radius(item.size) + tolerance.object_margin
        is_background &= (cols[None] - item.x) ** 2 + (rows[:, None] - item.y) ** 2 > reach**2
    if not is_background.any():
        return 0.0
    change = np.abs(image.astype(np.int16) - before.astype(np.int16)).max(axis=2)
    return float((change[is_background] > tolerance.background_change).mean())
