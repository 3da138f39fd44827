"""Typed configurations of the parts that models are composed of; each has one ``build()``.

Parts themselves take plain keyword arguments; these classes give a recipe's flags their names, types and checks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from diptych.train.recipe import Buildable

if TYPE_CHECKING:
    from torch import nn

    from diptych.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer folder, or one of the package's own."""

    path: str = "builtin:scenes"
    """``builtin:scenes`` (byte-level BPE whose merges come from the language of scenes; any text round-trips), a folder
    that holds ``tokenizer.json``, or a hub id of a transformers tokenizer."""

    def build(self) -> "Tokenizer":
        from diptych.data.tokenizer import FastTokenizer

        if self.path.startswith("builtin:"):
            folder = Path(__file__).parent.parent / "assets" / "tokenizers" / self.path.removeprefix("builtin:")
            if not folder.is_dir():
                known = ", ".join(sorted(f"builtin:{p.name}" for p in folder.parent.iterdir() if p.is_dir()))
                raise ValueError(f"model.tokenizer.path: there is no {self.path!r}. Known: {known}; or give a folder.")
            return FastTokenizer.load(folder)
        if (Path(self.path) / "tokenizer_config.json").is_file() or not Path(self.path).exists():
            return FastTokenizer.from_transformers(self.path)
        return FastTokenizer.load(self.path)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Our own causal transformer."""

    dim: int = 192
    """Width."""
    num_layers: int = 4
    """Blocks."""
    num_heads: int = 6
    """Query heads."""
    num_kv_heads: int = 6
    """Key and value heads."""
    ffn_dim: int = 512
    """Width inside the feed-forward layers."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    qk_norm: bool = True
    """Normalise queries and keys."""
    residual_init: float = 0.1
    """Initial scale of what attention and feed-forward layers add, times GPT-2's; 1 where learnable queries must read
    the prompt from the first step on."""

    def build(self, vocab_size: int) -> "nn.Module":
        from diptych.models.backbones.transformer import CausalTransformer

        return CausalTransformer(
            vocab_size=vocab_size,
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            ffn_dim=self.ffn_dim,
            rope_theta=self.rope_theta,
            qk_norm=self.qk_norm,
            residual_init=self.residual_init,
        )


@dataclass(frozen=True, kw_only=True)
class PretrainedBackboneConfig:
    """A decoder language model of ``transformers``."""

    path: str
    """A folder written by ``save_pretrained``, or a hub id."""
    revision: str | None = None
    """Commit of a hub id."""

    def build(self, vocab_size: int) -> "nn.Module":
        from diptych.models.backbones.transformers_lm import load_backbone

        return load_backbone(self.path, revision=self.revision)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685): parts of the model that learn by few parameters."""

    parts: tuple[Literal["backbone", "denoiser"], ...] = ()
    """What gets adapters; empty for none. Stages that train the backbone, or the image head for the denoiser, then
    train the adapters alone: all else of that part is frozen, the image head's queries too."""
    rank: int = 16
    """Rows of the matrices that learn."""
    alpha: float = 32.0
    """Adapters are added times ``alpha / rank``."""
    dropout: float = 0.0
    """Probability of dropout on what the adapters read."""
    layers: tuple[str, ...] = ("*",)
    """Glob patterns on names of linear layers, or on how they end, such as ``q_proj``; each must match in every part.
    Output heads are never adapted."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank must be at least 1, got {self.rank}. For no adapters leave lora.parts empty.")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise ValueError(f"lora.alpha must be a positive number, got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must lie in [0, 1), got {self.dropout}.")
        if not self.layers:
            raise ValueError('lora.layers is empty: name linear layers, or "*" for all of them.')

    def add(self, parts: Mapping[str, "nn.Module"]) -> None:
        """Puts adapters on the named ones of ``parts``; raises as ``models.adapters.add_adapters`` does."""
        from diptych.models.adapters import add_adapters

        for name in self.parts:
            add_adapters(
                parts[name],
                rank=self.rank,
                alpha=self.alpha,
                dropout=self.dropout,
                layers=self.layers,
                where=f"the {name}",
            )


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Our own vision transformer."""

    image_size: tuple[int, int] = (64, 64)
    """(height, width) it is trained at."""
    patch_size: int = 8
    """Pixels along a patch."""
    dim: int = 128
    """Width."""
    num_layers: int = 4
    """Blocks."""
    num_heads: int = 4
    """Heads."""

    def build(self) -> "nn.Module":
        from diptych.models.encoders.vit import VisionTransformer

        return VisionTransformer(
            image_size=self.image_size,
            patch_size=self.patch_size,
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            pooling="mean",
        )


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoderConfig:
    """A vision tower of ``transformers`` (CLIP, SigLIP, DINO, MAE, ConvNeXt)."""

    path: str
    """A folder written by ``save_pretrained``, or a hub id."""

    def build(self) -> "nn.Module":
        from diptych.models.encoders.huggingface import load_huggingface_encoder

        return load_huggingface_encoder(self.path)


@dataclass(frozen=True, kw_only=True)
class SpaceEncoderConfig:
    """The generation space of a saved model, to look at images with."""

    source: str = "diptych-scenes"
    """A bundled model or a model folder."""

    def build(self) -> "nn.Module":
        from diptych.models.encoders.space_features import SpaceEncoder
        from diptych.unified.folder import load_part

        return SpaceEncoder(space=load_part(self.source, "autoencoder"))


EncoderConfig: TypeAlias = VitConfig | PretrainedEncoderConfig | Buildable
"""These, or any config whose ``build()`` returns a vision encoder, such as those of ``diptych.interop``."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Encoder features with a trained decoder as the generation space (RAE)."""

    encoder: EncoderConfig = field(default_factory=VitConfig)
    """Whose features they are."""
    channels: int | None = 32
    """Width of the trained bottleneck; None keeps the encoder's own features."""
    pool: int = 2
    """Side of the squares of tokens that become one latent."""
    pool_mode: Literal["mean", "concat"] = "concat"
    """Average of the tokens, or all of them side by side into the bottleneck."""
    layers: tuple[int, ...] = ()
    """Layers to combine; empty takes the encoder's output."""
    latent_norm: bool = True
    """LayerNorm over the channels of every latent."""
    decoder_dim: int = 128
    """Width of the decoder."""
    decoder_layers: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 4
    """Heads of the decoder."""
    decoder_patch_size: int | None = None
    """Pixels a decoder token paints; None is the encoder's patch size."""
    mean_scale: float = 1.0
    """Factor on what features share over the grid."""
    detail_scale: float = 1.0
    """Factor on how the features of a cell differ from that; with ``mean_scale`` it says what is learnt first."""
    num_labels: int = 0
    """Labels that the features are trained to tell, by the ``labels`` objective; 0 for none."""
    gate: bool = False
    """Cells without the first label all hold their mean, so that an object is told by one cell."""
    frozen_encoder: bool = False
    """The decoder learns alone."""

    def build(self) -> "nn.Module":
        from diptych.models.autoencoders.features import FeatureAutoencoder

        return FeatureAutoencoder(
            encoder=self.encoder.build(),
            channels=self.channels,
            pool=self.pool,
            pool_mode=self.pool_mode,
            layers=self.layers,
            latent_norm=self.latent_norm,
            decoder_dim=self.decoder_dim,
            decoder_layers=self.decoder_layers,
            decoder_heads=self.decoder_heads,
            decoder_patch_size=self.decoder_patch_size,
            mean_scale=self.mean_scale,
            detail_scale=self.detail_scale,
            num_labels=self.num_labels,
            gate=self.gate,
            frozen_encoder=self.frozen_encoder,
        )


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """An autoencoder of ``diffusers``."""

    path: str
    """A folder or hub id of AutoencoderKL, AutoencoderTiny or AutoencoderDC."""

    def build(self) -> "nn.Module":
        from diptych.models.autoencoders.diffusers import load_diffusers_autoencoder

        return load_diffusers_autoencoder(self.path)


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """Pixels themselves as the generation space."""

    shift: float = 0.0
    """Taken off every value of an image in [-1, 1]."""
    scale: float = 1.0
    """What is left is divided by this: the standard deviation of the images brings them to 1, that of the noise."""

    def build(self) -> "nn.Module":
        from diptych.models.autoencoders.pixels import PixelSpace

        return PixelSpace(shift=self.shift, scale=self.scale)


GenerationSpaceConfig: TypeAlias = FeaturesConfig | VaeConfig | PixelsConfig | Buildable
"""These, or any config whose ``build()`` returns a generation space, e.g. ``diptych.interop.taef2:Taef2Config``."""


@dataclass(frozen=True, kw_only=True)
class LuminaConfig:
    """The Lumina-Next diffusion transformer (blip3o.md section 5), any size."""

    dim: int = 192
    """Width."""
    num_layers: int = 6
    """Blocks."""
    num_heads: int = 6
    """Heads."""
    patch_size: int = 1
    """Latent cells along a token."""
    ffn_multiple: int = 32
    """The feed-forward width 8/3 dim is rounded up to a multiple of it (256 in the paper)."""
    prediction: Literal["velocity", "data", "noise"] = "data"
    """What the network returns; the paper predicts velocity."""
    initial_gate: float = 0.0
    """Gate of the cross-attention before its tanh when training begins. 0, the paper's, hides the condition at first;
    short trainings want it open."""

    def build(self, channels: int, condition_dim: int) -> Any:
        from diptych.models.denoisers.lumina import LuminaDiT

        denoiser = LuminaDiT(
            channels=channels,
            condition_dim=condition_dim,
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            patch_size=self.patch_size,
            ffn_multiple_of=self.ffn_multiple,
            prediction=self.prediction,
        )
        for name, parameter in denoiser.named_parameters():
            if name.endswith("attention.gate"):
                parameter.data.fill_(self.initial_gate)
        return denoiser


@dataclass(frozen=True, kw_only=True)
class SanaConfig:
    """The SANA diffusion transformer with linear attention, any size."""

    condition_dim: int = 96
    """Width of a condition row."""
    dim: int = 96
    """Width."""
    num_layers: int = 4
    """Blocks."""
    num_heads: int = 3
    """Heads of the linear attention."""
    num_cross_heads: int = 3
    """Heads of the cross-attention."""
    ffn_ratio: float = 2.5
    """Inner width of the feed-forward layers over the width."""
    qk_norm: bool = True
    """Norms of queries and keys: SANA 1.5."""
    prediction: Literal["velocity", "data", "noise"] = "velocity"
    """What the network returns."""

    def build(self, channels: int) -> Any:
        from diptych.models.denoisers.sana import SanaTransformer

        return SanaTransformer(
            channels=channels,
            condition_dim=self.condition_dim,
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_cross_heads=self.num_cross_heads,
            ffn_ratio=self.ffn_ratio,
            qk_norm=self.qk_norm,
            prediction=self.prediction,
        )


@dataclass(frozen=True, kw_only=True)
class TextAlignedTokenizerConfig:
    """Codes of a vision encoder's features (TA-Tok)."""

    encoder: EncoderConfig = field(default_factory=VitConfig)
    """Whose features they are: SigLIP 2's in the paper."""
    num_codes: int = 256
    """Size of the codebook."""
    code_dim: int = 16
    """Width of a code."""
    words: Buildable | None = None
    """A backbone whose word embeddings the codebook is a map of; None draws them at random."""
    layer: int | None = None
    """Block whose output is taken; None takes the encoder's own output."""
    pool: int = 1
    """Side of the squares of tokens that are averaged."""
    image_size: int = 64
    """Side that images are brought to."""
    decoder_layers: int = 3
    """Blocks of the decoder of features."""
    decoder_heads: int = 4
    """Its heads."""
    frozen_encoder: bool = True
    """The encoder does not learn."""

    def build(self) -> Any:
        from diptych.models.encoders.ta_tok import TextAlignedTokenizer

        words = None if self.words is None else self.words.build()
        tokenizer = TextAlignedTokenizer(
            encoder=self.encoder.build(),
            num_codes=self.num_codes,
            code_dim=self.code_dim,
            word_dim=None if words is None else words.dim,
            layer=self.layer,
            pool=self.pool,
            image_size=self.image_size,
            decoder_layers=self.decoder_layers,
            decoder_heads=self.decoder_heads,
            frozen_encoder=self.frozen_encoder,
        )
        if words is not None:
            import torch

            tokenizer.align_to(words.embed(torch.arange(words.vocab_size)))
        return tokenizer


@dataclass(frozen=True, kw_only=True)
class SavedPartConfig:
    """A part of a saved model, or a module inside one, with its weights."""

    path: str
    """A bundled model's name, a model folder, a checkpoint or a run."""
    part: str
    """Its part, such as ``autoencoder``; ``autoencoder.encoder`` is a module inside."""

    def build(self) -> Any:
        from diptych.unified.folder import load_part

        part, _, inner = self.part.partition(".")
        try:
            return load_part(self.path, part).get_submodule(inner)
        except AttributeError as error:
            raise ValueError(f"there is no {self.part!r} in {self.path}: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class GrownBackboneConfig:
    """The backbone of a saved model with tokens added behind its own."""

    path: str
    """A bundled model's name, a model folder, a checkpoint or a run."""
    spread: float = 0.0
    """Standard deviation of the new embeddings around the mean of the old, in theirs; 0 in BLIP3o-NEXT."""

    def build(self, vocab_size: int) -> Any:
        from diptych.models.backbones.grow import with_more_tokens
        from diptych.unified.folder import load_part

        return with_more_tokens(load_part(self.path, "backbone"), vocab_size, self.spread)
