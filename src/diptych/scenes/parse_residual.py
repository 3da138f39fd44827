"""What a reading leaves unexplained: the scene found is drawn again and compared with the picture."""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from diptych.scenes.parse_fit import draw_templates
from diptych.scenes.parse_objects import Candidate
from diptych.scenes.parse_segment import Background, smooth, spread
from diptych.scenes.scene import SHAPES

COLOR_TOLERANCE = 30.0
"""RGB distance from the scene drawn again up to which a smoothed pixel counts as explained."""

LARGEST_NOISE = 30.0
"""Standard deviation of a channel up to which noise is forgiven; at twice that nothing can be believed."""

SMOOTHED_NOISE = 0.375
"""What ``smooth`` leaves of the standard deviation of white noise."""

_LARGEST_BLUR = 2.0


def compare_with_drawing(
    smoothed: Float[ndarray, "height width 3"], background: Background, shown: list[Candidate]
) -> tuple[Bool[ndarray, "height width"], Bool[ndarray, "height width"]]:
    """Draw the scene again with the colours, radii and blur that were measured, and compare.

    How far those are from the palette and the size classes is a matter of scores, not of this comparison.

    Returns:
        The unexplained pixels: their colour does not occur within a pixel of the same place. A channel may have any
        value between the smallest and the largest one around it, which forgives edges that are off by a pixel, and
        beyond that what noise explains. And the pixels that lie inside an object.
    """
    again, covered = _draw_again(smoothed.shape[0], smoothed.shape[1], background, shown)
    again = smooth(again)
    tolerance = max(COLOR_TOLERANCE, 4.5 * SMOOTHED_NOISE * min(background.noise, LARGEST_NOISE))
    differs = _length(smoothed - again) > tolerance
    if differs.any():
        beyond = np.maximum(smoothed - spread(again, 1), -spread(-again, 1) - smoothed)
        differs = _length(np.maximum(beyond, 0, out=beyond)) > tolerance
    return differs, covered


def _length(vectors: ndarray) -> ndarray:
    return np.sqrt(np.einsum("hwc,hwc->hw", vectors, vectors))


def _draw_again(
    height: int, width: int, background: Background, shown: list[Candidate]
) -> tuple[Float[ndarray, "height width 3"], Bool[ndarray, "height width"]]:
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = background.rgb
    if not shown:
        return picture, np.zeros((height, width), bool)
    shapes = np.array([SHAPES.index(item.fit.shape) for item in shown])
    parameters = [
        (item.center_x, item.center_y, item.fit.radius_x, item.fit.radius_y, min(item.fit.blur, _LARGEST_BLUR))
        for item in shown
    ]
    templates = draw_templates(shapes, np.array(parameters), height, width)
    for item, share in zip(shown, templates, strict=True):
        picture += share[:, :, None] * (item.rgb - picture)
    return picture, templates.max(axis=0) > 0.5
