"""Entropy probing of a unified model (arXiv 2604.10949), layer by layer, in both directions.

For every scene of the built-in world, or captioned picture of a folder, the model draws the caption (``gen``) and
describes the picture (``und``). In both, hidden states at positions of the prompt and of the response are compared,
equally many of each.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from diptych.data.example import Example, ImageIn, ImageOut, Part, Pixels, Text, load_pixels
from diptych.data.layout import SpanKind
from diptych.data.sources.folder import FolderSource
from diptych.data.sources.protocol import BadRecord
from diptych.evals.entropy import ALPHA, BANDWIDTH, pair_entropy
from diptych.evals.manifest import content_hash
from diptych.scenes.captions import caption
from diptych.scenes.draw import draw
from diptych.scenes.scores import bootstrap_means
from diptych.scenes.split import Split, split_scene
from diptych.unified.text import TextSettings, choose, read, stop_tokens, written_logits

if TYPE_CHECKING:
    from diptych.unified import UnifiedModel

Direction: TypeAlias = Literal["und", "gen"]
QUESTION = "Describe the picture."
MEASURES = ("H_p", "H_r", "H_cond", "H_cond_shuffled", "H_cond_excess")
"""Curves: prompt, response, response given its prompt, given the prompt of another scene, and own minus other."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """All that decides the rows, beside the model."""

    split: Split = "test"
    scenes: int = 64
    tokens: int = 8
    """States drawn from every prompt and every response."""
    bandwidth: float = BANDWIDTH
    alpha: float = ALPHA
    seed: int = 0
    data: str = ""
    """A folder of captioned pictures (``FolderSource``) in place of scenes; ``scenes`` is then how many, the first."""

    def __post_init__(self) -> None:
        if self.scenes < 2:
            raise ValueError(f"a probe needs at least 2 scenes, one to shuffle with, got {self.scenes}.")
        if self.tokens < 2:
            raise ValueError(f"tokens must be at least 2: the entropy of one state is always 0, got {self.tokens}.")


@dataclass(frozen=True)
class ProbeItem:
    """What is drawn, and what is described."""

    name: str
    caption: str
    picture: Pixels


def probe_items(settings: ProbeSettings, size: tuple[int, int]) -> list[ProbeItem]:
    """The scenes, or the captioned pictures of a folder.

    Args:
        size: (height, width) of drawn scenes; pictures of a folder are taken as they are.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has fewer than two captioned pictures.
    """
    if not settings.data:
        rng = np.random.default_rng(settings.seed)
        scenes = [split_scene(rng, settings.split) for _ in range(settings.scenes)]
        captions = [caption(scene, rng, "long") for scene in scenes]
        named = enumerate(zip(scenes, captions, strict=True))
        return [ProbeItem(f"scene-{number:04d}", told, draw(scene, size)) for number, (scene, told) in named]
    reader = FolderSource(path=settings.data).build()
    found: list[ProbeItem] = []
    for index in range(len(reader)):
        try:
            told, shown = reader.example(index, 0).parts
        except BadRecord:
            continue
        if isinstance(told, Text) and isinstance(shown, ImageOut) and shown.image is not None:
            found.append(ProbeItem(f"picture-{index:04d}", told.text, load_pixels(shown.image)))
        if len(found) == settings.scenes:
            break
    if len(found) < 2:
        raise ValueError(
            f"{settings.data} holds {len(found)} captioned pictures, a probe needs 2. Put a .txt file beside each "
            "picture, or a metadata.jsonl with file_name and text."
        )
    return found


def digest_of(items: Sequence[ProbeItem]) -> str:
    """Sixteen hexadecimal digits over captions and pixels."""
    said = [[item.caption, hashlib.sha256(item.picture.tobytes()).hexdigest()] for item in items]
    return content_hash(said)[:16]


@dataclass(frozen=True)
class Pair:
    """States of one prompt and its response by layer, ``tokens dim``."""

    prompt: dict[int, Tensor]
    response: dict[int, Tensor]
    n: int
    """Positions before equally many were drawn."""
    m: int
    m_own: int
    """Of the response, before the model wanted to end it: more were asked for."""


def probe(
    understander: "UnifiedModel",
    generator: "UnifiedModel",
    settings: ProbeSettings,
    name: str,
    layers: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """One row for each layer, direction and scene, own and shuffled.

    Args:
        generator: the same model, or the one that draws in a pair.
        layers: 0 is the embedding, i the output of block i; all without it.

    Raises:
        ValueError: a model lacks an ability, a layer is out of range, or too few prompts are long enough.
    """
    for model, need in ((understander, "image_to_text"), (generator, "text_to_image")):
        if need not in model.capabilities:
            raise ValueError(
                f"the probe needs a model that can do {need}; this can do {', '.join(model.capabilities)}."
            )
    last = min(understander.backbone.num_layers, generator.backbone.num_layers)
    chosen = list(range(last + 1)) if layers is None else list(layers)
    if bad := [layer for layer in chosen if not 0 <= layer <= last]:
        raise ValueError(f"layers must lie in 0..{last}, got {bad}.")
    items = probe_items(settings, understander.images.size)
    rows: list[dict[str, Any]] = []
    for task in ("und", "gen"):
        model = understander if task == "und" else generator
        requests: list[tuple[Part, ...]] = (
            [(ImageIn(item.picture), Text(QUESTION)) for item in items]
            if task == "und"
            else [(Text(item.caption),) for item in items]
        )
        pairs: dict[str, Pair] = {}
        for number, parts in enumerate(requests):
            pair = (_written if task == "und" else _drawn)(model, parts, chosen, settings, number)
            if pair is not None:
                pairs[items[number].name] = pair
        if len(pairs) < 2:
            raise ValueError(
                f"{name}, {task}: {len(pairs)} of {len(requests)} prompts and responses have {settings.tokens} tokens, "
                "at least 2 are needed. Ask for fewer with --tokens."
            )
        rows += _rows(pairs, chosen, settings, {"model": name, "task": task})
    return rows


def _rows(
    pairs: dict[str, Pair], layers: Sequence[int], settings: ProbeSettings, about: dict[str, Any]
) -> list[dict[str, Any]]:
    names, rows = list(pairs), []
    for index, name in enumerate(names):
        pair = pairs[name]
        for kind, prompt in (("own", name), ("shuffled", names[index - 1])):
            for layer in layers:
                response = pair.response[layer]
                found = pair_entropy(pairs[prompt].prompt[layer], response, settings.bandwidth, settings.alpha)
                rows.append(
                    {
                        **about, "layer": layer, "pair": kind, "prompt_id": prompt, "response_id": name,
                        "prompt_type": "image" if about["task"] == "und" else "text",
                        "n": settings.tokens, "m": settings.tokens,
                        "n_all": pairs[prompt].n, "m_all": pair.m, "m_own": pair.m_own,
                        "d": response.shape[-1], "sigma": found.sigma, "alpha": settings.alpha, "log_base": 2,
                        "H_p": found.prompt, "H_r": found.response, "H_joint": found.joint,
                        "H_cond": found.conditional,
                    }
                )  # fmt: skip
    return rows


def _written(
    model: "UnifiedModel", parts: tuple[Part, ...], layers: Sequence[int], settings: ProbeSettings, number: int
) -> Pair | None:
    """Image positions, and those of the model's own greedy words, read again as they stand."""
    words, own = _greedy(model, parts, settings.tokens)
    if not words.strip():
        return None
    batch = model.collator()([Example(parts)], open_turn=True)
    start = int((batch.layout.example_ids[0] >= 0).sum())
    whole = model.collator()([Example((*parts, Text(words, role="assistant")))])
    seen = (whole.layout.kinds[0] == SpanKind.IMAGE).nonzero()[:, 0]
    length = int((whole.layout.example_ids[0] >= 0).sum())
    answer = torch.arange(start, min(start + len(model.tokenizer.encode(words)), length))
    pair = _pair(model, whole, seen, answer, layers, settings, number)
    return None if pair is None else replace(pair, m_own=own)


def _drawn(
    model: "UnifiedModel", parts: tuple[Part, ...], layers: Sequence[int], settings: ProbeSettings, number: int
) -> Pair | None:
    """Text positions without the first, which attention uses as a sink, and those of the queries of one drawing."""
    collator = model.collator()
    if model.draw_settings.flat_positions:
        collator = replace(collator, position_axes=1)
    batch = collator([Example((*parts, ImageOut(size=model.images.size)))])
    kinds = batch.layout.kinds[0]
    queries = (kinds == SpanKind.QUERY).nonzero()[:, 0]
    text = (kinds == SpanKind.TEXT).nonzero()[:, 0]
    return _pair(model, batch, text[1:][text[1:] < queries[0]], queries, layers, settings, number)


def _pair(
    model: "UnifiedModel",
    batch: Any,
    prompt: Tensor,
    response: Tensor,
    layers: Sequence[int],
    settings: ProbeSettings,
    number: int,
) -> Pair | None:
    """Equally many states of both; None where one has too few."""
    if min(len(prompt), len(response)) < settings.tokens:
        return None
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
    some = [
        places[torch.randperm(len(places), generator=generator)[: settings.tokens].sort().values]
        for places in (prompt, response)
    ]
    with torch.inference_mode():
        states = model(batch.to(model.device), layers=tuple(layers)).layer_states
    first, second = ({layer: states[layer][0].cpu()[places].double() for layer in layers} for places in some)
    return Pair(first, second, len(prompt), len(response), len(response))


@torch.inference_mode()
def _greedy(model: "UnifiedModel", parts: tuple[Part, ...], count: int) -> tuple[str, int]:
    """The likeliest words, ``count`` tokens, and after how many the model would have ended.

    Ends of turn are barred, so that no answer is too short to be measured.
    """
    state = read(model, model.collator()([Example(parts)], open_turn=True).to(model.device))
    tokens: list[int] = []
    own = count
    ends = sorted(stop_tokens(model))
    for step in range(count):
        logits = written_logits(model, state)
        if int(logits.argmax()) in ends:
            own = min(own, step)
        logits[:, ends] = -torch.inf
        token = choose(logits, TextSettings(), [])
        tokens.append(int(token))
        if step + 1 < count:
            state = state.advance(model, token)
    return model.tokenizer.decode(tokens), own


@dataclass(frozen=True)
class Curve:
    """A measure by layer, a mean over scenes with its 95 % bootstrap interval."""

    task: str
    """und, gen, or und-gen: their difference over the scenes that both have."""
    measure: str
    layers: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    scenes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def curves(rows: Sequence[dict[str, Any]]) -> list[Curve]:
    """All curves of one model's rows: both directions and their paired difference."""
    layers = tuple(sorted({row["layer"] for row in rows}))
    values: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in rows:
        names = ("H_p", "H_r", "H_cond") if row["pair"] == "own" else ("H_cond",)
        for name in names:
            measure = name if row["pair"] == "own" else "H_cond_shuffled"
            values.setdefault((row["task"], measure, row["layer"]), {})[row["response_id"]] = row[name]
    for task in ("und", "gen"):
        for layer in layers:
            other = values[task, "H_cond_shuffled", layer]
            own = values[task, "H_cond", layer]
            values[task, "H_cond_excess", layer] = {name: own[name] - other[name] for name in own}
    for measure in MEASURES:
        for layer in layers:
            und, gen = values["und", measure, layer], values["gen", measure, layer]
            values["und-gen", measure, layer] = {name: und[name] - gen[name] for name in und if name in gen}
    found = []
    for task in ("und", "gen", "und-gen"):
        for measure in MEASURES:
            by_layer = [list(values[task, measure, layer].values()) for layer in layers]
            if not by_layer[0]:
                raise ValueError("no scene was measured in both directions. Ask for more scenes, or fewer tokens.")
            ends = [_interval(own) for own in by_layer]
            means = tuple(float(np.mean(own)) for own in by_layer)
            low, high = tuple(end[0] for end in ends), tuple(end[1] for end in ends)
            found.append(Curve(task, measure, layers, means, low, high, len(by_layer[0])))
    return found


def _interval(values: Sequence[float]) -> tuple[float, float]:
    means = bootstrap_means(values, None, 2000, np.random.default_rng(0))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
