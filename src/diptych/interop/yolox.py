"""YOLOX (arXiv 2107.08430) from a plain graph, as a detector for GenEval's prompts.

It is not GenEval's detector: no masks, other confidences, and colours by the nearest of ten in the middle of the box
instead of by CLIP. Scores judged by it compare models with each other, not with published scores.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diptych.data.example import Pixels
from diptych.interop.plain_graph import PlainGraph, load_plain_graph
from diptych.models.preprocess import to_float
from diptych.scenes.rules import Detection

STRIDES = (8, 16, 32)
FILL = 114
"""Grey level of the border below or to the right of a picture that is not square."""
NMS_OVERLAP = 0.45
MIN_SCORE = 0.05
"""What is less certain is not reported; GenEval's own thresholds are far above."""

COLOR_RGB = {
    "red": (200, 30, 30),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 50),
    "green": (50, 150, 60),
    "blue": (40, 90, 200),
    "purple": (130, 50, 160),
    "pink": (240, 150, 190),
    "brown": (120, 75, 40),
    "black": (20, 20, 20),
    "white": (240, 240, 240),
}
"""The ten colours of GenEval as points in RGB; our choice."""


class Yolox:
    """A detector of the 80 classes of COCO, under the names that GenEval has for them.

    Args:
        network: a graph with the output ``raw``.
        classes: GenEval's names, in COCO's order.
        name, revision: for the record of the judge.
    """

    def __init__(self, network: PlainGraph, classes: Sequence[str], name: str, revision: str) -> None:
        self.network, self.classes = network, tuple(classes)
        self.name, self.revision = name, revision
        self.side = int(network.graph["input"]["shape"][-1])

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision, "official": False, "colors": "nearest of ten, our choice"}

    def detect(self, ids: Sequence[str], images: Sequence[Pixels]) -> list[list[Detection]]:
        """All objects above ``MIN_SCORE`` of each picture, overlapping ones of a class suppressed."""
        return [self._detect(image) for image in images]

    @torch.inference_mode()
    def _detect(self, image: Pixels) -> list[Detection]:
        scale = min(self.side / image.shape[0], self.side / image.shape[1])
        raw = self.network(to_float(letterbox(image, self.side))[None])["raw"][0]
        boxes, scores = decode(raw, self.side)
        found = []
        for index, name in enumerate(self.classes):
            certain = torch.nonzero(scores[:, index] > MIN_SCORE)[:, 0]
            for place in keep_apart(boxes[certain], scores[certain, index]):
                x0, y0, x1, y1 = (float(value) / scale for value in boxes[certain[place]])
                box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(image.shape[1])), min(y1, float(image.shape[0])))
                found.append(Detection(name, float(scores[certain[place], index]), box, box_color(image, box)))
        return found


def letterbox(image: Pixels, side: int) -> Pixels:
    """The picture with its longer side at ``side``, in the top left of a grey square."""
    height, width = image.shape[:2]
    scale = min(side / height, side / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    square = np.full((side, side, 3), FILL, np.uint8)
    square[: size[1], : size[0]] = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return square


def decode(
    raw: Float[Tensor, "cells values"], side: int
) -> tuple[Float[Tensor, "cells 4"], Float[Tensor, "cells classes"]]:
    """Boxes (x0, y0, x1, y1 in pixels of the square) and scores of the classes, object score included."""
    cells, strides = [], []
    for stride in STRIDES:
        count = side // stride
        rows, cols = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
        cells.append(torch.stack([cols, rows], dim=-1).reshape(-1, 2))
        strides.append(torch.full((count * count, 1), stride))
    grid, stride_of = torch.cat(cells).float(), torch.cat(strides).float()
    centers, sizes = (raw[:, :2] + grid) * stride_of, raw[:, 2:4].exp() * stride_of
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1), raw[:, 4:5] * raw[:, 5:]


def keep_apart(boxes: Float[Tensor, "found 4"], scores: Float[Tensor, " found"]) -> list[int]:
    """Indices, best first, of boxes that overlap no better one by more than ``NMS_OVERLAP``."""
    left = scores.argsort(descending=True).tolist()
    kept: list[int] = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [other for other in left if _overlap(boxes[best], boxes[other]) <= NMS_OVERLAP]
    return kept


def _overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union."""
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    inner = float(sides.prod())
    areas = float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod())
    return inner / (areas - inner) if areas > inner else 0.0


def box_color(image: Pixels, box: tuple[float, float, float, float]) -> str:
    """The nearest of GenEval's ten colours to the median of the middle half of a box, by Euclidean distance in RGB."""
    x0, y0, x1, y1 = box
    dx, dy = (x1 - x0) / 4, (y1 - y0) / 4
    top, left = min(int(y0 + dy), image.shape[0] - 1), min(int(x0 + dx), image.shape[1] - 1)
    middle = image[top : max(int(y1 - dy), top + 1), left : max(int(x1 - dx), left + 1)]
    color: NDArray[np.float64] = np.median(middle.reshape(-1, 3), axis=0)
    return min(COLOR_RGB, key=lambda name: float(np.square(color - COLOR_RGB[name]).sum()))


def load_yolox(path: str | Path) -> Yolox:
    """Reads ``NAME.graph.json``, ``NAME.safetensors`` and, beside them, ``classes.json`` with GenEval's names.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: one of them is damaged, or the network is no YOLOX.
    """
    path = Path(path)
    network = load_plain_graph(path)
    if "raw" not in network.outputs:
        raise ValueError(f"{path} is no YOLOX: it has the outputs {', '.join(network.outputs)}, but not 'raw'.")
    names = path.with_name("classes.json")
    if not names.is_file():
        raise FileNotFoundError(f"{names} is missing: it names the classes of {path.name}.")
    try:
        classes = json.loads(names.read_text(encoding="utf-8"))["geneval"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{names} holds no list "geneval" of class names ({error}).') from None
    weights = path.with_name(path.name.removesuffix(".graph.json") + ".safetensors")
    revision = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    return Yolox(network, classes, path.name.removesuffix(".graph.json"), revision)
