import numpy as np
import pytest

from diptych.scenes.labels import LABELS, cell_labels
from diptych.scenes.scene import Scene, SceneObject


def test_labels_stand_in_the_cell_of_the_centre_and_the_background_everywhere():
    scene = Scene(
        (SceneObject("star", "red", "small", 0.30, 0.05), SceneObject("ring", "pink", "large", 0.99, 0.74)), "black"
    )
    grid = cell_labels(scene, 4)
    found = {(LABELS[label], row, column) for label, row, column in np.argwhere(grid == 1) if LABELS[label] != "black"}
    star = {(name, 0, 1) for name in ("object", "star", "red", "small", "red star")}
    ring = {(name, 2, 3) for name in ("object", "ring", "pink", "large", "pink ring")}
    assert found == star | ring
    assert grid[LABELS.index("black")].all() and set(np.unique(grid)) == {0, 1}
    assert len(set(LABELS)) == len(LABELS) == 1 + 8 + 8 + 3 + 4 + 64


def test_a_grid_without_cells_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cell_labels(Scene(()), 0)
