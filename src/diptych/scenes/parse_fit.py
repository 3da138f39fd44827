"""Fits the outlines of ``draw`` to a region: which shape, where, how large, how blurred.

Templates are drawn as in ``draw`` (strips, vertical overlap x horizontal overlap) with both overlaps blurred by a box
of half-width ``blur``; the blur of a picture is separable, so this is exact for a box and close for a Gaussian.
All lengths are working pixels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from diptych.scenes.draw import strips
from diptych.scenes.scene import SHAPES

SQUEEZE_PENALTY = 0.3
"""What a squared logarithm of the aspect ratio adds to the mismatch: forgiving to a drawing that is a bit too wide."""

_STRIPS = 28
_SMALLEST_RADIUS, _LARGEST_RADIUS = 3.5, 16.0
_SMALLEST_BLUR, _LARGEST_BLUR = 0.05, 4.0
_START_BLUR = 0.8
_LARGEST_STRETCH = 1.3
_CANDIDATES = 3
_ITERATIONS = 4
_HOPELESS_FACTOR, _HOPELESS_MARGIN = 3.0, 0.05  # a candidate whose mismatch is beyond this line is dropped
_SETTLED = 0.05


def _template_tables() -> tuple[Float[ndarray, "shapes edges"], Float[ndarray, "shapes strips spans 2"]]:
    tables = [strips(shape, _STRIPS) for shape in SHAPES]
    most = max(len(vertical) for vertical, _ in tables)
    edges = np.zeros((len(SHAPES), most + 1), np.float32)
    spans = np.zeros((len(SHAPES), most, 2, 2), np.float32)
    for i, (vertical, horizontal) in enumerate(tables):
        count = len(vertical)
        edges[i, :count] = vertical[:, 0]
        edges[i, count:] = vertical[-1, 1]  # strips without height fill the table
        spans[i, :count, : horizontal.shape[1]] = horizontal
    return edges, spans


_EDGES, _SPANS = _template_tables()
_ENDS = _SPANS.reshape(*_SPANS.shape[:2], 4)


def _shape_moments() -> Float[ndarray, "4 shapes"]:
    """Area, height of the centre of mass, and variance across and down, of each shape of radius 1.

    All shapes are symmetric left to right.
    """
    thickness = np.diff(_EDGES, axis=1)
    middle = (_EDGES[:, 1:] + _EDGES[:, :-1]) / 2
    pieces = thickness * (_SPANS[..., 1] - _SPANS[..., 0]).sum(-1)
    area = pieces.sum(1)
    height = (pieces * middle).sum(1) / area
    across = (thickness * (_SPANS[..., 1] ** 3 - _SPANS[..., 0] ** 3).sum(-1)).sum(1) / 3 / area
    down = (pieces * (middle**2 + thickness**2 / 12)).sum(1) / area - height**2
    return np.stack([area, height, across, down])


_AREAS, _MASS_HEIGHTS, _VARIANCES_X, _VARIANCES_Y = _shape_moments()


def _ramps(position: ndarray, half: ndarray, cells: int) -> tuple[ndarray, ndarray]:
    """How much of the half line from each cell edge on lies before a position, blurred by a box of width 2 ``half``.

    ``position`` [*points] and ``half`` [*ones] give two arrays [*points, cells + 1].

    Returns:
        The blurred ramp G(u) of u = position - edge, and its slope s: G = half * s**2 + max(u - half, 0), where s rises
        from 0 to 1 between -half and half. Also dG/dhalf = s (1 - s), which makes the derivatives of a template cheap.
    """
    offset = position[..., None] - np.arange(cells + 1, dtype=np.float32)
    half = half[..., None]
    slope = offset + half
    slope /= 2 * half
    np.maximum(slope, 0, out=slope)
    np.minimum(slope, 1, out=slope)
    offset -= half
    np.maximum(offset, 0, out=offset)
    offset += half * slope * slope
    return offset, slope


def _cells(ramp: ndarray) -> ndarray:
    return ramp[..., :-1] - ramp[..., 1:]


def _down_strips(ramps: ndarray) -> ndarray:
    """[templates, edges, cells] -> [templates, cells, strips]."""
    return (ramps[:, 1:] - ramps[:, :-1]).transpose(0, 2, 1)


def _across_spans(ends: ndarray) -> ndarray:
    """Sum over the two spans (left, right, left, right) of a strip: [templates, strips, 4, cells] -> without the 4."""
    result = ends[:, :, 1] - ends[:, :, 0]
    result += ends[:, :, 3]
    result -= ends[:, :, 2]
    return result


def draw_templates(
    shapes: Int[ndarray, " templates"], parameters: Float[ndarray, "templates 5"], height: int, width: int
) -> Float[ndarray, "templates height width"]:
    """Coverage of shapes (indices into ``SHAPES``) with parameters (centre x, y, radius across, down, blur)."""
    center_x, center_y, radius_x, radius_y, blur = parameters.astype(np.float32).T[..., None]
    rows, _ = _ramps(_EDGES[shapes] * radius_y + center_y, blur, height)
    cols, _ = _ramps(_ENDS[shapes] * radius_x[..., None] + center_x[..., None], blur[..., None], width)
    return _down_strips(_cells(rows)) @ _across_spans(_cells(cols))


def _templates_and_slopes(shapes: ndarray, parameters: ndarray, height: int, width: int) -> ndarray:
    """``draw_templates`` and its derivatives by the five parameters: [6, templates, height, width]."""
    center_x, center_y, radius_x, radius_y, blur = parameters.astype(np.float32).T[..., None]
    edges, ends = _EDGES[shapes], _ENDS[shapes]
    ramp, slope = _ramps(edges * radius_y + center_y, blur, height)
    steps = [ramp, slope, edges[..., None] * slope, slope * (1 - slope)]
    row, row_y, row_r, row_b = (_down_strips(_cells(step)) for step in steps)
    ramp, slope = _ramps(ends * radius_x[..., None] + center_x[..., None], blur[..., None], width)
    steps = [ramp, slope, ends[..., None] * slope, slope * (1 - slope)]
    col, col_x, col_r, col_b = (_across_spans(_cells(step)) for step in steps)
    return np.stack([row @ col, row @ col_x, row_y @ col, row @ col_r, row_r @ col, row_b @ col + row @ col_b])


@dataclass(frozen=True)
class Fit:
    """The best outline for a region."""

    shape: str
    center_x: float
    center_y: float
    radius_x: float
    radius_y: float
    blur: float
    mismatch: float
    """Unexplained energy as a share of the area of the shape, noise taken off, plus a penalty for a shape that had to
    be squeezed; 0 is perfect."""
    template: Float[ndarray, "height width"]


def fit_shape(
    level: Float[ndarray, "height width"],
    weight: Bool[ndarray, "height width"],
    near: Bool[ndarray, "height width"],
    noise: float,
) -> Fit | None:
    """Find the shape whose coverage explains ``level`` (about 0 outside, 1 inside) where ``weight`` is set.

    Moments give a start for every shape; the best few are refined by Gauss-Newton over centre, radii and blur, with
    amplitude and offset solved for along the way.

    Args:
        near: the region and its rim, from which the moments are taken.
        noise: standard deviation of ``level``.
    """
    parameters = _starts(np.where(near, level, 0))
    if parameters is None:
        return None
    height, width = level.shape
    weights = weight.reshape(-1).astype(np.float32)
    values = level.reshape(-1)
    shapes = np.arange(len(SHAPES))
    errors = _mismatches(draw_templates(shapes, parameters, height, width), values, weights, noise)
    kept = np.argsort(errors, kind="stable")[:_CANDIDATES]
    for _ in range(_ITERATIONS):
        shapes, parameters = shapes[kept], parameters[kept]
        slopes = _templates_and_slopes(shapes, parameters, height, width)
        if len(shapes) > 1:
            errors = _mismatches(slopes[0], values, weights, noise)
            kept = np.flatnonzero(errors <= _HOPELESS_FACTOR * errors.min() + _HOPELESS_MARGIN)
            shapes, parameters, slopes = shapes[kept], parameters[kept], slopes[:, kept]
        moved = _gauss_newton_step(slopes, parameters, values, weights)
        is_settled = len(shapes) == 1 and float(np.abs(moved - parameters)[:, :4].max()) < _SETTLED
        parameters, kept = moved, np.arange(len(shapes))
        if is_settled:
            break
    templates = draw_templates(shapes, parameters, height, width)
    squeezed = np.abs(np.log(parameters[:, 2] / parameters[:, 3]))
    errors = _mismatches(templates, values, weights, noise) + SQUEEZE_PENALTY * np.maximum(squeezed - 0.05, 0) ** 2
    best = int(errors.argmin())
    center_x, center_y, radius_x, radius_y, blur = parameters[best].tolist()
    return Fit(
        shape=SHAPES[int(shapes[best])],
        center_x=center_x,
        center_y=center_y,
        radius_x=radius_x,
        radius_y=radius_y,
        blur=blur,
        mismatch=float(errors[best]),
        template=templates[best],
    )


def _starts(level: Float[ndarray, "height width"]) -> Float[ndarray, "shapes 5"] | None:
    """Parameters for every shape from the moments of ``level``; None where nothing is."""
    height, width = level.shape
    area = float(level.sum())
    if area < _AREAS.min() * _SMALLEST_RADIUS**2 / 2:
        return None
    across, down = np.arange(width) + 0.5, np.arange(height) + 0.5
    by_column, by_row = level.sum(0), level.sum(1)
    mass_x, mass_y = float(by_column @ across) / area, float(by_row @ down) / area
    variance_x = float(by_column @ (across - mass_x) ** 2) / area - _START_BLUR**2 / 3
    variance_y = float(by_row @ (down - mass_y) ** 2) / area - _START_BLUR**2 / 3
    # The variances give the radii: unlike the area they do not depend on the unit of ``level``.
    radius = np.sqrt(max(variance_x + variance_y, 1.0) / (_VARIANCES_X + _VARIANCES_Y))
    stretch = np.sqrt(max(variance_x, 0.5) / max(variance_y, 0.5) * _VARIANCES_Y / _VARIANCES_X)
    stretch = np.sqrt(np.clip(stretch, 1 / _LARGEST_STRETCH, _LARGEST_STRETCH))
    radius_x = np.clip(radius * stretch, _SMALLEST_RADIUS, _LARGEST_RADIUS)
    radius_y = np.clip(radius / stretch, _SMALLEST_RADIUS, _LARGEST_RADIUS)
    center_x = np.full_like(radius, mass_x)
    center_y = mass_y - _MASS_HEIGHTS * radius_y
    return np.stack([center_x, center_y, radius_x, radius_y, np.full_like(radius, _START_BLUR)], axis=1)


def _mismatches(
    templates: ndarray,
    values: ndarray,
    weights: ndarray,
    noise: float,
) -> ndarray:
    """Squared error left after the best amplitude and offset, less what noise explains, over the template's energy."""
    flat = templates.reshape(len(templates), -1) * weights
    target = values * weights
    count = float(weights.sum())
    total = float(target.sum())
    covered = flat.sum(1)
    energy = np.maximum(np.einsum("tp,tp->t", flat, flat) - covered**2 / count, 1e-6)
    amplitude = (flat @ target - covered * (total / count)) / energy
    left = np.maximum(float(target @ target) - total**2 / count - amplitude**2 * energy - noise**2 * count, 0)
    return np.where(amplitude > 0.05, left / np.maximum(amplitude, 0.05) ** 2 / np.maximum(covered, 1.0), np.inf)


_LONGEST_STEP = np.array([1.0, 1.0, 1.0, 1.0, 0.7])


def _gauss_newton_step(
    slopes: ndarray,
    parameters: ndarray,
    values: ndarray,
    weights: ndarray,
) -> ndarray:
    """Solve for amplitude, offset and a step of the parameters together, as the template is linear in the former."""
    count, height, width = slopes.shape[1:]
    pictures = slopes.reshape(6, count, -1) * weights
    basis = np.empty((count, 7, len(weights)), np.float32)
    basis[:, 0] = pictures[0]
    basis[:, 1] = weights
    basis[:, 2:] = pictures[1:].transpose(1, 0, 2)
    normal = (basis @ basis.transpose(0, 2, 1)).astype(np.float64)
    diagonal = np.einsum("kii->ki", normal)
    diagonal += 1e-3 + 1e-3 * diagonal
    solution = np.linalg.solve(normal, (basis @ (values * weights))[..., None])[..., 0]
    step = solution[:, 2:] / np.maximum(solution[:, :1], 0.1)
    moved = parameters + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
    lowest = (0, 0, _SMALLEST_RADIUS, _SMALLEST_RADIUS, _SMALLEST_BLUR)
    return np.clip(moved, lowest, (width, height, _LARGEST_RADIUS, _LARGEST_RADIUS, _LARGEST_BLUR))
