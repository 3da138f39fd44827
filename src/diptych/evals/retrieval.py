"""Retrieval: which of all captions fits a picture, and which of all pictures a caption, by the cosine of features."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from diptych.scenes.scores import ScoreTable, score_table

RETRIEVAL = "retrieval"
DIRECTIONS = ("picture to caption", "caption to picture")


def retrieval_tables(
    images: Float[Tensor, "items dim"],
    texts: Float[Tensor, "items dim"],
    captions: Sequence[str],
    contender: str = "model",
) -> list[ScoreTable]:
    """Share of items whose nearest counterpart is right (recall at 1), in both directions, and the row of chance.

    A counterpart is right if it belongs to an equal caption; a tie with a wrong one counts as wrong.

    Raises:
        ValueError: not as many captions as pictures.
    """
    if len(captions) != len(images):
        raise ValueError(f"retrieval: {len(images)} pictures but {len(captions)} captions were given.")
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    own = torch.tensor([numbers[caption] for caption in captions])
    matches = own[:, None] == own[None, :]
    cosines = (F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T).cpu()
    categories = [direction for direction in DIRECTIONS for _ in captions]
    right = [*_nearest_is_right(cosines, matches), *_nearest_is_right(cosines.T, matches)]
    chance = matches.double().mean(1).tolist() * 2
    details = {"candidates": len(captions)}
    return [
        score_table(RETRIEVAL, contender, categories, right, details=details),
        score_table(RETRIEVAL, "chance", categories, chance, details=details),
    ]


def _nearest_is_right(cosines: Float[Tensor, "items items"], matches: Bool[Tensor, "items items"]) -> list[bool]:
    best_right = cosines.masked_fill(~matches, -torch.inf).amax(1)
    best_wrong = cosines.masked_fill(matches, -torch.inf).amax(1)
    found: list[bool] = (best_right > best_wrong).tolist()
    return found
