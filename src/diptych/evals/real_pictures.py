"""Scores on real pictures with texts, where no programmatic reading tells whether a picture is right.

Understanding: the likeliest of given answers (``score_choices``): "true" or "false", or the right name among the names
of other pictures. Drawing and editing (``score_drawings``): is the drawn picture nearer to the real one than to other
real ones, in the features of a network that is passed in. Retrieval is a proxy: it says that a picture is recognisably
the one that was asked for, not that it is good. Whatever does not look at its input scores exactly 1 / candidates.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.data.example import Example, ImageIn, ImageLike, Part, Text, load_pixels
from diptych.models.preprocess import to_uint8
from diptych.scenes.scores import ScoreTable, score_table
from diptych.unified import UnifiedModel

PictureFeatures = Callable[[Sequence[ImageLike]], Float[Tensor, "images dim"]]
"""Features of pictures by which their likeness is judged."""


@dataclass(frozen=True)
class Choice:
    """A request with several answers, one of which is right."""

    parts: tuple[Part, ...]
    answers: tuple[str, ...]
    right: int
    category: str = "all"
    group: str = ""
    """Choices of one group (one sentence, one picture) stay together in the bootstrap; empty: a group of its own."""


def answer_choices(
    examples: Sequence[Example],
    num_answers: int | None = None,
    seed: int = 0,
    category: Callable[[Example], str] = lambda example: "all",
    group: Callable[[Example], str] = lambda example: "",
) -> list[Choice]:
    """The answer of every example among those of other examples.

    Args:
        examples: each ends in a text that is the answer.
        num_answers: the right one and others drawn from examples of the same category; ``None``: all there are.

    Raises:
        ValueError: an example ends in no text, or a category has too few different answers.
    """
    pools: dict[str, list[str]] = {}
    for example in examples:
        pool = pools.setdefault(category(example), [])
        if (answer := _answer(example)) not in pool:
            pool.append(answer)
    choices = []
    for number, example in enumerate(examples):
        answers = sorted(pools[category(example)])
        right = _answer(example)
        if num_answers is not None:
            others = _others([answer for answer in answers if answer != right], num_answers - 1, seed, number)
            answers = sorted([right, *others])
        choices.append(
            Choice(example.parts[:-1], tuple(answers), answers.index(right), category(example), group(example))
        )
    return choices


def score_choices(
    model: UnifiedModel,
    choices: Sequence[Choice],
    benchmark: str,
    blank_image: ImageLike | None = None,
    contender: str = "model",
) -> list[ScoreTable]:
    """Share of choices whose right answer is the likeliest; the rows beside it are chance and, where all choices have
    the same answers, always giving the most frequent one (of these very choices).

    Args:
        blank_image: adds a row "less blank", in which the likelihood of every answer after this picture is taken off:
            what is left is what the picture says (domain-conditional PMI, arXiv 2104.08315), and short or frequent
            answers have no advantage.
    """
    given: dict[tuple[Any, ...], float] = {}
    ranks: dict[str, list[int]] = {}
    for choice in choices:
        values = {contender: np.array(model.log_likelihood(list(choice.parts), choice.answers))}
        if blank_image is not None:
            blank = _blank_likelihoods(model, choice, blank_image, given)
            values[f"{contender}, less blank"] = values[contender] - blank
        for name, found in values.items():  # a tie counts against the right answer
            ranks.setdefault(name, []).append(int((found >= found[choice.right]).sum()))
    categories = [choice.category for choice in choices]
    groups = [choice.group or str(number) for number, choice in enumerate(choices)]

    def table(name: str, verdicts: Sequence[float | bool], details: dict[str, Any]) -> ScoreTable:
        return score_table(benchmark, name, categories, verdicts, groups, details=details)

    tables = []
    for name, own in ranks.items():
        details = {"mean_rank": float(np.mean(own)), "num_answers": len(choices[0].answers)}
        tables.append(table(name, [rank == 1 for rank in own], details))
    if len({choice.answers for choice in choices}) == 1:
        right = [choice.answers[choice.right] for choice in choices]
        most_frequent = max(sorted(set(right)), key=right.count)
        tables.append(table("majority", [answer == most_frequent for answer in right], {}))
    return [*tables, table("chance", [1 / len(choice.answers) for choice in choices], {})]


def encoder_features(encoder: nn.Module, batch_size: int = 16) -> PictureFeatures:
    """Pooled features of a vision encoder, each picture brought to its size by its own rule.

    Raises:
        ValueError: (when called) the encoder has no pooled output.
    """
    network: Any = encoder

    @torch.inference_mode()
    def features(images: Sequence[ImageLike]) -> Float[Tensor, "images dim"]:
        found = []
        for start in range(0, len(images), batch_size):
            batch = torch.stack(
                [network.preprocess(load_pixels(image)) for image in images[start : start + batch_size]]
            )
            pooled = network(batch).pooled
            if pooled is None:
                raise ValueError(f"{type(encoder).__name__} has no pooled features: take an encoder that has.")
            found.append(pooled.float())
        return torch.cat(found)

    return features


def score_drawings(
    model: UnifiedModel,
    examples: Sequence[Example],
    features: PictureFeatures,
    benchmark: str,
    num_candidates: int = 20,
    seed: int = 0,
    category: Callable[[Example], str] = lambda example: "all",
    group: Callable[[Example], Hashable] | None = None,
    contender: str = "model",
    **drawing: Any,
) -> tuple[list[ScoreTable], list[NDArray[np.uint8]]]:
    """Draws the last picture of every example from what precedes it, and scores it by `score_drawn`; also the pictures.

    Args:
        drawing: settings of ``generate_image``. The rest is as for `score_drawn`.

    Raises:
        ValueError: a category has too few examples for ``num_candidates``.
    """
    candidates = (num_candidates, seed, category, group)
    drawn = [np.asarray(image) for image in model.generate_image([list(e.parts[:-1]) for e in examples], **drawing)]
    return score_drawn(model, examples, drawn, features, benchmark, *candidates, contender), drawn


def score_drawn(
    model: UnifiedModel,
    examples: Sequence[Example],
    drawn: Sequence[ImageLike],
    features: PictureFeatures,
    benchmark: str,
    num_candidates: int = 20,
    seed: int = 0,
    category: Callable[[Example], str] = lambda example: "all",
    group: Callable[[Example], Hashable] | None = None,
    contender: str = "model",
) -> list[ScoreTable]:
    """Share of drawn pictures whose nearest real picture (cosine) is the right one.

    The candidates are the right picture, the picture that is edited (if there is one) and others drawn from the
    examples of the same category and another group. Rows beside the model: ``autoencoder`` (the right picture through
    the generation space: what drawing perfectly would reach), ``copy-input`` for edits, and ``chance``.

    Args:
        examples: each ends in the picture to be drawn; what precedes it is the request.
        drawn: what the model drew for each.
        group: pictures of one group are too alike to tell apart (variants of one thing).

    Raises:
        ValueError: a category has too few examples for ``num_candidates``.
    """
    targets = [_picture(example.parts[-1]) for example in examples]
    sources = [next((_picture(p) for p in example.parts if isinstance(p, ImageIn)), None) for example in examples]
    real = F.normalize(features(targets))
    rows = {
        contender: F.normalize(features(drawn)),
        "autoencoder": F.normalize(features(through_space(model, targets))),
    }
    given: Float[Tensor, "images dim"] | None = None
    if all(source is not None for source in sources):
        given = F.normalize(features([source for source in sources if source is not None]))
        rows["copy-input"] = given
    candidates = _candidates(examples, num_candidates - (given is not None), seed, category, group)
    categories = [category(example) for example in examples]
    tables = []
    for name, queries in rows.items():
        ranks = _ranks(queries, real, candidates, given)
        details = {"mean_rank": float(np.mean(ranks)), "num_candidates": num_candidates}
        if given is not None:
            nearer = (queries * real).sum(1) > (given * real).sum(1)
            details["nearer_than_input"] = float(nearer.float().mean())
        tables.append(score_table(benchmark, name, categories, [rank == 1 for rank in ranks], details=details))
    chance = [1 / num_candidates] * len(examples)
    return [*tables, score_table(benchmark, "chance", categories, chance)]


@torch.inference_mode()
def through_space(model: UnifiedModel, images: Sequence[ImageLike]) -> list[NDArray[np.uint8]]:
    """Pictures encoded and decoded by the model's generation space, at the model's size."""
    decoded = []
    for image in images:
        prepared = model.images.prepare(load_pixels(image), True)[None].to(model.device)
        picture = model.autoencoder.decode(model.encode_outputs(prepared)).float().clamp(-1, 1)
        decoded.append(to_uint8(picture, value_range=(-1, 1))[0])
    return decoded


def _ranks(
    queries: Float[Tensor, "items dim"],
    real: Float[Tensor, "items dim"],
    candidates: Sequence[Sequence[int]],
    given: Float[Tensor, "items dim"] | None,
) -> list[int]:
    """Place of the right picture (the first candidate) by likeness; a tie counts against it."""
    ranks = []
    for number, (query, others) in enumerate(zip(queries, candidates, strict=True)):
        near = real[list(others)] @ query
        rivals = near[1:] if given is None else torch.cat([near[1:], (given[number] @ query)[None]])
        ranks.append(1 + int((rivals >= near[0]).sum()))
    return ranks


def _candidates(
    examples: Sequence[Example],
    count: int,
    seed: int,
    category: Callable[[Example], str],
    group: Callable[[Example], Hashable] | None,
) -> list[list[int]]:
    """For every example its own number, then those of others of its category and of other groups."""
    categories = [category(example) for example in examples]
    groups: list[Hashable] = [number if group is None else group(example) for number, example in enumerate(examples)]
    found = []
    for number, (own_category, own_group) in enumerate(zip(categories, groups, strict=True)):
        pairs = zip(categories, groups, strict=True)
        pool = [i for i, (c, g) in enumerate(pairs) if c == own_category and g != own_group]
        found.append([number, *_others(pool, count - 1, seed, number)])
    return found


def _others(pool: Sequence[Any], count: int, seed: int, number: int) -> list[Any]:
    if len(pool) < count:
        raise ValueError(
            f"{count} other candidates are needed, but only {len(pool)} differ. Give more examples or fewer candidates."
        )
    chosen = np.random.default_rng([seed, number]).choice(len(pool), count, replace=False)
    return [pool[i] for i in chosen]


def _blank_likelihoods(
    model: UnifiedModel, choice: Choice, blank_image: ImageLike, given: dict[tuple[Any, ...], float]
) -> NDArray[np.float64]:
    """Likelihoods with every picture of the request replaced; each computed once."""
    request = tuple(part.text if isinstance(part, Text) else None for part in choice.parts)
    missing = [answer for answer in choice.answers if (request, answer) not in given]
    if missing:
        parts = [part if isinstance(part, Text) else ImageIn(blank_image) for part in choice.parts]
        found = model.log_likelihood(parts, missing)
        assert isinstance(found, list)
        given.update({(request, answer): value for answer, value in zip(missing, found, strict=True)})
    return np.array([given[request, answer] for answer in choice.answers])


def _answer(example: Example) -> str:
    last = example.parts[-1]
    if not isinstance(last, Text) or len(example.parts) < 2:
        raise ValueError(f"example {example.key!r} must end in the text of the answer to something.")
    return last.text


def _picture(part: Part) -> ImageLike:
    if isinstance(part, Text) or part.image is None:
        raise ValueError(f"the last part of an example to be drawn must be a picture, got {type(part).__name__}.")
    return part.image


__all__ = [
    "Choice",
    "PictureFeatures",
    "answer_choices",
    "encoder_features",
    "score_choices",
    "score_drawings",
    "score_drawn",
    "through_space",
]
