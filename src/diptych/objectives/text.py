"""Cross-entropy of text, at the target tokens alone."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diptych.objectives.loss_term import LossTerm

LogitsFn: TypeAlias = Callable[[Float[Tensor, "*rows dim"]], Float[Tensor, "*rows vocab"]]
"""Hidden states -> logits, such as ``backbone.logits``."""


def token_cross_entropy(
    logits: Float[Tensor, "tokens vocab"], target_ids: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """``-log p(target)`` of each token in nats, softmax in float32."""
    return F.cross_entropy(logits.float(), target_ids, reduction="none")


def text_term(
    hidden_states: Float[Tensor, "tokens dim"],
    target_ids: Int[Tensor, " tokens"],
    logits: LogitsFn,
    weights: Float[Tensor, " tokens"] | None = None,
    chunk_size: int = 8192,
) -> LossTerm:
    """Cross-entropy summed over the target tokens, counted in tokens.

    Args:
        hidden_states: of the positions *before* the targets, gathered: no logits are made for other positions.
        target_ids: the token each of them should predict.
        logits: called on at most ``chunk_size`` rows at a time. Where there is more than one chunk, its logits are
            thrown away and made again in the backward pass: a large vocabulary never needs memory for all tokens.
        weights: multiply the losses of their tokens; the count stays the number of tokens.
        chunk_size: see ``logits``.
    """
    num_tokens = len(target_ids)
    if num_tokens <= chunk_size:
        values = token_cross_entropy(logits(hidden_states), target_ids)
    else:

        def chunk_values(states: Tensor, ids: Tensor) -> Tensor:
            return token_cross_entropy(logits(states), ids)

        chunks = zip(hidden_states.split(chunk_size), target_ids.split(chunk_size), strict=True)
        values = torch.cat([checkpoint(chunk_values, states, ids, use_reentrant=False) for states, ids in chunks])
    weighted = values if weights is None else values * weights.to(values)
    count = torch.tensor(float(num_tokens), device=values.device)
    return LossTerm(weighted.sum(), count, values=values.detach())
