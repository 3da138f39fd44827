"""A fixed vector of each prompt, for the joint distance of images and prompts in ``fd_loss``."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diptych.data.batch import Batch
from diptych.data.example import ImageOut
from diptych.data.shuffle import derive_key
from diptych.data.sources.protocol import BadRecord
from diptych.unified.model import UnifiedModel

BATCH_SIZE = 64
"""Images or prompts at a time where no gradient is kept."""


class PromptVectors:
    """A fixed vector of each prompt: what the untrained queries see of it, averaged, turned into few numbers and
    standardised over the first captions of a source.

    Queries are taken as they are before training, so that the vector of a prompt never changes; the backbone must not
    be trained with the loss.
    """

    def __init__(self, model: UnifiedModel, width: int, source: Any, num_measured: int) -> None:
        self.width = width
        self.name = f"prompt{width}"
        self._model = model
        self._queries = model.image_head.queries.detach().clone()
        self._measured = (source, num_measured)
        self._shift_scale: tuple[Tensor, Tensor] | None = None
        generator = torch.Generator().manual_seed(0)
        self._projection = torch.randn(self._queries.shape[1], width, generator=generator)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Float[Tensor, "images width"]:
        """Rows in the order of the groups; over many prompts each of their numbers has mean 0 and variance 1."""
        if self._shift_scale is None:
            source, count = self._measured
            starts = range(0, count, BATCH_SIZE)
            indices = [range(start, min(start + BATCH_SIZE, count)) for start in starts]
            known = torch.cat([self._project(prompt_batch(self._model, source, few)) for few in indices])
            self._shift_scale = known.mean(0), known.std(0)
        shift, scale = self._shift_scale
        return (self._project(batch) - shift) / scale

    def _project(self, batch: Batch) -> Tensor:
        queries = {"image_head.queries": self._queries.to(self._model.device)}
        output = torch.func.functional_call(self._model, queries, (batch,))
        hidden_states = output.hidden_states.flatten(0, 1)
        rows = torch.cat([hidden_states[group.slots].mean(1) for group in batch.outputs]).float()
        projected: Tensor = F.layer_norm(rows, rows.shape[-1:]) @ self._projection.to(rows)
        return projected


def prompt_batch(model: UnifiedModel, source: Any, indices: Sequence[int]) -> Batch:
    """Examples of a source as a batch, each with the seed of its index.

    Raises:
        ValueError: the source has too few examples, or one that is no caption with a picture.
    """
    if indices[-1] >= len(source):
        raise ValueError(
            f"model.reference has {len(source)} examples, but {indices[-1] + 1} are needed for real moments, warm "
            "start or scores. Lower model.num_reference, model.num_warm_start or evaluation.num_prompts."
        )
    examples, seeds = [], []
    for index in indices:
        try:
            example = source.example(index, 0)
        except BadRecord:
            continue  # one image less
        if not isinstance(example.parts[-1], ImageOut):
            raise ValueError(f"model.reference: example {example.key!r} ends in no picture: it needs text_to_image.")
        examples.append(example)
        seeds.append(derive_key(0, "fd image", index) >> 1)
    return model.collator()(examples, seeds).to(model.device)
