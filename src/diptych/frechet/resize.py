"""The two resizes that feature networks are fed by, on tensors, differentiable.

Inception of FID: bilinear as TensorFlow 1 did it, where output pixel i reads position ``i * in / out`` of the input, no
half-pixel shift and no antialiasing. All others: separable with the kernel widened when shrinking; on 8 bits it is
Pillow that does it.
"""

from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

AntialiasedFilter: TypeAlias = Literal["bilinear", "bicubic"]


def resize_bilinear_tf1(
    images: Float[Tensor, "batch channels height width"], size: tuple[int, int]
) -> Float[Tensor, "batch channels out_height out_width"]:
    """``tf.image.resize_bilinear(images, size, align_corners=False)`` of TensorFlow 1.

    Positions are computed in float32, as there: at some sizes they round to a neighbour of the exact quotient.
    """
    for axis in (2, 3):
        images = _interpolate_axis(images, axis, size[axis - 2])
    return images


def resize_antialiased(
    images: Shaped[Tensor, "batch 3 height width"], size: tuple[int, int], filter: AntialiasedFilter = "bicubic"
) -> Shaped[Tensor, "batch 3 out_height out_width"]:
    """Antialiased resize that gives the aspect ratio up.

    uint8 images stay uint8 and are resized by Pillow, whose passes over columns and rows are each rounded and clipped
    to 8 bits; which pass comes first depends on sizes and on Pillow's version (13.0 shrinks rows first where that is
    cheaper). Floats are left unclipped, as torch leaves them.

    Raises:
        ValueError: another filter.
    """
    if filter not in ("bilinear", "bicubic"):
        raise ValueError(f"antialiased resizing knows bilinear and bicubic, got {filter!r}.")
    if images.dtype != torch.uint8:
        return F.interpolate(images, size, mode=filter, antialias=True, align_corners=False)
    from PIL import Image  # the room can be used without it

    method = Image.Resampling[filter.upper()]
    rows = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    resized = [np.asarray(Image.fromarray(image).resize((size[1], size[0]), method)) for image in rows]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous().to(images.device)


def _interpolate_axis(images: Tensor, axis: int, length: int) -> Tensor:
    have = images.shape[axis]
    if have == length:
        return images
    scale = torch.tensor(have, dtype=torch.float32) / length
    positions = torch.arange(length, dtype=torch.float32) * scale
    low = positions.floor().long().clamp(max=have - 1)
    high = (low + 1).clamp(max=have - 1)
    shape = [1, 1, 1, 1]
    shape[axis] = length
    weight = (positions - low).reshape(shape).to(device=images.device, dtype=images.dtype)
    first = images.index_select(axis, low.to(images.device))
    return first + (images.index_select(axis, high.to(images.device)) - first) * weight
