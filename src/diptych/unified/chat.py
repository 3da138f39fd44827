"""A conversation: parts and cache are kept between turns, and a failed step leaves both unchanged."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from diptych.data.example import Example, ImageOut, Part, Text
from diptych.data.prompt_format import prompt_parts
from diptych.unified.text import DecodeState, TextSettings, read, write

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

    def stream(self, prompt: Any, seed: int = 0, **settings: Any) -> Iterator[str]:
        """The answer in pieces. The conversation goes on only once the answer is complete."""
        parts = (*self.parts, *prompt_parts(prompt))
        state, tokens = self._advance(parts)
        pieces = []
        for piece in write(self.model, state, TextSettings(**settings), seed):
            pieces.append(piece)
            yield piece
        self.parts = (*parts, Text("".join(pieces), role="assistant"))
        self._state, self._read = state, tokens

    def draw(self, prompt: Any, **settings: Any) -> Image.Image:
        """Asks for an image; it becomes part of the conversation. ``settings`` as for ``generate_image``."""
        parts = (*self.parts, *prompt_parts(prompt))
        image = self.model.generate_image(list(parts), **settings)[0]
        self.parts = (*parts, ImageOut(image, is_target=False))
        return image

    def _advance(self, parts: tuple[Part, ...]) -> tuple[DecodeState, tuple[int, ...]]:
        """The state after reading ``parts``; what the cache holds already is not read again."""
        model = self.model
        with torch.inference_mode():
            batch = model.collator()([Example(parts)], open_turn=True).to(model.device)
            length = int((batch.layout.example_ids[0] >= 0).sum())
            tokens = tuple(batch.token_ids[0, :length].tolist())
            shared = _shared_prefix(tokens, self._read)
            plain = not batch.inputs and not batch.outputs and batch.layout.positions.ndim == 2
            if self._state is None or not plain or not 0 < shared < length:
                return read(model, batch), tokens
            new = slice(shared, length)
            cache = self._state.cache.crop(shared)
            visible = torch.ones(1, length, dtype=torch.bool, device=model.device)
            positions = batch.layout.positions[:, new]
            output = model.backbone(model.backbone.embed(batch.token_ids[:, new]), positions, None, cache)
            assert output.cache is not None
            return DecodeState(output.cache, visible, positions[:, -1] + 1, output.hidden_states[:, -1]), tokens


def _shared_prefix(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
