"""Brings any picture to the working resolution of the parser, where all its constants (in pixels) are chosen."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

Picture: TypeAlias = ndarray | Image.Image
"""A Pillow image of any mode, or an array [height, width] or [height, width, 1..4] of uint8, uint16 or bool."""

WORKING_SIDE = 64
"""Length of the shorter side in working pixels; smaller pictures are enlarged, larger ones averaged down."""

LONGEST_SIDE = 256
"""Bounds the work for elongated pictures."""

_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def working_picture(image: Picture) -> Float[ndarray, "height width 3"] | None:
    """RGB in [0, 255] as float32, the shorter side ``WORKING_SIDE`` long; None for a picture without pixels.

    Transparent parts show white. Sixteen-bit values are divided by 257.

    Raises:
        TypeError: neither a Pillow image nor an array of uint8, uint16 or bool with 2 or 3 axes and 1 to 4 channels.
    """
    picture = image if isinstance(image, Image.Image) else _from_array(image)
    if picture is None or picture.width == 0 or picture.height == 0:
        return None
    short, long = sorted(picture.size)
    scale = min(WORKING_SIDE / short, LONGEST_SIDE / long)
    target = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    # What is read is bounded before anything is converted: a large photograph costs one pass over its own pixels.
    rgb = _to_rgb(picture)
    if rgb.size != target:
        # Whole factors are averaged exactly. Else a filter without steps; enlarging must not ring.
        whole = rgb.width % target[0] == 0 and rgb.height % target[1] == 0
        shrink = Image.Resampling.BOX if whole else Image.Resampling.HAMMING
        rgb = rgb.resize(target, shrink if scale < 1 else Image.Resampling.BILINEAR)
    return np.asarray(rgb, np.float32)


def _from_array(image: ndarray) -> Image.Image | None:
    problem = None
    if not isinstance(image, ndarray):
        problem = f"a {type(image).__name__}"
    elif image.ndim not in (2, 3) or (image.ndim == 3 and not 1 <= image.shape[2] <= 4):
        problem = f"an array of shape {image.shape}"
    elif image.dtype not in (np.uint8, np.uint16, np.bool_):
        problem = f"an array of {image.dtype}"
    if problem is not None:
        raise TypeError(
            "parse: image must be a Pillow image or an array [height, width] or [height, width, 1..4] of uint8, uint16 "
            f"or bool, got {problem}. Floats in [-1, 1] become uint8 by ((x + 1) * 127.5).round()."
        )
    if image.size == 0:
        return None
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    elif image.dtype == np.uint16:
        image = (image // 257).astype(np.uint8)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(image))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode in _WIDE_MODES:
        values = np.nan_to_num(np.asarray(picture, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        if picture.mode != "F" and values.max() > 255:
            values = values / np.float32(257)
        picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if picture.mode == "La":  # premultiplied: Pillow turns it into nothing else
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
