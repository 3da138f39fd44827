"""Do and undo on the built-in world, after Do-Undo Bench (arXiv 2512.13609): an edit, and then the edit that takes it
back, exact in every pixel.

    F = M(I_o, P_F)    R = M(F, P_R)    and, to see undoing alone,    M(I_F, P_R)

``I_o`` is the drawn source, ``I_F`` the drawn target. Only edits whose target the words determine are asked for. The
region of the edit is ``E = {I_o != I_F}``, everything else is ``K``; a pixel is right where its colour difference
(CIE 1976) is at most ``TOLERANCE``. Whoever changes nothing restores everything, so what counts is

    sqrt(progress(F) * IoU(R)),   progress(F) = 1 - d(F, I_F) / d(I_o, I_F) cut to [0, 1],   d the mean difference

The paper scores photographs by networks (cosines of DINOv2 and CLIP, action recognition, optical flow) and undoes from
the true end frame in its released code; here undoing from the model's own picture is the headline and the other a row.
The composite is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from diptych.scenes.color_difference import color_difference
from diptych.scenes.draw import draw
from diptych.scenes.edit_checks import check_edit
from diptych.scenes.edits import Edit, edit
from diptych.scenes.phrases import refer
from diptych.scenes.scene import COLORS, Scene
from diptych.scenes.spatial_edits import spatial_edit
from diptych.scenes.split import SPLITS, Split, may_follow, split_scene, types_of_split

DOUNDO = "do-undo"
DOUNDO_KINDS = ("recolor", "reshape", "resize", "swap", "move")
"""Edits whose words say exactly what comes out; ``move`` is told in numbers (``spatial_edits``)."""
CONTROL = "unnamed color"
"""A recolouring whose taking back does not name the colour that was there: nobody can know it."""

TOLERANCE = 5.0
"""Largest colour difference (CIE 1976) of a pixel that is right."""

_TRIES = 200
_NAMELESS = ("shape", "size shape", "place shape")


@dataclass(frozen=True)
class DoUndoItem:
    """An edit with its inverse."""

    id: str
    kind: str
    """One of ``DOUNDO_KINDS``, or ``CONTROL``."""
    forward: Edit
    undo: Edit
    """From the target of ``forward`` back to its source."""
    guess: float = 1.0
    """Of ``CONTROL``: chance to name the colour that was there, knowing no more than the types that a split shows."""


@dataclass(frozen=True)
class RegionScore:
    """How a picture agrees with the right one; shares in [0, 1]."""

    edited: float
    """Right pixels of the region that the edit is about."""
    kept: float
    """Right pixels of all else."""
    iou: float
    """Right pixels of the region, over the region and all wrong pixels outside of it."""
    progress: float
    """How much of the way from the other picture to the right one was gone; negative where it went away from it."""
    away: float
    """Mean colour difference from the right picture."""


def doundo_items(split: Split = "test", num_per_kind: int = 60, seed: int = 0) -> list[DoUndoItem]:
    """Edits with their inverses, equally many of each kind and of the control, each of another scene of a split.

    Raises:
        ValueError: an unknown split, or fewer than one item.
    """
    if split not in SPLITS:
        raise ValueError(f"doundo_items: split must be one of {', '.join(SPLITS)}, got {split!r}.")
    if num_per_kind < 1:
        raise ValueError(f"doundo_items: num_per_kind must be at least 1, got {num_per_kind}.")
    items = []
    for place, kind in enumerate((*DOUNDO_KINDS, CONTROL)):
        for index in range(num_per_kind):
            rng = np.random.default_rng([seed, SPLITS.index(split), *DOUNDO.encode(), place, index])
            name = f"{split}/{DOUNDO}/{kind.replace(' ', '-')}/{index:04d}"
            items.append(_item(name, rng, split, kind))
    return items


def _item(name: str, rng: np.random.Generator, split: Split, kind: str) -> DoUndoItem:
    allow = partial(may_follow, split=split)
    make: Callable[[Scene], tuple[Edit, Edit, float] | None]
    if kind == CONTROL:
        make = partial(_unnamed, rng=rng, split=split)
    elif kind == "move":
        make = partial(_shifted, rng=rng, split=split)
    else:
        make = partial(_edited, rng=rng, kind=kind, allow=allow)
    for _ in range(_TRIES):
        try:
            made = make(split_scene(rng, split))
        except ValueError:
            continue
        if made is not None:
            return DoUndoItem(name, kind, *made)
    raise RuntimeError(f"doundo_items: no {kind} in {_TRIES} scenes of split {split!r}.")


def _edited(
    scene: Scene, rng: np.random.Generator, kind: str, allow: Callable[[Scene], bool]
) -> tuple[Edit, Edit, float]:
    made = edit(scene, rng, kind, allow)
    assert made.inverse is not None
    return replace(made, inverse=None), made.inverse, 1.0


def _shifted(scene: Scene, rng: np.random.Generator, split: Split) -> tuple[Edit, Edit, float]:
    made = spatial_edit(scene, rng, "move", partial(may_follow, split=split), held_out=split != "train").edit
    assert made.inverse is not None
    return replace(made, inverse=None), made.inverse, 1.0


def _unnamed(scene: Scene, rng: np.random.Generator, split: Split) -> tuple[Edit, Edit, float] | None:
    forward, undo, _ = _edited(scene, rng, "recolor", partial(may_follow, split=split))
    (index,) = forward.changed_source
    name = refer(forward.target, index, _NAMELESS)
    if name is None:
        return None
    changed = forward.target.objects[index]
    possible = [color for color in COLORS if color != changed.color and (changed.shape, color) in types_of_split(split)]
    return forward, replace(undo, instruction=f"give the {name} its old color back"), 1 / len(possible)


def region_score(
    image: UInt8[ndarray, "height width 3"],
    right: UInt8[ndarray, "height width 3"],
    other: UInt8[ndarray, "height width 3"],
    tolerance: float = TOLERANCE,
) -> RegionScore:
    """Compares a picture with the right one.

    Args:
        right: what it should be.
        other: what it was made from: the region is where this differs from ``right``.

    Raises:
        ValueError: the pictures differ in size, or ``right`` and ``other`` nowhere.
    """
    region = (right != other).any(axis=2)
    if not region.any():
        raise ValueError("region_score: the right picture and the other one are equal, so there is no edit to judge.")
    away = color_difference(image, right)
    is_right = away <= tolerance
    num_right, num_region, num_wrong = (is_right & region).sum(), region.sum(), (~is_right & ~region).sum()
    outside = is_right[~region]
    return RegionScore(
        edited=float(num_right / num_region),
        kept=float(outside.mean()) if outside.size else 1.0,
        iou=float(num_right / (num_region + num_wrong)),
        progress=float(1 - away.mean() / color_difference(other, right).mean()),
        away=float(away.mean()),
    )


def score_step(made: Edit, image: UInt8[ndarray, "height width 3"]) -> tuple[RegionScore, bool]:
    """Regions and state of a picture that an edit should have led to: the state is what the parser reads in it."""
    size = (image.shape[0], image.shape[1])
    return region_score(image, draw(made.target, size), draw(made.source, size)), check_edit(made, image).correct


def composite(progress: float, returned: float) -> float:
    """``sqrt(progress * returned)`` with the progress cut to [0, 1]: returning counts where something was done."""
    return float(np.sqrt(min(max(progress, 0.0), 1.0) * returned))


def guess_bound(items: Sequence[DoUndoItem]) -> float:
    """What nobody exceeds in undoing the control but by luck or by a trace left in the picture."""
    return float(np.mean([item.guess for item in items]))
