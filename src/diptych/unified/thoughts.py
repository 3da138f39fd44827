"""Thoughts: what a model writes before it draws or answers, in the same turn.

A thought turns one hard step into two easier ones: a prompt becomes a plan of the picture, and the plan becomes pixels
(as in GoT, arXiv 2503.10639, and in BAGEL's thinking mode, arXiv 2505.14683, section 2). The thought is text like any
other, so it can be read, corrected and given in the prompt: ``Text(plan, role="assistant", is_thought=True)``.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diptych.data.example import Part, Text, is_thought
from diptych.data.prompt_format import drawing_request
from diptych.unified.text import TextSettings, generate

if TYPE_CHECKING:
    from diptych.unified.model import UnifiedModel

MAX_THOUGHT_TOKENS = 256


def with_thoughts(
    model: "UnifiedModel",
    requests: Sequence[tuple[Part, ...]],
    seeds: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    to_draw: bool = False,
) -> list[tuple[Part, ...]]:
    """Every prompt with a thought after it; prompts that end in a thought stay as they are.

    Args:
        seeds: one for every prompt; a thought depends on its prompt and seed alone.
        to_draw: the thoughts stand before images, not before answers.
    """
    thinking = [index for index, parts in enumerate(requests) if not is_thought(parts[-1])]
    if not thinking:
        return list(requests)
    form = model.prompt_format
    settings = TextSettings(MAX_THOUGHT_TOKENS, temperature, top_p, stop=(form.thought_end,))
    asked = [drawing_request(requests[i], form) if to_draw else requests[i] for i in thinking]
    written = generate(model, asked, settings, [seeds[i] for i in thinking], open_thought=True)
    thoughts = {
        index: Text(text, role="assistant", is_thought=True) for index, text in zip(thinking, written, strict=True)
    }
    return [(*parts, thoughts[index]) if index in thoughts else parts for index, parts in enumerate(requests)]


def thought_of(parts: Sequence[Part]) -> str | None:
    """The thought that a prompt ends in."""
    last = parts[-1]
    return last.text if isinstance(last, Text) and last.is_thought else None
