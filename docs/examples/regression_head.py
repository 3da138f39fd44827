"""A small method of its own: queries, and one linear map that regresses image features with MSE; no denoiser.

The design "CLIP + MSE" that BLIP3-o compares itself with (arXiv 2505.09568, section 3): every query's hidden state
becomes one cell of the generation space. The image is decided by the prompt alone, so all seeds draw the same one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from diptych.data.batch import Batch
from diptych.data.prompt_format import compact_format
from diptych.models.connectors import LinearConnector
from diptych.models.part import part_kind
from diptych.objectives.loss_term import LossTerm, Objective
from diptych.objectives.reconstruction import reconstruction_term
from diptych.objectives.text import text_term
from diptych.recipes import blip3o
from diptych.train.part_configs import BackboneConfig, FeaturesConfig, TokenizerConfig
from diptych.train.recipe import Recipe
from diptych.unified import DrawSettings, ImagePolicy, OnStep, UnifiedModel


class RegressionHead(nn.Module):
    """One learnable query for each cell of the feature grid; an ``ImageHead``."""

    full_queries = False

    def __init__(self, *, dim: int, channels: int, rows: int, cols: int) -> None:
        super().__init__()
        self.config = {"dim": dim, "channels": channels, "rows": rows, "cols": cols}
        self.grid = (rows, cols)
        self.num_queries = rows * cols
        self.queries = nn.Parameter(torch.randn(self.num_queries, dim))
        self.to_features = nn.Linear(dim, channels)

    def config_dict(self) -> dict[str, Any]:
        return {**self.config, "kind": part_kind(self)}

    def query_embeddings(self, count: int) -> Tensor:
        return self.queries.expand(count, -1, -1)

    def null_condition(self, count: int) -> Tensor:
        return self.queries.new_zeros(count, *self.queries.shape)

    def features(self, condition: Tensor) -> Tensor:
        """Hidden states ``images queries dim`` as features ``images channels rows cols``."""
        return self.to_features(condition).transpose(1, 2).unflatten(2, self.grid)

    def draw(
        self, condition: Tensor, null: Tensor, noise: Tensor, settings: DrawSettings, on_step: OnStep | None = None
    ) -> Tensor:
        """One pass; of the noise only its shape matters, and there is nothing to guide."""
        if noise.shape[-2:] != self.grid:
            raise ValueError(f"this head draws features of {self.grid} cells only, got {tuple(noise.shape[-2:])}.")
        return self.features(condition)


def joint(model: UnifiedModel, batch: Batch, generator: torch.Generator) -> Mapping[str, LossTerm]:
    """``text``: cross-entropy of the answers. ``regression``: squared error of the features of each drawn image."""
    hidden_states = model(batch).hidden_states.flatten(0, 1)
    terms = {}
    if len(batch.target_slots):
        answers, weights = hidden_states[batch.target_slots], batch.example_weights[batch.target_examples]
        terms["text"] = text_term(answers, batch.target_ids, model.backbone.logits, weights)
    errors = []
    for group in batch.outputs:
        wanted = model.group_features(group, is_output=True).detach().float()
        drawn = model.image_head.features(hidden_states[group.slots]).float()
        errors.append((drawn - wanted).square().flatten(1).mean(1) * batch.example_weights[group.example_ids])
    if errors:
        values = torch.cat(errors)
        terms["regression"] = LossTerm(values.sum(), torch.tensor(float(len(values))))
    return terms


def reconstruction(model: UnifiedModel, batch: Batch, generator: torch.Generator) -> Mapping[str, LossTerm]:
    """The generation space's own loss."""
    images = torch.cat([group.images for group in batch.outputs if group.images is not None])
    return {"reconstruction": reconstruction_term(model.autoencoder.paint(model.autoencoder.features(images)), images)}


@dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """A model with a regression head; the size of its grid follows from the generation space."""

    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """What is drawn, and what images are looked at with."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The language model."""

    def build(self) -> UnifiedModel:
        tokenizer = TokenizerConfig().build()
        autoencoder: Any = self.features.build()
        backbone: Any = self.backbone.build(tokenizer.vocab_size)
        images = ImagePolicy()
        channels, rows, cols = autoencoder.latent_shape(*images.size)
        return UnifiedModel(
            backbone=backbone,
            tokenizer=tokenizer,
            prompt_format=compact_format(),
            connector=LinearConnector(channels, backbone.dim),
            image_head=RegressionHead(dim=backbone.dim, channels=channels, rows=rows, cols=cols),
            autoencoder=autoencoder,
            images=images,
        )

    def objectives(self) -> dict[str, Objective]:
        return {"text": joint, "regression": joint, "reconstruction": reconstruction}


def tiny() -> Recipe[Any]:
    """``blip3o:tiny`` with the other head: same data, seed, budget and parts, so that the two can be compared."""
    base = blip3o.tiny()
    joint_stage = replace(base.stages["joint"], objectives={"text": 1.0, "regression": 1.0})
    return replace(
        base,
        name="regression:tiny",
        model=RegressionConfig(features=base.model.features, backbone=base.model.backbone),
        stages={**base.stages, "joint": joint_stage},
    )
