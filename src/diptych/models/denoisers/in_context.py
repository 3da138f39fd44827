"""What image transformers with in-context conditioning share (JiT, arXiv 2511.13720; iMF and pMF, arXiv 2512.02012
and 2601.22158): condition tokens stand before the patches in one sequence, and every token attends to every other."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.attention import attend
from diptych.models.layers import RMSNorm, apply_rotary_interleaved, sinusoidal_embedding

FREQUENCIES = 256


class InContextAttention(nn.Module):
    """Self-attention; queries and keys are normalised per head, and those of the last tokens turned by their places."""

    def __init__(self, dim: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(dim, dim, bias=bias)
        self.value = nn.Linear(dim, dim, bias=bias)
        self.query_norm = RMSNorm(dim // num_heads)
        self.key_norm = RMSNorm(dim // num_heads)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        rotary: tuple[Float[Tensor, "turned half"], Float[Tensor, "turned half"]],
    ) -> Float[Tensor, "batch seq dim"]:
        """The rotary table has a row for each of the last tokens; those before them have no place."""
        query = rotate_last(self.query_norm(self._heads(self.query(x))), *rotary)
        key = rotate_last(self.key_norm(self._heads(self.key(x))), *rotary)
        return self.out(attend(query, key, self._heads(self.value(x)), None))

    def _heads(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch heads seq head_dim"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def rotate_last(
    x: Float[Tensor, "batch heads seq head_dim"],
    cos: Float[Tensor, "turned half"],
    sin: Float[Tensor, "turned half"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """`apply_rotary_interleaved` on the last tokens, as many as the table has rows."""
    first = x.shape[2] - len(cos)
    turned = apply_rotary_interleaved(x[:, :, first:], cos, sin)
    return torch.cat((x[:, :, :first], turned), dim=2) if first else turned


class ScalarEmbedding(nn.Module):
    """A number per image as a vector: 256 cosines and sines of it (in float32), then two layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(FREQUENCIES, dim)
        self.last = nn.Linear(dim, dim)

    def forward(self, value: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        return self.last(F.silu(self.first(sinusoidal_embedding(value, FREQUENCIES).to(self.first.weight.dtype))))


def check_image_transformer(dim: int, num_heads: int, image_size: int, patch_size: int) -> None:
    """Refuse sizes that do not divide.

    Raises:
        ValueError: heads whose width is no multiple of 4, or patches that do not fill the image.
    """
    if dim % (4 * num_heads):
        raise ValueError(
            f"denoiser.dim must be a multiple of 4 * num_heads (2-D rotary positions turn pairs on two axes): "
            f"got {dim} and {num_heads} heads."
        )
    if image_size % patch_size:
        raise ValueError(
            f"denoiser.image_size must be a multiple of denoiser.patch_size: got {image_size} and {patch_size}. "
            f"Use {image_size - image_size % patch_size} or {image_size - image_size % patch_size + patch_size}."
        )


def check_square(x_t: Float[Tensor, "batch channels height width"], image_size: int) -> None:
    """Refuse images of another size than the positions were made for.

    Raises:
        ValueError: the height or width is not ``image_size``.
    """
    if tuple(x_t.shape[-2:]) != (image_size, image_size):
        raise ValueError(
            f"this denoiser has learned positions for {image_size}x{image_size}, got {x_t.shape[-2]}x{x_t.shape[-1]}. "
            "Resize the images, or build the denoiser with their image_size."
        )
