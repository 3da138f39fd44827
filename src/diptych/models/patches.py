"""Folding images or latents into one token per patch, and back: the only place where the order is decided."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def patchify(
    images: Float[Tensor, "batch channels height width"], patch_size: int
) -> Float[Tensor, "batch patches patch_dim"]:
    """Square patches in row-major order; inside a patch, values are ordered (row, column, channel) as in MAE and DiT.

    Raises:
        ValueError: a side is no multiple of ``patch_size``.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"patches of {patch_size} do not tile an image of {height}x{width}: use multiples of it.")
    return rearrange(
        images,
        "batch channels (rows y) (cols x) -> batch (rows cols) (y x channels)",
        y=patch_size,
        x=patch_size,
    )


def unpatchify(
    patches: Float[Tensor, "batch patches patch_dim"], rows: int, cols: int, patch_size: int
) -> Float[Tensor, "batch channels height width"]:
    """The inverse of ``patchify`` for a grid of ``rows x cols`` patches.

    Raises:
        ValueError: the number of patches is not ``rows * cols``.
    """
    if patches.shape[1] != rows * cols:
        raise ValueError(f"a grid of {rows}x{cols} needs {rows * cols} patches, got {patches.shape[1]}.")
    return rearrange(
        patches,
        "batch (rows cols) (y x channels) -> batch channels (rows y) (cols x)",
        rows=rows,
        y=patch_size,
        x=patch_size,
    )
