"""Features of images that were encoded once and are kept, because the encoder is frozen."""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from diptych.data.example import ImageLike
from diptych.data.feature_files import FeatureFiles

logger = logging.getLogger(__name__)


def image_key(image: ImageLike | None) -> str | None:
    """The key under which an image's features are kept; ``None`` for images without one (arrays, PIL images)."""
    key = getattr(image, "key", None)
    return key if isinstance(key, str) else None


class FeatureCache:
    """A table in memory from (space, image key) to features of shape ``channels rows cols``, with files behind it.

    ``space`` says whose features they are ("input" or "output").

    Attributes:
        num_missing: how often an image was asked for that the attached files lack.
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._places: dict[tuple[str, str], tuple[int, int]] = {}
        self._files: FeatureFiles | None = None
        self._file_spaces: tuple[str, ...] = ()
        self._refuses_missing = False
        self.num_missing = 0

    def attach(self, files: FeatureFiles, spaces: Iterable[str], refuses_missing: bool = False) -> None:
        """Looks for features in files too, until ``clear``.

        Args:
            refuses_missing: raise for an image that the files lack, instead of having it encoded.
        """
        self._files, self._file_spaces, self._refuses_missing = files, tuple(spaces), refuses_missing

    def __len__(self) -> int:
        """Number of feature maps held; one that serves two spaces counts once."""
        return sum(len(block) for block in self._blocks)

    @property
    def num_bytes(self) -> int:
        return sum(block.numel() * block.element_size() for block in self._blocks)

    def get(self, space: str, key: str | None) -> Tensor | None:
        """The features of an image; None has it encoded.

        Raises:
            ValueError: the attached files lack it, and such images are refused.
        """
        place = self._places.get((space, key)) if key is not None else None
        if place is not None:
            return self._blocks[place[0]][place[1]]
        if self._files is None or space not in self._file_spaces:
            return None
        found = None if key is None else self._files.get(key)
        if found is None:
            self._miss(key)
        return found

    def _miss(self, key: str | None) -> None:
        assert self._files is not None
        name = "an image without a key" if key is None else f"the image {key}"
        if self._refuses_missing:
            raise ValueError(
                f"{name} is not in the feature cache {self._files.folder}. Complete it with `diptych cache`, or have "
                "such images encoded in every step with model.feature_cache_missing encode."
            )
        self.num_missing += 1
        if str(self.num_missing).strip("0") == "1":  # 1, 10, 100, …
            logger.warning(
                "%s is not in the feature cache %s: encoded on the fly (%d so far)",
                name,
                self._files.folder,
                self.num_missing,
            )

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
        self._files = None
