"""Explains components as objects: outline by a fit, colour by the palette, size by the radius; splits what touches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from diptych.scenes.draw import COLOR_RGB
from diptych.scenes.parse_fit import Fit, fit_shape
from diptych.scenes.parse_segment import (
    SMALLEST_AREA,
    SMALLEST_CONTRAST,
    Background,
    Component,
    find_components,
    label_components,
    spread,
)
from diptych.scenes.scene import SIZE_RADIUS, SIZES

WORST_MISMATCH = 0.3
"""With this share of its area in the wrong place an object is no such shape."""

GOOD_SCORE = 0.7
"""A component that is explained less well than this is tried again in parts."""

DUPLICATE_DISTANCE = 0.6
"""In radii of the more certain object. Objects that keep their distance are at least 1.75 radii away."""

_MOST_PARTS = 6
_MOST_EROSIONS = 5
_MOST_FITS = 16  # of parts, in one picture: bounds the work on a photograph
_FULL_PIXELS = 8
_WINDOW = 3
_PALETTE = np.array(list(COLOR_RGB.values()), np.float32)
_COLOR_NAMES = tuple(COLOR_RGB)


@dataclass(frozen=True)
class Candidate:
    """An explained region; the centre is in working pixels of the whole picture."""

    fit: Fit
    center_x: float
    center_y: float
    rgb: Float[ndarray, "3"]
    color: str
    size: str
    score: float


def read_objects(
    picture: Float[ndarray, "height width 3"],
    smoothed: Float[ndarray, "height width 3"],
    labels: Int[ndarray, "height width"],
    components: list[Component],
    background: Background,
) -> list[Candidate]:
    """Explain every component, whole or in parts."""
    found: list[Candidate] = []
    fits_left = _MOST_FITS
    for component in components:
        whole = _read_region(picture, smoothed, labels, component, background)
        best = [whole] if whole is not None else []
        if whole is None or whole.score < GOOD_SCORE:
            for part_labels, parts in _partitions(smoothed, labels, component):
                if len(parts) > fits_left:
                    break
                fits_left -= len(parts)
                pieces = [_read_region(picture, smoothed, part_labels, part, background) for part in parts]
                read = [piece for piece in pieces if piece is not None]
                if read and _mean_score(read, len(parts)) > _mean_score(best, 1):
                    best = read
        found += best
    return found


def read_leftovers(
    picture: Float[ndarray, "height width 3"],
    smoothed: Float[ndarray, "height width 3"],
    labels: Int[ndarray, "height width"],
    leftover: Bool[ndarray, "height width"],
    background: Background,
) -> list[Candidate]:
    """Objects that hide in a component beside a larger one, of another colour: only those beyond doubt."""
    left_labels, count = label_components(leftover & (labels > 0))
    if count == 0:
        return []
    remaining = np.where(left_labels > 0, left_labels, np.where(labels > 0, count + 1, 0))
    found = []
    for part in find_components(left_labels, count)[:_MOST_PARTS]:
        candidate = _read_region(picture, smoothed, remaining, part, background)
        if candidate is not None and candidate.score >= GOOD_SCORE:
            found.append(candidate)
    return found


def without_duplicates(candidates: list[Candidate]) -> list[Candidate]:
    """Most certain first; those whose centre lies deep inside the bounding circle of a more certain one are dropped."""
    kept: list[Candidate] = []
    for item in sorted(candidates, key=lambda item: -item.score):
        if all(
            math.hypot(item.center_x - other.center_x, item.center_y - other.center_y)
            > DUPLICATE_DISTANCE * max(other.fit.radius_x, other.fit.radius_y)
            for other in kept
        ):
            kept.append(item)
    return kept


def _mean_score(read: list[Candidate], count: int) -> float:
    return sum(item.score for item in read) / count


def _partitions(
    smoothed: Float[ndarray, "height width 3"], labels: Int[ndarray, "height width"], component: Component
) -> Iterator[tuple[Int[ndarray, "height width"], list[Component]]]:
    """Ways to cut a component into two to six parts: by colour, and at narrow places."""
    own = labels == component.label
    seeds = np.zeros_like(labels)
    values = smoothed[own]
    nearest = ((values[:, None] - _PALETTE) ** 2).sum(axis=2).argmin(axis=1)
    colors = np.full(own.shape, -1)
    colors[own] = nearest
    count = 0
    for color in np.flatnonzero(np.bincount(nearest, minlength=len(_PALETTE)) >= SMALLEST_AREA):
        part_labels, num_parts = label_components(colors == color)
        seeds = np.where(part_labels > 0, part_labels + count, seeds)
        count += num_parts
    yield from _grown(seeds, count, own, labels)
    core = own
    for _ in range(_MOST_EROSIONS):
        core = ~spread(~core, 1)
        yield from _grown(*label_components(core), own, labels)


def _grown(
    seeds: Int[ndarray, "height width"],
    count: int,
    own: Bool[ndarray, "height width"],
    labels: Int[ndarray, "height width"],
) -> Iterator[tuple[Int[ndarray, "height width"], list[Component]]]:
    """The partition that seeds give when they grow until they fill the component, if it is one."""
    areas = np.bincount(seeds.ravel(), minlength=count + 1)
    large = np.flatnonzero(areas[1:] >= SMALLEST_AREA // 2) + 1
    if not 2 <= len(large) <= _MOST_PARTS:
        return
    parts = np.where(np.isin(seeds, large), seeds, 0)
    for _ in range(2 * _WINDOW):
        parts = np.where(own & (parts == 0), spread(parts, 1), parts)
    first = int(labels.max()) + 1
    parts = np.where(parts > 0, parts + first, 0)
    yield np.where(own, parts, labels), find_components(parts, count + first)


def _read_region(
    picture: ndarray,
    smoothed: ndarray,
    labels: ndarray,
    component: Component,
    background: Background,
) -> Candidate | None:
    top, left = max(component.top - _WINDOW, 0), max(component.left - _WINDOW, 0)
    window = (slice(top, component.bottom + _WINDOW), slice(left, component.right + _WINDOW))
    own = labels[window] == component.label
    others = (labels[window] != 0) & ~own
    weight = ~spread(others, 1) | own if others.any() else np.ones_like(own)
    pixels = picture[window] - background.rgb
    core = smoothed[window][own] - background.rgb
    contrast = np.einsum("pc,pc->p", core, core)
    axis = core[contrast >= 0.7 * contrast.max()].mean(axis=0)
    if axis @ axis < SMALLEST_CONTRAST**2 / 4:  # opposite colours that cancel
        axis = core[contrast.argmax()]
    length = float(axis @ axis)
    fit = fit_shape(pixels @ axis / length, weight, weight & spread(own, 1), background.noise / math.sqrt(length))
    if fit is None:
        return None
    rgb = _object_color(pixels, fit.template, weight) + background.rgb
    color, color_score = _name_color(rgb)
    short = min(picture.shape[:2])
    size, size_score = _name_size(math.sqrt(fit.radius_x * fit.radius_y) / short)
    mismatch = fit.mismatch + _second_color(pixels[own], axis, background.noise)
    score = _shape_score(mismatch) * color_score * size_score
    return Candidate(fit, left + fit.center_x, top + fit.center_y, rgb, color, size, score)


def _object_color(pixels: ndarray, template: ndarray, weight: ndarray) -> ndarray:
    """Mean colour where coverage is full; if it hardly is anywhere, by a straight line of values over coverage."""
    share = template[weight]
    full = template > 0.95
    if full.sum() >= _FULL_PIXELS:
        return pixels[full].mean(axis=0)
    values = pixels[weight]
    centered = share - share.mean()
    slope = centered @ values / max(float(centered @ centered), 1e-6)
    return values.mean(axis=0) + slope * (1 - share.mean())


def _name_color(rgb: ndarray) -> tuple[str, float]:
    distances = np.sqrt(((_PALETTE - rgb) ** 2).sum(axis=1))
    first, second = np.argsort(distances, kind="stable")[:2]
    nearest, next_nearest = float(distances[first]), float(distances[second])
    clear = min((next_nearest - nearest) / (0.3 * (next_nearest + nearest)), 1.0)
    close = min(max(2 - nearest / 45, 0.0), 1.0)
    return _COLOR_NAMES[int(first)], clear * close


def _name_size(radius: float) -> tuple[str, float]:
    size = min(SIZES, key=lambda name: abs(math.log(radius / SIZE_RADIUS[name])))
    deviation = abs(math.log(radius / SIZE_RADIUS[size]))
    return size, min(max(1 - (deviation - 0.15) / 0.35, 0.0), 1.0)


def _second_color(values: ndarray, axis: ndarray, noise: float) -> float:
    """Energy of a region beside its main colour, noise taken off, as a share: 1 if all of it has another colour."""
    length = float(axis @ axis)
    along = values @ axis
    beside = float((values * values).sum() - along @ along / length) - 2 * len(values) * noise**2
    return max(beside, 0.0) / (length * len(values))


def _shape_score(mismatch: float) -> float:
    return max(1 - (mismatch / WORST_MISMATCH) ** 2, 0.0)
