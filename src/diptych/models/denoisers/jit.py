"""JiT, the "just image Transformer" that denoises pixels in large patches (arXiv 2511.13720).

Patches pass a bottleneck of few channels on their way in; time and class scale, shift and gate every
branch (adaLN-Zero), and the class stands before the patches as in-context tokens from one of the blocks on. The network
returns the clean image: ``prediction`` is "data". The paper's time is ours: 0 is noise, 1 is data.

Differs from the released code in form alone: joint matrices are kept apart (query, key, value; gate, up), a patch's
values stand channels first, and fresh position codes list their channels in another order (`sincos_positions`);
`diptych.interop.jit` translates.
"""

from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.flow.path import Prediction
from diptych.models.denoisers.in_context import (
    InContextAttention,
    ScalarEmbedding,
    check_image_transformer,
    check_square,
)
from diptych.models.encoders.vision_block import sincos_positions
from diptych.models.layers import RMSNorm, SwiGLU, rotary_table_2d
from diptych.models.patches import patchify, unpatchify

JiTSize: TypeAlias = Literal["B", "L", "H"]

INIT_STD = 0.02
"""Standard deviation of fresh embeddings and in-context positions."""

_SIZES: dict[JiTSize, dict[str, int]] = {
    "B": {"dim": 768, "num_layers": 12, "num_heads": 12, "bottleneck_dim": 128, "in_context_start": 4},
    "L": {"dim": 1024, "num_layers": 24, "num_heads": 16, "bottleneck_dim": 128, "in_context_start": 8},
    "H": {"dim": 1280, "num_layers": 32, "num_heads": 16, "bottleneck_dim": 256, "in_context_start": 10},
}


def jit_config(size: JiTSize, patch_size: int = 16) -> dict[str, Any]:
    """Arguments of the published JiT-B, L or H on ImageNet: patches of 16 at 256 pixels, or of 32 at 512, there with
    noise of twice the standard deviation."""
    return {
        **_SIZES[size],
        "patch_size": patch_size,
        "image_size": 16 * patch_size,
        "num_classes": 1000,
        "noise_scale": patch_size / 16,
    }


class JiTBlock(nn.Module):
    """Attention and SwiGLU branch; time and class shift and scale what they read and gate what they add."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        """Shift, scale and gate of the attention, then of the feed-forward layer."""
        self.attention_norm = RMSNorm(dim)
        self.attention = InContextAttention(dim, num_heads, bias=True)
        self.ffn_norm = RMSNorm(dim)
        self.ffn = SwiGLU(dim, ffn_dim, bias=True)

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        condition: Float[Tensor, "batch 1 dim"],
        rotary: tuple[Float[Tensor, "patches half"], Float[Tensor, "patches half"]],
    ) -> Float[Tensor, "batch seq dim"]:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate * self.attention(self.attention_norm(x, 1 + scale) + shift, rotary)
        return x + ffn_gate * self.ffn(self.ffn_norm(x, 1 + ffn_scale) + ffn_shift)


class JiT(nn.Module):
    """Denoiser of images of one size, given their classes; `jit_config` has the published sizes."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        bottleneck_dim: int,
        num_classes: int,
        in_context_start: int,
        num_in_context: int = 32,
        channels: int = 3,
        ffn_dim: int | None = None,
        learned_positions: bool = False,
        noise_scale: float = 1.0,
        prediction: Prediction = "data",
    ) -> None:
        """
        Args:
            image_size: side of the square images.
            bottleneck_dim: channels that a patch is squeezed into on its way in.
            num_classes: the class of this number is the null condition.
            in_context_start: the first block that sees the in-context class tokens; blocks count from 0.
            num_in_context: class tokens; 0 for none.
            ffn_dim: inner width of the feed-forward layers; if None two thirds of ``4 * dim``, cut to an integer.
            learned_positions: train the position codes of the patches too, as FD-loss does; the paper keeps them fixed.
            noise_scale: standard deviation of the noise at t = 0; for those who draw.
            prediction: what the output stands for. The network is the same; samplers and losses read this attribute.

        Raises:
            ValueError: sizes that do not divide, or in-context tokens that no block would see.
        """
        super().__init__()
        check_image_transformer(dim, num_heads, image_size, patch_size)
        if num_in_context and not 0 <= in_context_start < num_layers:
            raise ValueError(
                f"denoiser.in_context_start must be a block between 0 and {num_layers - 1}, got {in_context_start}. "
                "num_in_context=0 leaves the tokens out."
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.dim = dim
        self.num_heads = num_heads
        self.bottleneck_dim = bottleneck_dim
        self.num_classes = num_classes
        self.in_context_start = in_context_start
        self.num_in_context = num_in_context
        self.channels = channels
        self.ffn_dim = int(4 * dim * 2 / 3) if ffn_dim is None else ffn_dim
        self.learned_positions = learned_positions
        self.noise_scale = noise_scale
        self.prediction = prediction
        self.grid = (image_size // patch_size, image_size // patch_size)

        patch_dim = channels * patch_size**2
        self.patch_in = nn.Sequential(nn.Linear(patch_dim, bottleneck_dim, bias=False), nn.Linear(bottleneck_dim, dim))
        self.positions = nn.Parameter(sincos_positions(*self.grid, dim), requires_grad=learned_positions)
        self.time_in = ScalarEmbedding(dim)
        self.class_in = nn.Embedding(num_classes + 1, dim)
        self.in_context_positions = nn.Parameter(torch.empty(num_in_context, dim))
        self.blocks = nn.ModuleList(JiTBlock(dim, num_heads, self.ffn_dim) for _ in range(num_layers))
        self.out_norm = RMSNorm(dim)
        self.out_modulation = nn.Linear(dim, 2 * dim)
        """Shift and scale of the last tokens."""
        self.patch_out = nn.Linear(dim, patch_dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """As the released code starts: Xavier-uniform, small embeddings, closed gates, and an output of zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        time_weights = (self.time_in.first.weight, self.time_in.last.weight)
        for weight in (self.class_in.weight, *time_weights, self.in_context_positions):
            nn.init.normal_(weight, std=INIT_STD)
        modulations = [block.modulation for block in self.modules() if isinstance(block, JiTBlock)]
        for closed in (*modulations, self.out_modulation, self.patch_out):
            nn.init.zeros_(closed.weight)

    def forward(
        self,
        x_t: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels height width"]:
        """What ``prediction`` says, from noisy images at time t.

        Args:
            labels: classes; ``num_classes`` for the null condition.

        Raises:
            ValueError: the images have another size than ``image_size``.
        """
        check_square(x_t, self.image_size)
        class_embedding = self.class_in(labels)[:, None]
        condition = F.silu(self.time_in(t)[:, None] + class_embedding)
        x = self.patch_in(patchify(x_t, self.patch_size)) + self.positions
        rotary = rotary_table_2d(*self.grid, self.dim // self.num_heads, device=x.device, alternate=False)
        for number, block in enumerate(self.blocks):
            if self.num_in_context and number == self.in_context_start:
                x = torch.cat((class_embedding + self.in_context_positions, x), dim=1)
            x = block(x, condition, rotary)
        shift, scale = self.out_modulation(condition).chunk(2, dim=-1)
        x = self.out_norm(x[:, self.num_in_context :], 1 + scale) + shift
        return unpatchify(self.patch_out(x), self.patch_size, self.grid)

    def config_dict(self) -> dict[str, Any]:
        """Arguments that build the same network again."""
        return {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "dim": self.dim,
            "num_layers": len(self.blocks),
            "num_heads": self.num_heads,
            "bottleneck_dim": self.bottleneck_dim,
            "num_classes": self.num_classes,
            "in_context_start": self.in_context_start,
            "num_in_context": self.num_in_context,
            "channels": self.channels,
            "ffn_dim": self.ffn_dim,
            "learned_positions": self.learned_positions,
            "noise_scale": self.noise_scale,
            "prediction": self.prediction,
        }
