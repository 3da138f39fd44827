"""The transformer block and the position codes of our own vision networks: every token attends to every other."""

from typing import Any, Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from diptych.models.attention import attend
from diptych.models.layers import RMSNorm, SwiGLU, apply_rotary, sinusoidal_embedding

NormKind: TypeAlias = Literal["rms", "layer"]
FeedForwardKind: TypeAlias = Literal["swiglu", "gelu"]
RotaryTable: TypeAlias = tuple[Float[Tensor, "patches half"], Float[Tensor, "patches half"]]


def make_norm(kind: NormKind, dim: int) -> nn.Module:
    """RMSNorm or LayerNorm, with eps 1e-6.

    Raises:
        ValueError: another ``kind``.
    """
    if kind == "rms":
        return RMSNorm(dim)
    if kind == "layer":
        return nn.LayerNorm(dim, eps=1e-6)
    raise ValueError(f"norm must be 'rms' or 'layer', got {kind!r}.")


def make_feed_forward(kind: FeedForwardKind, dim: int, hidden_dim: int) -> nn.Module:
    """SwiGLU without biases, or two linear layers around a GELU.

    Raises:
        ValueError: another ``kind``.
    """
    if kind == "swiglu":
        return SwiGLU(dim, hidden_dim)
    if kind == "gelu":
        return nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))
    raise ValueError(f"feed_forward must be 'swiglu' or 'gelu', got {kind!r}.")


def default_ffn_dim(kind: FeedForwardKind, dim: int) -> int:
    """``4 * dim`` for GELU; two thirds of it, in multiples of 32, for SwiGLU: about equal parameters."""
    return 4 * dim if kind == "gelu" else max(32, round(8 * dim / 3 / 32) * 32)


class VisionAttention(nn.Module):
    """Multi-head self-attention without mask; queries and keys are turned by the rotary table where one is given."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}.")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch patches dim"], rotary: RotaryTable | None = None
    ) -> Float[Tensor, "batch patches dim"]:
        query, key, value = rearrange(
            self.qkv(x), "batch patches (three heads c) -> three batch heads patches c", three=3, heads=self.num_heads
        )
        if rotary is not None:
            query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        return self.out(attend(query, key, value, None))


class VisionBlock(nn.Module):
    """Pre-norm attention and feed-forward layer, each added to its input."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        norm: NormKind = "rms",
        feed_forward: FeedForwardKind = "swiglu",
    ) -> None:
        super().__init__()
        self.attention_norm = make_norm(norm, dim)
        self.attention = VisionAttention(dim, num_heads)
        self.feed_forward_norm = make_norm(norm, dim)
        self.feed_forward = make_feed_forward(feed_forward, dim, ffn_dim)

    def forward(
        self, x: Float[Tensor, "batch patches dim"], rotary: RotaryTable | None = None
    ) -> Float[Tensor, "batch patches dim"]:
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.feed_forward(self.feed_forward_norm(x))


def sincos_positions(
    rows: int, cols: int, dim: int, device: torch.device | None = None, max_period: float = 10_000.0
) -> Float[Tensor, "patches dim"]:
    """Fixed position codes of a row-major grid: half of the channels tell the row, half the column.

    Each half is ``[cos(k w_i), sin(k w_i)]`` with ``w_i = max_period ** (-4 i / dim)`` (as in MAE, arXiv 2111.06377,
    appendix A.1, with cosines first), in float32.

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"2-D sin-cos positions need a dim that is a multiple of 4, got {dim}.")
    row_codes = sinusoidal_embedding(torch.arange(rows, device=device).float(), dim // 2, max_period)
    col_codes = sinusoidal_embedding(torch.arange(cols, device=device).float(), dim // 2, max_period)
    grid = torch.cat((row_codes[:, None].expand(rows, cols, -1), col_codes[None].expand(rows, cols, -1)), dim=-1)
    return grid.reshape(rows * cols, dim)


def init_vision_weights(module: nn.Module, num_layers: int) -> None:
    """Xavier-uniform weights, zero biases; outputs of blocks are made smaller by 1/sqrt(2 num_layers)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in module.modules():
        if isinstance(block, VisionBlock):
            feed_forward: Any = block.feed_forward
            last = feed_forward.down if isinstance(feed_forward, SwiGLU) else feed_forward[-1]
            for output in (block.attention.out, last):
                output.weight.data.mul_((2 * num_layers) ** -0.5)
