"""From uint8 pixels to what networks take, and back. Pillow does the resizing; torchvision is not needed."""

import math
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels: TypeAlias = NDArray[np.uint8]
"""uint8 RGB, shape ``height width 3``."""

Filter: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

ResizePolicy: TypeAlias = Literal["pad", "crop", "native", "stretch"]
"""What happens to an image whose aspect ratio is not the wanted one.

``pad``: the whole image is kept and centred on a plain ground. ``crop``: the middle is kept and the size is filled.
``stretch``: the aspect ratio is given up. ``native``: the aspect ratio is kept and the size gives way; a given size is
an upper bound, and images are never enlarged.
"""

_PILLOW_FILTERS: dict[str, Image.Resampling] = {name: Image.Resampling[name.upper()] for name in get_args(Filter)}


def resize_pixels(
    pixels: Pixels,
    size: tuple[int, int] | None,
    filter: Filter = "bicubic",
    policy: ResizePolicy = "pad",
    multiple: int = 1,
    fill: tuple[int, int, int] = (255, 255, 255),
) -> Pixels:
    """Resizes an image to ``size`` (height, width) by the given policy.

    Args:
        size: ``None`` only with the policy ``native``: as large as the image is.
        multiple: with ``native``, both sides are rounded to the nearest multiple of it, at least one multiple; every
            other policy takes ``size`` as it is and refuses one that is no multiple.
        fill: colour of the ground of ``pad``; white is also what transparency is composited on.

    Raises:
        ValueError: ``pixels`` is no uint8 RGB image, ``size`` is missing or no multiple, or a name is not known.
    """
    _check_pixels(pixels)
    if filter not in _PILLOW_FILTERS:
        raise ValueError(f"resize filter must be one of {', '.join(_PILLOW_FILTERS)}, got {filter!r}.")
    if policy not in get_args(ResizePolicy):
        raise ValueError(f"resize policy must be one of {', '.join(get_args(ResizePolicy))}, got {policy!r}.")
    height, width = pixels.shape[:2]
    if policy == "native":
        return _pillow_resize(pixels, native_size(height, width, size, multiple), filter)
    if size is None:
        raise ValueError(f"resize policy {policy!r} needs a size (height, width); only 'native' can do without one.")
    if size[0] < 1 or size[1] < 1 or size[0] % multiple or size[1] % multiple:
        raise ValueError(
            f"the size to resize to must be positive multiples of {multiple}, got {size[0]}x{size[1]}. "
            f"Use {_nearest_multiple(size[0], multiple)}x{_nearest_multiple(size[1], multiple)}."
        )
    if policy == "stretch":
        return _pillow_resize(pixels, size, filter)
    if policy == "pad":
        top, left, inner_height, inner_width = padded_box(height, width, size)
        canvas = np.empty((*size, 3), dtype=np.uint8)
        canvas[:] = fill
        canvas[top : top + inner_height, left : left + inner_width] = _pillow_resize(
            pixels, (inner_height, inner_width), filter
        )
        return canvas
    factor = max(size[0] / height, size[1] / width)
    outer = max(size[0], round(height * factor)), max(size[1], round(width * factor))
    return center_crop(_pillow_resize(pixels, outer, filter), size)


def padded_box(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where the policy ``pad`` puts an image within ``size``: (top, left, height, width)."""
    factor = min(size[0] / height, size[1] / width)
    inner_height = min(size[0], max(1, round(height * factor)))
    inner_width = min(size[1], max(1, round(width * factor)))
    return (size[0] - inner_height) // 2, (size[1] - inner_width) // 2, inner_height, inner_width


def native_size(height: int, width: int, bound: tuple[int, int] | None, multiple: int) -> tuple[int, int]:
    """The size that the policy ``native`` gives: inside ``bound``, aspect ratio kept up to rounding to ``multiple``."""
    factor = 1.0 if bound is None else min(1.0, bound[0] / height, bound[1] / width)
    sides = [_nearest_multiple(height * factor, multiple), _nearest_multiple(width * factor, multiple)]
    if bound is not None:
        sides = [
            min(side, max(multiple, limit // multiple * multiple)) for side, limit in zip(sides, bound, strict=True)
        ]
    return sides[0], sides[1]


def size_within_pixel_budget(
    height: int, width: int, multiple: int, least_pixels: int, most_pixels: int
) -> tuple[int, int]:
    """Sides that are multiples of ``multiple``, with between ``least_pixels`` and ``most_pixels`` pixels in all and the
    aspect ratio kept as closely as that allows: the rule of Qwen2-VL (arXiv 2409.12191, section 2.1).

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"an image of {height}x{width} is too long: one side may be at most 200 times the other. Cut it up."
        )
    sides = [round(side / multiple) * multiple for side in (height, width)]
    if sides[0] * sides[1] > most_pixels:
        factor = math.sqrt(height * width / most_pixels)
        sides = [max(multiple, math.floor(side / factor / multiple) * multiple) for side in (height, width)]
    elif sides[0] * sides[1] < least_pixels:
        factor = math.sqrt(least_pixels / (height * width))
        sides = [math.ceil(side * factor / multiple) * multiple for side in (height, width)]
    return sides[0], sides[1]


def resize_shortest_edge(pixels: Pixels, shortest_edge: int, filter: Filter = "bicubic") -> Pixels:
    """Scales so that the shorter side is ``shortest_edge``; the longer one is cut down to whole pixels.

    Flooring, not rounding, is the rule of the image processors of transformers.
    """
    _check_pixels(pixels)
    height, width = pixels.shape[:2]
    if height <= width:
        size = shortest_edge, int(shortest_edge * width / height)
    else:
        size = int(shortest_edge * height / width), shortest_edge
    return _pillow_resize(pixels, size, filter)


def center_crop(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The middle of an image; where the image is smaller than ``size``, black is put around it."""
    height, width = pixels.shape[:2]
    pad_height, pad_width = max(0, size[0] - height), max(0, size[1] - width)
    if pad_height or pad_width:
        # ceil before, as the processors of transformers do
        before = (pad_height + 1) // 2, (pad_width + 1) // 2
        pads = ((before[0], pad_height - before[0]), (before[1], pad_width - before[1]), (0, 0))
        pixels = np.pad(pixels, pads)
        height, width = pixels.shape[:2]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return np.ascontiguousarray(pixels[top : top + size[0], left : left + size[1]])


def to_float(pixels: Pixels) -> Float[Tensor, "3 height width"]:
    """uint8 ``height width 3`` as float32 in [-1, 1], channels first."""
    _check_pixels(pixels)
    # a copy: the array may be read-only, and torch tensors never are
    channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(channels_first).div_(127.5).sub_(1)


def to_uint8(
    images: Float[Tensor, "*batch 3 height width"],
    value_range: tuple[float | int, float | int],
    tolerance: float = 1e-3,
) -> NDArray[np.uint8]:
    """Channels-first float images as uint8 ``*batch height width 3``, rounded to the nearest level.

    Args:
        value_range: the values that become 0 and 255, e.g. ``(-1, 1)``.
        tolerance: how far outside the range a value may lie, in parts of the range; such values are clipped.

    Raises:
        ValueError: a value is not finite or lies outside the range by more than the tolerance.
    """
    low, high = value_range
    values = images.detach().float().cpu()
    smallest, largest = (values.min().item(), values.max().item()) if values.numel() else (low, low)
    slack = tolerance * (high - low)
    if not (smallest >= low - slack and largest <= high + slack):
        raise ValueError(
            f"images must lie in [{low:g}, {high:g}] to be written as uint8, got values from {smallest:.4g} to "
            f"{largest:.4g}. Clip them first, or state their real value_range."
        )
    levels = ((values - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().numpy()


def _pillow_resize(pixels: Pixels, size: tuple[int, int], filter: str) -> Pixels:
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), _PILLOW_FILTERS[filter]))


def _nearest_multiple(side: float, multiple: int) -> int:
    return max(1, int(side / multiple + 0.5)) * multiple


def _check_pixels(pixels: Pixels) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(
            f"pixels must be a uint8 array of shape (height, width, 3), got {pixels.dtype} of {pixels.shape}. "
            "diptych.data.example.load_pixels makes one from any image."
        )
