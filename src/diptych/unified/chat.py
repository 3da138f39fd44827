"""A conversation: parts and cache are kept between turns, and a failed step leaves both unchanged."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from diptych.data.batch import Batch, ImageGroup
from diptych.data.example import Example, ImageOut, Part, Text, is_thought
from diptych.data.prompt_format import prompt_parts
from diptych.unified.text import DecodeState, TextSettings, after, read, write
from diptych.unified.thoughts import with_thoughts

if TYPE_CHECKING:
    from diptych.unified.model import UnifiedModel


class Chat:
    """Turns of one conversation.

    Attributes:
        parts: everything said and shown so far.
    """

    def __init__(self, model: "UnifiedModel") -> None:
        self.model = model
        self.parts: tuple[Part, ...] = ()
        self._state: DecodeState | None = None
        self._read: tuple[int, ...] = ()

    def ask(self, prompt: Any, **settings: Any) -> str:
        """Says something and returns the answer; ``settings`` as for ``generate_text``."""
        return "".join(self.stream(prompt, **settings))

    def stream(self, prompt: Any, seed: int = 0, think: bool | None = None, **settings: Any) -> Iterator[str]:
        """The answer in pieces. The conversation goes on only once the answer is complete; a thought stays in it."""
        parts = (*self.parts, *prompt_parts(prompt))
        if self.model.draw_settings.thinks_to_answer if think is None else think:
            habits = {name: settings[name] for name in ("temperature", "top_p") if name in settings}
            parts = with_thoughts(self.model, [parts], [seed], **habits)[0]
        state, tokens = self._advance(parts)
        pieces = []
        for piece in write(self.model, state, TextSettings(**settings), seed):
            pieces.append(piece)
            yield piece
        self.parts = (*parts, Text("".join(pieces), role="assistant"))
        self._state, self._read = state, tokens

    def draw(self, prompt: Any, **settings: Any) -> Image.Image:
        """Asks for an image; it becomes part of the conversation. ``settings`` as for ``generate_image``."""
        if settings.get("num_images", 1) != 1:
            raise ValueError("a conversation goes on with one image: leave num_images out, or use generate_image.")
        parts = (*self.parts, *prompt_parts(prompt))
        image = self.model.generate_image(list(parts), **settings)[0]
        if "thought" in image.info and not is_thought(parts[-1]):
            parts = (*parts, Text(image.info["thought"], role="assistant", is_thought=True))
        self.parts = (*parts, ImageOut(image, is_target=False))
        return image

    def _advance(self, parts: tuple[Part, ...]) -> tuple[DecodeState, tuple[int, ...]]:
        """The state after reading ``parts``; what the cache holds already is not read again."""
        model = self.model
        with torch.inference_mode():
            batch = model.collator()([Example(parts)], open_turn=True).to(model.device)
            tokens = _named_positions(batch)
            shared = _shared_prefix(tokens, self._read)
            if self._state is None or not batch.layout.is_plain_causal or not 0 < shared < len(tokens):
                return read(model, batch), tokens
            new = slice(shared, len(tokens))
            groups = (_starting_at(group, shared) for group in batch.inputs)
            unread = replace(batch, inputs=tuple(group for group in groups if len(group)))
            positions = batch.layout.positions[:, new]
            output = model.backbone(model.embed(unread)[:, new], positions, None, self._state.cache.crop(shared))
            visible = batch.layout.example_ids[:, : len(tokens)] >= 0
            assert output.cache is not None
            return DecodeState(output.cache, visible, after(batch.layout), output.hidden_states[:, -1]), tokens


def _named_positions(batch: Batch) -> tuple[int, ...]:
    """What stands at every position of the only example: a token, or below 0 the how-manieth image it is part of.

    A conversation only grows, so an image of a given number is always the same one.
    """
    kinds, spans = batch.layout.kinds[0].tolist(), batch.layout.span_ids[0].tolist()
    length = int((batch.layout.example_ids[0] >= 0).sum())
    numbers = {span: -n for n, span in enumerate(sorted({s for k, s in zip(kinds, spans, strict=True) if k > 0}), 1)}
    tokens = batch.token_ids[0].tolist()
    return tuple(numbers.get(spans[i], tokens[i]) for i in range(length))


def _starting_at(group: ImageGroup, first: int) -> ImageGroup:
    """The images of a group that lie at position ``first`` or later."""
    keep = group.slots[:, 0] >= first
    return replace(
        group,
        images=None if group.images is None else group.images[keep],
        features=None if group.features is None else group.features[keep],
        slots=group.slots[keep],
        example_ids=group.example_ids[keep],
        context_slots=group.context_slots[keep],
        text_slots=group.text_slots[keep],
    )


def _shared_prefix(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
