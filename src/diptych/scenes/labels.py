"""What is where in a scene, as a grid of labels: supervision for encoders, as images of classes are for others."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from diptych.scenes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene

LABELS: tuple[str, ...] = (
    "object",
    *SHAPES,
    *COLORS,
    *SIZES,
    *BACKGROUNDS,
    *(f"{color} {shape}" for shape in SHAPES for color in COLORS),
)
"""Names of the labels: any object, attributes of objects, backgrounds, and every type of object."""


def cell_labels(scene: Scene, cells: int) -> Float[NDArray[np.float32], "labels cells cells"]:
    """1 where the centre of an object with the label lies in the cell, and in every cell for the background; else 0.

    Raises:
        ValueError: ``cells`` is below 1.
    """
    if cells < 1:
        raise ValueError(f"cell_labels: cells must be at least 1, got {cells}.")
    grid = np.zeros((len(LABELS), cells, cells), np.float32)
    grid[LABELS.index(scene.background)] = 1
    for item in scene.objects:
        row, column = int(item.y * cells), int(item.x * cells)
        for name in ("object", item.shape, item.color, item.size, f"{item.color} {item.shape}"):
            grid[LABELS.index(name), row, column] = 1
    return grid
