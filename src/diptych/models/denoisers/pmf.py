"""MiT, the transformer of improved MeanFlow (iMF, arXiv 2512.02012) and of pixel MeanFlow (pMF, arXiv 2601.22158).

It knows the average velocity over a stretch of time, so that one call may go from noise to data.
Class, guidance scale, guidance interval and the length of the stretch stand as tokens before the patches; the state's
own time is not told (arXiv 2502.13129). Guidance is an input, not a second call.

Papers -> here: their t runs from data to noise, so r < t is here the later time ``end`` > t, and
``h = t - r`` is ``end - t``. Their average velocity u points to noise; here

    x_end = x_t + (end - t) u(x_t, t, end)                  u = (x - x_t) / (1 - t) of pMF's data-like output x

so `diptych.flow.path.to_velocity` turns pMF's output ("data") into u as it
does for any denoiser, and iMF's output ("velocity") is u with its sign turned at load. The interval of guidance
``[t_min, t_max]`` is theirs in sigma. From t = 0 to 1 pMF's output is the image itself.

The papers' second head, which predicts the instantaneous velocity for the training loss alone, is left out, as in the
released FD-loss checkpoints.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.flow.path import Prediction
from diptych.models.denoisers.in_context import (
    InContextAttention,
    ScalarEmbedding,
    check_image_transformer,
    check_square,
)
from diptych.models.layers import RMSNorm, SwiGLU, rotary_table, rotary_table_2d
from diptych.models.patches import patchify, unpatchify

PMFSize: TypeAlias = Literal["B", "L", "H"]
IMFSize: TypeAlias = Literal["B", "M", "L", "XL"]
RotaryPlaces: TypeAlias = Literal["grid", "sequence"]

MATRIX_INIT = 0.32
"""Standard deviation of the blocks' fresh matrices, times the root of their input width."""
POSITION_INIT_STD = 0.02

_PMF_SIZES: dict[PMFSize, dict[str, int]] = {
    "B": {"dim": 768, "num_layers": 16, "num_heads": 12, "bottleneck_dim": 128, "ffn_dim": 2048},
    "L": {"dim": 1024, "num_layers": 32, "num_heads": 16, "bottleneck_dim": 128, "ffn_dim": 2730},
    "H": {"dim": 1280, "num_layers": 48, "num_heads": 16, "bottleneck_dim": 256, "ffn_dim": 3416},
}
_IMF_SIZES: dict[IMFSize, dict[str, int]] = {
    "B": {"dim": 768, "num_layers": 12, "num_heads": 12, "ffn_dim": 2048},
    "M": {"dim": 768, "num_layers": 24, "num_heads": 12, "ffn_dim": 2048},
    "L": {"dim": 1024, "num_layers": 32, "num_heads": 16, "ffn_dim": 2730},
    "XL": {"dim": 1024, "num_layers": 48, "num_heads": 16, "ffn_dim": 2730},
}


def pmf_config(size: PMFSize, patch_size: int = 16) -> dict[str, Any]:
    """Arguments of the published pMF-B, L or H on ImageNet: patches of 16 at 256 pixels, or of 32 at 512."""
    return {**_PMF_SIZES[size], "patch_size": patch_size, "image_size": 16 * patch_size, "num_classes": 1000}


def imf_config(size: IMFSize) -> dict[str, Any]:
    """Arguments of the published iMF-B/2, M/2, L/2 or XL/2: latents of 4 x 32 x 32, of 256 pixels."""
    latents = {"patch_size": 2, "image_size": 32, "channels": 4, "bottleneck_dim": None, "num_classes": 1000}
    return {
        **_IMF_SIZES[size],
        **latents,
        "rotary": "sequence",
        "learned_positions": False,
        "prediction": "velocity",
    }


@dataclass(frozen=True)
class MeanFlowCondition:
    """What an image is drawn by.

    Attributes:
        labels: classes; the network's ``num_classes`` for the null condition.
        guidance_scale: 1 is no guidance.
        guidance_start: time from which on guidance acts.
        guidance_end: time after which it does not.
    """

    labels: Int[Tensor, " batch"]
    guidance_scale: Float[Tensor, " batch"]
    guidance_start: Float[Tensor, " batch"]
    guidance_end: Float[Tensor, " batch"]

    @classmethod
    def of(
        cls,
        labels: Int[Tensor, " batch"],
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
    ) -> "MeanFlowCondition":
        """The same guidance for all; the interval is in t, 0 is noise and 1 is data."""
        scale, start, end = (
            torch.full(labels.shape, value, device=labels.device) for value in (guidance_scale, *guidance_interval)
        )
        return cls(labels, scale, start, end)


class MiTBlock(nn.Module):
    """Attention and SwiGLU branch, each through a learned gate per channel that starts closed."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = InContextAttention(dim, num_heads, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(dim))
        self.ffn_norm = RMSNorm(dim)
        self.ffn = SwiGLU(dim, ffn_dim)
        self.ffn_gate = nn.Parameter(torch.zeros(dim))

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        rotary: tuple[Float[Tensor, "turned half"], Float[Tensor, "turned half"]],
    ) -> Float[Tensor, "batch seq dim"]:
        x = x + self.attention(self.attention_norm(x), rotary) * self.attention_gate
        return x + self.ffn(self.ffn_norm(x)) * self.ffn_gate


class MiT(nn.Module):
    """Denoiser of images or latents of one size, over a stretch of time; `pmf_config` and `imf_config` have the
    published sizes."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        bottleneck_dim: int | None,
        num_classes: int,
        channels: int = 3,
        num_class_tokens: int = 8,
        num_guidance_tokens: int = 4,
        num_interval_tokens: int = 2,
        num_time_tokens: int = 4,
        rotary: RotaryPlaces = "grid",
        learned_positions: bool = True,
        noise_scale: float = 1.0,
        prediction: Prediction = "data",
    ) -> None:
        """
        Args:
            image_size: side of the square images or latents.
            ffn_dim: inner width of the feed-forward layers.
            bottleneck_dim: channels that a patch is squeezed into on its way in; None for one plain layer (iMF).
            num_classes: the class of this number is the null condition.
            num_guidance_tokens: tokens of the guidance scale.
            num_interval_tokens: tokens of either end of the guidance interval.
            num_time_tokens: tokens of the length of the stretch.
            rotary: the places that turn queries and keys: rows and columns of the patches (pMF), or the numbers of all
                tokens of the sequence (iMF).
            learned_positions: add a learned vector to every token (pMF).
            noise_scale: standard deviation of the noise at t = 0; for those who draw.
            prediction: what the output stands for. The network is the same; samplers and losses read this attribute.

        Raises:
            ValueError: sizes that do not divide.
        """
        super().__init__()
        check_image_transformer(dim, num_heads, image_size, patch_size)
        self.image_size = image_size
        self.patch_size = patch_size
        self.dim = dim
        self.num_heads = num_heads
        self.ffn_dim = ffn_dim
        self.bottleneck_dim = bottleneck_dim
        self.num_classes = num_classes
        self.channels = channels
        self.rotary = rotary
        self.learned_positions = learned_positions
        self.noise_scale = noise_scale
        self.prediction = prediction
        self.grid = (image_size // patch_size, image_size // patch_size)

        patch_dim = channels * patch_size**2
        self.patch_in = (
            nn.Linear(patch_dim, dim)
            if bottleneck_dim is None
            else nn.Sequential(nn.Linear(patch_dim, bottleneck_dim), nn.Linear(bottleneck_dim, dim))
        )
        self.class_in = nn.Embedding(num_classes + 1, dim)
        self.guidance_in = ScalarEmbedding(dim)
        self.sigma_min_in = ScalarEmbedding(dim)
        self.sigma_max_in = ScalarEmbedding(dim)
        self.duration_in = ScalarEmbedding(dim)
        self.class_tokens = nn.Parameter(torch.empty(num_class_tokens, dim))
        self.guidance_tokens = nn.Parameter(torch.empty(num_guidance_tokens, dim))
        self.sigma_min_tokens = nn.Parameter(torch.empty(num_interval_tokens, dim))
        self.sigma_max_tokens = nn.Parameter(torch.empty(num_interval_tokens, dim))
        self.duration_tokens = nn.Parameter(torch.empty(num_time_tokens, dim))
        self.num_condition_tokens = num_class_tokens + num_guidance_tokens + 2 * num_interval_tokens + num_time_tokens
        self.num_tokens = self.num_condition_tokens + self.grid[0] * self.grid[1]
        self.positions = nn.Parameter(torch.empty(self.num_tokens, dim)) if learned_positions else None
        self.blocks = nn.ModuleList(MiTBlock(dim, num_heads, ffn_dim) for _ in range(num_layers))
        self.out_norm = RMSNorm(dim)
        self.patch_out = nn.Linear(dim, patch_dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """As the released code starts: scaled normal matrices, Xavier-uniform patches, and an output of zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=MATRIX_INIT * layer.in_features**-0.5)
        for layer in self.patch_in.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        for weight in (self.class_in.weight, *self._condition_tokens()):
            nn.init.normal_(weight, std=self.dim**-0.5)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=POSITION_INIT_STD)
        nn.init.zeros_(self.patch_out.weight)

    def _condition_tokens(self) -> tuple[nn.Parameter, ...]:
        """In the order in which they stand before the patches."""
        return (
            self.class_tokens,
            self.guidance_tokens,
            self.sigma_min_tokens,
            self.sigma_max_tokens,
            self.duration_tokens,
        )

    def forward(
        self,
        x_t: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        condition: MeanFlowCondition,
        end: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """What ``prediction`` says of the stretch from t to ``end``, from noisy images at time t.

        Args:
            end: a time not before t; if None 1, where the data is.

        Raises:
            ValueError: the images have another size than ``image_size``.
        """
        check_square(x_t, self.image_size)
        duration = (1 if end is None else end) - t
        embeddings = (
            self.class_in(condition.labels),
            self.guidance_in(1 - 1 / condition.guidance_scale),
            self.sigma_min_in(1 - condition.guidance_end),
            self.sigma_max_in(1 - condition.guidance_start),
            self.duration_in(duration),
        )
        parts = [
            tokens + embedding[:, None] for tokens, embedding in zip(self._condition_tokens(), embeddings, strict=True)
        ]
        x = torch.cat([*parts, self.patch_in(patchify(x_t, self.patch_size))], dim=1)
        if self.positions is not None:
            x = x + self.positions
        table = self._rotary_table(x.device)
        for block in self.blocks:
            x = block(x, table)
        x = self.patch_out(self.out_norm(x[:, self.num_condition_tokens :]))
        return unpatchify(x, self.patch_size, self.grid)

    def _rotary_table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        head_dim = self.dim // self.num_heads
        if self.rotary == "grid":
            return rotary_table_2d(*self.grid, head_dim, device=device, alternate=False)
        return rotary_table(torch.arange(self.num_tokens, device=device), head_dim)

    def config_dict(self) -> dict[str, Any]:
        """Arguments that build the same network again."""
        return {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "dim": self.dim,
            "num_layers": len(self.blocks),
            "num_heads": self.num_heads,
            "ffn_dim": self.ffn_dim,
            "bottleneck_dim": self.bottleneck_dim,
            "num_classes": self.num_classes,
            "channels": self.channels,
            "num_class_tokens": len(self.class_tokens),
            "num_guidance_tokens": len(self.guidance_tokens),
            "num_interval_tokens": len(self.sigma_min_tokens),
            "num_time_tokens": len(self.duration_tokens),
            "rotary": self.rotary,
            "learned_positions": self.learned_positions,
            "noise_scale": self.noise_scale,
            "prediction": self.prediction,
        }
