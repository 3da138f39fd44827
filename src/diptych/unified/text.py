"""Writing text: sampling with a key-value cache, streaming, and the likelihood of given answers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.data.batch import Batch
from diptych.data.example import Example, ImageIn, LazyImage, Part, Text, load_pixels
from diptych.data.feature_cache import FeatureCache
from diptych.data.layout import PackedLayout
from diptych.models.backbones.protocol import Cache
from diptych.unified.prompts import prompt_seeds

if TYPE_CHECKING:
    from diptych.unified.model import UnifiedModel

WRITTEN_TOGETHER = 64
"""Prompts in one batch, so that a list of any length fits into the memory."""


@dataclass(frozen=True)
class TextSettings:
    """How text is sampled."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    """The answer ends before the first of these; one ``str`` is one of them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature must be 0 (which takes the likeliest token) or a positive number, got {self.temperature}."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}.")


@dataclass
class DecodeState:
    """Where a batch of answers stands.

    Attributes:
        cache: keys and values of everything read and written so far.
        visible: which cached positions hold tokens, not padding.
        next_positions: position of the token that comes next, per row (and axis).
        hidden: last hidden state of every row.
    """

    cache: Cache
    visible: Tensor
    next_positions: Tensor
    hidden: Float[Tensor, "rows dim"]

    def advance(self, model: "UnifiedModel", tokens: Int[Tensor, " rows"]) -> "DecodeState":
        """The state after one more token in every row."""
        rows = len(tokens)
        visible = torch.cat([self.visible, self.visible.new_ones(rows, 1)], dim=1)
        positions = self.next_positions.unsqueeze(1)
        model.enter_stage("read")  # a picture may have been drawn since
        embeddings = model.backbone.embed(tokens[:, None])
        output = model.backbone(embeddings, positions, visible[:, None, :], self.cache)
        return DecodeState(output.cache, visible, self.next_positions + 1, output.hidden_states[:, -1])


def read(model: "UnifiedModel", batch: Batch) -> DecodeState:
    """Reads a batch of prompts (one example a row) into a cache."""
    visible = batch.layout.example_ids >= 0
    output = model(batch, cache=model.backbone.new_cache())
    last = visible.sum(1) - 1
    rows = torch.arange(len(last), device=last.device)
    assert output.cache is not None
    return DecodeState(output.cache, visible, after(batch.layout), output.hidden_states[rows, last])


def after(layout: PackedLayout) -> Tensor:
    """The position of the token that comes next in every row (and axis): after the largest used so far."""
    present = layout.example_ids >= 0
    if layout.positions.ndim == 2:
        return layout.positions.masked_fill(~present, -1).amax(1) + 1
    top = layout.positions.masked_fill(~present[..., None], -1).amax((1, 2))
    return top[:, None].expand(-1, layout.positions.shape[-1]) + 1


def choose(
    logits: Float[Tensor, "rows vocab"], settings: TextSettings, generators: Sequence[torch.Generator]
) -> Int[Tensor, " rows"]:
    """The next token of every row; every row draws from its own generator."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / settings.temperature).softmax(-1).cpu()
    ordered, tokens = probabilities.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= settings.top_p, 0)
    chosen = [torch.multinomial(row, 1, generator=g) for row, g in zip(ordered, generators, strict=True)]
    return tokens.gather(1, torch.stack(chosen)).squeeze(1).to(logits.device)


@torch.inference_mode()
def generate(
    model: "UnifiedModel",
    requests: Sequence[tuple[Part, ...]],
    settings: TextSettings,
    seed: int | Sequence[int],
    open_thought: bool = False,
) -> list[str]:
    """Answers every prompt, or writes a thought about it (``open_thought``), ``WRITTEN_TOGETHER`` at a time."""
    seeds = prompt_seeds(seed, len(requests))
    starts = range(0, len(requests), WRITTEN_TOGETHER)
    groups = [slice(start, start + WRITTEN_TOGETHER) for start in starts]
    return [text for here in groups for text in _written(model, requests[here], settings, seeds[here], open_thought)]


def _written(
    model: "UnifiedModel",
    requests: Sequence[tuple[Part, ...]],
    settings: TextSettings,
    seeds: Sequence[int],
    open_thought: bool,
) -> list[str]:
    examples = [Example(parts, key=f"prompt {i}") for i, parts in enumerate(requests)]
    batch = model.collator()(examples, open_turn=True, open_thought=open_thought)
    state = read(model, batch.to(model.device))
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    written: list[list[int]] = [[] for _ in requests]
    running = [True] * len(requests)
    ends = stop_tokens(model)
    for _ in range(settings.max_new_tokens):
        tokens = choose(written_logits(model, state), settings, generators)
        for row, token in enumerate(tokens.tolist()):
            if running[row]:
                running[row] = token not in ends
                if running[row]:
                    written[row].append(token)
                    running[row] = cut(model.tokenizer.decode(written[row]), settings.stop) is None
        if not any(running):
            break
        state = state.advance(model, tokens)
    texts = [model.tokenizer.decode(tokens) for tokens in written]
    return [text if (end := cut(text, settings.stop)) is None else text[:end] for text in texts]


def stream(model: "UnifiedModel", parts: tuple[Part, ...], settings: TextSettings, seed: int) -> Iterator[str]:
    """The answer to one prompt, in pieces as soon as they cannot change any more."""
    with torch.inference_mode():
        state = read(model, model.collator()([Example(parts)], open_turn=True).to(model.device))
    yield from write(model, state, settings, seed)


def write(model: "UnifiedModel", state: DecodeState, settings: TextSettings, seed: int) -> Iterator[str]:
    """Writes on from a state of one row.

    A piece is held back while its last character is incomplete (bytes of one character may be several tokens) or could
    be the start of a stop string.
    """
    generator = torch.Generator().manual_seed(prompt_seeds(seed, 1)[0])
    ends = stop_tokens(model)
    tokens: list[int] = []
    given = 0
    for _ in range(settings.max_new_tokens):
        with torch.inference_mode():
            token = int(choose(written_logits(model, state), settings, [generator]))
            if token in ends:
                break
            tokens.append(token)
            text = model.tokenizer.decode(tokens)
            end = cut(text, settings.stop)
            if end is not None:
                yield text[given:end]
                return
            safe = len(text) - held_back(text, settings.stop)
            if safe > given:
                yield text[given:safe]
                given = safe
            state = state.advance(model, torch.tensor([token], device=model.device))
    text = model.tokenizer.decode(tokens)
    if len(text) > given:
        yield text[given:]


def held_back(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of ``text`` that may still change or turn out to begin a stop string."""
    held = len(text) - len(text.rstrip("�"))
    for string in stop:
        held = max([held] + [n for n in range(1, len(string)) if text.endswith(string[:n])])
    return held


def cut(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins, or ``None``."""
    found = [at for string in stop if string and (at := text.find(string)) >= 0]
    return min(found) if found else None


def stop_tokens(model: "UnifiedModel") -> set[int]:
    return {model.tokenizer.special[name] for name in model.prompt_format.stop}


def written_logits(model: "UnifiedModel", state: DecodeState) -> Float[Tensor, "rows vocab"]:
    """Logits of the next token; special tokens that do not end a turn are never written."""
    logits = model.backbone.logits(state.hidden).float()
    known = model.tokenizer.vocab_size
    logits[:, known:] = -torch.inf  # rows of a resized embedding that no token uses
    blocked = sorted(set(model.tokenizer.special.values()) - stop_tokens(model))
    logits[:, blocked] = -torch.inf
    return logits


def log_likelihood(model: "UnifiedModel", parts: tuple[Part, ...], answers: Sequence[str]) -> list[float]:
    """Sum of the log-probabilities of each answer's tokens and of the end of its turn."""
    if not answers:
        raise ValueError("log_likelihood needs at least one answer.")
    parts, cache = encoded_once(model, parts)
    examples = [Example((*parts, Text(answer, role="assistant", is_target=True))) for answer in answers]
    batch = model.collator(cache)(examples).to(model.device)
    hidden_states = model(batch).hidden_states.flatten(0, 1)[batch.target_slots]
    logits = model.backbone.logits(hidden_states).float()
    values = logits.log_softmax(-1).gather(-1, batch.target_ids[:, None]).squeeze(-1)
    sums = torch.zeros(len(answers), device=values.device)
    sums.index_add_(0, batch.target_examples, values)
    return [float(value) for value in sums]


def encoded_once(model: "UnifiedModel", parts: tuple[Part, ...]) -> tuple[tuple[Part, ...], FeatureCache]:
    """A prompt that stands in several rows of a batch, with the features of the images it shows in a cache."""
    cache = FeatureCache()
    shown: list[Part] = []
    for number, part in enumerate(parts):
        if isinstance(part, ImageIn):
            pixels = load_pixels(part.image)
            features = model.encode_inputs(model.images.prepare(pixels, False)[None].to(model.device))
            cache.add(("input",), [f"part {number}"], features)
            part = replace(part, image=LazyImage(f"part {number}", lambda pixels=pixels: pixels))  # type: ignore[misc]
        shown.append(part)
    return tuple(shown), cache


__all__: list[Any] = ["DecodeState", "TextSettings", "generate", "log_likelihood", "read", "stream", "write"]
