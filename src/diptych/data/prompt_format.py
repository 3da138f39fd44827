"""How the parts of an example become tokens: one format per backbone, the same for training and inference."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from diptych.data.example import Example, ImageIn, ImageOut, Part, Role, Text, is_thought
from diptych.data.layout import SequenceLayout, Span, SpanKind
from diptych.data.tokenizer import Tokenizer

ImageGrid = Callable[[int, int], tuple[int, int]]
"""Maps (height, width) in pixels to (rows, columns) of positions."""


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """Templates around turns, images and drawings. Text in templates may name special tokens; users' text may not."""

    preamble: str = ""
    """Stands once at the start, unless the example begins with a system turn."""
    turn_start: Mapping[Role, str] = field(default_factory=lambda: {"system": "", "user": "", "assistant": ""})
    """Before the first part of a turn."""
    turn_end: Mapping[Role, str] = field(default_factory=lambda: {"system": "", "user": "", "assistant": ""})
    """After the last part of a turn. The end of an assistant's turn is part of what the model learns to write."""
    image_start: str = ""
    """Before the features of an image."""
    image_end: str = ""
    """After the features of an image."""
    draw_start: str = ""
    """Before the queries of an image that is drawn."""
    thought_start: str = "<think>"
    """Before a thought, which may come first in an assistant's turn."""
    thought_end: str = "</think>"
    """After a thought; what the model learns to end it with."""
    draw_prompt: str = "{text}"
    """Around the user's text when it asks for an image and shows none (BLIP3-o: "Please generate image ...")."""
    edit_prompt: str = "{text}"
    """Around the user's text when it asks for an image and shows at least one."""
    edit_text_first: bool = False
    """In a turn that asks for an image, texts stand before pictures, in whatever order they were given."""
    stop: tuple[str, ...] = ()
    """Special tokens that end an answer."""
    max_text_tokens: int = 4096
    """A longer example is refused."""

    def __post_init__(self) -> None:
        if not self.thought_end:
            raise ValueError("prompt_format.thought_end is empty: a thought would have no end.")
        for name in ("draw_prompt", "edit_prompt"):
            if getattr(self, name).count("{text}") != 1:
                raise ValueError(
                    f"prompt_format.{name} must contain {{text}} exactly once, got {getattr(self, name)!r}."
                )

    def special_tokens(self) -> tuple[str, ...]:
        """Every special token the templates name, in order of first use."""
        templates = [self.preamble, *self.turn_start.values(), *self.turn_end.values()]
        templates += [
            self.image_start,
            self.image_end,
            self.draw_start,
            self.thought_start,
            self.thought_end,
            *self.stop,
        ]
        found = [name for template in templates for name in _SPECIAL.findall(template)]
        return tuple(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``PromptFormat(**data)`` builds it again."""
        return {
            "preamble": self.preamble,
            "turn_start": dict(self.turn_start),
            "turn_end": dict(self.turn_end),
            "image_start": self.image_start,
            "image_end": self.image_end,
            "draw_start": self.draw_start,
            "thought_start": self.thought_start,
            "thought_end": self.thought_end,
            "draw_prompt": self.draw_prompt,
            "edit_prompt": self.edit_prompt,
            "edit_text_first": self.edit_text_first,
            "stop": list(self.stop),
            "max_text_tokens": self.max_text_tokens,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PromptFormat":
        return cls(**{**data, "stop": tuple(data["stop"])})


_SPECIAL = re.compile(r"<\|[a-z_]+\|>|\[/?IMG\]|<image>|<im_start>")


@dataclass(frozen=True)
class ImageRules:
    """How many positions an image takes: as features that are looked at, and as queries that draw it."""

    input_grid: ImageGrid
    """(height, width) in pixels -> (rows, columns) of feature positions."""
    num_queries: int
    """Queries of an image that is drawn."""
    full_queries: bool = False
    """Queries of one image attend to each other in both directions."""


def render(
    example: Example,
    prompt_format: PromptFormat,
    tokenizer: Tokenizer,
    rules: ImageRules,
    image_sizes: Sequence[tuple[int, int]],
    open_turn: bool = False,
    open_thought: bool = False,
) -> SequenceLayout:
    """The spans of an example. A turn that ends in a thought goes on after it and is left open.

    Args:
        image_sizes: (height, width) in pixels of every image part, in order.
        open_turn: end with the start of the assistant's turn, as a prompt that is to be answered does.
        open_thought: end with the start of a thought.

    Raises:
        ValueError: the text is longer than ``prompt_format.max_text_tokens``.
    """
    writer = _SpanWriter(tokenizer)
    parts = texts_first(example.parts) if prompt_format.edit_text_first else example.parts
    if parts[0].role != "system":
        writer.template(prompt_format.preamble)
    wrap = _wrapped_text(parts, prompt_format)
    image = 0
    for index, part in enumerate(parts):
        starts_turn = index == 0 or parts[index - 1].role != part.role
        ends_turn = index + 1 == len(parts) or parts[index + 1].role != part.role
        if starts_turn:
            writer.template(prompt_format.turn_start[part.role])
        if isinstance(part, Text) and part.is_thought:
            writer.template(prompt_format.thought_start)
            writer.text(part.text, part.is_target, part.weight)
            writer.template(prompt_format.thought_end, part.is_target)
        elif isinstance(part, Text):
            writer.text(wrap.get(index, part.text), part.is_target, part.weight)
        else:
            is_last = index + 1 == len(parts)
            _write_image(writer, part, prompt_format, rules, image, image_sizes[image], is_last)
            image += 1
        if ends_turn and not (index + 1 == len(parts) and (isinstance(part, ImageOut) or is_thought(part))):
            writer.template(prompt_format.turn_end[part.role], is_target=isinstance(part, Text) and part.is_target)
    if open_turn and not is_thought(parts[-1]):
        writer.template(prompt_format.turn_start["assistant"])
    if open_thought:
        writer.template(prompt_format.thought_start)
    layout = writer.finish()
    num_text = sum(span.length for span in layout.spans if span.kind == SpanKind.TEXT)
    if num_text > prompt_format.max_text_tokens:
        raise ValueError(
            f"example {example.key!r} has {num_text} text tokens, more than the model's "
            f"{prompt_format.max_text_tokens}. Shorten the text."
        )
    return layout


def texts_first(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with the texts of every user's turn before its pictures where an image is drawn right after it.

    Pictures keep their order among themselves.
    """
    ordered = list(parts)
    start = 0
    for index, part in enumerate(parts):
        if part.role != "user":
            if isinstance(part, ImageOut) and start < index:
                ordered[start:index] = sorted(ordered[start:index], key=lambda own: not isinstance(own, Text))
            start = index + 1
    return tuple(ordered)


def drawing_request(parts: Sequence[Part], prompt_format: PromptFormat) -> tuple[Part, ...]:
    """A prompt worded as it is before an image, for a thought that comes first."""
    wrapped = _wrapped_text((*parts, ImageOut()), prompt_format)
    return tuple(
        replace(part, text=wrapped[index]) if isinstance(part, Text) and index in wrapped else part
        for index, part in enumerate(parts)
    )


def _wrapped_text(parts: Sequence[Part], prompt_format: PromptFormat) -> dict[int, str]:
    """The texts that ask for an image, inside the template for drawing or editing: for every drawn image, the last
    text of the user's turn before it."""
    wrapped: dict[int, str] = {}
    for index, part in enumerate(parts):
        if not isinstance(part, ImageOut):
            continue
        before = range(index - 1, -1, -1)
        asked = next((i for i in before if isinstance(parts[i], Text) and parts[i].role == "user"), None)
        if asked is None:
            continue
        shows_image = any(not isinstance(parts[i], Text) for i in range(index))
        template = prompt_format.edit_prompt if shows_image else prompt_format.draw_prompt
        text = parts[asked]
        assert isinstance(text, Text)
        head, tail = template.split("{text}")
        wrapped[asked] = head + text.text + tail
    return wrapped


def _write_image(
    writer: "_SpanWriter",
    part: ImageIn | ImageOut,
    prompt_format: PromptFormat,
    rules: ImageRules,
    image: int,
    size: tuple[int, int],
    is_last: bool,
) -> None:
    """An image that is drawn stands as its queries, which nothing else sees; what follows reads its features.

    What starts the drawing is hidden from what follows too: an image that was drawn before stands as features alone.
    """
    if isinstance(part, ImageOut) and part.is_target:
        if is_last:
            writer.template(prompt_format.draw_start)
        else:
            writer.hidden_template(prompt_format.draw_start, image)
        writer.span(Span(SpanKind.QUERY, rules.num_queries, image=image, is_full=rules.full_queries, is_hidden=True))
        if is_last:
            return
    grid = rules.input_grid(*size)
    writer.template(prompt_format.image_start)
    writer.span(Span(SpanKind.IMAGE, grid[0] * grid[1], image=image, grid=grid))
    writer.template(prompt_format.image_end)


class _SpanWriter:
    """Collects spans; neighbouring text with the same target flag and weight becomes one span."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.spans: list[Span] = []
        self.pending: list[int] = []
        self.pending_is_target = False
        self.pending_weight = 1.0

    def template(self, template: str, is_target: bool = False) -> None:
        if template:
            self._tokens(_template_tokens(template, self.tokenizer), is_target)  # type: ignore[arg-type]

    def hidden_template(self, template: str, image: int) -> None:
        """A template that only what is hidden behind it sees."""
        if template:
            tokens = _template_tokens(template, self.tokenizer)  # type: ignore[arg-type]
            self.span(Span(SpanKind.TEXT, len(tokens), tokens, image=image, is_hidden=True))

    def text(self, text: str, is_target: bool, weight: float) -> None:
        self._tokens(self.tokenizer.encode(text), is_target, weight if is_target else 1.0)

    def span(self, span: Span) -> None:
        self._flush()
        self.spans.append(span)

    def finish(self) -> SequenceLayout:
        self._flush()
        return SequenceLayout(tuple(self.spans))

    def _tokens(self, tokens: Sequence[int], is_target: bool, weight: float = 1.0) -> None:
        if self.pending and (self.pending_is_target, self.pending_weight) != (is_target, weight):
            self._flush()
        self.pending_is_target, self.pending_weight = is_target, weight
        self.pending.extend(tokens)

    def _flush(self) -> None:
        if self.pending:
            tokens = tuple(self.pending)
            self.spans.append(
                Span(SpanKind.TEXT, len(tokens), tokens, self.pending_is_target, weight=self.pending_weight)
            )
            self.pending = []


@lru_cache(maxsize=256)
def _template_tokens(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """A template as tokens: special tokens by name, the text between them by the tokenizer."""
    tokens: list[int] = []
    start = 0
    for match in _SPECIAL.finditer(template):
        tokens += tokenizer.encode(template[start : match.start()]) if match.start() > start else []
        if match.group() not in tokenizer.special:
            raise ValueError(
                f"the prompt format uses the special token {match.group()!r}, which this tokenizer lacks. "
                "It belongs to another model: use the tokenizer saved beside the weights."
            )
        tokens.append(tokenizer.special[match.group()])
        start = match.end()
    return tuple(tokens + (tokenizer.encode(template[start:]) if start < len(template) else []))


def compact_format() -> PromptFormat:
    """The format of our own small backbones: one token where chat formats spend a line."""
    return PromptFormat(
        turn_start={"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"},
        turn_end={"system": "", "user": "", "assistant": "<|end|>"},
        image_start="<|image|>",
        draw_start="<|draw|>",
        thought_start="\n",
        thought_end="\n",
        stop=("<|end|>",),
        max_text_tokens=1024,
    )


def chatml_format() -> PromptFormat:
    """Qwen2.5-VL's chat format with BLIP3-o's prompt (blip3o.md section 3): an open assistant turn, then ``[IMG]``.

    The released inference opens the assistant's turn and goes on with ``[IMG]``; the original training code closed it
    first. Published scores used the former, so both training and inference do here.
    """
    return PromptFormat(
        preamble="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        turn_start={role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")},
        turn_end=dict.fromkeys(("system", "user", "assistant"), "<|im_end|>\n"),
        image_start="<|vision_start|>",
        image_end="<|vision_end|>",
        draw_start="[IMG]",
        thought_start="<think>\n",
        thought_end="\n</think>\n\n",
        draw_prompt="Please generate image based on the following caption: {text}",
        stop=("<|im_end|>",),
    )


def prompt_parts(prompt: Any) -> tuple[Part, ...]:
    """One prompt as parts: a ``str``, a part, or a list of ``str``, images and parts.

    Raises:
        ValueError: the prompt is empty.
        TypeError: the prompt or an element is none of these.
    """
    if isinstance(prompt, str | Text | ImageIn | ImageOut):
        prompt = [prompt]
    elif not isinstance(prompt, list | tuple):
        raise TypeError(
            f"a prompt is a str or a list of str, images and parts, got {type(prompt).__name__}. "
            'Write "What is it?" or [image, "What is it?"].'
        )
    parts: list[Part] = []
    for element in prompt:
        if isinstance(element, str):
            parts.append(Text(element))
        elif isinstance(element, ImageOut):
            if element.image is None:
                raise ValueError(
                    "an ImageOut in a prompt is an image drawn before, and needs it. generate_image draws one."
                )
            parts.append(replace(element, is_target=False))
        elif isinstance(element, Text | ImageIn):
            parts.append(element)
        elif isinstance(element, dict) and ("video" in element or element.get("type") == "video"):
            raise ValueError("a prompt holds a video, and videos are not read. Give single frames as images.")
        elif element is None or isinstance(element, bool | int | float | list | tuple | dict):
            raise TypeError(
                f"a prompt is a str or a list of str, images and parts, but holds {type(element).__name__}. "
                'Write ["What is this?"] or [image, "What is this?"].'
            )
        else:
            parts.append(ImageIn(element))
    if not parts or all(isinstance(part, Text) and not part.text.strip() for part in parts):
        raise ValueError("the prompt is empty. Say what to draw or what to answer.")
    return tuple(parts)
