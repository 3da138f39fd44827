"""Stable Diffusion 3 and 3.5 in the layout of their ``diffusers`` pipeline, read as a one-step generator of captions.

    x = decode(z + velocity(z, t = 0 | prompt))                one call, without guidance

as FD-loss post-trains SD3.5-Medium (arXiv 2604.28190, section on text-to-image). Only ``transformer`` is trained, and
only that is saved, in the pipeline's own layout: ``SD3Transformer2DModel.from_pretrained`` reads it, and text encoders
and autoencoder stay where they are.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.data.example import Example, Text
from diptych.models.autoencoders.diffusers import load_diffusers_autoencoder
from diptych.models.denoisers.sd3 import SD3Denoiser
from diptych.models.encoders.sd3_text import T5_TOKENS, SD3TextEncoder
from diptych.objectives.randomness import normal_from_seeds


@dataclass(frozen=True)
class CaptionBatch:
    """What to draw, and the seeds of the noise."""

    captions: tuple[str, ...]
    example_seeds: Int[Tensor, " batch"]

    def to(self, device: torch.device | str) -> "CaptionBatch":
        return CaptionBatch(self.captions, self.example_seeds.to(device, non_blocking=True))


def collate_captions(examples: Sequence[Example], seeds: Sequence[int]) -> CaptionBatch:
    """The text of examples of the task ``text_to_image``; their images are not looked at.

    Raises:
        ValueError: an example does not begin with a text.
    """
    captions = []
    for example in examples:
        first = example.parts[0]
        if not isinstance(first, Text):
            raise ValueError(f"example {example.key!r} begins with no text. Use data of the task text_to_image.")
        captions.append(first.text)
    return CaptionBatch(tuple(captions), torch.tensor(list(seeds), dtype=torch.int64))


class SD3Generator(nn.Module):
    """A Stable Diffusion 3 pipeline that draws captions in one step."""

    autoencoder: Any

    def __init__(
        self, *, denoiser: SD3Denoiser, text_encoder: SD3TextEncoder, autoencoder: nn.Module, image_size: int
    ) -> None:
        """
        Args:
            image_size: side of the images.

        Raises:
            ValueError: latents of images of that size are no whole number of patches.
        """
        super().__init__()
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        self.autoencoder = autoencoder.requires_grad_(False)
        self.latent_shape: tuple[int, int, int] = self.autoencoder.latent_shape(image_size, image_size)
        if self.latent_shape[1] % denoiser.patch_size:
            multiple = self.autoencoder.stride * denoiser.patch_size
            raise ValueError(f"image_size must be a multiple of {multiple}, got {image_size}.")
        self.card: dict[str, Any] = {}
        self._recomputes = False

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def collator(self) -> Callable[[Sequence[Example], Sequence[int]], CaptionBatch]:
        """What makes batches for ``forward``."""
        return collate_captions

    def checkpoint_activations(self) -> None:
        """Computes denoiser and decoder anew in the backward pass, from now on."""
        self.denoiser.checkpoint_activations()
        self._recomputes = True

    def forward(self, batch: CaptionBatch) -> Float[Tensor, "batch 3 height width"]:
        """One image of each caption, drawn in one step and not clipped: about in [-1, 1]."""
        noise = normal_from_seeds(batch.example_seeds, self.latent_shape, "noise")
        start = torch.zeros(len(noise), device=noise.device)
        latents = noise + self.denoiser(noise, start, self.text_encoder(batch.captions))
        decode = self.autoencoder.decode_unclipped
        if self._recomputes and torch.is_grad_enabled():
            decode = partial(checkpoint, decode, use_reentrant=False)
        images: Tensor = decode(latents)
        return images

    def save(self, path: str | Path) -> None:
        """Writes ``transformer`` as diffusers does."""
        folder = Path(path)
        self.denoiser.model.save_pretrained(folder / "transformer")
        (folder / "README.md").write_text(
            "The transformer of a Stable Diffusion 3 pipeline, trained to draw in one step without guidance "
            f"({json.dumps(self.card, ensure_ascii=False)}).\n",
            encoding="utf-8",
        )


@dataclass(frozen=True, kw_only=True)
class SD3Pipeline:
    """A pipeline of Stable Diffusion 3 or 3.5 as a one-step generator."""

    path: str
    """A folder in the layout of diffusers (``transformer``, ``vae``, ``text_encoder`` to ``text_encoder_3`` with their
    tokenizers), or a hub id."""
    image_size: int = 256
    """Side of the images that are drawn."""
    transformer: str | None = None
    """A folder with another ``transformer``, such as one that was trained; None takes the pipeline's."""
    num_t5_tokens: int = T5_TOKENS
    """Tokens of T5 that a prompt is padded and cut to."""

    def build(self) -> SD3Generator:
        """Raises what diffusers and transformers raise where a part is missing."""
        return load_sd3(self.path, self.image_size, self.transformer, self.num_t5_tokens)


def load_sd3(
    source: str | Path, image_size: int = 256, transformer: str | None = None, num_t5_tokens: int = T5_TOKENS
) -> SD3Generator:
    """The pipeline in a folder, in float32 and evaluation mode; T5 may be missing.

    Raises:
        OSError: a part is not there (the message of diffusers or transformers).
        ValueError: weights of the transformer are missing, or an image size that it cannot draw.
    """
    from diffusers import SD3Transformer2DModel
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

    place = str(source)
    network, info = SD3Transformer2DModel.from_pretrained(
        transformer or place, subfolder="transformer", torch_dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{place}: {len(missing)} weights of the transformer are missing; the first is {missing[0]}.")
    denoiser = SD3Denoiser(model_config=dict(network.config))
    denoiser.model = network
    names = ("", "_2")
    has_t5 = not Path(place).is_dir() or (Path(place) / "text_encoder_3").is_dir()
    text_encoder = SD3TextEncoder(
        clips=[
            CLIPTextModelWithProjection.from_pretrained(place, subfolder=f"text_encoder{name}", dtype=torch.float32)
            for name in names
        ],
        clip_tokenizers=[AutoTokenizer.from_pretrained(place, subfolder=f"tokenizer{name}") for name in names],
        t5=T5EncoderModel.from_pretrained(place, subfolder="text_encoder_3", dtype=torch.float32) if has_t5 else None,
        t5_tokenizer=AutoTokenizer.from_pretrained(place, subfolder="tokenizer_3") if has_t5 else None,
        dim=int(network.config.joint_attention_dim),
        num_t5_tokens=num_t5_tokens,
    )
    autoencoder = load_diffusers_autoencoder(place, subfolder="vae")
    return SD3Generator(
        denoiser=denoiser, text_encoder=text_encoder, autoencoder=autoencoder, image_size=image_size
    ).eval()
