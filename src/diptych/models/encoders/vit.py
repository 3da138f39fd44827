"""Our own vision transformer: small, trainable from scratch, at home on any grid of patches.

ViT (arXiv 2010.11929) with pre-norm blocks; the defaults differ from it in RMSNorm, SwiGLU, rotary positions on two
axes beside fixed sin-cos ones (the learned table of the original is ``positions="learned"``), and in attention pooling
(SigLIP, arXiv 2303.15343) instead of a class token.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.encoders.protocol import EncoderOutput, check_image_size, check_layers
from diptych.models.encoders.vision_block import (
    FeedForwardKind,
    NormKind,
    VisionBlock,
    default_ffn_dim,
    init_vision_weights,
    make_feed_forward,
    make_norm,
    sincos_positions,
)
from diptych.models.layers import rotary_table_2d
from diptych.models.part import part_kind
from diptych.models.patches import patchify
from diptych.models.preprocess import ResizePolicy, resize_pixels, to_float

Pooling: TypeAlias = Literal["attention", "mean"]
Positions: TypeAlias = Literal["sincos", "learned", "none"]


class AttentionPooling(nn.Module):
    """One vector per image: a learned query attends to all tokens, then a feed-forward layer (SigLIP's head)."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, norm: NormKind, feed_forward: FeedForwardKind) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward_norm = make_norm(norm, dim)
        self.feed_forward = make_feed_forward(feed_forward, dim, ffn_dim)

    def forward(self, tokens: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch dim"]:
        batch, _, dim = tokens.shape
        key, value = self.key_value(tokens).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query.reshape(1, self.num_heads, 1, -1).expand(batch, -1, -1, -1)
        pooled = self.out(F.scaled_dot_product_attention(query, key, value).reshape(batch, dim))
        return pooled + self.feed_forward(self.feed_forward_norm(pooled))


class VisionTransformer(nn.Module):
    """A vision transformer that takes any image whose sides are multiples of ``patch_size``.

    Args:
        image_size: (height, width), or one side: what it is trained at, and what ``preprocess`` makes without a size.
        dim: width; a multiple of ``num_heads``, and of 4 times it with ``rotary``.
        ffn_dim: width inside the feed-forward layers; ``None`` is 4 dim (GELU) or 8/3 dim (SwiGLU).
        pooled_dim: width of the pooled output; ``None`` leaves out the projection, so it is ``dim``.
        positions: what is added to the patches. ``learned`` is a table for ``image_size``, resampled (bicubic) for
            other grids; ``sincos`` goes on beyond the trained grid.
        rotary: whether queries and keys are turned by their row and column.
        rotary_theta: 100 suits grids of up to some hundred patches a side.
        resize_policy: what ``preprocess`` does with images of another aspect ratio.

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int | None = None,
        pooled_dim: int | None = None,
        pooling: Pooling = "attention",
        norm: NormKind = "rms",
        feed_forward: FeedForwardKind = "swiglu",
        positions: Positions = "sincos",
        rotary: bool = True,
        rotary_theta: float = 100.0,
        resize_policy: ResizePolicy = "pad",
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"encoder.image_size must be a multiple of encoder.patch_size: got {height}x{width} and {patch_size}."
            )
        if dim % num_heads:
            raise ValueError(f"encoder.dim must be a multiple of encoder.num_heads, got {dim} and {num_heads}.")
        if pooling not in ("attention", "mean") or positions not in ("sincos", "learned", "none"):
            raise ValueError(
                "encoder.pooling must be 'attention' or 'mean' and encoder.positions 'sincos', 'learned' or 'none', "
                f"got {pooling!r} and {positions!r}."
            )
        ffn_dim = default_ffn_dim(feed_forward, dim) if ffn_dim is None else ffn_dim
        self._config: dict[str, Any] = {
            "image_size": [height, width],
            "patch_size": patch_size,
            "dim": dim,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "ffn_dim": ffn_dim,
            "pooled_dim": pooled_dim,
            "pooling": pooling,
            "norm": norm,
            "feed_forward": feed_forward,
            "positions": positions,
            "rotary": rotary,
            "rotary_theta": rotary_theta,
            "resize_policy": resize_policy,
        }
        self.image_size = (height, width)
        self.patch_size = patch_size
        self.dim = dim
        self.pooled_dim = dim if pooled_dim is None else pooled_dim
        self.num_layers = num_layers
        self.head_dim = dim // num_heads
        self.positions = positions
        self.rotary_theta = rotary_theta if rotary else None
        self.resize_policy: ResizePolicy = resize_policy
        self.patch_embedding = nn.Linear(3 * patch_size**2, dim)
        self.blocks = nn.ModuleList(VisionBlock(dim, num_heads, ffn_dim, norm, feed_forward) for _ in range(num_layers))
        self.norm = make_norm(norm, dim)
        self.pooling = AttentionPooling(dim, num_heads, ffn_dim, norm, feed_forward) if pooling == "attention" else None
        self.pooled_projection = nn.Identity() if pooled_dim is None else nn.Linear(dim, pooled_dim, bias=False)
        init_vision_weights(self, num_layers)
        if positions == "learned":
            self.position_table = nn.Parameter(torch.randn(dim, height // patch_size, width // patch_size) * 0.02)

    @property
    def own_pooling(self) -> str:
        """How the pooled output comes about: ``attention``, ``mean``, or ``network`` where a projection follows."""
        if not isinstance(self.pooled_projection, nn.Identity):
            return "network"
        return "mean" if self.pooling is None else "attention"

    def preprocess(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """Bicubic resize to ``size`` by the encoder's resize policy, in [-1, 1].

        ``None`` is the trained size; with the policy ``native`` it is the image's own size, in whole patches.
        """
        if size is None and self.resize_policy != "native":
            size = self.image_size
        return to_float(resize_pixels(pixels, size, "bicubic", self.resize_policy, multiple=self.patch_size))

    def forward(self, images: Float[Tensor, "batch 3 height width"], layers: Sequence[int] = ()) -> EncoderOutput:
        """Tokens of every patch, their pooled vector, and the layers asked for.

        Raises:
            ValueError: the image's sides are no multiples of ``patch_size``, or there is no such layer.
        """
        check_image_size(images, self.patch_size, "the vision transformer")
        check_layers(layers, self.num_layers, "the vision transformer")
        rows, cols = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        x = self.patch_embedding(patchify(images, self.patch_size).to(self.patch_embedding.weight.dtype))
        if self.positions != "none":
            x = x + self._position_codes(rows, cols, x.device).to(x.dtype)
        rotary = (
            None
            if self.rotary_theta is None
            else rotary_table_2d(rows, cols, self.head_dim, self.rotary_theta, x.device)
        )
        layer_tokens = {0: x} if 0 in layers else {}
        for index, block in enumerate(self.blocks, start=1):
            x = block(x, rotary)
            if index in layers:
                layer_tokens[index] = x
        tokens = self.norm(x)
        pooled = tokens.mean(1) if self.pooling is None else self.pooling(tokens)
        return EncoderOutput(tokens, (rows, cols), self.pooled_projection(pooled), layer_tokens)

    def config_dict(self) -> dict[str, Any]:
        """All arguments, and the ``kind``."""
        return {"kind": part_kind(self), **self._config}

    def _position_codes(self, rows: int, cols: int, device: torch.device) -> Float[Tensor, "patches dim"]:
        if self.positions == "sincos":
            return sincos_positions(rows, cols, self.dim, device)
        table: Tensor = self.position_table
        if table.shape[1:] != (rows, cols):
            table = F.interpolate(table[None], (rows, cols), mode="bicubic", align_corners=False)[0]
        return table.flatten(1).T
