import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from diptych.models.preprocess import (
    center_crop,
    native_size,
    padded_box,
    resize_pixels,
    resize_shortest_edge,
    to_float,
    to_uint8,
)

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(pixels, size, filter):
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), FILTERS[filter]))


@pytest.mark.parametrize("filter", list(FILTERS))
@pytest.mark.parametrize("size", [(20, 31), (80, 5)])
def test_stretch_is_pillow(filter, size):
    pixels = picture(37, 53)
    np.testing.assert_array_equal(resize_pixels(pixels, size, filter, "stretch"), by_pillow(pixels, size, filter))


def test_pad_keeps_the_whole_image_in_the_middle_of_white():
    pixels = picture(100, 400) // 2
    padded = resize_pixels(pixels, (64, 64), "bilinear", "pad")
    assert padded_box(100, 400, (64, 64)) == (24, 0, 16, 64)
    np.testing.assert_array_equal(padded[24:40], by_pillow(pixels, (16, 64), "bilinear"))
    assert (padded[:24] == 255).all() and (padded[40:] == 255).all()
    red = resize_pixels(pixels, (64, 64), "bilinear", "pad", fill=(255, 0, 0))
    assert (red[0, 0] == (255, 0, 0)).all()


def test_crop_fills_the_size_with_the_middle():
    pixels = picture(100, 400)
    cropped = resize_pixels(pixels, (50, 60), "bicubic", "crop")
    np.testing.assert_array_equal(cropped, by_pillow(pixels, (50, 200), "bicubic")[:, 70:130])


@pytest.mark.parametrize(
    ("shape", "bound", "multiple", "expected"),
    [
        ((100, 400), None, 1, (100, 400)),
        ((100, 400), None, 8, (104, 400)),
        ((100, 400), (200, 200), 10, (50, 200)),
        ((100, 400), (100, 100), 16, (32, 96)),
        ((3, 3), None, 8, (8, 8)),
        ((1, 4000), (64, 64), 8, (8, 64)),
    ],
)
def test_native_keeps_the_aspect_ratio_up_to_multiples(shape, bound, multiple, expected):
    assert native_size(*shape, bound, multiple) == expected
    assert resize_pixels(picture(*shape), bound, policy="native", multiple=multiple).shape[:2] == expected


def test_an_image_of_the_right_size_is_left_alone_by_every_policy():
    pixels = picture(24, 40)
    for policy in ("pad", "crop", "stretch", "native"):
        np.testing.assert_array_equal(resize_pixels(pixels, (24, 40), "bicubic", policy, multiple=8), pixels)


def test_extreme_shapes_do_not_vanish():
    for policy in ("pad", "crop", "stretch"):
        assert resize_pixels(picture(1, 4000), (64, 64), policy=policy).shape == (64, 64, 3)
        assert resize_pixels(picture(1, 1), (64, 32), policy=policy).shape == (64, 32, 3)


def test_shortest_edge_cuts_to_whole_pixels():
    assert resize_shortest_edge(picture(37, 53), 20).shape == (20, 28, 3)  # 28.65 is floored
    assert resize_shortest_edge(picture(53, 37), 20).shape == (28, 20, 3)


def test_center_crop_puts_black_around_what_is_too_small():
    cropped = center_crop(np.full((3, 10, 3), 9, dtype=np.uint8), (6, 4))
    assert cropped.shape == (6, 4, 3)
    assert cropped[:, 0, 0].tolist() == [0, 0, 9, 9, 9, 0]


def test_float_and_back_is_exact_for_all_levels():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack([levels, levels[::-1], levels.T], axis=-1)
    images = to_float(pixels)
    assert images.shape == (3, 16, 16) and images.min() == -1 and images.max() == 1
    np.testing.assert_array_equal(to_uint8(images, (-1, 1)), pixels)
    np.testing.assert_array_equal(to_uint8((images[None] + 1) / 2, (0, 1))[0], pixels)


def test_to_float_does_not_write_into_its_input():
    pixels = picture(4, 4)
    pixels.setflags(write=False)
    to_float(pixels).zero_()
    np.testing.assert_array_equal(pixels, picture(4, 4))


def test_to_uint8_refuses_values_outside_the_range():
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\] .* got values from -0.5 to 1. Clip them first"):
        to_uint8(torch.tensor([-0.5, 1.0, 0.0]).reshape(3, 1, 1), (0, 1))
    with pytest.raises(ValueError, match="nan"):
        to_uint8(torch.full((3, 1, 1), float("nan")), (-1, 1))
    assert to_uint8(torch.full((3, 1, 1), 1.0005), (-1, 1)).max() == 255


@pytest.fixture
def without_type_checks(monkeypatch):
    """As users run it: our own messages, not those of the type checker of the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_messages(without_type_checks):
    with pytest.raises(ValueError, match=r"uint8 array of shape \(height, width, 3\), got float32 of \(4, 4, 3\)"):
        resize_pixels(np.zeros((4, 4, 3), dtype=np.float32), (2, 2))
    with pytest.raises(ValueError, match=r"resize filter must be one of .*bicubic.*, got 'cubic'"):
        resize_pixels(picture(4, 4), (2, 2), filter="cubic")
    with pytest.raises(ValueError, match=r"resize policy must be one of pad, crop, native, stretch, got 'squash'"):
        resize_pixels(picture(4, 4), (2, 2), policy="squash")
    with pytest.raises(ValueError, match="'pad' needs a size"):
        resize_pixels(picture(4, 4), None)
    with pytest.raises(ValueError, match=r"positive multiples of 8, got 30x44. Use 32x48"):
        resize_pixels(picture(4, 4), (30, 44), multiple=8)
