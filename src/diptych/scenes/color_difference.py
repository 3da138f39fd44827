"""How different two pictures look, pixel by pixel: the CIE 1976 colour difference of sRGB pictures under D65.

A difference of 2.3 is just noticeable; black and white are 100 apart.
"""

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
"""Linear sRGB to XYZ (IEC 61966-2-1), rows X, Y, Z."""
_WHITE = _TO_XYZ.sum(axis=1)
_THRESHOLD = (6 / 29) ** 3


def to_lab(image: UInt8[ndarray, "height width 3"]) -> Float[ndarray, "height width 3"]:
    """CIE L*a*b* of an sRGB picture; L* is in [0, 100]."""
    encoded = image.astype(np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = linear @ _TO_XYZ.T / _WHITE
    bent = np.where(relative > _THRESHOLD, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(bent, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def color_difference(
    first: UInt8[ndarray, "height width 3"], second: UInt8[ndarray, "height width 3"]
) -> Float[ndarray, "height width"]:
    """Delta E of CIE 1976 at every pixel.

    Raises:
        ValueError: the pictures differ in size.
    """
    if first.shape != second.shape:
        raise ValueError(f"color_difference: pictures must have one size, got {first.shape} and {second.shape}.")
    return np.sqrt(((to_lab(first) - to_lab(second)) ** 2).sum(axis=-1))
