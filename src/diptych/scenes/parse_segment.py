"""Finds where something stands out from the background: noise, background colour, foreground mask, components.

All lengths are working pixels (the shorter side is 64).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

BORDER = 2
"""Width of the frame from which the background is read: objects stay 1.3 px away from the edge."""

SMALLEST_CONTRAST = 45.0
"""A smoothed pixel stands out when its RGB distance from the background is larger; the palette has 124 or more."""

HALF_LEVEL = 0.5
"""It must also reach this share of the largest distance within two pixels: cuts blurred edges half-way."""

SMALLEST_AREA = 14
"""Smaller components are no objects (the smallest star has 43 px)."""

MAX_COMPONENTS = 16
"""Only the largest ones are looked at, which bounds the work on a photograph."""


@dataclass(frozen=True)
class Background:
    """Measured colour, and how much single pixels deviate from it (standard deviation of a channel)."""

    rgb: Float[ndarray, "3"]
    noise: float


def noise_level(picture: Float[ndarray, "height width 3"]) -> float:
    """Standard deviation of white noise, from the median of mixed second differences (flat areas and edges cancel)."""
    if picture.shape[0] < 2 or picture.shape[1] < 2:
        return 0.0
    steps = picture[1::2, 1:] - picture[1::2, :-1]  # every other row: half the values are plenty
    steps -= picture[:-1:2, 1:]
    steps += picture[:-1:2, :-1]
    return float(np.median(np.abs(steps))) / (0.6745 * 2)


def measure_background(picture: Float[ndarray, "height width 3"]) -> Background:
    """Mean of those pixels of the outer frame that lie close to its median."""
    frame = np.concatenate(
        [
            picture[:BORDER].reshape(-1, 3),
            picture[-BORDER:].reshape(-1, 3),
            picture[BORDER:-BORDER, :BORDER].reshape(-1, 3),
            picture[BORDER:-BORDER, -BORDER:].reshape(-1, 3),
        ]
    )
    noise = noise_level(picture)
    middle = np.median(frame, axis=0)
    near = np.abs(frame - middle).max(axis=1) <= 15 + 3 * noise
    rgb = frame[near].mean(axis=0) if near.any() else middle
    return Background(rgb.astype(np.float32), noise)


def smooth(picture: Float[ndarray, "height width *channels"]) -> Float[ndarray, "height width *channels"]:
    """Binomial filter (1 2 1)/4 along both axes, edges repeated."""
    for axis in (0, 1):
        source = picture.swapaxes(0, axis) * np.float32(0.25)
        result = source * 2
        result[1:] += source[:-1]
        result[:-1] += source[1:]
        result[0] += source[0]
        result[-1] += source[-1]
        picture = result.swapaxes(0, axis)
    return picture


def spread(values: ndarray, reach: int) -> ndarray:
    """Largest value within ``reach`` pixels (a square window), for numbers or masks."""
    for axis in (0, 1):
        source = values.swapaxes(0, axis)
        result = source.copy()
        for step in range(1, min(reach, len(source) - 1) + 1):
            np.maximum(result[step:], source[:-step], out=result[step:])
            np.maximum(result[:-step], source[step:], out=result[:-step])
        values = result.swapaxes(0, axis)
    return values


def foreground(smoothed: Float[ndarray, "height width 3"], background: Background) -> Bool[ndarray, "height width"]:
    """Pixels that stand out from the background, cut at half the height of their surroundings."""
    difference = smoothed - background.rgb
    contrast = np.sqrt(np.einsum("hwc,hwc->hw", difference, difference))
    return contrast > np.maximum(spread(contrast, 2) * HALF_LEVEL, SMALLEST_CONTRAST)


def label_components(mask: Bool[ndarray, "height width"]) -> tuple[Int[ndarray, "height width"], int]:
    """Number the 8-connected components of a mask from 1 (0 is outside), by joining the runs of neighbouring rows.

    Returns:
        The labels, in order of the first pixel in reading order, and how many there are.
    """
    height, width = mask.shape
    flat = np.zeros((height, width + 2), np.int8)
    flat[:, 1:-1] = mask
    change = np.diff(flat, axis=1)
    rows, starts = np.nonzero(change == 1)
    stops = np.nonzero(change == -1)[1]
    count = len(rows)
    parent = list(range(count))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    row_list, start_list, stop_list = rows.tolist(), starts.tolist(), stops.tolist()
    above = 0
    for run in range(count):
        row = row_list[run]
        while above < run and (
            row_list[above] < row - 1 or (row_list[above] == row - 1 and stop_list[above] < start_list[run])
        ):
            above += 1
        other = above
        while other < run and row_list[other] == row - 1 and start_list[other] <= stop_list[run]:
            one, two = sorted((root(other), root(run)))
            parent[two] = one
            other += 1
    numbers: dict[int, int] = {}
    names = [numbers.setdefault(root(run), len(numbers) + 1) for run in range(count)]
    change_map = np.zeros((height, width + 1), np.int32)
    change_map[rows, starts] = names
    change_map[rows, stops] -= np.array(names, np.int32)
    return np.cumsum(change_map, axis=1)[:, :width], len(numbers)


@dataclass(frozen=True)
class Component:
    """A connected region; the box is half open, in working pixels."""

    label: int
    area: int
    top: int
    bottom: int
    left: int
    right: int


def find_components(labels: Int[ndarray, "height width"], count: int) -> list[Component]:
    """The largest components, largest first."""
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    order = sorted(range(1, count + 1), key=lambda label: (-areas[label], label))[:MAX_COMPONENTS]
    found = []
    for label in order:
        if areas[label] < SMALLEST_AREA:
            break
        inside = labels == label
        rows, cols = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        box = (int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1)
        found.append(Component(label, int(areas[label]), *box))
    return found
