"""Reads a scene back from a picture: by program, without learned weights.

Background from the frame; whatever stands out from it falls into components; each component is explained by the outline
and colour that fit best; the scene found is drawn again and compared with the picture. A picture that is no scene (a
photograph, noise) leaves much of its area unexplained and gets a low confidence.
"""

import math
from dataclasses import dataclass

import numpy as np

from diptych.scenes.draw import BACKGROUND_RGB, shape_extent
from diptych.scenes.parse_image import Picture, working_picture
from diptych.scenes.parse_objects import Candidate, read_leftovers, read_objects, without_duplicates
from diptych.scenes.parse_residual import LARGEST_NOISE, compare_with_drawing
from diptych.scenes.parse_segment import (
    Background,
    find_components,
    foreground,
    label_components,
    measure_background,
    smooth,
)
from diptych.scenes.scene import Scene, SceneObject

MIN_SCORE = 0.3
"""Detections below this are not part of the scene; it is also the threshold of GenEval."""

LARGEST_UNEXPLAINED = 0.2
"""With this share of the area unexplained (a large object covers a tenth) the confidence has fallen to zero."""

EMPTY_CONFIDENCE = 0.25
"""Most that a picture without objects can get: nothing but the colour of its background speaks for the reading."""

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
    candidates = without_duplicates(read_objects(picture, smoothed, labels, find_components(labels, count), background))
    unexplained, covered = compare_with_drawing(smoothed, background, _shown(candidates))
    hidden = read_leftovers(picture, smoothed, labels, unexplained & ~covered, background)
    if hidden:
        candidates = without_duplicates([*candidates, *hidden])
        unexplained, _ = compare_with_drawing(smoothed, background, _shown(candidates))
    return _result(picture.shape[0], picture.shape[1], background, candidates, float(unexplained.mean()))


def _shown(candidates: list[Candidate]) -> list[Candidate]:
    return [item for item in candidates if item.score >= MIN_SCORE]


def _result(
    height: int, width: int, background: Background, candidates: list[Candidate], unexplained: float
) -> ParseResult:
    """Assemble what is reported. Candidates come best first."""
    distances = np.sqrt(((_BACKGROUNDS - background.rgb) ** 2).sum(axis=1))
    nearest = int(distances.argmin())
    background_score = min(max(1.5 - float(distances[nearest]) / 40, 0.0), 1.0)
    noise_score = min(max(2 - background.noise / LARGEST_NOISE, 0.0), 1.0)
    shown = sorted(_shown(candidates), key=lambda item: (item.center_y, item.center_x))
    objects = tuple(
        SceneObject(item.fit.shape, item.color, item.size, item.center_x / width, item.center_y / height)
        for item in shown
    )
    scores = tuple(item.score for item in shown)
    explained = max(1 - unexplained / LARGEST_UNEXPLAINED, 0.0)
    confidence = background_score * noise_score * min(scores, default=EMPTY_CONFIDENCE) * explained
    return ParseResult(
        Scene(objects, _BACKGROUND_NAMES[nearest]),
        confidence,
        unexplained,
        scores,
        tuple(_detection(item, height, width) for item in candidates),
    )


def _detection(item: Candidate, height: int, width: int) -> Detection:
    left, top, right, bottom = shape_extent(item.fit.shape)
    box = (
        (item.center_x + left * item.fit.radius_x) / width,
        (item.center_y + top * item.fit.radius_y) / height,
        (item.center_x + right * item.fit.radius_x) / width,
        (item.center_y + bottom * item.fit.radius_y) / height,
    )
    return Detection(item.fit.shape, item.color, item.size, item.score, box)


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
