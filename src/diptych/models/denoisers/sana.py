"""The SANA diffusion transformer: linear attention, convolutions in the feed-forward layers, one modulation for all.

SANA, arXiv 2410.10629, section 2.2; SANA 1.5, arXiv 2501.18427, section 2.2 (norms of queries and keys). The released
layers are repeated number by number (the test holds this against the class in diffusers). What sets it apart:

- *Linear attention* (equation 1): ``relu(q) (relu(k)^T v) / (relu(q) sum relu(k))``, in float32. Its cost grows with
  the number of patches, not with its square.
- *Mix-FFN*: an inverted bottleneck with a depth-wise 3 x 3 convolution and a gate. Together with the zeros around the
  grid that convolution is all that tells patches where they are: there are no position embeddings.
- *AdaLN-single* (PixArt-alpha, arXiv 2310.00426, section 2.3): six vectors are made from the time once; a block adds a
  small table of its own to them. Cross-attention is not modulated and reads its patches without a norm.

Differs from the released code in convention alone: t runs from noise to data and the output is ``data - noise``
(`diptych.interop.sana` turns the sign of the last layer). A mask over the condition removes rows from the softmax where
the original adds -10000 to their scores.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.flow.path import Prediction
from diptych.models.attention import attend
from diptych.models.layers import RMSNorm, sinusoidal_embedding
from diptych.models.patches import patchify, unpatchify

TIME_FREQUENCIES = 256
NORM_EPS = 1e-6
CONDITION_NORM_EPS = 1e-5
QK_NORM_EPS = 1e-5
ATTENTION_EPS = 1e-15

KeysValues: TypeAlias = tuple[
    Float[Tensor, "batch heads tokens head_dim"],
    Float[Tensor, "batch heads tokens head_dim"],
]


@dataclass(frozen=True)
class SanaCondition:
    """A condition ready for use at every time: what does not depend on x_t, computed once per image.

    Attributes:
        keys_values: of the cross-attention, one pair per block.
        mask: True where a row counts; None if all do.
    """

    keys_values: tuple[KeysValues, ...]
    mask: Bool[Tensor, "batch tokens"] | None

    def select(self, rows: slice | Tensor) -> "SanaCondition":
        """The given rows of the batch."""
        return SanaCondition(
            tuple((key[rows], value[rows]) for key, value in self.keys_values),
            None if self.mask is None else self.mask[rows],
        )


def linear_attention(
    query: Float[Tensor, "batch heads seq head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys head_dim"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """ReLU linear attention in float32, whatever autocast says; returned in the dtype of the value."""
    with torch.autocast(query.device.type, enabled=False):
        query, key, value32 = F.relu(query.float()), F.relu(key.float()), value.float()
        summed = query @ (key.transpose(-1, -2) @ value32)
        total = query @ key.sum(-2).unsqueeze(-1)
        return (summed / (total + ATTENTION_EPS)).to(value.dtype)


class SanaSelfAttention(nn.Module):
    """Linear attention among the patches."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        # Over the full width, before it is split into heads.
        self.query_norm = RMSNorm(dim, QK_NORM_EPS) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(dim, QK_NORM_EPS) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch patches dim"]:
        query, key = self._heads(self.query_norm(self.query(x))), self._heads(self.key_norm(self.key(x)))
        mixed = linear_attention(query, key, self._heads(self.value(x)))
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch heads seq head_dim"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SanaCrossAttention(nn.Module):
    """Softmax attention of the patches to the condition."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.query_norm = RMSNorm(dim, QK_NORM_EPS) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(dim, QK_NORM_EPS) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)

    def keys_values(self, condition: Float[Tensor, "batch tokens dim"]) -> KeysValues:
        return self._heads(self.key_norm(self.key(condition))), self._heads(self.value(condition))

    def forward(
        self,
        x: Float[Tensor, "batch patches dim"],
        condition: Float[Tensor, "conditions tokens dim"] | KeysValues,
        mask: Bool[Tensor, "batch 1 tokens"] | None,
        index: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch patches dim"]:
        key, value = self.keys_values(condition) if isinstance(condition, Tensor) else condition
        if index is not None:
            key, value = key[index], value[index]
        return self.out(attend(self._heads(self.query_norm(self.query(x))), key, value, mask))

    def _heads(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch heads seq head_dim"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MixFFN(nn.Module):
    """Widen, look at the eight neighbours of every patch, gate, and narrow again (GLUMBConv in the released code)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(dim, 2 * hidden_dim, 1)
        self.neighbours = nn.Conv2d(2 * hidden_dim, 2 * hidden_dim, 3, padding=1, groups=2 * hidden_dim)
        self.narrow = nn.Conv2d(hidden_dim, dim, 1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch patches dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch patches dim"]:
        squares = rearrange(x, "batch (rows cols) dim -> batch dim rows cols", rows=grid[0])
        value, gate = self.neighbours(F.silu(self.widen(squares))).chunk(2, dim=1)
        return rearrange(self.narrow(value * F.silu(gate)), "batch dim rows cols -> batch (rows cols) dim")


class SanaBlock(nn.Module):
    """Self-attention, cross-attention and Mix-FFN; the first and the last between modulated norm and gate."""

    def __init__(self, dim: int, num_heads: int, num_cross_heads: int, ffn_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.self_attention = SanaSelfAttention(dim, num_heads, qk_norm)
        self.cross_attention = SanaCrossAttention(dim, num_cross_heads, qk_norm)
        self.ffn = MixFFN(dim, ffn_dim)
        self.table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        """Shift, scale and gate of the attention, then of the feed-forward layer."""

    def forward(
        self,
        x: Float[Tensor, "batch patches dim"],
        modulation: Float[Tensor, "batch 6 dim"],
        grid: tuple[int, int],
        condition: Float[Tensor, "conditions tokens dim"] | KeysValues,
        mask: Bool[Tensor, "batch 1 tokens"] | None,
        index: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch patches dim"]:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.table + modulation).chunk(6, dim=1)
        x = x + gate * self.self_attention(_normed(x) * (1 + scale) + shift)
        x = x + self.cross_attention(x, condition, mask, index)
        return x + ffn_gate * self.ffn(_normed(x) * (1 + ffn_scale) + ffn_shift, grid)


def _normed(x: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch patches dim"]:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


class SanaTransformer(nn.Module):
    """Denoiser of latents of any height and width, given a sequence of condition rows.

    The released SANA 1.5 of 1.6 B parameters, which BLIP3o-NEXT conditions, is ``SanaTransformer(channels=32,
    condition_dim=2304, dim=2240, num_layers=20, num_heads=70, num_cross_heads=20, qk_norm=True)``.
    """

    def __init__(
        self,
        channels: int,
        condition_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        num_cross_heads: int | None = None,
        ffn_ratio: float = 2.5,
        patch_size: int = 1,
        qk_norm: bool = False,
        prediction: Prediction = "velocity",
    ) -> None:
        """
        Args:
            channels: of the latents.
            condition_dim: width of a condition row.
            dim: width of the transformer.
            num_layers: number of blocks.
            num_heads: heads of the linear attention; of 32 channels as released.
            num_cross_heads: heads of the cross-attention; as many as ``num_heads`` if None.
            ffn_ratio: inner width of the feed-forward layers over ``dim``, before the gate.
            patch_size: side of the square of latents that makes one token.
            qk_norm: normalise queries and keys over their full width (SANA 1.5).
            prediction: what the output stands for. The network is the same; samplers and losses read this attribute.

        Raises:
            ValueError: ``dim`` does not split into the heads.
        """
        super().__init__()
        num_cross_heads = num_heads if num_cross_heads is None else num_cross_heads
        for name, heads in (("num_heads", num_heads), ("num_cross_heads", num_cross_heads)):
            if dim % heads:
                raise ValueError(f"denoiser.dim must be a multiple of {name}: got {dim} and {heads}.")
        self.channels = channels
        self.condition_dim = condition_dim
        self.dim = dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.num_cross_heads = num_cross_heads
        self.ffn_ratio = ffn_ratio
        self.patch_size = patch_size
        self.qk_norm = qk_norm
        self.prediction = prediction

        patch_dim = channels * patch_size**2
        self.patch_in = nn.Linear(patch_dim, dim)
        self.time_in = nn.Sequential(nn.Linear(TIME_FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.modulation = nn.Linear(dim, 6 * dim)
        self.condition_in = nn.Sequential(nn.Linear(condition_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.condition_norm = RMSNorm(dim, CONDITION_NORM_EPS)
        self.blocks = nn.ModuleList(
            SanaBlock(dim, num_heads, num_cross_heads, int(ffn_ratio * dim), qk_norm) for _ in range(num_layers)
        )
        self.out_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        """Shift and scale before the last layer."""
        self.patch_out = nn.Linear(dim, patch_dim)

    def forward(
        self,
        x_t: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        condition: Float[Tensor, "conditions tokens condition_dim"] | SanaCondition,
        condition_mask: Bool[Tensor, "conditions tokens"] | None = None,
        condition_index: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """What ``prediction`` says, from noisy latents at time t.

        A sampler that calls this many times for one condition saves work by passing `encode_condition` of it.

        Args:
            condition_mask: True where a row of the condition counts; at least one must in every condition.
            condition_index: the condition of each of the batch, where several noise levels are drawn for one. By
                default each has its own.
        """
        conditions: tuple[KeysValues, ...] | tuple[Tensor, ...]
        if isinstance(condition, SanaCondition):
            conditions, mask = condition.keys_values, condition.mask
        else:
            # Each block makes its own keys and values here, so that its parameters are used in its forward alone and
            # sharded training may gather them block by block.
            conditions = (self.embed_condition(condition),) * self.num_layers
            mask = condition_mask
        if mask is not None:
            mask = (mask if condition_index is None else mask[condition_index])[:, None]
        grid = (x_t.shape[-2] // self.patch_size, x_t.shape[-1] // self.patch_size)
        x = self.patch_in(patchify(x_t, self.patch_size))
        # The released network is told sigma in thousandths.
        frequencies = sinusoidal_embedding(1000 * (1 - t.float()), TIME_FREQUENCIES)
        time = self.time_in(frequencies.to(x.dtype))
        modulation = self.modulation(F.silu(time)).unflatten(-1, (6, self.dim))
        for block, own in zip(self.blocks, conditions, strict=True):
            x = block(x, modulation, grid, own, mask, condition_index)
        shift, scale = (self.out_table + time[:, None]).chunk(2, dim=1)
        return unpatchify(self.patch_out(_normed(x) * (1 + scale) + shift), self.patch_size, grid)

    def embed_condition(
        self, condition: Float[Tensor, "batch tokens condition_dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Condition rows at the width of the network."""
        return self.condition_norm(self.condition_in(condition))

    def encode_condition(
        self,
        condition: Float[Tensor, "batch tokens condition_dim"],
        condition_mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> SanaCondition:
        """Everything the network computes from the condition alone, to be used at every step of a sampler.

        The mask is True where a row counts.
        """
        embedded = self.embed_condition(condition)
        keys_values = tuple(cast(SanaBlock, block).cross_attention.keys_values(embedded) for block in self.blocks)
        return SanaCondition(keys_values, condition_mask)

    def config_dict(self) -> dict[str, Any]:
        """Arguments that build the same network again."""
        return {
            "channels": self.channels,
            "condition_dim": self.condition_dim,
            "dim": self.dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_cross_heads": self.num_cross_heads,
            "ffn_ratio": self.ffn_ratio,
            "patch_size": self.patch_size,
            "qk_norm": self.qk_norm,
            "prediction": self.prediction,
        }
