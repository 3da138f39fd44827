"""Edits of the built-in world that are told in numbers (``scenes.spatial_edits``), as a data source for training."""

from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np

from diptych.data.example import Example, ImageIn, ImageOut, LazyImage, Part, Text
from diptych.data.sources.protocol import BadRecord
from diptych.data.sources.scenes import scene_key
from diptych.scenes.draw import draw
from diptych.scenes.sample import MAX_OBJECTS
from diptych.scenes.scene import Scene
from diptych.scenes.spatial_edits import SPATIAL_OPERATIONS, SpatialEdit, spatial_edit_of_split
from diptych.scenes.split import Split
from diptych.scenes.thoughts import edit_thought


@dataclass(frozen=True, kw_only=True)
class SpatialScenesSource:
    """Source, instruction and target, drawn on the fly; another edit of another scene at every index and epoch."""

    num_examples: int = 100_000
    """Examples of an epoch. The first n are the same for every number."""
    image_size: int = 64
    """Side of the pictures in pixels."""
    seed: int = 0
    """Decides scenes and edits."""
    split: Split = "train"
    """``train`` tells no number of ``scenes.spatial_edits.HELD_OUT``; or one of the held-out splits."""
    operations: tuple[str, ...] = SPATIAL_OPERATIONS
    """Which edits, in equal shares; one named twice is asked for twice as often."""
    max_objects: int = MAX_OBJECTS
    """Objects of a scene at most, 2 to 6."""
    thinks: bool = False
    """Before a picture is drawn it is written, as a thought that is learnt too, what is seen, what of it is meant, and
    what is to be there (`diptych.scenes.thoughts`)."""

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(
                f"SpatialScenesSource.split must be one of {', '.join(get_args(Split))}, got {self.split!r}."
            )
        if not self.operations or not set(self.operations) <= set(SPATIAL_OPERATIONS):
            raise ValueError(
                f"SpatialScenesSource.operations must be among {', '.join(SPATIAL_OPERATIONS)}, got {self.operations}."
            )
        for name, number, low, high in (
            ("num_examples", self.num_examples, 1, None),
            ("image_size", self.image_size, 8, 4096),
            ("seed", self.seed, 0, None),
            ("max_objects", self.max_objects, 2, MAX_OBJECTS),
        ):
            if number < low or (high is not None and number > high):
                limits = f"at least {low}" if high is None else f"{low} to {high}"
                raise ValueError(f"SpatialScenesSource.{name} must be {limits}, got {number}.")

    def build(self) -> "SpatialExamples":
        """The source; nothing is drawn yet."""
        return SpatialExamples(self)


class SpatialExamples:
    """Random access to the examples of a ``SpatialScenesSource``."""

    def __init__(self, config: SpatialScenesSource) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.num_examples

    def spatial(self, index: int, epoch: int = 0) -> SpatialEdit:
        """The edit at an index of an epoch.

        Raises:
            BadRecord: no scene was found that allows it.
        """
        config = self.config
        # Apart from the fixed sets of `spatial_items`, whose entropy begins with the seed.
        rng = np.random.default_rng([*b"spatial source", config.seed, index, epoch])
        operation = config.operations[int(rng.random() * len(config.operations))]
        try:
            return spatial_edit_of_split(rng, config.split, operation, config.max_objects)
        except RuntimeError as error:
            raise BadRecord("no edit found", self._name(index), str(error)) from error

    def example(self, index: int, epoch: int = 0) -> Example:
        """The example at ``index`` of an epoch.

        Raises:
            IndexError: ``index`` is not in [0, len).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"SpatialScenesSource has {len(self)} examples, got index {index}.")
        spatial = self.spatial(index, epoch)
        edit = spatial.edit
        thought: tuple[Part, ...] = ()
        if self.config.thinks:
            thought = (Text(edit_thought(edit), role="assistant", is_target=True, is_thought=True),)
        parts = (
            ImageIn(self._image(edit.source)),
            Text(edit.instruction),
            *thought,
            ImageOut(self._image(edit.target)),
        )
        metadata = {
            "task": "image_edit",
            "split": self.config.split,
            "kind": spatial.operation,
            "source": edit.source.to_dict(),
            "scene": edit.target.to_dict(),
            "numbers": list(spatial.numbers),
        }
        return Example(parts, self._name(index), metadata=metadata)

    def _image(self, scene: Scene) -> LazyImage:
        return LazyImage(
            key=scene_key(scene, self.config.image_size), read=partial(draw, scene, self.config.image_size)
        )

    def _name(self, index: int) -> str:
        return f"spatial-scenes/{self.config.split}/{self.config.seed}/{index}"
