"""Attention over boolean masks, and the masks of plain causal sequences."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_MAX_EXPLICIT_KEYS = 1024


def attend(
    query: Float[Tensor, "batch heads seq head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys head_dim"],
    mask: Bool[Tensor, "#batch #seq keys"] | None,
    is_causal: bool = False,
) -> Float[Tensor, "batch seq heads_times_head_dim"]:
    """Softmax attention with grouped heads: query head h reads key head ``h // (heads / kv_heads)``.

    Every row must see at least one key (``see_own_key``). ``is_causal`` needs as many keys as queries and no mask.
    """
    seq, keys = query.shape[2], key.shape[2]
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and keys <= _MAX_EXPLICIT_KEYS:
        # The CPU's fused bfloat16 kernel has a backward five times slower than three matrix products at these lengths.
        if is_causal:
            mask = causal_mask(seq, keys, query.device)
        return _attend_explicitly(query, key, value, mask).transpose(1, 2).flatten(2)
    is_grouped = query.shape[1] != key.shape[1]
    if is_grouped and mask is not None and query.is_cuda:  # grouped heads with a mask have no fused kernel there
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        is_grouped = False
    attended = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if mask is None else mask.unsqueeze(1),
        is_causal=is_causal,
        enable_gqa=is_grouped,
    )
    return attended.transpose(1, 2).flatten(2)


def _attend_explicitly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The same, as two matrix products and a softmax, without repeating the keys of a group."""
    heads, kv_heads, seq = query.shape[1], key.shape[1], query.shape[2]
    grouped = (query * query.shape[-1] ** -0.5).unflatten(1, (kv_heads, heads // kv_heads)).flatten(2, 3)
    scores = grouped @ key.transpose(-1, -2)
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_fill(~mask, float("-inf"))
        scores = (scores.unflatten(2, (-1, seq)) + bias[:, None, None]).flatten(2, 3)
    attended = scores.softmax(-1) @ value
    return attended.unflatten(2, (-1, seq)).flatten(1, 2)


def causal_mask(seq: int, keys: int, device: torch.device) -> Bool[Tensor, "1 seq keys"]:
    """Query i is the ``keys - seq + i``-th position and sees itself and all before it."""
    return torch.ones(1, seq, keys, dtype=torch.bool, device=device).tril(keys - seq)


def see_own_key(mask: Bool[Tensor, "batch seq keys"]) -> Bool[Tensor, "batch seq keys"]:
    """The mask with rows that may attend to nothing (padding) opened to their own key, so that they stay finite.

    Nobody else sees such a row, so no other row changes.
    """
    seq, keys = mask.shape[1:]
    own = torch.ones(seq, keys, dtype=torch.bool, device=mask.device).tril(keys - seq).triu(keys - seq)
    return mask | (own & ~mask.any(-1, keepdim=True))


def check_mask(mask: Bool[Tensor, "..."] | None, batch: int, seq: int, keys: int) -> None:
    """Refuse a mask of another shape.

    Raises:
        ValueError: the shape is not (batch, seq, keys).
    """
    if mask is not None and tuple(mask.shape) != (batch, seq, keys):
        raise ValueError(
            f"mask must have shape (batch, seq, keys) = {(batch, seq, keys)}, got {tuple(mask.shape)}. "
            "Keys are the cached positions followed by the new ones."
        )


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Refuse layers that the backbone has not got.

    Raises:
        ValueError: an index outside 0 (the embedding) .. num_layers.
    """
    unknown = [layer for layer in layers if not 0 <= layer <= num_layers]
    if unknown:
        raise ValueError(f"layers must be between 0 (the embedding) and {num_layers} (the last block), got {unknown}.")
