"""The vision tower of EVA-CLIP-E/14+ (EVA-02-CLIP, arXiv 2303.15389) as Emu2 (arXiv 2312.13286) fine-tuned it and
BLIP3-o draws its features.

A plain transformer with learned absolute positions and a class token, without rotary positions, layer scale or a final
norm; its residual branches are normalised at their *end*: ``x = x + norm(attention(x))``, ``x = x + norm(mlp(x))``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.models.encoders.processor_rule import ProcessorRule, normalize
from diptych.models.encoders.protocol import EncoderOutput, check_layers
from diptych.models.encoders.vision_block import VisionAttention, make_feed_forward, make_norm
from diptych.models.part import part_kind
from diptych.models.patches import patchify

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of images in [0, 1]."""


class EndNormBlock(nn.Module):
    """Attention and feed-forward layer, each normalised before it is added to its input."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.attention = VisionAttention(dim, num_heads)
        self.attention_norm = make_norm("layer", dim)
        self.feed_forward = make_feed_forward("gelu", dim, ffn_dim)
        self.feed_forward_norm = make_norm("layer", dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.attention_norm(self.attention(x))
        return x + self.feed_forward_norm(self.feed_forward(x))


class EvaClipEncoder(nn.Module):
    """The tower; the defaults are those of EVA-CLIP-E/14+ at 448 pixels (4.35 B parameters).

    Args:
        image_size: side of the square images; its positions know no other.

    Raises:
        ValueError: sizes that do not divide.
    """

    own_pooling = "class-token"

    def __init__(
        self,
        *,
        image_size: int = 448,
        patch_size: int = 14,
        dim: int = 1792,
        num_layers: int = 64,
        num_heads: int = 16,
        ffn_dim: int = 15_360,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"encoder.image_size must be a multiple of encoder.patch_size: got {image_size} and {patch_size}."
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.dim = dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.ffn_dim = ffn_dim
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.rule = ProcessorRule(
            rule="shortest_edge",
            height=image_size,
            width=image_size,
            shortest_edge=image_size,
            filter="bicubic",
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )
        self.patch_embedding = nn.Linear(3 * patch_size**2, dim)
        self.class_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1 + self.grid[0] * self.grid[1], dim) * 0.02)
        self.blocks = nn.ModuleList(EndNormBlock(dim, num_heads, ffn_dim) for _ in range(num_layers))

    def preprocess(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """Shorter side to ``image_size`` (bicubic), then the middle square; in [-1, 1]."""
        return self.rule.apply(pixels, size)

    def forward(self, images: Float[Tensor, "batch 3 height width"], layers: Sequence[int] = ()) -> EncoderOutput:
        """Tokens of the patches after the last block; pooled is the class token.

        Raises:
            ValueError: images of another size, or no such layer.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"the EVA-CLIP encoder takes images of {self.image_size}x{self.image_size} only, got "
                f"{images.shape[-2]}x{images.shape[-1]}. Its preprocess() makes them."
            )
        check_layers(layers, self.num_layers, "the EVA-CLIP encoder")
        normalized = normalize(images, CLIP_MEAN, CLIP_STD).to(self.class_token.dtype)
        patches = self.patch_embedding(patchify(normalized, self.patch_size))
        x = torch.cat([self.class_token.expand(len(images), 1, -1), patches], dim=1) + self.positions
        states = {0: x[:, 1:]} if 0 in layers else {}
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number in layers:
                states[number] = x[:, 1:]
        return EncoderOutput(x[:, 1:], self.grid, x[:, 0], states)

    def config_dict(self) -> dict[str, Any]:
        names = ("image_size", "patch_size", "dim", "num_layers", "num_heads", "ffn_dim")
        return {"kind": part_kind(self), **{name: getattr(self, name) for name in names}}
