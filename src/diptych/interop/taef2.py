"""TAEF2: the tiny autoencoder of FLUX.2's latent space (madebyollin/taesd), as a generation space.

32 channels, one latent to 8 x 8 pixels. The files hold an encoder and a decoder whose tensor names are the indices of a
sequential network; they take and give RGB in [0, 1], which is turned to [-1, 1] here. The latents are used as they are
(mean 0.02, std 0.75 to 0.85 on photographs and drawings), or scaled further by ``set_measured_scale``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.interop.weight_files import load_exactly, read_weights
from diptych.models.autoencoders.protocol import grid_shape
from diptych.models.part import part_kind

_WIDTH = 64


class _Block(nn.Module):
    """Three convolutions around a residual; some blocks first add a 1 x 1 detour through 4 normalised groups."""

    def __init__(self, has_pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(_WIDTH, _WIDTH), nn.ReLU(), _conv(_WIDTH, _WIDTH), nn.ReLU(), _conv(_WIDTH, _WIDTH)
        )
        self.pool = (
            nn.Sequential(
                nn.Conv2d(_WIDTH, 4 * _WIDTH, 1, bias=False),
                nn.GroupNorm(4, 4 * _WIDTH),
                nn.ReLU(),
                nn.Conv2d(4 * _WIDTH, _WIDTH, 1, bias=False),
            )
            if has_pool
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _conv(channels_in: int, channels_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=bias)


def _make_encoder(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, _WIDTH), _Block()]
    for stage in range(3):
        layers.append(_conv(_WIDTH, _WIDTH, stride=2, bias=False))
        layers += [_Block(has_pool=stage == 2) for _ in range(3)]
    return nn.Sequential(*layers, _conv(_WIDTH, channels))


def _make_decoder(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _conv(channels, _WIDTH), nn.ReLU()]
    for stage in range(3):
        layers += [_Block(has_pool=stage == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), _conv(_WIDTH, _WIDTH, bias=False)]
    return nn.Sequential(*layers, _Block(), _conv(_WIDTH, 3))


class Taef2(nn.Module):
    """The network; ``load_taef2`` fills it."""

    shift: Tensor
    scale: Tensor
    channels = 32
    stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _make_encoder(self.channels)
        self.decoder = _make_decoder(self.channels)
        self.register_buffer("shift", torch.zeros(self.channels, 1, 1))
        self.register_buffer("scale", torch.ones(self.channels, 1, 1))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """32 channels, an eighth of each side.

        Raises:
            ValueError: a side is no multiple of 8.
        """
        return self.channels, *grid_shape(height, width, self.stride, "the tiny autoencoder")

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Latents of images in [-1, 1].

        Raises:
            ValueError: a side is no multiple of 8.
        """
        self.latent_shape(images.shape[-2], images.shape[-1])
        return (self.encoder((images + 1) / 2) - self.shift) / self.scale

    def decode(self, latents: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch 3 height width"]:
        """Images, clipped to [-1, 1]."""
        return self.decode_unclipped(latents).clamp(-1, 1)

    def decode_unclipped(
        self, latents: Float[Tensor, "batch channels rows cols"]
    ) -> Float[Tensor, "batch 3 height width"]:
        images: Tensor = self.decoder(latents * self.scale + self.shift) * 2 - 1
        return images

    def config_dict(self) -> dict[str, Any]:
        return {"kind": part_kind(self)}


def load_taef2(folder: str | Path) -> Taef2:
    """Reads ``taef2_encoder.safetensors`` and ``taef2_decoder.safetensors``, as float32, in evaluation mode.

    Raises:
        FileNotFoundError: one of the two is not there.
        ValueError: one of them is damaged or holds other tensors.
    """
    space = Taef2()
    for name, part in (("encoder", space.encoder), ("decoder", space.decoder)):
        path = Path(folder) / f"taef2_{name}.safetensors"
        load_exactly(part, read_weights(path), f"{path} does not hold the {name} of taef2")
    return space.eval()


@dataclass(frozen=True, kw_only=True)
class Taef2Config:
    """The tiny autoencoder as the generation space of a recipe."""

    path: str
    """Folder of the two files."""

    def build(self) -> Taef2:
        return load_taef2(self.path)
