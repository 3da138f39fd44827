"""Folding images or latents into tokens and back."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def patchify(
    images: Float[Tensor, "batch channels height width"], patch_size: int
) -> Float[Tensor, "batch patches patch_dim"]:
    """Cut into squares, row by row; inside a patch channels come first, as in the weight of a patch convolution.

    Raises:
        ValueError: height or width is no multiple of ``patch_size``.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"height and width must be multiples of patch_size: got {height}x{width} and {patch_size}. "
            f"Use {height - height % patch_size}x{width - width % patch_size}."
        )
    return rearrange(images, "b c (rows p) (cols q) -> b (rows cols) (c p q)", p=patch_size, q=patch_size)


def unpatchify(
    patches: Float[Tensor, "batch patches patch_dim"], patch_size: int, grid: tuple[int, int]
) -> Float[Tensor, "batch channels height width"]:
    """The inverse of `patchify`; ``grid`` is (rows, columns) of patches."""
    rows, cols = grid
    return rearrange(
        patches,
        "b (rows cols) (c p q) -> b c (rows p) (cols q)",
        rows=rows,
        cols=cols,
        p=patch_size,
        q=patch_size,
    )
