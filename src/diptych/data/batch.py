"""Examples as tensors: everything an objective needs, found once when the batch is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.data.example import Example, ImageIn, ImageOut, LazyImage, Pixels, Text, load_pixels
from diptych.data.feature_cache import FeatureCache, image_key
from diptych.data.layout import PackedLayout, SpanKind, pack_layouts
from diptych.data.prompt_format import ImageRules, PromptFormat, render
from diptych.data.tokenizer import Tokenizer

_T = TypeVar("_T")


@dataclass(frozen=True)
class ImageGroup:
    """Images of one size and where they stand in the sequences.

    Attributes:
        images: in [-1, 1]; None where features were cached, and for images that are yet to be drawn.
        features: encoded earlier; None where the images are given.
        slots: for every image, the positions it takes in the flattened ``rows * seq`` sequence.
        example_ids: the example each image belongs to.
        size: (height, width) in pixels, the same for the whole group.
        context_slots: for every image, the positions of the pictures that stand before it in its example, filled up
            with -1; none for images that are looked at, and where the collator is not ``with_context``.
        text_slots: the same for the text before it, where the collator is ``with_text``.
        labels: what is where in the images; None where the source has no labels, and with cached features.
        codes: of images that are drawn by discrete tokens, as many as are written already (`diptych.unified.tokens`).
    """

    images: Float[Tensor, "images 3 height width"] | None
    features: Float[Tensor, "images channels rows cols"] | None
    slots: Int[Tensor, "images tokens"]
    example_ids: Int[Tensor, " images"]
    size: tuple[int, int]
    context_slots: Int[Tensor, "images context"]
    text_slots: Int[Tensor, "images text"]
    labels: Float[Tensor, "images labels rows cols"] | None = None
    codes: Int[Tensor, "images written"] | None = None

    def __len__(self) -> int:
        return self.slots.shape[0]


@dataclass(frozen=True)
class Batch:
    """Examples packed into rows.

    Attributes:
        token_ids: 0 at positions that hold no text.
        layout: kinds, examples, attention rules and positions of every place in the rows.
        target_slots: positions, in the flattened ``rows * seq`` sequence, whose next token is to be learnt.
        target_ids: those next tokens.
        target_examples: the example each belongs to.
        target_weights: factor on the loss of each, the example's weight included.
        inputs: images that are looked at.
        outputs: images that are drawn.
        example_weights: factor on every example's loss.
        example_seeds: one 63-bit seed per example; noise, time and dropped conditions are drawn from it, so that they
            do not depend on the batch, the process or the neighbours.
    """

    token_ids: Int[Tensor, "rows seq"]
    layout: PackedLayout
    target_slots: Int[Tensor, " targets"]
    target_ids: Int[Tensor, " targets"]
    target_examples: Int[Tensor, " targets"]
    target_weights: Float[Tensor, " targets"]
    inputs: tuple[ImageGroup, ...]
    outputs: tuple[ImageGroup, ...]
    example_weights: Float[Tensor, " examples"]
    example_seeds: Int[Tensor, " examples"]

    @property
    def num_examples(self) -> int:
        return self.example_weights.shape[0]

    @property
    def num_tokens(self) -> int:
        """Positions including padding, as the backbone sees them."""
        return self.token_ids.numel()

    def to(self, device: torch.device | str) -> "Batch":
        return _move(self, torch.device(device))


def _move(value: _T, device: torch.device) -> _T:
    """A dataclass, tuple or tensor with every tensor in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(_move(item, device) for item in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _move(getattr(value, f.name), device) for f in fields(value)})
    return value


@dataclass
class _Image:
    """An image on its way into a group."""

    size: tuple[int, int]
    image: Tensor | None = None
    features: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class _Member:
    """An image of a group, its example and its places in the flattened sequence."""

    image: _Image
    example: int
    first_slot: int
    context: tuple[int, ...]
    text: tuple[int, ...]


@dataclass(frozen=True)
class Collator:
    """Makes batches; a plain value that worker processes can be given.

    Attributes:
        prepare: turns uint8 pixels into the float image of the model's size; called with ``is_output``.
        cache: features of images whose encoder is frozen; such images are neither read nor drawn.
        row_length: see ``pack_layouts``; ``None`` gives every example its own row.
        position_axes: 1, or 3 for multimodal rotary positions.
    """

    tokenizer: Tokenizer
    prompt_format: PromptFormat
    rules: ImageRules
    prepare: Callable[[Pixels, bool], Float[Tensor, "3 height width"]]
    cache: FeatureCache | None = None
    pixels_per_cell: tuple[int, int] = (1, 1)
    """Pixels along one cell of the (input, output) feature grids: gives the size of an image known by its features."""
    row_length: int | None = None
    position_axes: int = 1
    with_context: bool = False
    """Drawn images know the positions of the pictures before them (``ImageGroup.context_slots``)."""
    with_text: bool = False
    """And of the text before them (``ImageGroup.text_slots``)."""
    pad_multiple: int = 8

    def __call__(
        self,
        examples: Sequence[Example],
        seeds: Sequence[int] | None = None,
        open_turn: bool = False,
        open_thought: bool = False,
    ) -> Batch:
        """The examples as a batch.

        Args:
            seeds: one per example; zeros when absent (inference draws its noise elsewhere).
            open_turn: end every sequence with the start of an assistant's turn.
            open_thought: and with the start of a thought in it.

        Raises:
            ValueError: an image or a text does not fit the model; the message names the example.
        """
        images = [_ExampleImages(self, example) for example in examples]
        layouts = [
            render(
                example,
                self.prompt_format,
                self.tokenizer,
                self.rules,
                own.sizes(),
                open_turn=open_turn,
                open_thought=open_thought,
            )
            for example, own in zip(examples, images, strict=True)
        ]
        packed, places = pack_layouts(layouts, self.row_length, self.position_axes, self.pad_multiple)
        shape = tuple(packed.kinds.shape)
        token_ids = np.zeros(shape, dtype=np.int64)
        target_slots: list[int] = []
        target_ids: list[int] = []
        target_examples: list[int] = []
        target_weights: list[float] = []
        groups: dict[tuple[Any, ...], list[_Member]] = {}
        for index, (layout, (row, start)) in enumerate(zip(layouts, places, strict=True)):
            first = start
            seen: list[int] = []
            read: list[int] = []
            for span in layout.spans:
                here = slice(start, start + span.length)
                if span.kind == SpanKind.TEXT:
                    token_ids[row, here] = span.token_ids
                    if self.with_text:
                        read.extend(range(row * shape[1] + start, row * shape[1] + here.stop))
                    if span.is_target:
                        skip = 1 if start == first else 0  # nothing precedes the first token of an example
                        offset = row * shape[1]
                        target_slots.extend(range(offset + start - 1 + skip, offset + here.stop - 1))
                        target_ids.extend(span.token_ids[skip:])
                        target_examples.extend([index] * (span.length - skip))
                        target_weights.extend([examples[index].weight * span.weight] * (span.length - skip))
                else:
                    assert span.image is not None
                    is_output = span.kind == SpanKind.QUERY
                    first_slot = row * shape[1] + start
                    context = tuple(seen) if is_output and self.with_context else ()
                    text = tuple(read) if is_output else ()
                    if not is_output:
                        seen.extend(range(first_slot, first_slot + span.length))
                    image = images[index].get(span.image, is_output)
                    shape_key = None if image.features is None else tuple(image.features.shape)
                    labels_key = None if image.labels is None else tuple(image.labels.shape)
                    kind = (is_output, image.size, span.length, shape_key, labels_key)
                    groups.setdefault(kind, []).append(_Member(image, index, first_slot, context, text))
                start = here.stop
        return Batch(
            token_ids=torch.from_numpy(token_ids),
            layout=packed,
            target_slots=torch.tensor(target_slots, dtype=torch.int64),
            target_ids=torch.tensor(target_ids, dtype=torch.int64),
            target_examples=torch.tensor(target_examples, dtype=torch.int64),
            target_weights=torch.tensor(target_weights, dtype=torch.float32),
            inputs=tuple(_group(members, key[2]) for key, members in groups.items() if not key[0]),
            outputs=tuple(_group(members, key[2]) for key, members in groups.items() if key[0]),
            example_weights=torch.tensor([float(example.weight) for example in examples]),
            example_seeds=torch.tensor(list(seeds) if seeds is not None else [0] * len(examples), dtype=torch.int64),
        )

    def load(self, part: ImageIn | ImageOut, is_output: bool, example: Example) -> _Image:
        """An image part as features where they are cached, else as the float image of the model's size."""
        if part.image is None:
            if not (isinstance(part, ImageOut) and part.size is not None):
                raise ValueError(f"example {example.key!r}: an ImageOut without an image needs a size (height, width).")
            return _Image((part.size[0], part.size[1]))
        features = None
        if self.cache is not None:
            features = self.cache.get("output" if is_output else "input", image_key(part.image))
        if features is not None:
            cell = self.pixels_per_cell[is_output]
            return _Image((features.shape[-2] * cell, features.shape[-1] * cell), features=features)
        try:
            image = self.prepare(load_pixels(part.image), is_output)
        except (TypeError, ValueError, OSError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"example {example.key!r}: {error}") from error
        labels = part.image.labels() if isinstance(part.image, LazyImage) and part.image.labels is not None else None
        return _Image(
            (int(image.shape[-2]), int(image.shape[-1])),
            image=image,
            labels=None if labels is None else torch.from_numpy(labels),
        )


class _ExampleImages:
    """The images of one example, each loaded once as what is drawn and once as what is looked at, if it is both."""

    def __init__(self, collator: Collator, example: Example) -> None:
        self.collator = collator
        self.example = example
        self.parts = [part for part in example.parts if not isinstance(part, Text)]
        self.loaded: dict[tuple[int, bool], _Image] = {}

    def get(self, index: int, is_output: bool) -> _Image:
        key = (index, is_output)
        if key not in self.loaded:
            self.loaded[key] = self.collator.load(self.parts[index], is_output, self.example)
        return self.loaded[key]

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every image, as drawn where it is drawn."""
        is_drawn = [isinstance(part, ImageOut) and part.is_target for part in self.parts]
        return [self.get(i, drawn).size for i, drawn in enumerate(is_drawn)]


def _group(members: list[_Member], num_tokens: int) -> ImageGroup:
    first = members[0].image
    images = [member.image for member in members]
    starts = torch.tensor([member.first_slot for member in members])
    return ImageGroup(
        images=None if first.image is None else torch.stack([m.image for m in images if m.image is not None]),
        features=None
        if first.features is None
        else torch.stack([m.features for m in images if m.features is not None]),
        slots=starts[:, None] + torch.arange(num_tokens)[None, :],
        example_ids=torch.tensor([member.example for member in members]),
        size=first.size,
        context_slots=_filled_up([member.context for member in members]),
        text_slots=_filled_up([member.text for member in members]),
        labels=None if first.labels is None else torch.stack([m.labels for m in images if m.labels is not None]),
    )


def _filled_up(slots: Sequence[Sequence[int]]) -> Int[Tensor, "images most"]:
    """Rows of slots, filled up with -1 to the longest."""
    most = max(map(len, slots))
    return torch.tensor([[*row, *[-1] * (most - len(row))] for row in slots], dtype=torch.int64)
