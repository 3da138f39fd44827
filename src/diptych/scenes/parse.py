"""Reads a scene back from a picture: by program, without learned weights.

Background from the frame; whatever stands out from it falls into components; each component is explained by the outline
and colour that fit best; the scene found is drawn again and compared with the picture. A picture that is no scene (a
photograph, noise) leaves much of its area unexplained and gets a low confidence.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from diptych.scenes.draw import BACKGROUND_RGB, COLOR_RGB, shape_extent
from diptych.scenes.parse_fit import Fit, draw_templates, fit_shape
from diptych.scenes.parse_image import Picture, working_picture
from diptych.scenes.parse_segment import (
    Background,
    Component,
    find_components,
    foreground,
    label_components,
    measure_background,
    smooth,
    spread,
)
from diptych.scenes.scene import SHAPES, SIZE_RADIUS, SIZES, Scene, SceneObject

MIN_SCORE = 0.3
"""Detections below this are not part of the scene; it is also the threshold of GenEval."""

WORST_MISMATCH = 0.3
"""With this share of its area in the wrong place an object is no such shape."""

LARGEST_UNEXPLAINED = 0.2
"""With this share of the area unexplained (a large object covers a tenth) the confidence has fallen to zero."""

EMPTY_CONFIDENCE = 0.25
"""Most that a picture without objects can get: nothing but the colour of its background speaks for the reading."""

LARGEST_NOISE = 30.0
"""Standard deviation of a channel up to which noise is forgiven; at twice that nothing can be believed."""

COLOR_TOLERANCE = 30.0
"""RGB distance from the scene drawn again up to which a smoothed pixel counts as explained."""

SMOOTHED_NOISE = 0.375
"""What ``smooth`` leaves of the standard deviation of white noise."""

_WINDOW = 3
_PALETTE = np.array(list(COLOR_RGB.values()), np.float32)
_COLOR_NAMES = tuple(COLOR_RGB)
_BACKGROUNDS = np.array(list(BACKGROUND_RGB.values()), np.float32)
_BACKGROUND_NAMES = tuple(BACKGROUND_RGB)


@dataclass(frozen=True)
class Detection:
    """Something that looks like an object; ``box`` is (x0, y0, x1, y1) in fractions of width and height."""

    shape: str
    color: str
    size: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class ParseResult:
    """What a picture shows, and how far that can be believed."""

    scene: Scene
    """Objects from top to bottom (then left to right)."""
    confidence: float
    """In [0, 1]: background, least certain object and unexplained area together."""
    unexplained: float
    """Share of the picture's area that differs from the parsed scene drawn again, in [0, 1]."""
    object_confidences: tuple[float, ...]
    """One for each object of the scene, in [0, 1]."""
    detections: tuple[Detection, ...]
    """All candidates, most certain first, those too weak for the scene included."""


@dataclass(frozen=True)
class _Candidate:
    """An explained component; the centre is in working pixels of the whole picture."""

    fit: Fit
    center_x: float
    center_y: float
    rgb: Float[ndarray, "3"]
    color: str
    size: str
    score: float


def parse(image: Picture) -> ParseResult:
    """Read the scene that a picture shows; of any size and mode, and never raising on one.

    Pictures are read at 64 px on the shorter side: what is smaller than half a "small" object is not seen.

    Args:
        image: a Pillow image, or an array [height, width] or [height, width, 1..4] of uint8, uint16 or bool.

    Raises:
        TypeError: ``image`` is no picture at all (see ``working_picture``).
    """
    picture = working_picture(image)
    if picture is None:
        return ParseResult(Scene((), "white"), 0.0, 1.0, (), ())
    background = measure_background(picture)
    smoothed = smooth(picture)
    labels, count = label_components(foreground(smoothed, background))
    candidates = []
    for component in find_components(labels, count):
        candidate = _read_component(picture, smoothed, labels, component, background)
        if candidate is not None:
            candidates.append(candidate)
    candidates.sort(key=lambda item: -item.score)
    return _result(picture, smoothed, background, candidates)


def _read_component(
    picture: Float[ndarray, "height width 3"],
    smoothed: Float[ndarray, "height width 3"],
    labels: Int[ndarray, "height width"],
    component: Component,
    background: Background,
) -> _Candidate | None:
    top, left = max(component.top - _WINDOW, 0), max(component.left - _WINDOW, 0)
    window = (slice(top, component.bottom + _WINDOW), slice(left, component.right + _WINDOW))
    own = labels[window] == component.label
    others = (labels[window] != 0) & ~own
    weight = ~spread(others, 1) | own if others.any() else np.ones_like(own)
    pixels = picture[window] - background.rgb
    core = smoothed[window][own] - background.rgb
    contrast = np.einsum("pc,pc->p", core, core)
    axis = core[contrast >= 0.7 * contrast.max()].mean(axis=0)
    length = float(axis @ axis)
    fit = fit_shape(pixels @ axis / length, weight, weight & spread(own, 1), background.noise / math.sqrt(length))
    if fit is None:
        return None
    rgb = _object_color(pixels, fit.template, weight) + background.rgb
    color, color_score = _name_color(rgb)
    short = min(picture.shape[:2])
    size, size_score = _name_size(math.sqrt(fit.radius_x * fit.radius_y) / short)
    score = _shape_score(fit) * color_score * size_score
    return _Candidate(fit, left + fit.center_x, top + fit.center_y, rgb, color, size, score)


def _object_color(
    pixels: Float[ndarray, "height width 3"], template: Float[ndarray, "height width"], weight: ndarray
) -> Float[ndarray, "3"]:
    """Colour at full coverage: a straight line through pixel values over coverage, for each channel."""
    share = template[weight]
    values = pixels[weight]
    centered = share - share.mean()
    slope = centered @ values / max(float(centered @ centered), 1e-6)
    return values.mean(axis=0) + slope * (1 - share.mean())


def _name_color(rgb: Float[ndarray, "3"]) -> tuple[str, float]:
    distances = np.sqrt(((_PALETTE - rgb) ** 2).sum(axis=1))
    first, second = np.argsort(distances, kind="stable")[:2]
    nearest, next_nearest = float(distances[first]), float(distances[second])
    clear = min((next_nearest - nearest) / (0.3 * (next_nearest + nearest)), 1.0)
    close = min(max(2 - nearest / 60, 0.0), 1.0)
    return _COLOR_NAMES[int(first)], clear * close


def _name_size(radius: float) -> tuple[str, float]:
    size = min(SIZES, key=lambda name: abs(math.log(radius / SIZE_RADIUS[name])))
    deviation = abs(math.log(radius / SIZE_RADIUS[size]))
    return size, min(max(1 - (deviation - 0.15) / 0.35, 0.0), 1.0)


def _shape_score(fit: Fit) -> float:
    return max(1 - (fit.mismatch / WORST_MISMATCH) ** 2, 0.0)


def _result(
    picture: Float[ndarray, "height width 3"],
    smoothed: Float[ndarray, "height width 3"],
    background: Background,
    candidates: list[_Candidate],
) -> ParseResult:
    """Assemble the scene, draw it again and see what is left over. Candidates come best first."""
    height, width = picture.shape[:2]
    distances = np.sqrt(((_BACKGROUNDS - background.rgb) ** 2).sum(axis=1))
    nearest = int(distances.argmin())
    background_score = min(max(1.5 - float(distances[nearest]) / 40, 0.0), 1.0)
    noise_score = min(max(2 - background.noise / LARGEST_NOISE, 0.0), 1.0)
    shown = [item for item in candidates if item.score >= MIN_SCORE]
    unexplained = _unexplained_area(smoothed, background, shown)
    found = sorted(
        (
            (
                SceneObject(item.fit.shape, item.color, item.size, item.center_x / width, item.center_y / height),
                item.score,
            )
            for item in shown
        ),
        key=lambda pair: (pair[0].y, pair[0].x),
    )
    scores = tuple(score for _, score in found)
    explained = max(1 - unexplained / LARGEST_UNEXPLAINED, 0.0)
    confidence = background_score * noise_score * min(scores, default=EMPTY_CONFIDENCE) * explained
    return ParseResult(
        Scene(tuple(item for item, _ in found), _BACKGROUND_NAMES[nearest]),
        confidence,
        unexplained,
        scores,
        tuple(_detection(item, height, width) for item in candidates),
    )


def _detection(item: _Candidate, height: int, width: int) -> Detection:
    left, top, right, bottom = shape_extent(item.fit.shape)
    box = (
        (item.center_x + left * item.fit.radius_x) / width,
        (item.center_y + top * item.fit.radius_y) / height,
        (item.center_x + right * item.fit.radius_x) / width,
        (item.center_y + bottom * item.fit.radius_y) / height,
    )
    return Detection(item.fit.shape, item.color, item.size, item.score, box)


def _unexplained_area(
    smoothed: Float[ndarray, "height width 3"], background: Background, shown: list[_Candidate]
) -> float:
    """Share of pixels whose colour does not occur within a pixel of the same place when the scene is drawn again.

    A channel may have any value between the smallest and the largest one around it, which forgives blur and edges that
    are off by a pixel, and beyond that what noise explains and a small shift of colour.
    """
    again = np.empty_like(smoothed)
    again[:] = background.rgb
    if shown:
        shapes = np.array([SHAPES.index(item.fit.shape) for item in shown])
        parameters = np.array(
            [
                (item.center_x, item.center_y, item.fit.radius_x, item.fit.radius_y, min(item.fit.blur, 2.0))
                for item in shown
            ]
        )
        templates = draw_templates(shapes, parameters, *smoothed.shape[:2])
        for item, share in zip(shown, templates, strict=True):
            again += share[:, :, None] * (item.rgb - again)
    again = smooth(again)
    beyond = np.maximum(smoothed - spread(again, 1), -spread(-again, 1) - smoothed)
    np.maximum(beyond, 0, out=beyond)
    distance = np.sqrt(np.einsum("hwc,hwc->hw", beyond, beyond))
    tolerance = max(COLOR_TOLERANCE, 4.5 * SMOOTHED_NOISE * min(background.noise, LARGEST_NOISE))
    return float((distance > tolerance).mean())


def exact_match(a: Scene, b: Scene, tolerance: float = 0.015) -> bool:
    """Whether two scenes are the same: background, multiset of objects, every centre within ``tolerance`` of the side.

    Objects of one description are paired so that all pairs are within tolerance, if that is possible.
    """
    if a.background != b.background or len(a.objects) != len(b.objects):
        return False
    free = list(b.objects)

    def pair(index: int) -> bool:
        if index == len(a.objects):
            return True
        item = a.objects[index]
        for i, other in enumerate(free):
            same = (item.type, item.size) == (other.type, other.size)
            if same and math.hypot(item.x - other.x, item.y - other.y) <= tolerance:
                free.pop(i)
                if pair(index + 1):
                    return True
                free.insert(i, other)
        return False

    return pair(0)
