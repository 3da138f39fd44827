"""Where an official scorer looks for a picture: a file, or a tile of a grid of several."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from diptych.data.example import Pixels
from diptych.evals.protocol import Failure


@dataclass(frozen=True)
class Place:
    """Where an official scorer looks for a picture."""

    file: str
    """Below the folder."""
    tile: tuple[int, int] | None = None
    """(row, column), where the file is a grid."""
    grid: tuple[int, int] = (1, 1)
    """Rows and columns of the grid."""


@runtime_checkable
class WithPlaces(Protocol):
    """A benchmark with a folder layout of its own."""

    def places(self) -> dict[str, Place]:
        """By id of the request."""
        ...

    def companions(self) -> dict[str, str]:
        """Text files that the official scorer reads beside the pictures, by name."""
        ...


def grid_of(tiles: Mapping[tuple[int, int], Pixels], grid: tuple[int, int], where: str = "grid") -> Pixels:
    """One picture of several, row by row; a place without a tile is black.

    Raises:
        ValueError: the tiles are not squares of one side, as a scorer that is told one side must cut them again.
    """
    shapes = sorted({tile.shape[:2] for tile in tiles.values()})
    side = shapes[0][0]
    if shapes != [(side, side)]:
        said = ", ".join(f"{width}x{height}" for height, width in shapes)
        raise ValueError(f"{where}: the tiles of a grid must be squares of one side, got {said}. Draw with --size NxN.")
    canvas = np.zeros((grid[0] * side, grid[1] * side, 3), np.uint8)
    for (row, column), tile in tiles.items():
        canvas[row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
    return canvas


def tile_of(picture: Pixels, place: Place) -> Pixels | Failure:
    """A tile of a grid, whose size says how large tiles are; a ``Failure`` where it is no grid of squares."""
    if place.tile is None:
        return picture
    (rows, columns), (height, width) = place.grid, picture.shape[:2]
    side = height // rows
    if height != rows * side or width != columns * side:
        return Failure(f"{place.file} is {width}x{height} pixels: no grid of {columns} x {rows} equal squares")
    row, column = place.tile
    return picture[row * side : (row + 1) * side, column * side : (column + 1) * side]
