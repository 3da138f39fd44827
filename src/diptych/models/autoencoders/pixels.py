"""Pixels as the generation space: nothing is encoded."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.models.part import part_kind


class PixelSpace(nn.Module):
    """Images themselves, optionally shifted and scaled towards unit standard deviation.

    Args:
        shift, scale: latents are ``(image - shift) / scale``; natural images in [-1, 1] have a std of about 0.5.
    """

    shift: Tensor
    scale: Tensor
    channels = 3
    stride = 1

    def __init__(self, *, shift: float | int = 0.0, scale: float | int = 1.0) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"pixels.scale must be positive, got {scale}.")
        self._config = {"shift": shift, "scale": scale}
        self.register_buffer("shift", torch.full((3, 1, 1), float(shift)))
        self.register_buffer("scale", torch.full((3, 1, 1), float(scale)))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The image's own shape."""
        return 3, height, width

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        return (images - self.shift) / self.scale

    def decode(self, latents: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Images, clipped to [-1, 1]."""
        return self.decode_unclipped(latents).clamp(-1, 1)

    def decode_unclipped(self, latents: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        return latents * self.scale + self.shift

    def config_dict(self) -> dict[str, Any]:
        return {"kind": part_kind(self), **self._config}
