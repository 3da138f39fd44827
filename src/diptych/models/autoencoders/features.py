"""Features of a vision encoder as the generation space, with a decoder trained to paint them.

RAE, arXiv 2510.11690, section 3 (frozen encoder, ViT decoder trained on noised features), and RAEv2, arXiv 2605.18324
(several layers summed, each after a LayerNorm without affine parameters). Average pooling to a smaller grid is
BLIP3-o's (arXiv 2505.09568). What differs: a trained linear bottleneck to few channels is offered, statistics are
measured per channel and not per position (so that other image sizes work), and the decoder may run on a finer grid than
the latents.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.autoencoders.protocol import grid_shape, set_measured_scale
from diptych.models.encoders.vision_block import (
    VisionBlock,
    default_ffn_dim,
    init_vision_weights,
    sincos_positions,
)
from diptych.models.layers import RMSNorm, rotary_table_2d
from diptych.models.part import build_part, part_kind
from diptych.models.patches import unpatchify

Aggregate: TypeAlias = Literal["mean", "sum"]
PoolMode: TypeAlias = Literal["mean", "concat"]


class PatchDecoder(nn.Module):
    """A ViT that paints a grid of vectors: each becomes ``upsample^2`` tokens, each token a square of pixels."""

    def __init__(
        self, channels: int, dim: int, num_layers: int, num_heads: int, patch_size: int, upsample: int = 1
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.upsample = upsample
        self.dim = dim
        self.head_dim = dim // num_heads
        self.tokens_in = nn.Linear(channels, upsample**2 * dim)
        self.blocks = nn.ModuleList(
            VisionBlock(dim, num_heads, default_ffn_dim("swiglu", dim)) for _ in range(num_layers)
        )
        self.norm = RMSNorm(dim)
        self.patches_out = nn.Linear(dim, 3 * patch_size**2)
        init_vision_weights(self, num_layers)

    def forward(self, features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch 3 height width"]:
        """Images, not clipped."""
        rows, cols = features.shape[-2] * self.upsample, features.shape[-1] * self.upsample
        x = rearrange(
            self.tokens_in(rearrange(features, "batch channels rows cols -> batch rows cols channels")),
            "batch rows cols (up_rows up_cols dim) -> batch (rows up_rows cols up_cols) dim",
            up_rows=self.upsample,
            up_cols=self.upsample,
        )
        x = x + sincos_positions(rows, cols, self.dim, x.device).to(x.dtype)
        rotary = rotary_table_2d(rows, cols, self.head_dim, 100.0, x.device)
        for block in self.blocks:
            x = block(x, rotary)
        return unpatchify(self.patches_out(self.norm(x)), self.patch_size, (rows, cols))


class FeatureAutoencoder(nn.Module):
    """Encoder features, pooled, squeezed and normalised, and a decoder from them to pixels.

    ``encode``: tokens of ``layers`` -> pooled ``pool x pool`` -> linear to ``channels`` -> LayerNorm without affine
    parameters -> gate (`features`, what decoder and label heads are trained on) -> their mean over the grid times
    ``mean_scale`` and the differences from it times ``detail_scale`` -> ``(raw - shift) / scale``. ``decode`` takes all
    of this back first, so that none of these numbers changes what a trained decoder sees.

    Args:
        encoder: the encoder, or its ``config_dict()``.
        channels: width of the trained bottleneck; ``None`` keeps the encoder's own features.
        pool: side of the squares of tokens that become one latent.
        pool_mode: their average, or all of them side by side (then ``pool^2 * dim`` values go into the bottleneck).
        layers: layers to combine, 1 … ``encoder.num_layers``, each normalised without affine parameters (RAE takes the
            last, RAEv2 several); empty takes the encoder's output as it is.
        aggregate: how several layers are combined.
        latent_norm: LayerNorm over the channels of every latent, without affine parameters.
        decoder_patch_size: pixels a decoder token paints; ``None`` is the encoder's patch size.
        upsample: decoder tokens to a latent, per axis; ``None`` makes images as large as the encoder's input. With
            another value images are resampled (bicubic, antialiased) before the encoder sees them.
        mean_scale: a denoiser learns first what has most of the variance. Where features share too much over the grid
            (what is in the image) or too little, this and ``detail_scale`` (where and how it is) set the proportion.
        detail_scale: see ``mean_scale``.
        num_labels: labels that ``label_logits`` reads from the features, for training with labels; 0 for none.
        gate: cells that hold nothing (by a linear reading of the cell, trained on the first label) all get their mean:
            what is drawn is then said by the cells that hold something, one each, and by one vector for the rest.
        frozen_encoder: the cells are made without gradients, so that the decoder learns alone, as in RAE.

    Raises:
        ValueError: sizes that do not divide, or layers that do not exist.
    """

    encoder: Any
    channels: int
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        encoder: nn.Module | Mapping[str, Any],
        channels: int | None = None,
        pool: int = 1,
        pool_mode: PoolMode = "mean",
        layers: Sequence[int] = (),
        aggregate: Aggregate = "mean",
        latent_norm: bool = False,
        decoder_dim: int = 192,
        decoder_layers: int = 4,
        decoder_heads: int = 4,
        decoder_patch_size: int | None = None,
        upsample: int | None = None,
        mean_scale: float = 1.0,
        detail_scale: float = 1.0,
        num_labels: int = 0,
        gate: bool = False,
        frozen_encoder: bool = False,
    ) -> None:
        super().__init__()
        reader: Any = encoder if isinstance(encoder, nn.Module) else build_part(encoder)
        input_stride = reader.patch_size * pool
        decoder_patch_size = reader.patch_size if decoder_patch_size is None else decoder_patch_size
        if upsample is None:
            if input_stride % decoder_patch_size:
                raise ValueError(
                    f"features.decoder_patch_size must divide the {input_stride} pixels of a latent "
                    f"(patch_size {reader.patch_size} x pool {pool}), got {decoder_patch_size}. Or give upsample."
                )
            upsample = input_stride // decoder_patch_size
        wrong = [layer for layer in layers if not 1 <= layer <= reader.num_layers]
        if wrong:
            raise ValueError(f"features.layers must be 1 to {reader.num_layers} (blocks of the encoder), got {wrong}.")
        if aggregate not in ("mean", "sum") or pool_mode not in ("mean", "concat"):
            raise ValueError(
                "features.aggregate must be 'mean' or 'sum' and features.pool_mode 'mean' or 'concat', "
                f"got {aggregate!r} and {pool_mode!r}."
            )
        if gate and not num_labels:
            raise ValueError("features.gate is trained on the first label: give features.num_labels.")
        if mean_scale <= 0 or detail_scale <= 0:
            raise ValueError(
                f"features.mean_scale and features.detail_scale must be above 0, got {mean_scale} and {detail_scale}."
            )
        self._config: dict[str, Any] = {
            "channels": channels,
            "pool": pool,
            "pool_mode": pool_mode,
            "layers": list(layers),
            "aggregate": aggregate,
            "latent_norm": latent_norm,
            "decoder_dim": decoder_dim,
            "decoder_layers": decoder_layers,
            "decoder_heads": decoder_heads,
            "decoder_patch_size": decoder_patch_size,
            "upsample": upsample,
            "mean_scale": mean_scale,
            "detail_scale": detail_scale,
            "num_labels": num_labels,
            "gate": gate,
            "frozen_encoder": frozen_encoder,
        }
        feature_dim = reader.dim * (pool**2 if pool_mode == "concat" else 1)
        self.encoder = reader
        self.layers = tuple(layers)
        self.aggregate: Aggregate = aggregate
        self.pool = pool
        self.pool_mode: PoolMode = pool_mode
        self.latent_norm = latent_norm
        self.mean_scale, self.detail_scale = mean_scale, detail_scale
        self.frozen_encoder = frozen_encoder
        self.channels = feature_dim if channels is None else channels
        self.input_stride = input_stride
        self.stride = decoder_patch_size * upsample
        self.bottleneck = nn.Identity() if channels is None else nn.Linear(feature_dim, channels)
        self.decoder = PatchDecoder(
            self.channels, decoder_dim, decoder_layers, decoder_heads, decoder_patch_size, upsample
        )
        self.cell_labels = nn.Linear(self.channels, num_labels) if num_labels else None
        self.image_labels = nn.Linear(self.channels, num_labels) if num_labels else None
        self.gate = nn.Linear(self.channels, 1) if gate else None
        self.register_buffer("shift", torch.zeros(self.channels, 1, 1))
        self.register_buffer("scale", torch.ones(self.channels, 1, 1))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, rows, cols) of the latents of an image.

        Raises:
            ValueError: a side is no multiple of ``stride``.
        """
        return self.channels, *grid_shape(height, width, self.stride, "the feature autoencoder")

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Latents; gradients reach the encoder and the bottleneck where those are trainable.

        Raises:
            ValueError: a side is no multiple of ``stride``.
        """
        features = _rescale(self.features(images), self.mean_scale, self.detail_scale)
        return (features - self.shift) / self.scale

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Features of the encoder, squeezed, normalised and gated, before they are scaled to latents.

        Raises:
            ValueError: a side is no multiple of ``stride``.
        """
        return self.gated(self.cells(images))

    def cells(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Features before the gate.

        Raises:
            ValueError: a side is no multiple of ``stride``.
        """
        with torch.no_grad() if self.frozen_encoder else nullcontext():
            return self._cells(images)

    def _cells(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        rows, cols = grid_shape(images.shape[-2], images.shape[-1], self.stride, "the feature autoencoder")
        if self.stride != self.input_stride:
            size = rows * self.input_stride, cols * self.input_stride
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        output = self.encoder(images, self.layers)
        tokens = output.tokens
        if self.layers:
            states = [output.layer_tokens[index] for index in self.layers]
            if any(state.shape != tokens.shape for state in states):
                raise ValueError(
                    f"features.layers {list(self.layers)} have other grids or widths than the encoder's last layer: "
                    "networks with stages can only give their last one."
                )
            normed = [F.layer_norm(state.float(), (self.encoder.dim,)) for state in states]
            tokens = torch.stack(normed).sum(0).to(tokens.dtype)
            if self.aggregate == "mean":
                tokens = tokens / len(self.layers)
        return self._squeeze(tokens, output.grid)

    def gated(
        self, cells: Float[Tensor, "batch channels rows cols"], is_held: Bool[Tensor, "batch rows cols"] | None = None
    ) -> Float[Tensor, "batch channels rows cols"]:
        """Features of which those of empty cells are their mean; as they are where there is no gate.

        Args:
            is_held: cells that hold something, where it is known; else by ``gate_logits``.
        """
        if self.gate is None:
            return cells
        held = (self.gate_logits(cells) > 0 if is_held is None else is_held)[:, None]
        empty = (~held).to(cells.dtype)
        mean = (cells * empty).sum((2, 3), keepdim=True) / empty.sum((2, 3), keepdim=True).clamp(min=1)
        return torch.where(held, cells, mean)

    def gate_logits(self, cells: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch rows cols"]:
        """Logits of whether a cell holds anything."""
        assert self.gate is not None
        return self.gate(cells.movedim(1, -1)).squeeze(-1)

    def decode(self, latents: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch 3 height width"]:
        """Images, clipped to [-1, 1]."""
        return self.decode_unclipped(latents).clamp(-1, 1)

    def decode_unclipped(
        self, latents: Float[Tensor, "batch channels rows cols"]
    ) -> Float[Tensor, "batch 3 height width"]:
        features = latents * self.scale + self.shift
        return self.paint(_rescale(features, 1 / self.mean_scale, 1 / self.detail_scale))

    def paint(self, features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch 3 height width"]:
        """The decoder's images of ``features`` before clipping, so that a loss has gradients everywhere."""
        return self.decoder(features)

    def label_logits(
        self, features: Float[Tensor, "batch channels rows cols"]
    ) -> tuple[Float[Tensor, "batch labels rows cols"], Float[Tensor, "batch labels"]]:
        """Logits of what is in each cell, and of what is anywhere in the image: linear in a feature and in their mean.

        Raises:
            ValueError: the autoencoder was made without labels.
        """
        if self.cell_labels is None or self.image_labels is None:
            raise ValueError("this feature autoencoder has no labels: give features.num_labels.")
        return self.cell_labels(features.movedim(1, -1)).movedim(-1, 1), self.image_labels(features.mean((2, 3)))

    def measure(self, latents: Iterable[Float[Tensor, "_ channels _ _"]]) -> None:
        """Sets shift and scale such that latents like the given ones, made by ``encode``, have mean 0 and std 1."""
        set_measured_scale(self, latents)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": part_kind(self), "encoder": self.encoder.config_dict(), **self._config}

    def _squeeze(
        self, tokens: Float[Tensor, "batch patches dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch channels rows cols"]:
        squares = rearrange(
            tokens,
            "batch (rows y cols x) dim -> batch rows cols (y x) dim",
            y=self.pool,
            x=self.pool,
            rows=grid[0] // self.pool,
        )
        pooled = squares.mean(3) if self.pool_mode == "mean" else squares.flatten(3)
        raw = self.bottleneck(pooled)
        if self.latent_norm:
            raw = F.layer_norm(raw.float(), (self.channels,)).to(raw.dtype)
        return rearrange(raw, "batch rows cols channels -> batch channels rows cols")


def _rescale(
    features: Float[Tensor, "batch channels rows cols"], mean_scale: float, detail_scale: float
) -> Float[Tensor, "batch channels rows cols"]:
    """The mean over the grid and the differences from it, each times its factor."""
    if mean_scale == detail_scale == 1:
        return features
    mean = features.mean((2, 3), keepdim=True)
    return mean_scale * mean + detail_scale * (features - mean)
