"""A vision encoder whose features have a discrete form: a text-aligned tokenizer (TA-Tok).

Tar, arXiv 2506.18898, section 3.1, as BLIP3o-NEXT (arXiv 2510.15857) uses it: features of a SigLIP 2 layer, pooled,
``tanh(linear)``, linear to a narrow bottleneck, and the nearest code of a codebook. The codebook is *text-aligned*: not
a table of its own but a linear map of word embeddings of a language model, which stay as they are (SimVQ, arXiv
2411.02038); all codes move together, so none is left behind. Codes and bottleneck have unit length, and the nearest
code is the one of the largest cosine. A small transformer decodes codes back to the features.

    z = normalised(W_in tanh(W features));   code = argmax_k <z, c_k>,   c = normalised(W_c E + b)
    L = (1 - cos(decoder(c_code), features)) + |sg[z] - c|^2 + 0.25 |z - sg[c]|^2        (VQ-VAE, 1711.00937)

Differs from Tar in training, whose code is not published. The loss is the one above; codes are drawn with the
probabilities ``softmax(<z, c_k> / 0.1)`` while it is trained, and codes that are used by few images are asked for
(``usage``, the entropy of MAGVIT-v2, arXiv 2310.05737, equation 3), without which a short training ends with two codes.
Features are centred and scaled by running statistics, so that what all pictures share is no part of the loss. The
encoder stays as it is (``frozen_encoder``), and the decoder is our vision transformer.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.encoders.protocol import EncoderOutput
from diptych.models.encoders.vision_block import (
    VisionBlock,
    default_ffn_dim,
    init_vision_weights,
    sincos_positions,
)
from diptych.models.layers import RMSNorm, rotary_table_2d
from diptych.models.part import build_part, part_kind

COMMITMENT = 0.25
"""Weight of what draws the bottleneck to its code (VQ-VAE, arXiv 1711.00937, equation 3)."""
TEMPERATURE = 0.1
"""Of the probabilities of codes in training."""


@dataclass(frozen=True)
class Quantised:
    """Features, their discrete form, and what is decoded from that.

    Attributes:
        features: of the encoder, pooled, centred and scaled.
        codes: ids below ``num_codes``, row by row.
        decoded: the decoder's guess of the features.
        distance: squared distance of each bottleneck vector to its code, counted with the commitment as the loss does:
            its gradient draws code and vector to each other.
        usage: by how much, in nats, the mean probabilities of the codes fall short of equal ones.
    """

    features: Float[Tensor, "batch tokens dim"]
    codes: Int[Tensor, "batch tokens"]
    decoded: Float[Tensor, "batch tokens dim"]
    distance: Float[Tensor, "batch tokens"]
    usage: Float[Tensor, ""]


class FeatureDecoder(nn.Module):
    """A vision transformer from a grid of codes to a grid of features."""

    def __init__(self, in_dim: int, dim: int, out_dim: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.dim, self.head_dim = dim, dim // num_heads
        self.tokens_in = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList(
            VisionBlock(dim, num_heads, default_ffn_dim("swiglu", dim)) for _ in range(num_layers)
        )
        self.norm = RMSNorm(dim)
        self.features_out = nn.Linear(dim, out_dim)
        init_vision_weights(self, num_layers)

    def forward(
        self, codes: Float[Tensor, "batch tokens in_dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens out_dim"]:
        x = self.tokens_in(codes)
        x = x + sincos_positions(*grid, self.dim, x.device).to(x.dtype)
        rotary = rotary_table_2d(*grid, self.head_dim, 100.0, x.device)
        for block in self.blocks:
            x = block(x, rotary)
        return self.features_out(self.norm(x))


class TextAlignedTokenizer(nn.Module):
    """Features of an encoder, to look at, and their codes, to draw by; a vision encoder like any other.

    Args:
        encoder: the encoder, or its ``config_dict()``.
        num_codes: size of the codebook; 65,536 as released.
        code_dim: width of the bottleneck and of a code.
        word_dim: width of the word embeddings that the codebook is a map of; ``code_dim`` if None.
        layer: which features: the output of a block, or the encoder's own output (None). SigLIP 2's last but one as
            released.
        pool: side of the squares of tokens that are averaged (1, 2 or 3 as released).
        image_size: side that images are brought to before they are encoded, so that all have equally many codes; 384 as
            released.
        decoder_dim: width of the decoder of features; that of the encoder if None.
        decoder_layers: its blocks; 3 as released. 0 for none: codes can then be made and drawn by, but not learnt.
        frozen_encoder: the features are made without gradients.
        standardised: features are centred and scaled by running statistics before they are quantised; the released
            TA-Tok takes them as they are.

    Raises:
        ValueError: ``layer`` does not exist, or a number is below 1.
    """

    encoder: Any
    words: Tensor

    def __init__(
        self,
        *,
        encoder: nn.Module | Mapping[str, Any],
        num_codes: int,
        code_dim: int,
        image_size: int,
        word_dim: int | None = None,
        layer: int | None = None,
        pool: int = 1,
        decoder_dim: int | None = None,
        decoder_layers: int = 3,
        decoder_heads: int = 4,
        frozen_encoder: bool = True,
        standardised: bool = True,
    ) -> None:
        super().__init__()
        reader: Any = encoder if isinstance(encoder, nn.Module) else build_part(encoder)
        if layer is not None and not 1 <= layer <= reader.num_layers:
            raise ValueError(f"tokenizer.layer must be 1 to {reader.num_layers} (blocks of the encoder), got {layer}.")
        for name, number in (("num_codes", num_codes), ("code_dim", code_dim), ("pool", pool)):
            if number < 1:
                raise ValueError(f"tokenizer.{name} must be at least 1, got {number}.")
        word_dim = code_dim if word_dim is None else word_dim
        decoder_dim = reader.dim if decoder_dim is None else decoder_dim
        self._config: dict[str, Any] = {
            "num_codes": num_codes,
            "code_dim": code_dim,
            "word_dim": word_dim,
            "layer": layer,
            "pool": pool,
            "image_size": image_size,
            "decoder_dim": decoder_dim,
            "decoder_layers": decoder_layers,
            "decoder_heads": decoder_heads,
            "frozen_encoder": frozen_encoder,
            "standardised": standardised,
        }
        self.encoder = reader
        self.layer, self.pool, self.image_size = layer, pool, image_size
        self.num_codes, self.code_dim = num_codes, code_dim
        self.frozen_encoder = frozen_encoder
        self.dim: int = reader.dim
        self.num_layers: int = reader.num_layers
        self.patch_size: int = reader.patch_size * pool
        self.standard = nn.BatchNorm1d(reader.dim, affine=False) if standardised else nn.Identity()
        self.task = nn.Sequential(nn.Linear(reader.dim, reader.dim), nn.Tanh())
        self.bottleneck = nn.Linear(reader.dim, code_dim)
        self.register_buffer("words", torch.randn(num_codes, word_dim))
        self.codebook_map = nn.Linear(word_dim, code_dim)
        self.decoder = (
            FeatureDecoder(code_dim, decoder_dim, reader.dim, decoder_layers, decoder_heads) if decoder_layers else None
        )

    def preprocess(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """As the encoder does."""
        return self.encoder.preprocess(pixels, size)

    def align_to(self, embeddings: Float[Tensor, "words word_dim"]) -> None:
        """Makes the codebook a map of these word embeddings: those of most varied meaning, cut to ``num_codes``.

        Tar takes the tokens that lie farthest from the others; so does this, by their mean distance. Where there are
        fewer words than codes, each further code begins at the sum of two words.

        Raises:
            ValueError: the embeddings have another width than ``word_dim``.
        """
        if embeddings.shape[1] != self.words.shape[1]:
            raise ValueError(
                f"tokenizer.word_dim is {self.words.shape[1]}, but the word embeddings have {embeddings.shape[1]} "
                "numbers: give the width of the backbone."
            )
        words = embeddings.detach().float().to(self.words.device)
        words = F.normalize(words - words.mean(0), dim=-1) * words.shape[1] ** 0.5
        mean_distance = (words - words.mean(0)).square().sum(1)  # plus a constant, that from all words
        chosen = words[mean_distance.argsort(descending=True, stable=True)[: self.num_codes]]
        generator = torch.Generator().manual_seed(0)
        lacking = self.num_codes - len(chosen)
        if lacking:
            pairs = torch.randint(len(words), (lacking, 2), generator=generator).to(words.device)
            chosen = torch.cat([chosen, words[pairs].sum(1) / 2**0.5])
        self.words.copy_(chosen)

    def fixed_grid(self) -> tuple[int, int]:
        """(rows, columns) of the tokens of every image."""
        side = self.image_size // self.encoder.patch_size // self.pool
        return side, side

    def forward(self, images: Float[Tensor, "batch 3 height width"], layers: Sequence[int] = ()) -> EncoderOutput:
        """The features themselves, which are what is looked at (``layers`` are the encoder's)."""
        size = (self.image_size, self.image_size)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        with torch.no_grad() if self.frozen_encoder else nullcontext():
            wanted = layers if self.layer is None else (*layers, self.layer)
            output = self.encoder(images, tuple(dict.fromkeys(wanted)))
            tokens = output.tokens if self.layer is None else output.layer_tokens[self.layer]
            grid = output.grid
            if self.pool > 1:
                squares = rearrange(tokens, "batch (rows cols) dim -> batch dim rows cols", rows=grid[0])
                squares = F.avg_pool2d(squares, self.pool)
                grid = (squares.shape[-2], squares.shape[-1])
                tokens = rearrange(squares, "batch dim rows cols -> batch (rows cols) dim")
        return EncoderOutput(tokens, grid, output.pooled, {layer: output.layer_tokens[layer] for layer in layers})

    def codebook(self) -> Float[Tensor, "codes code_dim"]:
        """All codes, of unit length."""
        return F.normalize(self.codebook_map(self.words).float(), dim=-1)

    def nearest(self, vectors: Float[Tensor, "*batch code_dim"]) -> Int[Tensor, "*batch"]:
        """The code of the largest cosine to each vector."""
        return (F.normalize(vectors.float(), dim=-1) @ self.codebook().T).argmax(-1)

    def standardised(self, features: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Features of mean 0 and standard deviation 1 in every channel, over all pictures, where ``standardised``."""
        return self.standard(features.flatten(0, 1).float()).reshape(features.shape).to(features.dtype)

    def bottleneck_vectors(self, features: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens code_dim"]:
        """What is quantised, of unit length, of features that are ``standardised``."""
        return F.normalize(self.bottleneck(self.task(features)).float(), dim=-1)

    @torch.no_grad()
    def codes(self, images: Float[Tensor, "batch 3 height width"]) -> Int[Tensor, "batch tokens"]:
        """The discrete form of images in [-1, 1], row by row."""
        return self.nearest(self.bottleneck_vectors(self.standardised(self(images).tokens)))

    def decode(self, codes: Int[Tensor, "batch tokens"], grid: tuple[int, int]) -> Float[Tensor, "batch tokens dim"]:
        """Features that codes stand for.

        Raises:
            ValueError: the tokenizer has no decoder.
        """
        return self._own_decoder()(self.codebook()[codes].to(self.bottleneck.weight.dtype), grid)

    def quantise(
        self, images: Float[Tensor, "batch 3 height width"], generator: torch.Generator | None = None
    ) -> Quantised:
        """Everything that is trained on: gradients pass from the decoder to the bottleneck as if nothing were cut.

        Args:
            generator: on the CPU; draws the codes. Without one they are the nearest.

        Raises:
            ValueError: the tokenizer has no decoder.
        """
        output = self(images)
        features = self.standardised(output.tokens)
        vectors, codebook = self.bottleneck_vectors(features), self.codebook()
        probabilities = (vectors @ codebook.T / TEMPERATURE).softmax(-1)
        if generator is None:
            codes = probabilities.argmax(-1)
        else:
            numbers = torch.rand(*probabilities.shape[:-1], 1, generator=generator).to(vectors.device)
            codes = (probabilities.cumsum(-1) < numbers).sum(-1).clamp(max=self.num_codes - 1)
        mean = probabilities.flatten(0, -2).mean(0)
        usage = math.log(self.num_codes) + (mean * mean.clamp(min=1e-12).log()).sum()
        chosen = codebook[codes]
        distance = (vectors.detach() - chosen).square().sum(-1)
        distance = distance + COMMITMENT * (vectors - chosen.detach()).square().sum(-1)
        straight_through = vectors + (chosen - vectors).detach()
        decoded = self._own_decoder()(straight_through.to(features.dtype), output.grid)
        return Quantised(features, codes, decoded, distance, usage)

    def _own_decoder(self) -> FeatureDecoder:
        if self.decoder is None:
            raise ValueError(
                "this image tokenizer came without the decoder of its features, as BLIP3o-NEXT's released one does: it "
                "makes codes, and cannot be trained. Take its stage out of the recipe, or a tokenizer with a decoder."
            )
        return self.decoder

    def config_dict(self) -> dict[str, Any]:
        """Arguments that build the same tokenizer again."""
        return {
            "kind": part_kind(self),
            "encoder": {**self.encoder.config_dict(), "kind": part_kind(self.encoder)},
            **self._config,
        }
