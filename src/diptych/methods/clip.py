"""CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343): two encoders, trained so that a picture and its caption point
the same way.

    f = W_f mean(tokens of ViT(picture)),   g = W_g h(caption),   logits = exp(log_scale) cos(f, g) [+ bias]

CLIP's loss is a softmax over the texts (and pictures) of a batch (figure 3), SigLIP's a sigmoid of every pair (equation
1). The vision encoder is what is wanted: a unified model can look through it (``start_from`` of its config).

Differs from the papers: the captions are read by our causal transformer, with rotary positions; the picture's vector is
the mean of its patch tokens, so that the tokens a unified model will look at are trained themselves; pairs with equal
captions in a batch are no negatives of each other. Negatives come from one micro-batch of one process, so
``gradient_accumulation`` and more processes leave fewer of them to a pair and do change the loss.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.data.example import Example, ImageLike, Text, load_pixels
from diptych.data.sources.scenes import ScenesSource
from diptych.data.tokenizer import Tokenizer
from diptych.evals.retrieval import RETRIEVAL, retrieval_tables
from diptych.models.part import part_kind
from diptych.objectives.contrastive import clip_loss, siglip_loss
from diptych.objectives.loss_term import LossTerm, Objective
from diptych.scenes.scores import ScoreTable
from diptych.train.part_configs import BackboneConfig, EncoderConfig, TokenizerConfig, VitConfig
from diptych.unified import ImagePolicy
from diptych.unified.folder import load_part, load_tokenizer, read_manifest, resolve, save_parts

END = "<|end|>"
"""Stands behind every caption; with ``last`` pooling its hidden state is the caption's vector, as in CLIP."""
KIND = "dual_encoder"

_ENCODE_BATCH = 64

TextPooling = Literal["last", "mean"]


@dataclass(frozen=True)
class PairBatch:
    """Pictures with their captions.

    Attributes:
        token_ids: captions, each with the end token, padded behind with 0.
        lengths: tokens of each caption.
        caption_ids: equal for equal captions.
    """

    images: Float[Tensor, "batch 3 height width"]
    token_ids: Int[Tensor, "batch seq"]
    lengths: Int[Tensor, " batch"]
    caption_ids: Int[Tensor, " batch"]
    example_weights: Float[Tensor, " batch"]
    example_seeds: Int[Tensor, " batch"]

    @property
    def num_tokens(self) -> int:
        """Positions of text, padding included."""
        return self.token_ids.numel()

    @property
    def matches(self) -> Bool[Tensor, "batch batch"]:
        """Which pairs have equal captions, each with itself among them."""
        return self.caption_ids[:, None] == self.caption_ids[None, :]

    def to(self, device: torch.device | str) -> "PairBatch":
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True)
class PairCollator:
    """Makes batches of pairs; a plain value that worker processes can be given."""

    tokenizer: Tokenizer
    images: ImagePolicy
    max_text_tokens: int
    pad_multiple: int = 8

    def __call__(self, examples: Sequence[Example], seeds: Sequence[int] | None = None) -> PairBatch:
        """
        Raises:
            ValueError: an example has not one picture and a caption, or too long a one; the message names it.
        """
        pairs = [pair_of(example) for example in examples]
        captions = [caption for _, caption in pairs]
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        token_ids, lengths = self.tokens(captions, [example.key for example in examples])
        return PairBatch(
            images=torch.stack([self.images.prepare(load_pixels(image), False) for image, _ in pairs]),
            token_ids=token_ids,
            lengths=lengths,
            caption_ids=torch.tensor([numbers[caption] for caption in captions]),
            example_weights=torch.tensor([float(example.weight) for example in examples]),
            example_seeds=torch.tensor(list(seeds) if seeds is not None else [0] * len(examples), dtype=torch.int64),
        )

    def tokens(self, captions: Sequence[str], names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions as padded tokens, and how many each has."""
        rows = [[*self.tokenizer.encode(caption), self.tokenizer.special[END]] for caption in captions]
        for name, row in zip(names, rows, strict=True):
            if len(row) > self.max_text_tokens:
                raise ValueError(
                    f"example {name!r}: the caption has {len(row)} tokens with its end, more than "
                    f"model.max_text_tokens, {self.max_text_tokens}. Shorten it, or raise that."
                )
        longest = max(map(len, rows))
        width = -(-longest // self.pad_multiple) * self.pad_multiple
        padded = [row + [0] * (width - len(row)) for row in rows]
        return torch.tensor(padded), torch.tensor([len(row) for row in rows])


def pair_of(example: Example) -> tuple[ImageLike, str]:
    """The picture and the caption of an example: its target texts, or all of its texts where none is a target.

    Raises:
        ValueError: there is not exactly one picture, or no text.
    """
    images = [part.image for part in example.parts if not isinstance(part, Text)]
    texts = [part for part in example.parts if isinstance(part, Text)]
    targets = [part for part in texts if part.is_target]
    caption = " ".join(part.text for part in targets or texts).strip()
    if len(images) != 1 or images[0] is None or not caption:
        raise ValueError(
            f"example {example.key!r} has {len(images)} pictures and {len(texts)} texts, but contrastive training "
            "needs one picture with a caption. Use data of the task text_to_image or image_to_text."
        )
    return images[0], caption


class ContrastiveHead(nn.Module):
    """The maps into the common space, and the learnt scale (and bias) of the logits."""

    def __init__(self, *, image_dim: int, text_dim: int, dim: int, log_scale: float, bias: float | None = None) -> None:
        """
        Args:
            log_scale: of the logits, at first.
            bias: of the logits, at first; None for CLIP's loss, which has none.
        """
        super().__init__()
        self._config = {"image_dim": image_dim, "text_dim": text_dim, "dim": dim, "log_scale": log_scale, "bias": bias}
        self.images = nn.Linear(image_dim, dim, bias=False)
        self.texts = nn.Linear(text_dim, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def config_dict(self) -> dict[str, Any]:
        return {"kind": part_kind(self), **self._config}


class DualEncoder(nn.Module):
    """A vision encoder and a text encoder with a common space.

    Attributes:
        encoder: vision encoder whose output has ``pooled``.
        text_encoder: a backbone.
        contrastive_head: the maps into the common space.
        card: what the model folder says about it.
    """

    encoder: Any
    text_encoder: Any
    contrastive_head: Any

    def __init__(
        self,
        *,
        encoder: nn.Module,
        text_encoder: nn.Module,
        contrastive_head: nn.Module,
        tokenizer: Tokenizer,
        images: ImagePolicy,
        text_pooling: TextPooling = "last",
        max_text_tokens: int = 256,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.images = images
        self.text_pooling = text_pooling
        self.max_text_tokens = max_text_tokens
        self.card = dict(card or {})
        self.encoder = encoder
        self.text_encoder = text_encoder
        self.contrastive_head = contrastive_head

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def collator(self) -> PairCollator:
        """Makes batches for this model; picklable, holds none of its weights."""
        return PairCollator(self.tokenizer, self.images, self.max_text_tokens)

    def image_features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Vectors of pictures, not normalised."""
        return self.contrastive_head.images(self.encoder(images).pooled)

    def text_features(self, token_ids: Int[Tensor, "batch seq"], lengths: Int[Tensor, " batch"]) -> Tensor:
        """Vectors ``batch dim`` of captions, not normalised. Padding comes behind, where no caption looks."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
        hidden_states = self.text_encoder(self.text_encoder.embed(token_ids), positions).hidden_states
        if self.text_pooling == "last":
            pooled = hidden_states[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        else:
            is_text = (positions < lengths[:, None])[:, :, None]
            pooled = (hidden_states * is_text).sum(1) / lengths[:, None]
        return self.contrastive_head.texts(pooled.to(hidden_states.dtype))

    def forward(self, batch: PairBatch) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
        """Vectors of the pictures and of the captions."""
        return self.image_features(batch.images), self.text_features(batch.token_ids, batch.lengths)

    @torch.inference_mode()
    def encode(self, examples: Sequence[Example]) -> tuple[Float[Tensor, "items dim"], Float[Tensor, "items dim"]]:
        """Vectors of the pictures and captions of any number of examples."""
        collate = self.collator()
        chunks = [examples[start : start + _ENCODE_BATCH] for start in range(0, len(examples), _ENCODE_BATCH)]
        images, texts = zip(*(self(collate(chunk).to(self.device)) for chunk in chunks), strict=True)
        return torch.cat(images), torch.cat(texts)

    def save(self, path: str | Path) -> None:
        """Writes the model folder: whole or not at all."""
        fields = {
            "capabilities": [RETRIEVAL],
            "images": asdict(self.images),
            "text_pooling": self.text_pooling,
            "max_text_tokens": self.max_text_tokens,
            "card": self.card,
        }
        save_parts(Path(path), KIND, dict(self.named_children()), self.tokenizer, fields)


def load_dual_encoder(path: str | Path, device: torch.device | str = "cpu") -> DualEncoder:
    """The dual encoder in a model folder, a checkpoint, or the latest checkpoint of a run.

    Raises:
        FileNotFoundError: there is none, or a file is missing.
        ValueError: it is a model of another kind, or damaged.
    """
    folder = resolve(path)
    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND:
        raise ValueError(f"{folder} holds no dual encoder. Load it with diptych.load.")
    try:
        model = DualEncoder(
            **{name: load_part(folder, name) for name in manifest["parts"]},
            tokenizer=load_tokenizer(folder, manifest),
            images=ImagePolicy(**{**manifest["images"], "size": tuple(manifest["images"]["size"])}),
            text_pooling=manifest["text_pooling"],
            max_text_tokens=manifest["max_text_tokens"],
            card=manifest["card"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'diptych.json'} describes no dual encoder: {error}. Restore the file.") from error
    return model.to(device).eval()


def contrastive(model: DualEncoder, batch: PairBatch, generator: torch.Generator) -> dict[str, LossTerm]:
    """``contrastive``: CLIP's loss where the head has no bias, SigLIP's where it has; counted in pairs."""
    images, texts = model(batch)
    head = model.contrastive_head
    if head.bias is None:
        losses = clip_loss(images, texts, head.log_scale, batch.matches)
    else:
        losses = siglip_loss(images, texts, head.log_scale, head.bias, batch.matches)
    count = torch.tensor(float(len(losses)), device=losses.device)
    return {"contrastive": LossTerm((losses * batch.example_weights).sum(), count, values=losses.detach())}


def score_held_out_scenes(model: DualEncoder, num_items: int, seed: int) -> list[ScoreTable]:
    """Retrieval among scenes whose compositions no training has seen; the same seed asks every model the same."""
    source = ScenesSource(
        task="text_to_image",
        split="test",
        num_scenes=num_items,
        image_size=min(model.images.size),
        seed=seed,
        caption_style="short",
    ).build()
    examples = [source.example(index) for index in range(num_items)]
    images, texts = model.encode(examples)
    return retrieval_tables(images, texts, [pair_of(example)[1] for example in examples])


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A dual encoder of any size."""

    images: ImagePolicy = field(default_factory=ImagePolicy)
    """Size of the pictures and how others are brought to it."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Text to tokens; the end token is added behind its own where it lacks one."""
    encoder: EncoderConfig = field(default_factory=VitConfig)
    """The vision encoder."""
    text_encoder: BackboneConfig = field(default_factory=BackboneConfig)
    """The causal transformer that reads captions."""
    text_pooling: TextPooling = "last"
    """Vector of a caption: its hidden state at the end token, or the mean of all."""
    dim: int = 128
    """Width of the common space."""
    loss: Literal["clip", "siglip"] = "siglip"
    """Softmax over the batch, or sigmoid of every pair."""
    log_scale: float | None = None
    """Logarithm of the scale of the logits at first; None is the paper's: log(1 / 0.07), or log(10) for siglip."""
    bias: float = -10.0
    """Bias of the logits at first, of siglip alone."""
    max_text_tokens: int = 256
    """A longer caption is refused."""

    def __post_init__(self) -> None:
        if self.images.resize == "native":
            raise ValueError(
                "model.images.resize must give all pictures one size here, got 'native'. Use pad, crop or stretch."
            )
        for name, least in (("dim", 1), ("max_text_tokens", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"model.{name} must be at least {least}, got {getattr(self, name)}.")

    def build(self) -> DualEncoder:
        """The model with fresh weights."""
        tokenizer = self.tokenizer.build()
        if END not in tokenizer.special:
            tokenizer = tokenizer.with_special_tokens([END])
        encoder: Any = self.encoder.build()
        text_encoder: Any = self.text_encoder.build(tokenizer.vocab_size)
        first_scale = math.log(1 / 0.07) if self.loss == "clip" else math.log(10)
        head = ContrastiveHead(
            image_dim=getattr(encoder, "pooled_dim", encoder.dim),
            text_dim=text_encoder.dim,
            dim=self.dim,
            log_scale=first_scale if self.log_scale is None else self.log_scale,
            bias=self.bias if self.loss == "siglip" else None,
        )
        return DualEncoder(
            encoder=encoder,
            text_encoder=text_encoder,
            contrastive_head=head,
            tokenizer=tokenizer,
            images=self.images,
            text_pooling=self.text_pooling,
            max_text_tokens=self.max_text_tokens,
        )

    def objectives(self) -> dict[str, Objective]:
        return {"contrastive": contrastive}

    def scorers(self) -> dict[str, Callable[[Any, int, int], list[ScoreTable]]]:
        """What ``evaluation.scorers`` may name."""
        return {RETRIEVAL: score_held_out_scenes}
