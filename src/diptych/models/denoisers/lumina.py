"""The Lumina-Next diffusion transformer with cross-attention, as BLIP3-o trains it.

Lumina-Next, arXiv 2406.18583; BLIP3-o, arXiv 2505.09568, whose released layers this repeats number by number (the test
holds it against the class in diffusers). Patches attend to each other and, through a gate that starts closed, to the
condition; time and the pooled condition scale the normalised patches and gate the residual branches.

Differs from the released code in convention alone: t runs from noise to data and the output is ``data - noise``; the
released network predicts ``noise - data``, so its last layer is negated when it is loaded (`diptych.interop.lumina`).
The rotary table is made for the grid at hand and knows no largest grid. A mask over the condition is honoured, in the
attention and in the pooled mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.flow.path import Prediction
from diptych.models.attention import attend
from diptych.models.layers import (
    RMSNorm,
    SwiGLU,
    apply_rotary_interleaved,
    rotary_table_2d,
    sinusoidal_embedding,
    swiglu_hidden_dim,
)
from diptych.models.patches import patchify, unpatchify

TIME_FREQUENCIES = 256
QK_NORM_EPS = 1e-5
OUTPUT_NORM_EPS = 1e-6


KeysValues: TypeAlias = tuple[
    Float[Tensor, "batch heads tokens head_dim"],
    Float[Tensor, "batch heads tokens head_dim"],
]


@dataclass(frozen=True)
class LuminaCondition:
    """A condition ready for use at every time: what does not depend on x_t, computed once per image.

    Attributes:
        pooled: share of the condition in the modulation.
        keys_values: of the cross-attention, one pair per block; the values are already times the gate.
        mask: True where a row counts; None if all do.
    """

    pooled: Float[Tensor, "batch time_dim"]
    keys_values: tuple[KeysValues, ...]
    mask: Bool[Tensor, "batch tokens"] | None

    def select(self, rows: slice | Tensor) -> "LuminaCondition":
        """The given rows of the batch."""
        return LuminaCondition(
            self.pooled[rows],
            tuple((key[rows], value[rows]) for key, value in self.keys_values),
            None if self.mask is None else self.mask[rows],
        )


class LuminaAttention(nn.Module):
    """Self-attention of the patches plus gated cross-attention to the condition, with one output projection."""

    def __init__(self, dim: int, num_heads: int, norm_eps: float, qk_norm: bool, initial_gate: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.cross_query = nn.Linear(dim, dim, bias=False)
        self.cross_key = nn.Linear(dim, dim, bias=False)
        self.cross_value = nn.Linear(dim, dim, bias=False)
        self.condition_norm = RMSNorm(dim, norm_eps)
        # Over the full width, before it is split into heads.
        self.query_norm = nn.LayerNorm(dim, QK_NORM_EPS) if qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(dim, QK_NORM_EPS) if qk_norm else nn.Identity()
        self.cross_query_norm = nn.LayerNorm(dim, QK_NORM_EPS) if qk_norm else nn.Identity()
        self.cross_key_norm = nn.LayerNorm(dim, QK_NORM_EPS) if qk_norm else nn.Identity()
        self.gate = nn.Parameter(torch.full((num_heads,), initial_gate))
        self.out = nn.Linear(dim, dim, bias=False)

    def keys_values(self, condition: Float[Tensor, "batch tokens dim"]) -> KeysValues:
        """Keys and gated values of the condition. The output is linear in the values, so the gate may stand there."""
        condition = self.condition_norm(condition)
        key = self._heads(self.cross_key_norm(self.cross_key(condition)))
        value = self._heads(self.cross_value(condition))
        return key, value * self.gate.tanh().to(value.dtype)[:, None, None]

    def forward(
        self,
        x: Float[Tensor, "batch patches dim"],
        rotary: tuple[Tensor, Tensor],
        condition: Float[Tensor, "conditions tokens dim"] | KeysValues,
        condition_mask: Bool[Tensor, "batch 1 tokens"] | None,
        condition_index: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch patches dim"]:
        query = apply_rotary_interleaved(self._heads(self.query_norm(self.query(x))), *rotary)
        key = apply_rotary_interleaved(self._heads(self.key_norm(self.key(x))), *rotary)
        mixed = attend(query, key, self._heads(self.value(x)), None)
        # The condition has no place on the grid: its keys are not turned.
        cross_query = apply_rotary_interleaved(self._heads(self.cross_query_norm(self.cross_query(x))), *rotary)
        cross_key, cross_value = self.keys_values(condition) if isinstance(condition, Tensor) else condition
        if condition_index is not None:
            cross_key, cross_value = cross_key[condition_index], cross_value[condition_index]
        return self.out(mixed + attend(cross_query, cross_key, cross_value, condition_mask))

    def _heads(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch heads seq head_dim"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class LuminaBlock(nn.Module):
    """Attention and feed-forward branch, each between two norms; scales without shifts, residual gates through tanh."""

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, time_dim: int, norm_eps: float, qk_norm: bool, initial_gate: float
    ) -> None:
        super().__init__()
        self.modulation = nn.Linear(time_dim, 4 * dim)
        """Attention scale, attention gate, feed-forward scale, feed-forward gate."""
        self.attention_in_norm = RMSNorm(dim, norm_eps)
        self.attention = LuminaAttention(dim, num_heads, norm_eps, qk_norm, initial_gate)
        self.attention_out_norm = RMSNorm(dim, norm_eps)
        self.ffn_in_norm = RMSNorm(dim, norm_eps)
        self.ffn = SwiGLU(dim, ffn_dim)
        self.ffn_out_norm = RMSNorm(dim, norm_eps)

    def forward(
        self,
        x: Float[Tensor, "batch patches dim"],
        time: Float[Tensor, "batch 1 time_dim"],
        rotary: tuple[Tensor, Tensor],
        condition: Float[Tensor, "conditions tokens dim"] | KeysValues,
        condition_mask: Bool[Tensor, "batch 1 tokens"] | None,
        condition_index: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch patches dim"]:
        attention_scale, attention_gate, ffn_scale, ffn_gate = self.modulation(time).chunk(4, dim=-1)
        y = self.attention_in_norm(x, 1 + attention_scale)
        y = self.attention(y, rotary, condition, condition_mask, condition_index)
        x = x + self.attention_out_norm(y, attention_gate.tanh())
        y = self.ffn(self.ffn_in_norm(x, 1 + ffn_scale))
        return x + self.ffn_out_norm(y, ffn_gate.tanh())


class LuminaDiT(nn.Module):
    """Denoiser of latents of any height and width, given a sequence of condition rows.

    The released BLIP3-o denoiser is ``LuminaDiT(channels=1792, condition_dim=2048, dim=1792, num_layers=24,
    num_heads=28)`` (4B; 3584 for 8B). It starts as theirs does: linear layers as torch draws them, the modulation too
    (so residual branches are ajar, not closed), cross-attention closed.
    """

    def __init__(
        self,
        channels: int,
        condition_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        patch_size: int = 1,
        ffn_dim: int | None = None,
        ffn_multiple_of: int = 256,
        time_dim: int | None = None,
        norm_eps: float = 1e-5,
        qk_norm: bool = True,
        initial_gate: float = 0.0,
        prediction: Prediction = "velocity",
    ) -> None:
        """
        Args:
            channels: of the latents.
            condition_dim: width of a condition row.
            dim: width of the transformer.
            num_layers: number of blocks.
            num_heads: attention heads; ``dim / num_heads`` must be a multiple of 4.
            patch_size: side of the square of latents that makes one token.
            ffn_dim: inner width of the feed-forward layers; if None ``8/3 * dim``, rounded up to ``ffn_multiple_of``.
            ffn_multiple_of: see ``ffn_dim``; 32 suits small widths.
            time_dim: width of the time embedding; ``min(dim, 1024)`` if None.
            norm_eps: of the RMS norms.
            qk_norm: normalise queries and keys over their full width.
            initial_gate: where the gates of the cross-attention start, before the tanh. An optimizer opens them by
                about its learning rate a step, so short trainings gain from an open start such as 1.
            prediction: what the output stands for. The network is the same; samplers and losses read this attribute.

        Raises:
            ValueError: ``dim`` does not split into heads whose width is a multiple of 4.
        """
        super().__init__()
        if dim % (4 * num_heads):
            raise ValueError(
                f"denoiser.dim must be a multiple of 4 * num_heads (2-D rotary positions turn pairs on two axes): "
                f"got {dim} and {num_heads} heads."
            )
        self.channels = channels
        self.condition_dim = condition_dim
        self.dim = dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.ffn_dim = swiglu_hidden_dim(dim, ffn_multiple_of) if ffn_dim is None else ffn_dim
        self.time_dim = min(dim, 1024) if time_dim is None else time_dim
        self.norm_eps = norm_eps
        self.qk_norm = qk_norm
        self.initial_gate = initial_gate
        self.prediction = prediction

        patch_dim = channels * patch_size**2
        self.patch_in = nn.Linear(patch_dim, dim)
        self.condition_in = nn.Sequential(nn.Linear(condition_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.pooled_in = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, self.time_dim))
        self.time_in = nn.Sequential(
            nn.Linear(TIME_FREQUENCIES, self.time_dim), nn.SiLU(), nn.Linear(self.time_dim, self.time_dim)
        )
        self.blocks = nn.ModuleList(
            LuminaBlock(dim, num_heads, self.ffn_dim, self.time_dim, norm_eps, qk_norm, initial_gate)
            for _ in range(num_layers)
        )
        self.out_norm = nn.LayerNorm(dim, OUTPUT_NORM_EPS, elementwise_affine=False)
        self.out_scale = nn.Linear(self.time_dim, dim)
        self.patch_out = nn.Linear(dim, patch_dim)

    def forward(
        self,
        x_t: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        condition: Float[Tensor, "conditions tokens condition_dim"] | LuminaCondition,
        condition_mask: Bool[Tensor, "conditions tokens"] | None = None,
        condition_index: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """What ``prediction`` says, from noisy latents at time t.

        A sampler that calls this many times for one condition saves work by passing `encode_condition` of it.

        Args:
            condition_mask: True where a row of the condition counts.
            condition_index: the condition of each of the batch, where several noise levels are drawn for one: what is
                computed from a condition alone is then computed once. By default each has its own.
        """
        block_conditions: Sequence[Tensor | KeysValues]
        if isinstance(condition, LuminaCondition):
            pooled, block_conditions, mask = condition.pooled, condition.keys_values, condition.mask
        else:
            # Each block makes its own keys and values here, so that its parameters are used in its forward alone and
            # sharded training may gather them block by block.
            embedded, pooled, mask = self._embed_condition(condition, condition_mask)
            block_conditions = [embedded] * self.num_layers
        if condition_index is not None:
            pooled = pooled[condition_index]
            mask = None if mask is None else mask[condition_index]
        if mask is not None:
            mask = mask[:, None]
        grid = (x_t.shape[-2] // self.patch_size, x_t.shape[-1] // self.patch_size)
        x = self.patch_in(patchify(x_t, self.patch_size))
        # The released network is told sigma in thousandths.
        frequencies = sinusoidal_embedding(1000 * (1 - t.float()), TIME_FREQUENCIES)
        time = F.silu(self.time_in(frequencies.to(pooled.dtype)) + pooled)[:, None]
        rotary = rotary_table_2d(*grid, self.dim // self.num_heads, device=x.device)
        for block, block_condition in zip(self.blocks, block_conditions, strict=True):
            x = block(x, time, rotary, block_condition, mask, condition_index)
        x = self.out_norm(x) * (1 + self.out_scale(time))
        return unpatchify(self.patch_out(x), self.patch_size, grid)

    def encode_condition(
        self,
        condition: Float[Tensor, "batch tokens condition_dim"],
        condition_mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> LuminaCondition:
        """Everything the network computes from the condition alone, to be used at every step of a sampler.

        The mask is True where a row counts. A row of the batch in which none counts has a zero mean and attends to
        nothing.
        """
        embedded, pooled, mask = self._embed_condition(condition, condition_mask)
        keys_values = tuple(cast(LuminaBlock, block).attention.keys_values(embedded) for block in self.blocks)
        return LuminaCondition(pooled, keys_values, mask)

    def _embed_condition(self, condition: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Condition rows at the width of the network, their pooled share of the modulation, and the attention mask."""
        embedded = self.condition_in(condition)
        if mask is None:
            return embedded, self.pooled_in(embedded.mean(1)), None
        # Rows that do not count are zero and so are their values. Where none counts the mask is opened: attention over
        # zeros adds nothing, and a softmax over nothing would not be finite.
        embedded = embedded.masked_fill(~mask[:, :, None], 0)
        mean = embedded.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return embedded, self.pooled_in(mean), mask | ~mask.any(1, keepdim=True)

    def config_dict(self) -> dict[str, Any]:
        """Arguments that build the same network again."""
        return {
            "channels": self.channels,
            "condition_dim": self.condition_dim,
            "dim": self.dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "patch_size": self.patch_size,
            "ffn_dim": self.ffn_dim,
            "time_dim": self.time_dim,
            "norm_eps": self.norm_eps,
            "qk_norm": self.qk_norm,
            "initial_gate": self.initial_gate,
            "prediction": self.prediction,
        }
