"""Drawing: from prompts to conditions, from conditions and noise to features, from features to pictures.

Everything an image depends on is its own: its prompt, its seed, the settings. Images are drawn in batches of similar
length, conditions of unequal length with a mask, and neighbours change nothing but the last bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diptych.data.example import Example, ImageOut, Part
from diptych.data.prompt_format import prompt_parts
from diptych.flow.solvers import OnStep
from diptych.models.preprocess import to_uint8
from diptych.unified.prompts import prompt_seeds, split_batch
from diptych.unified.settings import DrawSettings, ImagePolicy
from diptych.unified.thoughts import thought_of, with_thoughts
from diptych.unified.tokens import draws_by_tokens, prompt_latents, sample_codes

if TYPE_CHECKING:
    from diptych.unified.model import UnifiedModel

READ_TOGETHER = 64
"""Prompts that are read, and images whose tokens are written, in one batch."""


class ImageHead(Protocol):
    """Draws features from hidden states; an ``nn.Module``."""

    num_queries: int
    full_queries: bool

    def query_embeddings(self, count: int) -> Float[Tensor, "images queries dim"]:
        """What stands at the head's positions of ``count`` images."""
        ...

    def null_condition(self, count: int) -> Float[Tensor, "images queries dim"]:
        """What the hidden states are replaced by when the condition is dropped."""
        ...

    def draw(
        self,
        condition: Float[Tensor, "images queries dim"],
        null: Float[Tensor, "images queries dim"],
        noise: Float[Tensor, "images channels rows cols"],
        settings: DrawSettings,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "images channels rows cols"]:
        """Features of the generation space.

        A head that ``sees_context`` or ``sees_text`` also takes ``mask``, ``images rows``, True where a row of the
        condition counts; it is given where the rows of the images differ in number.
        """
        ...


def generate_images(
    model: "UnifiedModel",
    prompts: Any,
    num_images: int,
    size: tuple[int, int] | int | None,
    settings: DrawSettings,
    negative_prompt: Any,
    seed: int | Sequence[int],
    on_step: OnStep | None,
    batch_size: int | Literal["auto"],
) -> list[Image.Image]:
    """``UnifiedModel.generate_image``, which says what the arguments mean."""
    requests = split_batch(prompts, text_batch=True)
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}.")
    if isinstance(negative_prompt, str) and not negative_prompt.strip():
        raise ValueError("negative_prompt is empty. Leave it out: guidance then leads away from the null condition.")
    step = (16 if model.device.type == "cpu" else 64) if batch_size == "auto" else batch_size
    if not isinstance(step, int) or step < 1:
        raise ValueError(f'batch_size must be "auto" or at least 1, got {batch_size!r}.')
    sides = draw_size(size, model.images)
    seeds = [first + k for first in prompt_seeds(seed, len(requests), num_images) for k in range(num_images)]
    shape = model.generation_space().latent_shape(*sides)
    order = [request for request in range(len(requests)) for _ in range(num_images)]
    if settings.think:
        asked = [requests[request] for request in order]
        requests = with_thoughts(model, asked, seeds, settings.think_temperature, to_draw=True)
        order = list(range(len(requests)))
    if draws_by_tokens(model.image_head):  # every image has tokens of its own
        requests, order = [requests[request] for request in order], list(range(len(order)))
    conditions = conditions_of(model, requests, sides, seeds)
    null = None if negative_prompt is None else conditions_of(model, [prompt_parts(negative_prompt)], sides)[0]
    references = _noise_references(model, requests, sides)
    features: dict[int, Tensor] = {}
    for chosen in _alike([len(conditions[r]) for r in order], [references[r] is not None for r in order], step):
        condition, mask = _padded([conditions[order[index]] for index in chosen])
        noise = torch.stack([_noise(seeds[index], shape) for index in chosen]).to(model.device)
        given = None if null is None else null.expand(len(condition), -1, -1)
        beside = [latents for index in chosen if (latents := references[order[index]]) is not None]
        found = draw_features(model, condition, mask, given, noise, settings, on_step, beside).to(condition.dtype)
        features.update(zip(chosen, found, strict=True))
    drawn = _render(model, features, seeds, step)
    for index, request in enumerate(order):
        if (thought := thought_of(requests[request])) is not None:
            drawn[index].info["thought"] = thought
    return [drawn[index] for index in range(len(order))]


def draw_size(size: tuple[int, int] | int | None, images: ImagePolicy) -> tuple[int, int]:
    """Height and width in pixels; the model's own when absent.

    Raises:
        ValueError: not one number or two, or no positive multiples of what the model draws in.
    """
    sides = images.size if size is None else (size, size) if isinstance(size, int) else size
    if len(sides) != 2:
        raise ValueError(f"size must be one number or (height, width) in pixels, got {size!r}.")
    height, width = sides
    multiple = images.multiple
    if height < 1 or width < 1 or height % multiple or width % multiple:
        raise ValueError(f"size must be positive multiples of {multiple}, got {height}x{width}.")
    return height, width


def conditions_of(
    model: "UnifiedModel",
    requests: Sequence[tuple[Part, ...]],
    size: tuple[int, int],
    seeds: Sequence[int] | None = None,
) -> list[Float[Tensor, "rows dim"]]:
    """``UnifiedModel.condition``: what the image head draws an image after each prompt from."""
    if model.image_head is None:
        raise ValueError("this model cannot draw images. `diptych info` lists what it can do.")
    if draws_by_tokens(model.image_head):
        return _sampled_conditions(model, requests, size, [0] * len(requests) if seeds is None else seeds)
    groups = [requests[start : start + READ_TOGETHER] for start in range(0, len(requests), READ_TOGETHER)]
    return [condition for group in groups for condition in _read_conditions(model, group, size)]


def _read_conditions(
    model: "UnifiedModel", requests: Sequence[tuple[Part, ...]], size: tuple[int, int]
) -> list[Float[Tensor, "rows dim"]]:
    examples = [Example((*parts, ImageOut(size=size)), key=f"prompt {i}") for i, parts in enumerate(requests)]
    collator = model.collator()
    if model.draw_settings.flat_positions:
        collator = replace(collator, position_axes=1)
    batch = collator(examples).to(model.device)
    output = model.forward_for_drawing(batch)
    found: dict[int, Tensor] = {}
    for group in batch.outputs:
        rows, mask = model.condition_rows(output, group)
        own = rows if mask is None else [row[counts] for row, counts in zip(rows, mask, strict=True)]
        found.update(zip(group.example_ids.tolist(), own, strict=True))
    return [found[index] for index in range(len(requests))]


def _sampled_conditions(
    model: "UnifiedModel", requests: Sequence[tuple[Part, ...]], size: tuple[int, int], seeds: Sequence[int]
) -> list[Float[Tensor, "rows dim"]]:
    head = model.image_head
    latents = prompt_latents(model, requests, size) if head.sees_latents else [None] * len(requests)
    found: list[Tensor] = []
    for start in range(0, len(requests), READ_TOGETHER):
        here = slice(start, start + READ_TOGETHER)
        sampled = sample_codes(model, requests[here], size, seeds[here])
        for states, own in zip(sampled.hidden_states, latents[here], strict=True):
            found.append(head.condition(states[None], None if own is None else own[None])[0])
    return found


def _noise_references(
    model: "UnifiedModel", requests: Sequence[tuple[Part, ...]], size: tuple[int, int]
) -> list[Float[Tensor, "channels rows cols"] | None]:
    """Latents of the pictures that are edited, for heads that set them beside the noise."""
    if not getattr(model.image_head, "references_in_noise", False):
        return [None] * len(requests)
    return prompt_latents(model, requests, size)


def draw_features(
    model: "UnifiedModel",
    condition: Float[Tensor, "images rows dim"],
    mask: Bool[Tensor, "images rows"] | None,
    null: Float[Tensor, "images null_rows dim"] | None,
    noise: Float[Tensor, "images channels height width"],
    settings: DrawSettings,
    on_step: OnStep | None = None,
    references: Sequence[Float[Tensor, "_ _ _"]] = (),
) -> Float[Tensor, "images channels height width"]:
    """Features of the images of one batch; the head's own null condition where none is given."""
    model.enter_stage("draw")
    if null is None:
        null = model.image_head.null_condition(len(condition))
    own: dict[str, Tensor] = {} if mask is None else {"mask": mask}
    if references:
        own["references"] = torch.stack(list(references))
    device = model.device_of("denoiser")
    own = {name: tensor.to(device) for name, tensor in own.items()}
    drawn: Tensor = model.image_head.draw(
        condition.to(device), null.to(device), noise.to(device), settings, on_step, **own
    )
    return drawn


def _render(
    model: "UnifiedModel",
    features: Mapping[int, Float[Tensor, "channels rows cols"]],
    seeds: Sequence[int],
    step: int,
) -> dict[int, Image.Image]:
    """Pictures of features, ``step`` at a time and only after all were drawn, so that offloaded parts move once."""
    model.enter_stage("render")
    space = model.generation_space()
    drawn: dict[int, Image.Image] = {}
    places = list(features)
    for chosen in (places[start : start + step] for start in range(0, len(places), step)):
        own = {"seeds": [seeds[index] for index in chosen]} if getattr(space, "takes_seeds", False) else {}
        stacked = torch.stack([features[index] for index in chosen])
        images = space.decode(stacked.to(model.device_of("autoencoder")), **own)
        drawn.update(zip(chosen, _to_images(images), strict=True))
    return drawn


def _alike(lengths: Sequence[int], marks: Sequence[bool], step: int) -> list[list[int]]:
    """Indices in batches of at most ``step``: of similar length, and with the same mark."""
    batches = []
    for mark in (False, True):
        own = sorted((i for i in range(len(lengths)) if marks[i] == mark), key=lambda i: lengths[i])
        batches += [own[start : start + step] for start in range(0, len(own), step)]
    return batches


def _padded(
    rows: Sequence[Float[Tensor, "_ dim"]],
) -> tuple[Float[Tensor, "images most dim"], Bool[Tensor, "images most"] | None]:
    """Conditions of several images, with a mask of the rows that count where they differ in number."""
    lengths = torch.tensor([len(own) for own in rows], device=rows[0].device)
    padded = pad_sequence(list(rows), batch_first=True)
    mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    return padded, None if mask.all() else mask


def _noise(seed: int, shape: tuple[int, int, int]) -> Float[Tensor, "channels rows cols"]:
    """Standard normal, drawn in float32 on the CPU, so that devices agree."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _to_images(images: Float[Tensor, "images 3 height width"]) -> list[Image.Image]:
    array = to_uint8(images.float().clamp(-1, 1), value_range=(-1, 1))
    return [Image.fromarray(pixels) for pixels in array]
