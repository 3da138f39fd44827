"""BLIP3o-NEXT (arXiv 2510.15857): the backbone writes discrete image tokens, and its hidden states at these tokens
condition a diffusion transformer that paints.

    prompt, <im_start>, <S0>, i_1 ... i_N  --backbone-->  h_0 ... h_N            i: codes of the picture (TA-Tok)
    CE   = - sum_k log p(i_k | prompt, i_<k)                                     read from h_(k-1)
    flow = |SANA(x_t, t, connector(h_0 ... h_N)) - (data - noise)|^2             h <- 0 with probability 0.1
    L    = CE + lambda * flow                                                    lambda = 1

Drawing writes the tokens (top-p 0.95, top-k 1200), then denoises from the hidden states that came with them. Because
the tokens are discrete, they can be trained by reward (`diptych.methods.grpo`).

Editing (BLIP3o-NEXT-edit): the picture stands in the prompt as the tokens of its codes (``reads="codes"``) or as its
continuous features behind a connector (``reads="features"``); and its latents reach the denoiser as further condition
rows (``references`` has "condition") and beside the noise, along the width ("noise").

Differs from the original code:

- The condition is taken at the rows where the tokens stand, in training as in drawing; theirs takes the last rows of a
  padded batch.
- Cross-entropy is of the image tokens and of answers. Theirs is of the prompt too.
- A dropped condition is the one that guidance uses: zeros before the connector, and zeros for the rows of the latents.
  Their editing model drops everything after the connectors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.data.batch import Batch, ImageGroup
from diptych.data.prompt_format import PromptFormat, chatml_format, compact_format
from diptych.flow.guidance import guided_velocity
from diptych.flow.path import MIN_SIGMA, to_velocity
from diptych.flow.solvers import SOLVERS
from diptych.flow.time import LogitNormalTime, UniformTime, time_grid
from diptych.models.connectors import MLPConnector
from diptych.models.layers import RMSNorm
from diptych.models.part import build_part, part_kind
from diptych.objectives.conditioned_flow import conditioned_flow_loss, stacked_conditions
from diptych.objectives.loss_term import LossTerm, Objective, weighted_term
from diptych.objectives.text import text_term
from diptych.train.part_configs import (
    BackboneConfig,
    FeaturesConfig,
    GenerationSpaceConfig,
    GrownBackboneConfig,
    LoraConfig,
    SanaConfig,
    TextAlignedTokenizerConfig,
    TokenizerConfig,
)
from diptych.unified import DrawSettings, ImagePolicy, OnStep, UnifiedModel
from diptych.unified.start_from import take_parts
from diptych.unified.tokens import TokenSettings, reference_latents, with_codes

CONNECTOR_NORM_EPS = 1e-5
CONNECTOR_NORM_INIT = math.sqrt(5.5)
"""What the norm at the end of a connector multiplies by at first: the size of rows that SANA was trained with."""


def condition_connector(in_dim: int, out_dim: int) -> nn.Sequential:
    """Hidden states or latents as rows of the denoiser's condition."""
    norm = RMSNorm(out_dim, CONNECTOR_NORM_EPS)
    nn.init.constant_(norm.weight, CONNECTOR_NORM_INIT)
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU("tanh"), nn.Linear(out_dim, out_dim), norm)


class TokenFlowHead(nn.Module):
    """Where the image tokens stand in the vocabulary, and the denoiser that their hidden states condition."""

    def __init__(
        self,
        *,
        denoiser: nn.Module | Mapping[str, Any],
        dim: int,
        num_tokens: int,
        num_codes: int,
        first_token: int,
        first_code: int | None = None,
        reads_codes: bool = False,
        latent_channels: int = 0,
        references_in_noise: bool = False,
        token_sampling: TokenSettings | Mapping[str, Any] | None = None,
        frozen_denoiser: bool = False,
    ) -> None:
        """
        Args:
            denoiser: the network, or its ``config_dict()``.
            dim: width of the backbone.
            num_tokens: of an image, N.
            num_codes: in the codebook.
            first_token: id of ``<S0>``, behind the tokenizer's ids.
            first_code: id of the first code's token, which the others follow; right behind ``<S0>`` if None. Released
                models have two further tokens between them.
            reads_codes: pictures that are looked at stand as the tokens of their codes.
            latent_channels: of latents that join the condition when a picture is edited; 0 for none.
            references_in_noise: these latents also stand beside the noise, along the width.
            token_sampling: how the tokens are drawn.
            frozen_denoiser: of the denoiser only what reads the condition learns; with ``references_in_noise`` also its
                first and last layer.
        """
        super().__init__()
        network: Any = denoiser if isinstance(denoiser, nn.Module) else build_part(denoiser)
        self.denoiser: Any = network
        self.dim = dim
        self.num_tokens, self.num_codes, self.first_token = num_tokens, num_codes, first_token
        self.first_code = first_token + 1 if first_code is None else first_code
        self.num_queries = 1 + num_tokens
        self.full_queries = False
        self.reads_codes = reads_codes
        self.latent_channels = latent_channels
        self.references_in_noise = references_in_noise
        self.frozen_denoiser = frozen_denoiser
        self.token_sampling = (
            token_sampling if isinstance(token_sampling, TokenSettings) else TokenSettings(**(token_sampling or {}))
        )
        condition_dim: int = network.condition_dim
        self.connector = condition_connector(dim, condition_dim)
        self.latent_connector = condition_connector(latent_channels, condition_dim) if latent_channels else None

    @property
    def _weight(self) -> Tensor:
        return cast(nn.Linear, self.connector[0]).weight

    @property
    def sees_latents(self) -> bool:
        """Whether the latents of a picture that is edited are used."""
        return self.latent_connector is not None or self.references_in_noise

    def config_dict(self) -> dict[str, Any]:
        return {
            "kind": part_kind(self),
            "denoiser": {**self.denoiser.config_dict(), "kind": part_kind(self.denoiser)},
            "dim": self.dim,
            "num_tokens": self.num_tokens,
            "num_codes": self.num_codes,
            "first_token": self.first_token,
            "first_code": self.first_code,
            "reads_codes": self.reads_codes,
            "latent_channels": self.latent_channels,
            "references_in_noise": self.references_in_noise,
            "token_sampling": vars(self.token_sampling),
            "frozen_denoiser": self.frozen_denoiser,
        }

    def requires_grad_(self, requires_grad: bool = True) -> "TokenFlowHead":
        """As of any module, but for what ``frozen_denoiser`` leaves frozen."""
        super().requires_grad_(requires_grad)
        if self.frozen_denoiser:
            learns = ("condition_in.", "condition_norm.", *(("patch_in.", "patch_out.") * self.references_in_noise))
            for name, parameter in self.denoiser.named_parameters():
                parameter.requires_grad_(requires_grad and name.startswith(learns))
        return self

    # -- tokens ----------------------------------------------------------------------------------------------------

    def token_ids(self, codes: Int[Tensor, "images written"]) -> Int[Tensor, "images written+1"]:
        """``<S0>`` and the tokens of codes."""
        return F.pad(codes + self.first_code, (1, 0), value=self.first_token)

    def code_logits(self, backbone: Any, hidden_states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows codes"]:
        """Logits of the next code, in float32, all other tokens left out."""
        logits: Tensor = backbone.logits(hidden_states)
        return logits[..., self.first_code : self.first_code + self.num_codes].float()

    # -- what the denoiser reads -------------------------------------------------------------------------------------

    def condition(
        self,
        hidden_states: Float[Tensor, "images queries dim"],
        latents: Float[Tensor, "images channels rows cols"] | None = None,
    ) -> Float[Tensor, "images conditions condition_dim"]:
        """Rows of the hidden states and, where a picture is edited, of its latents."""
        rows: Tensor = self.connector(hidden_states)
        if latents is None or self.latent_connector is None:
            return rows
        own = self.latent_connector(latents.to(rows.dtype).flatten(2).transpose(1, 2))
        return torch.cat([rows, own.to(rows.dtype)], dim=1)

    def null_condition(self, count: int) -> Float[Tensor, "images queries condition_dim"]:
        """What a dropped condition is: zeros in place of the hidden states."""
        weight = self._weight
        return self.connector(weight.new_zeros(1, self.num_queries, self.dim)).expand(count, -1, -1)

    def denoise(
        self,
        references: Float[Tensor, "references channels _ _"] | None,
        x_t: Float[Tensor, "batch channels rows cols"],
        t: Float[Tensor, " batch"],
        *condition: Any,
    ) -> Float[Tensor, "batch channels rows cols"]:
        """The denoiser, with the picture that is edited beside the noise if there is one, which it also repaints.

        ``references`` may be fewer than ``x_t``, which then has so many noise levels, or branches of guidance, of each.

        Raises:
            ValueError: the picture is of another size than what is drawn.
        """
        if references is None or not self.references_in_noise:
            return self.denoiser(x_t, t, *condition)
        if references.shape[2:] != x_t.shape[2:]:
            raise ValueError(
                "a picture is edited at its own size: "
                f"got latents of {tuple(references.shape[2:])} for a drawing of {tuple(x_t.shape[2:])}."
            )
        wide = torch.cat([x_t, references.to(x_t.dtype)], dim=-1)
        return self.denoiser(wide, t, *condition)[..., : x_t.shape[-1]]

    def draw(
        self,
        condition: Float[Tensor, "images conditions condition_dim"],
        null: Float[Tensor, "images null_rows condition_dim"],
        noise: Float[Tensor, "images channels rows cols"],
        settings: DrawSettings,
        on_step: OnStep | None = None,
        mask: Bool[Tensor, "images conditions"] | None = None,
        references: Float[Tensor, "references channels _ _"] | None = None,
    ) -> Float[Tensor, "images channels rows cols"]:
        """Latents drawn from noise, with classifier-free guidance in one batched call.

        Args:
            mask: True where a row of the condition counts.
            references: latents of the pictures that are edited, for heads with ``references_in_noise``.
        """
        joint = self.denoiser.encode_condition(*with_null(condition, mask, null.to(condition.dtype)))
        dtype = self._weight.dtype

        def velocity_of(x_t: Tensor, t: Tensor, told: Any) -> Tensor:
            beside = None if references is None else references.repeat(len(x_t) // len(references), 1, 1, 1)
            output = self.denoise(beside, x_t.to(dtype), t, told).float()
            return to_velocity(output, self.denoiser.prediction, x_t.float(), t.float())

        velocity = guided_velocity(
            velocity_of,
            joint.select(slice(0, len(condition))),
            joint,
            settings.guidance_scale,
            settings.guidance_interval,
        )
        times = time_grid(settings.num_steps, settings.time_shift)
        return SOLVERS[settings.solver](velocity, noise, times, on_step)  # type: ignore[index]


def with_null(
    condition: Float[Tensor, "images conditions dim"],
    mask: Bool[Tensor, "images conditions"] | None,
    null: Float[Tensor, "others null_rows dim"],
) -> tuple[Float[Tensor, "both most dim"], Bool[Tensor, "both most"] | None]:
    """Conditions and null conditions as one batch. The rows of latents are zeros in the null condition, and count."""
    lacking = condition.shape[1] - null.shape[1]
    if lacking <= 0:
        return stacked_conditions(condition, mask, null)
    both = torch.cat([condition, F.pad(null, (0, 0, 0, lacking))])
    return both, None if mask is None else torch.cat([mask, mask[: len(null)]])


@dataclass(frozen=True, kw_only=True)
class Blip3oNextObjectives:
    """The losses; each term is summed over what it counts, the recipe weighs the terms."""

    time: UniformTime | LogitNormalTime = field(default_factory=UniformTime)
    condition_drop: float = 0.1
    noise_repeats: int = 1
    loss_floor: float = MIN_SIGMA

    def joint(self, model: UnifiedModel, batch: Batch, generator: torch.Generator) -> dict[str, LossTerm]:
        """``text``: cross-entropy of answers. ``tokens``: that of image tokens. ``flow``: flow matching of latents."""
        codes = [drawn_codes(model, group) for group in batch.outputs]
        output = model(with_codes(batch, codes))
        hidden_states = output.hidden_states.flatten(0, 1)
        terms = {}
        if len(batch.target_slots):
            answers = hidden_states[batch.target_slots]
            terms["text"] = text_term(answers, batch.target_ids, model.backbone.logits, batch.target_weights)
        states, targets, token_weights = [], [], []
        losses, levels, image_weights = [], [], []
        for group, own in zip(batch.outputs, codes, strict=True):
            at_tokens = hidden_states[group.slots]
            weights = batch.example_weights[group.example_ids]
            states.append(at_tokens[:, :-1].flatten(0, 1))
            targets.append(model.image_head.token_ids(own)[:, 1:].flatten())
            token_weights.append(weights.repeat_interleave(own.shape[1]))
            for loss, sigma, rows in self._flow(model, batch, group, at_tokens):
                losses.append(loss)
                levels.append(sigma)
                image_weights.append(weights[rows].repeat_interleave(self.noise_repeats))
        if losses:
            terms["tokens"] = text_term(
                torch.cat(states), torch.cat(targets), model.backbone.logits, torch.cat(token_weights)
            )
            terms["flow"] = weighted_term(torch.cat(losses), torch.cat(image_weights), torch.cat(levels))
        return terms

    def _flow(
        self,
        model: UnifiedModel,
        batch: Batch,
        group: ImageGroup,
        hidden_states: Float[Tensor, "images conditions dim"],
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Losses, noise levels and rows of a group: first of pictures from nothing, then of those that are edited."""
        head = model.image_head
        data = model.group_features(group, is_output=True)
        latents = reference_latents(model, batch, group) if head.sees_latents else [None] * len(group)
        parts = []
        for is_edit in (False, True):
            chosen = [row for row, own in enumerate(latents) if (own is not None) == is_edit]
            if not chosen:
                continue
            rows = torch.tensor(chosen, device=data.device)
            beside = torch.stack([own for own in latents if own is not None]) if is_edit else None
            condition = head.condition(hidden_states[rows], beside)
            null = head.null_condition(1)
            null = F.pad(null, (0, 0, 0, condition.shape[1] - null.shape[1]))
            repeated = None if beside is None else beside.repeat_interleave(self.noise_repeats, 0)

            def denoise(*given: Any, repeated: Tensor | None = repeated) -> Tensor:
                return head.denoise(repeated, *given)

            loss, sigma = conditioned_flow_loss(
                denoise,
                head.denoiser.prediction,
                data[rows],
                condition,
                None,
                null,
                batch.example_seeds[group.example_ids][rows],
                self.time,
                self.condition_drop,
                self.noise_repeats,
                self.loss_floor,
            )
            parts.append((loss, sigma, rows))
        return parts

    def tokenizer(self, model: UnifiedModel, batch: Batch, generator: torch.Generator) -> dict[str, LossTerm]:
        """The tokenizer's: ``features`` (one minus the cosine of decoded and true ones), ``codebook`` and ``usage``."""
        features, distances, usages, weights = [], [], [], []
        for group in (*batch.inputs, *batch.outputs):
            if group.images is None:
                continue
            quantised = model.encoder.quantise(group.images, generator)
            cosine = F.cosine_similarity(quantised.decoded.float(), quantised.features.float(), dim=-1)
            features.append(1 - cosine.mean(1))
            distances.append(quantised.distance.mean(1))
            usages.append(quantised.usage.expand(len(cosine)))
            weights.append(batch.example_weights[group.example_ids])
        if not features:
            raise ValueError("the tokenizer learns from images, but the batch holds cached features only.")
        return {
            "features": weighted_term(torch.cat(features), torch.cat(weights)),
            "codebook": weighted_term(torch.cat(distances), torch.cat(weights)),
            "usage": weighted_term(torch.cat(usages), torch.cat(weights)),
        }


def drawn_codes(model: UnifiedModel, group: ImageGroup) -> Int[Tensor, "images tokens"]:
    """The codes of images that are to be drawn: those in the group, or those of its pictures."""
    if group.codes is not None:
        return group.codes
    if group.images is None:
        raise ValueError("image tokens are made of pictures, but the batch holds cached features only.")
    codes: Tensor = model.encoder.codes(group.images)
    return codes


def next_format() -> PromptFormat:
    """Qwen's chat format with the prompts of NEXT. ``[IMG]`` is what theirs writes as ``<im_start>``."""
    return replace(
        chatml_format(), edit_prompt="Please edit this image according to the following instruction: {text}."
    )


@runtime_checkable
class LanguageModelConfig(Protocol):
    """A config of a backbone with at least so many tokens, such as `diptych.interop.blip3o_next.Qwen3`."""

    def build(self, vocab_size: int) -> Any: ...


@runtime_checkable
class DenoiserConfig(Protocol):
    """A config of a denoiser of so many channels, such as `diptych.interop.blip3o_next.Sana15`."""

    def build(self, channels: int) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Blip3oNextConfig:
    """A BLIP3o-NEXT model of any size."""

    images: ImagePolicy = field(default_factory=ImagePolicy)
    """Size of the pictures and how others are brought to it."""
    prompt_format: Literal["compact", "chatml"] = "compact"
    """compact: one token a turn, for our own backbones. chatml: Qwen's, with the marks of NEXT."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Text to tokens; special tokens that the prompt format needs are added behind its own."""
    image_tokenizer: TextAlignedTokenizerConfig = field(default_factory=TextAlignedTokenizerConfig)
    """Pictures to codes, and the features that pictures are looked at by."""
    features: GenerationSpaceConfig = field(default_factory=FeaturesConfig)
    """What is painted: latents of DC-AE in the paper."""
    backbone: BackboneConfig | GrownBackboneConfig | LanguageModelConfig = field(default_factory=BackboneConfig)
    """The language model; tokens of images come behind those of text."""
    denoiser: SanaConfig | DenoiserConfig = field(default_factory=SanaConfig)
    """The diffusion transformer."""
    frozen_denoiser: bool = False
    """Of the denoiser only what reads the condition learns, as where it was trained before; with references beside the
    noise also its first and last layer."""
    reads: Literal["features", "codes"] = "features"
    """How pictures that are looked at stand in the sequence."""
    position_dim: int = 0
    """Width of the code of its row and column that every feature of a looked-at image gets; 0 in the paper."""
    references: tuple[Literal["condition", "noise"], ...] = ()
    """Where the latents of a picture that is edited go; empty uses its tokens or features alone."""
    token_sampling: TokenSettings = field(default_factory=TokenSettings)
    """How image tokens are drawn."""
    time: UniformTime | LogitNormalTime = field(default_factory=UniformTime)
    """Noise levels in training; uniform in the paper."""
    condition_drop: float = 0.1
    """Probability that hidden states become zeros, for guidance."""
    noise_repeats: int = 1
    """Noise levels drawn for one prompt: the backbone runs once, the denoiser so many times."""
    loss_floor: float = MIN_SIGMA
    """Smallest 1 - t by which the error of data prediction is divided."""
    row_length: int | None = None
    """Positions of a packed row in training; None gives every example a row of its own."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters on backbone and denoiser; put on what ``start_from`` has brought."""
    start_from: dict[str, str] = field(default_factory=dict)
    """Part -> model it is taken from, such as a released one that ``diptych convert`` wrote."""

    def __post_init__(self) -> None:
        twice = [name for name in self.references if self.references.count(name) > 1]
        if twice:
            raise ValueError(f"model.references has {twice[0]!r} twice, got {list(self.references)}.")

    def build(self) -> UnifiedModel:
        """The model with fresh weights, except for the parts whose configs load them and those of ``start_from``."""
        tokenizer = self.tokenizer.build()
        lacking = [name for name in self.format().special_tokens() if name not in tokenizer.special]
        tokenizer = tokenizer.with_special_tokens(lacking) if lacking else tokenizer
        autoencoder: Any = self.features.build()
        encoder: Any = self.image_tokenizer.build()
        rows, columns = encoder.fixed_grid()
        backbone: Any = self.backbone.build(tokenizer.vocab_size + 1 + encoder.num_codes)
        head = TokenFlowHead(
            denoiser=self.denoiser.build(autoencoder.channels),
            dim=backbone.dim,
            num_tokens=rows * columns,
            num_codes=encoder.num_codes,
            first_token=tokenizer.vocab_size,
            reads_codes=self.reads == "codes",
            latent_channels=autoencoder.channels if "condition" in self.references else 0,
            references_in_noise="noise" in self.references,
            token_sampling=self.token_sampling,
            frozen_denoiser=self.frozen_denoiser,
        )
        reads_features = self.reads == "features"
        model = UnifiedModel(
            backbone=backbone,
            tokenizer=tokenizer,
            prompt_format=self.format(),
            connector=MLPConnector(encoder.dim, backbone.dim, position_dim=self.position_dim)
            if reads_features
            else None,
            encoder=encoder,
            image_head=head,
            autoencoder=autoencoder,
            images=self.images,
        )
        take_parts(model, self.start_from)
        self.lora.add({"backbone": model.backbone, "denoiser": model.image_head.denoiser})
        return model

    def format(self) -> PromptFormat:
        return compact_format() if self.prompt_format == "compact" else next_format()

    def objectives(self) -> dict[str, Objective]:
        """Objective by the name of the term that a stage weighs; one pass serves ``text``, ``tokens`` and ``flow``."""
        own = Blip3oNextObjectives(
            time=self.time,
            condition_drop=self.condition_drop,
            noise_repeats=self.noise_repeats,
            loss_floor=self.loss_floor,
        )
        joint, tokenizer = own.joint, own.tokenizer
        return {
            **dict.fromkeys(("text", "tokens", "flow"), joint),
            **dict.fromkeys(("features", "codebook", "usage"), tokenizer),
        }
