"""Scenes shared by the tests of one process; drawing them once keeps the suite fast."""

from functools import cache

import numpy as np

from diptych.scenes.scene import Scene
from diptych.scenes.split import split_scene


@cache
def _first_scenes(split: str) -> tuple[Scene, ...]:
    rng = np.random.default_rng(11)
    return tuple(split_scene(rng, split) for _ in range(600 if split == "train" else 200))


def sampled_scenes(split: str, number: int) -> tuple[Scene, ...]:
    """The first scenes of a split (up to 600 of training, 200 of the others), the same in every test."""
    scenes = _first_scenes(split)
    assert number <= len(scenes)
    return scenes[:number]


def some_of_each_split(number: int) -> list[Scene]:
    """Scenes of all three splits."""
    return [scene for split in ("train", "test", "novel") for scene in sampled_scenes(split, number)]
