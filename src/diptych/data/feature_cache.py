"""Features of images that were encoded once and are kept, because the encoder is frozen."""

from collections.abc import Iterable

import torch
from torch import Tensor

from diptych.data.example import ImageLike


def image_key(image: ImageLike | None) -> str | None:
    """The key under which an image's features are kept; ``None`` for images without one (arrays, PIL images)."""
    key = getattr(image, "key", None)
    return key if isinstance(key, str) else None


class FeatureCache:
    """A table in memory from (space, image key) to features of shape ``channels rows cols``.

    ``space`` says whose features they are ("input" or "output").
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._places: dict[tuple[str, str], tuple[int, int]] = {}

    def __len__(self) -> int:
        """Number of feature maps held; one that serves two spaces counts once."""
        return sum(len(block) for block in self._blocks)

    @property
    def num_bytes(self) -> int:
        return sum(block.numel() * block.element_size() for block in self._blocks)

    def get(self, space: str, key: str | None) -> Tensor | None:
        place = self._places.get((space, key)) if key is not None else None
        return None if place is None else self._blocks[place[0]][place[1]]

    def add(self, spaces: Iterable[str], keys: Iterable[str], features: Tensor) -> None:
        """Adds the rows of ``features`` under their keys; a key that is known already keeps its first entry.

        Args:
            spaces: those the features belong to: both, where images are looked at through the features that are drawn.
        """
        keys, spaces = list(keys), tuple(spaces)
        if len(keys) != len(features):
            raise ValueError(f"{len(keys)} keys were given for {len(features)} rows of features.")
        self._blocks.append(features.detach().to("cpu", torch.float32).contiguous())
        for row, key in enumerate(keys):
            for space in spaces:
                self._places.setdefault((space, key), (len(self._blocks) - 1, row))

    def clear(self) -> None:
        self._blocks.clear()
        self._places.clear()
