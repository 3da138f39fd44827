"""BLIP3-o (arXiv 2505.09568): learnable queries read the prompt through the backbone, and their hidden states condition
a diffusion transformer that draws image features by flow matching; a decoder renders the features.

    prompt, [IMG], queries --backbone--> hidden states h at the queries
    x_t = t * data + (1 - t) * noise;   loss = |DiT(x_t, t, h) - (data - noise)|^2;   h <- 0 with probability 0.1

Understanding is the backbone's own: image features go through a connector into the prefix. Beyond the original: images
in the prompt that asks for an image (editing, several references), prompts of different lengths in one batch, a seed
per image, data prediction with a loss on the velocity (RAEv2, arXiv 2605.18324, section 2.3 of its card), several noise
levels for one prompt, and training the generation space in the same run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.data.batch import Batch, ImageGroup
from diptych.data.prompt_format import PromptFormat, chatml_format, compact_format
from diptych.flow.guidance import guided_velocity
from diptych.flow.path import MIN_SIGMA, to_velocity
from diptych.flow.solvers import SOLVERS
from diptych.flow.time import DiscreteTime, LogitNormalTime, TimeDistribution, UniformTime, time_grid, truncate_sigma
from diptych.models.connectors import MLPConnector
from diptych.models.part import build_part, part_kind
from diptych.objectives.conditioned_flow import (
    conditioned_flow_loss,
    one_if_shared,
    stacked_conditions,
    with_null_of_each,
)
from diptych.objectives.labels import label_loss
from diptych.objectives.loss_term import LossTerm, Objective, weighted_term
from diptych.objectives.randomness import normal_from_seeds, uniform_from_seeds
from diptych.objectives.reconstruction import reconstruction_loss
from diptych.objectives.text import text_term
from diptych.objectives.word_noise import with_word_noise
from diptych.train.part_configs import (
    BackboneConfig,
    EncoderConfig,
    FeaturesConfig,
    GenerationSpaceConfig,
    LoraConfig,
    LuminaConfig,
    PretrainedBackboneConfig,
    TokenizerConfig,
)
from diptych.unified import DrawSettings, ImagePolicy, OnStep, UnifiedModel
from diptych.unified.frozen_prefix import forward_for_queries, reads_frozen
from diptych.unified.start_from import take_parts


class QueryFlowHead(nn.Module):
    """Learnable queries and the denoiser that they condition (section 3 of the paper)."""

    def __init__(
        self,
        *,
        denoiser: nn.Module | Mapping[str, Any],
        num_queries: int,
        dim: int,
        full_queries: bool = False,
        query_std: float = 1.0,
        sees_context: bool = False,
        sees_text: bool = False,
    ) -> None:
        """
        Args:
            denoiser: the network, or its ``config_dict()``.
            dim: width of the backbone.
            full_queries: the queries of an image see each other in both directions; the paper's are causal.
            query_std: of the initial queries; 1 in the paper.
            sees_context: the condition also has the embedded pictures of the prompt, as BLIP3o-NEXT's editing has
                reference tokens; without them all that is kept of a picture must go through the queries.
            sees_text: and the hidden states of the text before the image, prompt and thought, as BLIP3o-NEXT's denoiser
                has those of the tokens that were predicted; without them every word must go through the queries.
        """
        super().__init__()
        self.denoiser: Any = denoiser if isinstance(denoiser, nn.Module) else build_part(denoiser)
        self.num_queries = num_queries
        self.full_queries = full_queries
        self.query_std = query_std
        self.sees_context = sees_context
        self.sees_text = sees_text
        self.queries = nn.Parameter(torch.randn(num_queries, dim) * query_std)

    def config_dict(self) -> dict[str, Any]:
        return {
            "kind": part_kind(self),
            "denoiser": {**self.denoiser.config_dict(), "kind": part_kind(self.denoiser)},
            "num_queries": self.num_queries,
            "dim": self.queries.shape[1],
            "full_queries": self.full_queries,
            "query_std": self.query_std,
            "sees_context": self.sees_context,
            "sees_text": self.sees_text,
        }

    def query_embeddings(self, count: int) -> Float[Tensor, "images queries dim"]:
        return self.queries.expand(count, -1, -1)

    def null_condition(self, count: int) -> Float[Tensor, "images queries dim"]:
        """Zeros: what a dropped condition is in training."""
        return self.queries.new_zeros(1, *self.queries.shape).expand(count, -1, -1)

    def velocity(self, x_t: Tensor, t: Tensor, condition: Any) -> Float[Tensor, "images channels rows cols"]:
        """``data - noise`` as the denoiser sees it, in float32; ``condition`` may be prepared by `encode_condition`."""
        output = self.denoiser(x_t.to(self.queries.dtype), t, condition).float()
        return to_velocity(output, self.denoiser.prediction, x_t.float(), t.float())

    def draw(
        self,
        condition: Float[Tensor, "images conditions dim"],
        null: Float[Tensor, "images null_conditions dim"],
        noise: Float[Tensor, "images channels rows cols"],
        settings: DrawSettings,
        on_step: OnStep | None = None,
        mask: Bool[Tensor, "images conditions"] | None = None,
    ) -> Float[Tensor, "images channels rows cols"]:
        """Features drawn from noise, with classifier-free guidance in one batched call.

        What the denoiser makes of the condition alone is computed once, not at every step, and of a null condition that
        all images share once for all of them. The mask is True where a row of the condition counts.
        """
        null = one_if_shared(null)
        own = with_null_of_each(len(condition), len(null)).to(condition.device)
        joint = self.denoiser.encode_condition(*stacked_conditions(condition, mask, null)).select(own)

        def told_whole(x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
            return self.velocity(x_t, truncate_sigma(t), condition)

        velocity = guided_velocity(
            told_whole if settings.whole_timesteps else self.velocity,
            joint.select(slice(0, len(condition))),
            joint,
            settings.guidance_scale,
            settings.guidance_interval,
        )
        times = time_grid(settings.num_steps, settings.time_shift)
        return SOLVERS[settings.solver](velocity, noise, times, on_step)  # type: ignore[index]


def flow_loss(
    model: UnifiedModel,
    group: ImageGroup,
    condition: Float[Tensor, "images conditions dim"],
    mask: Bool[Tensor, "images conditions"] | None,
    seeds: Int[Tensor, " images"],
    time: TimeDistribution,
    condition_drop: float,
    repeats: int,
    floor: float = MIN_SIGMA,
) -> tuple[Float[Tensor, " items"], Float[Tensor, " items"]]:
    """Squared velocity error of every image at ``repeats`` noise levels, and those levels sigma.

    Time, noise and dropped conditions follow from each image's seed. The mask is True where a row of the condition
    counts.
    """
    denoiser, null = model.image_head.denoiser, model.image_head.null_condition(1)
    data = model.group_features(group, is_output=True)
    return conditioned_flow_loss(
        denoiser, denoiser.prediction, data, condition, mask, null, seeds, time, condition_drop, repeats, floor
    )


@dataclass(frozen=True, kw_only=True)
class Blip3oObjectives:
    """The losses; each term is summed over what it counts, the recipe weighs the terms."""

    time: TimeDistribution = field(default_factory=DiscreteTime)
    condition_drop: float = 0.1
    noise_repeats: int = 1
    loss_floor: float = MIN_SIGMA
    feature_noise: float = 0.8
    label_noise: float = 1.0
    word_noise: float = 0.0
    frozen_prefix: bool = True

    def joint(self, model: UnifiedModel, batch: Batch, generator: torch.Generator) -> dict[str, LossTerm]:
        """``text``: cross-entropy of the answers. ``flow``: flow matching of the images that are drawn.

        Where all that reads is frozen, prompts are read without a graph, and ``text``, which nothing learns from, is
        left out (`unified.frozen_prefix`).
        """
        is_frozen = self.frozen_prefix and reads_frozen(model, batch)
        if is_frozen and not batch.outputs:
            return {}
        if self.word_noise and not is_frozen:
            batch = with_word_noise(batch, self.word_noise, model.tokenizer.vocab_size)
        output = forward_for_queries(model, batch) if is_frozen else model.forward_for_drawing(batch)
        terms = {}
        if len(batch.target_slots) and not is_frozen:
            answers = output.hidden_states.flatten(0, 1)[batch.target_slots]
            terms["text"] = text_term(answers, batch.target_ids, model.backbone.logits, batch.target_weights)
        losses, levels, weights_out = [], [], []
        for group in batch.outputs:
            condition, mask = model.condition_rows(output, group)
            seeds = batch.example_seeds[group.example_ids]
            loss, sigma = flow_loss(
                model,
                group,
                condition,
                mask,
                seeds,
                self.time,
                self.condition_drop,
                self.noise_repeats,
                self.loss_floor,
            )
            losses.append(loss)
            levels.append(sigma)
            weights_out.append(batch.example_weights[group.example_ids].repeat_interleave(self.noise_repeats))
        if losses:
            terms["flow"] = weighted_term(torch.cat(losses), torch.cat(weights_out), torch.cat(levels))
        return terms

    def reconstruction(self, model: UnifiedModel, batch: Batch, generator: torch.Generator) -> dict[str, LossTerm]:
        """The generation space's own losses.

        ``reconstruction``: L1, squared error and edges of images decoded from noised features (RAE, section 3).
        ``labels``: what is where, read linearly from noised features, where the images come with labels.
        """
        space: Any = model.autoencoder
        losses, label_losses, weights, label_weights = [], [], [], []
        for group in (*batch.inputs, *batch.outputs):
            if group.images is None:
                continue
            seeds = batch.example_seeds[group.example_ids]
            cells = space.cells(group.images)
            features = space.gated(cells, None if group.labels is None else group.labels[:, 0] > 0)
            decoded = space.paint(_noised(features, seeds, self.feature_noise, "feature_noise"))
            losses.append(reconstruction_loss(decoded, group.images, mse_weight=1.0, gradient_weight=0.5))
            weights.append(batch.example_weights[group.example_ids])
            if group.labels is not None:
                told = space.label_logits(_noised(features, seeds, self.label_noise, "label_noise"))
                held = None if space.gate is None else space.gate_logits(cells)
                label_losses.append(label_loss(told[0], told[1], group.labels, held))
                label_weights.append(weights[-1])
        if not losses:
            raise ValueError("the reconstruction objective needs images, but the batch holds cached features only.")
        terms = {"reconstruction": weighted_term(torch.cat(losses), torch.cat(weights))}
        if label_losses:
            terms["labels"] = weighted_term(torch.cat(label_losses), torch.cat(label_weights))
        return terms


def _noised(features: Tensor, seeds: Int[Tensor, " images"], largest: float, purpose: str) -> Tensor:
    """Features with normal noise of a standard deviation between 0 and ``largest``, uniform from image to image."""
    sigma = largest * uniform_from_seeds(seeds, (1, 1, 1), f"{purpose}_level")
    return features + (sigma * normal_from_seeds(seeds, features.shape[1:], purpose)).to(features.dtype)


@dataclass(frozen=True, kw_only=True)
class Blip3oConfig:
    """A BLIP3-o model of any size."""

    images: ImagePolicy = field(default_factory=ImagePolicy)
    """Size of the pictures and how others are brought to it."""
    prompt_format: Literal["compact", "chatml"] = "compact"
    """compact: one token a turn, for our own backbones. chatml: Qwen's, as released."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Text to tokens; special tokens that the prompt format needs are added behind its own."""
    features: GenerationSpaceConfig = field(default_factory=FeaturesConfig)
    """What is drawn."""
    encoder: EncoderConfig | None = None
    """What images are looked at with; None looks at the features that are drawn."""
    backbone: BackboneConfig | PretrainedBackboneConfig = field(default_factory=BackboneConfig)
    """The language model."""
    position_dim: int = 0
    """Width of the code of its row and column that every feature of a looked-at image gets; 0 for backbones that have
    positions in two dimensions themselves, as that of the paper."""
    num_queries: int = 16
    """Learnable queries; 64 in the paper."""
    full_queries: bool = False
    """Queries see each other in both directions; causal in the paper."""
    query_std: float = 1.0
    """Standard deviation of the initial queries."""
    sees_context: bool = False
    """The denoiser also attends to the embedded pictures of the prompt; in the paper to the queries only."""
    sees_text: bool = False
    """The denoiser also attends to the hidden states of the text before the image; in the paper to the queries only."""
    denoiser: LuminaConfig = field(default_factory=LuminaConfig)
    """The diffusion transformer."""
    time: UniformTime | LogitNormalTime | DiscreteTime = field(default_factory=DiscreteTime)
    """Noise levels in training."""
    condition_drop: float = 0.1
    """Probability that a condition becomes zeros, for guidance."""
    noise_repeats: int = 1
    """Noise levels drawn for one prompt: the backbone runs once, the denoiser so many times."""
    loss_floor: float = MIN_SIGMA
    """Smallest 1 - t by which the error of data prediction is divided. At 0.05 the last tenth of the path has most of
    the loss, which hides the prompt from a short training; the sampler's floor is its own."""
    feature_noise: float = 0.8
    """Largest noise on features when the decoder learns (tau)."""
    label_noise: float = 1.0
    """Largest noise on features from which labels are told: the more, the more of the features is about them."""
    word_noise: float = 0.0
    """Share of the words written so far that are replaced while the next ones are learnt, so that these are read off
    the picture instead of guessed (`objectives.word_noise`); examples that draw keep theirs."""
    cache_features: bool = False
    """Encode every image once and keep its features in memory, in stages that do not train the generation space."""
    feature_cache: str | None = None
    """Folder of features that ``diptych cache`` encoded, read in stages that do not train the generation space."""
    feature_cache_missing: Literal["encode", "refuse"] = "encode"
    """What becomes of images that ``feature_cache`` lacks: encoded in every step and counted, or an error."""
    frozen_prefix: bool = True
    """In stages that train the image head alone, read prompts without a graph and compute no logits; losses and
    gradients are the same. False is for comparison."""
    row_length: int | None = None
    """Positions of a packed row in training; None gives every example a row of its own."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters on backbone and denoiser; put on what ``start_from`` has brought."""
    start_from: dict[str, str] = field(default_factory=dict)
    """Part -> model it is taken from, e.g. ``{"autoencoder": "diptych-scenes"}``; ``autoencoder.encoder`` takes the
    weights of one module inside a part."""

    def __post_init__(self) -> None:
        if not 0 <= self.word_noise <= 1:
            raise ValueError(f"model.word_noise must be a share from 0 to 1, got {self.word_noise}.")

    def build(self) -> UnifiedModel:
        """The model with fresh weights, except for the parts of ``start_from``."""
        tokenizer = self.tokenizer.build()
        lacking = [name for name in self.format().special_tokens() if name not in tokenizer.special]
        tokenizer = tokenizer.with_special_tokens(lacking) if lacking else tokenizer
        autoencoder: Any = self.features.build()
        encoder: Any = None if self.encoder is None else self.encoder.build()
        backbone: Any = self.backbone.build(tokenizer.vocab_size)
        image_dim = autoencoder.channels if encoder is None else encoder.dim
        head = QueryFlowHead(
            denoiser=self.denoiser.build(autoencoder.channels, backbone.dim),
            num_queries=self.num_queries,
            dim=backbone.dim,
            full_queries=self.full_queries,
            query_std=self.query_std,
            sees_context=self.sees_context,
            sees_text=self.sees_text,
        )
        model = UnifiedModel(
            backbone=backbone,
            tokenizer=tokenizer,
            prompt_format=self.format(),
            connector=MLPConnector(image_dim, backbone.dim, position_dim=self.position_dim),
            encoder=encoder,
            image_head=head,
            autoencoder=autoencoder,
            images=self.images,
        )
        take_parts(model, self.start_from)
        self.lora.add({"backbone": model.backbone, "denoiser": model.image_head.denoiser})
        return model

    def format(self) -> PromptFormat:
        return compact_format() if self.prompt_format == "compact" else chatml_format()

    def objectives(self) -> dict[str, Objective]:
        """Objective by the name of the term that a stage weighs; one pass serves ``text`` and ``flow``."""
        own = Blip3oObjectives(
            time=self.time,
            condition_drop=self.condition_drop,
            noise_repeats=self.noise_repeats,
            loss_floor=self.loss_floor,
            feature_noise=self.feature_noise,
            label_noise=self.label_noise,
            word_noise=self.word_noise,
            frozen_prefix=self.frozen_prefix,
        )
        return {
            "text": own.joint,
            "flow": own.joint,
            "reconstruction": own.reconstruction,
            "labels": own.reconstruction,
        }
