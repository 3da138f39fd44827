"""Pictures in the places where official scorers look for them: written there from a run, and read from there into one.

A benchmark says where each of its pictures belongs (``places``), also as a tile of a grid. ``export_layout`` puts a
run's pictures there; ``PictureFolder`` is a contender whose drawings lie there already, made by anything at all.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.example import Pixels, pil_to_pixels
from diptych.data.picture_files import read_picture
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.places import Place, WithPlaces, grid_of, tile_of
from diptych.evals.protocol import Failure, Kind, Output, Request
from diptych.evals.task import Task
from diptych.evals.tasks.geneval import GenEval
from diptych.evals.tasks.official_results import Exported

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
JPEG_QUALITY = 95


def places_of(task: Task) -> dict[str, Place]:
    """Where the pictures of a benchmark belong.

    Raises:
        ValueError: it has no layout.
    """
    if isinstance(task, WithPlaces):
        return task.places()
    if isinstance(task, Exported):
        return {name: Place(file) for name, file in task.export_names().items()}
    if isinstance(task, GenEval) and not task.is_twin:
        names = [request.id for request in task.requests()]
        return {name: Place(f"{name[:5]}/samples/{name[6:]}.png") for name in names}
    raise ValueError(f"{task.label} has no folder layout. Official benchmarks have one: diptych evaluate --list.")


def export_layout(folder: EvaluationFolder, task: WithPlaces, keys: Mapping[str, str], target: str | Path) -> int:
    """Writes a run's pictures where the official scorer looks for them; how many there were.

    What is missing is left out; a grid is written when all its tiles are there.

    Raises:
        ValueError: the tiles of a grid are not equal squares.
    """
    rows, target = folder.rows(), Path(target)
    grids: dict[str, dict[tuple[int, int], Pixels]] = {}
    places, written = task.places(), 0
    wanted = {name: place for name, place in places.items() if name in keys}
    tiles_of = {file: sum(place.file == file for place in wanted.values()) for file in _grid_files(wanted)}
    for name, place in wanted.items():
        row = rows.get(keys[name])
        output = Failure("missing") if row is None else folder.output(row)
        if not isinstance(output, np.ndarray):
            continue
        if place.tile is None:
            _write(target / place.file, output)
            written += 1
            continue
        tiles = grids.setdefault(place.file, {})
        tiles[place.tile] = output
        if len(tiles) == tiles_of[place.file]:
            _write(target / place.file, grid_of(grids.pop(place.file), place.grid, place.file))
            written += len(tiles)
    for name, text in task.companions().items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    return written


def _grid_files(places: Mapping[str, Place]) -> list[str]:
    return list(dict.fromkeys(place.file for place in places.values() if place.tile is not None))


def _write(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    if path.suffix in (".jpg", ".jpeg"):
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        Image.fromarray(pixels).save(buffer, format="PNG")
    path.write_bytes(buffer.getvalue())


class PictureFolder:
    """A contender whose drawings lie in a folder, in the layout of the official scorer.

    Args:
        folder: what ``--export`` would write.
        task: whose layout it is.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    capabilities = ("text_to_image", "image_edit")
    image_size = (64, 64)

    def __init__(self, folder: str | Path, task: Task) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"There is no folder {self.folder}. pictures:DIR takes pictures that were made.")
        self.task = task
        self.name = f"pictures of {self.folder.name}"
        self._last: tuple[Path, Pixels] = Path(), np.zeros((1, 1, 3), np.uint8)

    @cached_property
    def _places(self) -> dict[str, Place]:
        return places_of(self.task)

    def identity(self) -> dict[str, Any]:
        """A digest over the names and bytes of all pictures."""
        return {"pictures": self.folder.name, "sha256": self._digest}

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                digest.update(f"{path.relative_to(self.folder)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def settings(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
        if given:
            raise ValueError(f"{self.name}: pictures that were made have no setting {min(given)!r}. Leave it out.")
        return {}

    def draw(self, requests: Sequence[Request]) -> list[Output]:
        return [self._picture(self._places[request.id]) for request in requests]

    def _picture(self, place: Place) -> Output:
        file = next((path for path in self._candidates(place.file) if path.is_file()), None)
        if file is None:
            return Failure(f"there is no {place.file} in {self.folder}")
        try:
            return tile_of(self._read(file), place)
        except (OSError, ValueError) as error:
            return Failure(f"{place.file} cannot be read: {error}")

    def _read(self, file: Path) -> Pixels:
        """The pixels of a file; those of the last one are kept, for its other tiles."""
        if self._last[0] != file:
            self._last = file, pil_to_pixels(read_picture(file))
        return self._last[1]

    def _candidates(self, name: str) -> list[Path]:
        """The file by its own name, then with the other suffixes."""
        path = self.folder / name
        return [path, *[path.with_name(path.name.removesuffix(path.suffix) + suffix) for suffix in SUFFIXES]]

    def write(self, requests: Sequence[Request]) -> list[Output]:
        return [Failure("pictures cannot answer") for _ in requests]
