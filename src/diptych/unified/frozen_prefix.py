"""A pass in which the image head alone learns: what stands before the queries is read once, without a graph.

The backbone is causal and nothing sees a query but the queries behind it, so text and pictures have hidden states and
keys that depend on frozen weights alone. They are computed without a graph into the key-value cache; a second pass over
the queries alone, on top of that cache, carries the gradients. Losses and gradients are those of a single pass; the
backward pass through text, pictures and padding, and its stored activations, fall away.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from diptych.data.batch import Batch
from diptych.data.layout import SpanKind
from diptych.models.backbones.protocol import BackboneOutput
from diptych.unified.model import UnifiedModel


def reads_frozen(model: UnifiedModel, batch: Batch) -> bool:
    """Whether everything that a batch's text and pictures are read by is frozen, so that no text is learnt.

    False without gradients (an evaluation is a single pass), and for parameters sharded over processes, whose parts are
    gathered in each pass: all processes must make equally many.
    """
    if not torch.is_grad_enabled():
        return False
    readers = [model.backbone]
    if batch.inputs:
        readers += [model.connector, model.autoencoder if model.encoder is None else model.encoder]
    return not any(
        p.requires_grad for part in readers if part is not None for p in part.parameters()
    ) and not _is_sharded(model.backbone)


def forward_for_queries(model: UnifiedModel, batch: Batch) -> BackboneOutput:
    """``model.forward_for_drawing(batch)`` for a batch that `reads_frozen`; padding and its like are zeros.

    Raises:
        ValueError: a position that is no query sees a query. Collators make no such batch.
    """
    layout = batch.layout
    rows, seq = layout.kinds.shape
    is_query = layout.kinds == SpanKind.QUERY
    prefix, is_prefix = _gathered((layout.example_ids >= 0) & ~is_query)
    queries, is_real_query = _gathered(is_query)
    row = torch.arange(rows, device=prefix.device)[:, None, None]
    seen = layout.allows(prefix[:, :, None], queries[:, None, :], row) & is_prefix[:, :, None] & is_real_query[:, None]
    if seen.any():
        raise ValueError(
            "text or a picture of the batch sees the queries of a drawn image, so it cannot be read before them. Lay "
            "queries out as hidden spans, or set model.frozen_prefix to false."
        )
    with torch.no_grad():
        embedded = model.embed(replace(batch, outputs=()))
        mask = None if layout.is_plain_causal else layout.allows(prefix[:, :, None], prefix[:, None, :], row)
        if mask is not None:
            mask &= is_prefix[:, :, None] & is_prefix[:, None, :]
        read = model.backbone(_at(embedded, prefix), _at(layout.positions, prefix), mask, model.backbone.new_cache())
    flat = embedded.flatten(0, 1)
    for group in batch.outputs:
        own = model.image_head.query_embeddings(len(group)).flatten(0, 1)
        flat = flat.index_copy(0, group.slots.flatten(), own.to(flat.dtype))
    embedded = flat.unflatten(0, (rows, seq))
    keys = torch.cat([prefix, queries], dim=1)
    mask = layout.allows(queries[:, :, None], keys[:, None, :], row)
    mask &= is_real_query[:, :, None] & torch.cat([is_prefix, is_real_query], dim=1)[:, None, :]
    drawn = model.backbone(_at(embedded, queries), _at(layout.positions, queries), mask, read.cache)
    states = torch.cat([read.hidden_states.to(drawn.hidden_states.dtype), drawn.hidden_states], dim=1)
    counts = torch.cat([is_prefix, is_real_query], dim=1)
    places = torch.where(counts, keys + row[:, :, 0] * seq, rows * seq)  # what does not count goes behind the end
    hidden_states = states.new_zeros(rows * seq + 1, states.shape[-1])
    hidden_states = hidden_states.index_copy(0, places.flatten(), states.flatten(0, 1))[:-1].unflatten(0, (rows, seq))
    return BackboneOutput(hidden_states, layer_states={0: embedded})


def _gathered(mask: Bool[Tensor, "rows seq"]) -> tuple[Int[Tensor, "rows most"], Bool[Tensor, "rows most"]]:
    """The True places of every row, in order, filled up to the longest row's with others; and which are True."""
    most = int(mask.sum(1).max())
    places = torch.argsort(~mask, dim=1, stable=True)[:, :most]
    return places, mask.gather(1, places)


def _at(values: Tensor, places: Int[Tensor, "rows most"]) -> Tensor:
    """``rows seq ...`` at the places of every row."""
    row = torch.arange(len(values), device=values.device)[:, None]
    return values[row, places]


def _is_sharded(part: nn.Module) -> bool:
    return any(hasattr(parameter, "device_mesh") for parameter in part.parameters())
