"""Drawing: exact areas, one geometry for all resolutions, colours far apart."""

import math

import numpy as np
import pytest

from diptych.scenes.draw import (
    BACKGROUND_RGB,
    COLOR_RGB,
    RING_HOLE,
    coverage,
    draw,
    object_box,
    shape_extent,
)
from diptych.scenes.sample import sample_scene
from diptych.scenes.scene import BACKGROUNDS, COLORS, SHAPES, Scene, SceneObject, size_radius

AREAS = {  # of radius 1
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "diamond": 2 * 0.68,
    "star": 10 * 0.45 * math.sin(math.pi / 5) / 2,
    "cross": 4 * (math.sqrt(8) / 3) * (2 / 3) - (2 / 3) ** 2,
    "ring": math.pi * (1 - RING_HOLE**2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_covered_area_is_exact_at_any_sub_pixel_position(shape):
    rng = np.random.default_rng(0)
    areas = []
    for radius in (5.76, 11.5, 40.0):
        for x, y in rng.uniform(60, 61, (4, 2)):
            rows, cols, share = coverage(shape, x, y, radius, 121, 121)
            assert share.shape == (rows.stop - rows.start, cols.stop - cols.start)
            assert share.min() >= 0
            assert share.max() <= 1 + 1e-5
            areas.append(share.sum() / radius**2)
    assert np.ptp(areas) < 0.005 * np.mean(areas)
    if shape in AREAS:
        assert np.mean(areas) == pytest.approx(AREAS[shape], rel=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_bounding_circle_is_tight(shape):
    """Every shape stays inside the circle of its radius and reaches it on opposite sides."""
    size, radius = 801, 390.0
    rows, cols, share = coverage(shape, size / 2, size / 2, radius, size, size)
    inside = np.zeros((size, size), bool)
    inside[rows, cols] = share > 0.5
    y, x = np.nonzero(inside)
    distance = np.hypot(x + 0.5 - size / 2, y + 0.5 - size / 2)
    assert distance.max() <= radius + 1
    # No smaller circle holds the shape: points on the rim are not all within one half of it.
    angles = np.sort(np.arctan2(y - size / 2, x - size / 2)[distance > radius - 6])
    gaps = np.diff(np.concatenate([angles, angles[:1] + 2 * np.pi]))
    assert gaps.max() <= np.pi + 0.1


@pytest.mark.parametrize("side", [32, 64, 128])
def test_geometry_is_the_same_at_any_resolution(side):
    rng = np.random.default_rng(1)
    for _ in range(12):
        scene = sample_scene(rng)
        small = draw(scene, side).astype(float)
        averaged = draw(scene, side * 4).reshape(side, 4, side, 4, 3).astype(float).mean(axis=(1, 3))
        assert np.abs(small - averaged).max() < 12  # of 255: rounding, and strips that are coarser for small shapes
        assert np.abs(small - averaged).mean() < 0.15


def test_largest_resolution_agrees_with_the_smallest():
    scene = sample_scene(np.random.default_rng(2), num_objects=4)
    averaged = draw(scene, 1024).reshape(32, 32, 32, 32, 3).mean(axis=(1, 3))
    assert np.abs(draw(scene, 32) - averaged).max() < 12


def test_moving_by_whole_pixels_moves_the_picture():
    def picture(x):
        return draw(Scene((SceneObject("heart", "pink", "medium", x, 0.51),)), 64)

    np.testing.assert_array_equal(picture(0.4)[:, :-4], picture(0.4 + 4 / 64)[:, 4:])


def test_drawing_is_deterministic_and_changes_nothing():
    scene = sample_scene(np.random.default_rng(3), num_objects=5)
    np.testing.assert_array_equal(draw(scene), draw(scene))
    assert draw(scene).dtype == np.uint8
    assert draw(scene).shape == (64, 64, 3)


def test_centres_and_backgrounds_have_their_colours():
    for color in COLORS:
        for background in BACKGROUNDS:
            picture = draw(Scene((SceneObject("square", color, "small", 0.5, 0.25),), background), 64)
            assert tuple(picture[16, 32]) == COLOR_RGB[color]
            assert tuple(picture[48, 32]) == BACKGROUND_RGB[background]


def test_palette_is_far_apart():
    colors = np.array([*COLOR_RGB.values(), *BACKGROUND_RGB.values()], float)
    distances = np.linalg.norm(colors[:, None] - colors, axis=-1)[np.triu_indices(len(colors), 1)]
    assert tuple(COLOR_RGB) == COLORS
    assert tuple(BACKGROUND_RGB) == BACKGROUNDS
    assert distances.min() > 120


def test_other_aspect_ratios_keep_proportions():
    """Centres follow width and height, radii the shorter side."""
    scene = Scene((SceneObject("circle", "red", "large", 0.25, 0.5),), "white")
    picture = draw(scene, (64, 256))
    assert picture.shape == (64, 256, 3)
    y, x = np.nonzero(picture[..., 1] < 128)
    assert (x + 0.5).mean() == pytest.approx(64, abs=0.05)
    assert (y + 0.5).mean() == pytest.approx(32, abs=0.05)
    diameter = 2 * size_radius("large") * 64
    assert np.ptp(x) + 1 == pytest.approx(diameter, abs=1.5)
    assert np.ptp(y) + 1 == pytest.approx(diameter, abs=1.5)


def test_objects_beyond_the_edge_are_cut_off():
    scene = Scene((SceneObject("circle", "red", "large", 0.0, 0.5), SceneObject("circle", "red", "large", 3.0, 0.5)))
    picture = draw(scene, 64)
    assert tuple(picture[32, 0]) == COLOR_RGB["red"]
    assert (picture[:, 32:] == 255).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_tight(shape):
    item = SceneObject(shape, "blue", "large", 0.43, 0.57)
    picture = draw(Scene((item,), "white"), 512)
    y, x = np.nonzero(np.abs(picture.astype(int) - 255).sum(axis=2) > 60)
    found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / 512
    np.testing.assert_allclose(object_box(item), found, atol=1.5 / 512)
    left, top, right, bottom = shape_extent(shape)
    assert left == -right
    assert max(-top, bottom, right) <= 1 + 1e-6


@pytest.mark.parametrize("size", [0, -3, (0, 5)])
def test_empty_sizes_are_refused(size):
    with pytest.raises(ValueError, match="draw: size must be positive"):
        draw(Scene(()), size)
