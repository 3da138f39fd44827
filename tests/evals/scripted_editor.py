"""Editors that are a formula over what they are shown and what is right: partial, one-sided, drifting.

Run as a script it does and undoes edits into a folder, slowly, until it is killed or done.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diptych.data.example import ImageIn, Pixels, load_pixels
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.produce import plan, produce
from diptych.evals.protocol import Output, Request
from diptych.evals.task import Task
from diptych.evals.tasks import TaskOptions, build_task

Rule = Callable[[Request, Pixels, Pixels], Pixels]
"""``(request, picture shown, right picture) -> picture``."""


class ScriptedEditor:
    """Draws what a rule says, and says nothing."""

    name = "scripted"
    capabilities = ("image_edit",)
    image_size = (64, 64)

    def __init__(self, task: Task, rule: Rule, seconds: float = 0.0) -> None:
        self.task, self.rule, self.seconds = task, rule, seconds

    def identity(self) -> dict[str, Any]:
        return {"scripted": 1}

    def settings(self, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        return dict(given)

    def draw(self, requests: Sequence[Request]) -> list[Output]:
        time.sleep(self.seconds)
        drawn = []
        for request in requests:
            (shown,) = [part.image for part in request.parts if isinstance(part, ImageIn)]
            right = self.task.reference_output("oracle", request)
            assert isinstance(right, np.ndarray)
            drawn.append(self.rule(request, load_pixels(shown), right))
        return drawn

    def write(self, requests: Sequence[Request]) -> list[Output]:
        raise NotImplementedError


def every_second(request: Request, shown: Pixels, right: Pixels) -> Pixels:
    """Right for the items of even number; hands back the others as they are."""
    number = int(next(word for word in reversed(request.id.split("/")) if word.isdigit()))
    return right if number % 2 == 0 else shown


if __name__ == "__main__":
    task = build_task("do-undo", TaskOptions(num_per_category=int(sys.argv[2]), rounds=2))
    editor = ScriptedEditor(task, every_second, seconds=0.02)
    produce(EvaluationFolder(sys.argv[1]), task, editor, plan(task, editor), batch_size=3)
