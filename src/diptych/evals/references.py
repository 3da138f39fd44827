"""Contenders that only show what a score means: oracle, chance, a constant, and the input handed back.

They enter the harness as any model does, and no trivial one of them should win a benchmark.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diptych.data.example import ImageIn, Text, load_pixels
from diptych.evals.protocol import Kind, Output, Request
from diptych.evals.task import Task

REFERENCE_NAMES = ("oracle", "chance", "constant", "copy-input")

CONSTANT_ANSWER = "yes"
GREY = 128
"""What the constant draws, and copying where there is nothing to copy."""


class Reference:
    """One reference of a task.

    ``oracle`` and ``chance`` are the task's own; ``constant`` answers "yes" and draws grey; ``copy-input`` hands back
    the first picture, or the last text.

    Args:
        name: one of ``REFERENCE_NAMES``.
        task: whose answers it knows.
    """

    capabilities = ("text", "image_to_text", "text_to_image", "image_edit")

    def __init__(self, name: str, task: Task, image_size: tuple[int, int] = (64, 64)) -> None:
        if name not in REFERENCE_NAMES:
            raise ValueError(f"there is no reference {name!r}. Known: {', '.join(REFERENCE_NAMES)}.")
        self.name = name
        self.task = task
        self.image_size = image_size

    def identity(self) -> dict[str, Any]:
        return {"reference": self.name, "version": 1, "size": list(self.image_size)}

    def settings(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def draw(self, requests: Sequence[Request]) -> list[Output]:
        return [self._drawing(request) for request in requests]

    def write(self, requests: Sequence[Request]) -> list[Output]:
        return [self._text(request) for request in requests]

    def _drawing(self, request: Request) -> Output:
        if self.name in ("oracle", "chance"):
            return self.task.reference_output(self.name, request)
        seen = [part.image for part in request.parts if isinstance(part, ImageIn)]
        if self.name == "copy-input" and seen:
            return load_pixels(seen[0])
        return np.full((*self.image_size, 3), GREY, np.uint8)

    def _text(self, request: Request) -> Output:
        if self.name in ("oracle", "chance"):
            return self.task.reference_output(self.name, request)
        texts = [part.text for part in request.parts if isinstance(part, Text)]
        return texts[-1] if self.name == "copy-input" and texts else CONSTANT_ANSWER
