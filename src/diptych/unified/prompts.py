"""The spellings of prompts: one prompt, or a batch of them."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from diptych.data.example import ImageIn, ImageOut, Part, Text
from diptych.data.prompt_format import prompt_parts

_SPELLINGS = (
    'One prompt is a str or a list of parts: "a red circle" or [image, "make it blue"]. A batch is a list of lists: '
    '[["a red circle"], [image, "make it blue"]]'
)


def is_batch(prompts: Any, text_batch: bool) -> bool:
    """Whether the input is a batch: every element is a list or, with ``text_batch``, every element is a ``str``.

    Raises:
        ValueError: lists and other elements are mixed.
    """
    if isinstance(prompts, str | Text | ImageIn | ImageOut) or not isinstance(prompts, list | tuple):
        return False
    lists = [isinstance(element, list | tuple) for element in prompts]
    if any(lists) and not all(lists):
        extra = ' or, for images, a list of str: ["a red circle", "a blue square"].' if text_batch else "."
        raise ValueError(f"the prompts mix lists with other elements. {_SPELLINGS}{extra}")
    if lists and all(lists):
        return True
    return text_batch and len(prompts) > 0 and all(isinstance(element, str) for element in prompts)


def split_batch(prompts: Any, text_batch: bool) -> list[tuple[Part, ...]]:
    """The parts of every prompt of a batch, or of the one prompt.

    Raises:
        ValueError: an empty batch or an empty prompt.
    """
    if isinstance(prompts, list | tuple) and not prompts:
        raise ValueError(f"no prompt was given. {_SPELLINGS}.")
    if is_batch(prompts, text_batch):
        return [prompt_parts(prompt) for prompt in prompts]
    return [prompt_parts(prompts)]


def prompt_seeds(seed: Any, num_prompts: int, stride: int = 1) -> list[int]:
    """The first seed of every prompt: one number ``s`` gives prompt i ``s + i * stride``, else there is one a prompt.

    Raises:
        ValueError: no number, another number of them, or one that does not fit into 63 bits.
    """
    if isinstance(seed, Integral):
        seeds = [int(seed) + i * stride for i in range(num_prompts)]
    elif isinstance(seed, Sequence) and not isinstance(seed, str) and all(isinstance(s, Integral) for s in seed):
        if len(seed) != num_prompts:
            raise ValueError(
                f"seed must be one number or one per prompt: got {len(seed)} seeds for {num_prompts} prompts."
            )
        seeds = [int(s) for s in seed]
    else:
        raise ValueError(f"seed must be one whole number or one per prompt, got {seed!r}.")
    if any(not 0 <= s < 2**63 - stride for s in seeds):
        raise ValueError(f"seed must lie between 0 and 2**63, got {seed!r}.")
    return seeds
