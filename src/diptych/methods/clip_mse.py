"""CLIP features by regression: the design "CLIP + MSE" that BLIP3-o (arXiv 2505.09568, section 3) compares itself with.

    prompt, [IMG], queries --backbone--> hidden states h at the queries;   loss = |W h - data|^2

There is no noise and no denoiser: each query becomes one cell of the features, so a prompt has one picture, whatever
the seed, and where several would be right the head learns their mean. Around the head everything is that of another
method, whose config is wrapped: data, backbone, generation space, understanding. Differs from the paper in size, and in
that the decoder of the features has no diffusion of its own, so drawing is deterministic to the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.data.batch import Batch
from diptych.flow.solvers import OnStep
from diptych.models.part import part_kind
from diptych.objectives.loss_term import LossTerm, Objective, weighted_term
from diptych.objectives.text import text_term
from diptych.train.recipe import Buildable
from diptych.unified import DrawSettings, UnifiedModel


class QueryRegressionHead(nn.Module):
    """Learnable queries and the projection W of their hidden states to features; an ``ImageHead``.

    Args:
        dim: width of the backbone.
        channels: of the features.
        rows: of the grid of features; there is a query for each cell.
        cols: see ``rows``.
        full_queries: the queries of an image see each other in both directions.
        query_std: of the initial queries.
    """

    def __init__(
        self, *, dim: int, channels: int, rows: int, cols: int, full_queries: bool = False, query_std: float = 1.0
    ) -> None:
        super().__init__()
        self._config = {"dim": dim, "channels": channels, "rows": rows, "cols": cols, "full_queries": full_queries,
                        "query_std": query_std}  # fmt: skip
        self.grid = (rows, cols)
        self.num_queries = rows * cols
        self.full_queries = full_queries
        self.queries = nn.Parameter(torch.randn(self.num_queries, dim) * query_std)
        self.projection = nn.Linear(dim, channels)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": part_kind(self), **self._config}

    def query_embeddings(self, count: int) -> Float[Tensor, "images queries dim"]:
        return self.queries.expand(count, -1, -1)

    def null_condition(self, count: int) -> Float[Tensor, "images queries dim"]:
        """Zeros, for the shape alone: nothing is guided."""
        return self.queries.new_zeros(count, *self.queries.shape)

    def features(self, condition: Float[Tensor, "images queries dim"]) -> Float[Tensor, "images channels rows cols"]:
        """Hidden states at the queries as features, row by row."""
        return self.projection(condition).transpose(1, 2).unflatten(2, self.grid)

    def draw(
        self,
        condition: Float[Tensor, "images queries dim"],
        null: Float[Tensor, "images null_queries dim"],
        noise: Float[Tensor, "images channels rows cols"],
        settings: DrawSettings,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "images channels rows cols"]:
        """The features in one pass. Of the noise only the shape counts; steps and guidance have no effect.

        Raises:
            ValueError: another grid than that of the queries.
        """
        if tuple(noise.shape[-2:]) != self.grid:
            raise ValueError(
                f"this model draws {self.grid[0]}x{self.grid[1]} cells of features, one a query, but the size asked "
                f"for has {noise.shape[-2]}x{noise.shape[-1]}. Leave the size out, or train a head with that grid."
            )
        return self.features(condition)


def regression_objective(model: UnifiedModel, batch: Batch, generator: torch.Generator) -> Mapping[str, LossTerm]:
    """``text``: cross-entropy of the answers. ``mse``: squared error of the features of the images that are drawn."""
    hidden_states = model.forward_for_drawing(batch).hidden_states.flatten(0, 1)
    terms = {}
    if len(batch.target_slots):
        answers = hidden_states[batch.target_slots]
        terms["text"] = text_term(answers, batch.target_ids, model.backbone.logits, batch.target_weights)
    errors, weights = [], []
    for group in batch.outputs:
        wanted = model.group_features(group, is_output=True).detach().float()
        drawn = model.image_head.features(hidden_states[group.slots]).float()
        errors.append((drawn - wanted).square().flatten(1).mean(1))
        weights.append(batch.example_weights[group.example_ids])
    if errors:
        terms["mse"] = weighted_term(torch.cat(errors), torch.cat(weights))
    return terms


@dataclass(frozen=True, kw_only=True)
class ClipMseConfig:
    """The model of another config with a regression in place of its image head, and the losses ``text`` and ``mse``."""

    base: Buildable
    """Config of a model with learnable queries, such as ``Blip3oConfig``. Its number of queries and its denoiser have
    no effect: there is one query a cell."""
    query_std: float = 1.0
    """Standard deviation of the initial queries."""

    def __post_init__(self) -> None:
        for name in ("sees_context", "sees_text"):
            if getattr(self.base, name, False):
                raise ValueError(
                    f"model.base.{name} is True, but a regression reads its queries alone. Set it to False."
                )

    @property
    def row_length(self) -> int | None:
        """Positions of a packed row in training, as of the wrapped config."""
        length: int | None = getattr(self.base, "row_length", None)
        return length

    @property
    def cache_features(self) -> bool:
        """Whether features are encoded once, as of the wrapped config."""
        return bool(getattr(self.base, "cache_features", False))

    def build(self) -> UnifiedModel:
        """The wrapped config's model with a head of this method.

        Raises:
            ValueError: that model has no head with queries, or no generation space.
        """
        model = self.base.build()
        if not isinstance(model, UnifiedModel) or model.image_head is None or model.autoencoder is None:
            raise ValueError(
                f"model.base must build a UnifiedModel that draws, got {type(self.base).__name__}. "
                "Give for example a Blip3oConfig."
            )
        channels, rows, cols = model.autoencoder.latent_shape(*model.images.size)
        model.image_head = QueryRegressionHead(
            dim=model.backbone.dim,
            channels=channels,
            rows=rows,
            cols=cols,
            full_queries=model.image_head.full_queries,
            query_std=self.query_std,
        )
        return model

    def objectives(self) -> dict[str, Objective]:
        """Those of this method, and the wrapped config's of its generation space."""
        own: dict[str, Objective] = {"text": regression_objective, "mse": regression_objective}
        others: Mapping[str, Objective] = self.base.objectives()  # type: ignore[attr-defined]
        spaces = {name: others[name] for name in ("reconstruction", "labels") if name in others}
        return own | spaces
