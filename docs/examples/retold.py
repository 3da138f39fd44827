"""Retold: a model describes a picture, and draws it again from its own words. How many objects come back?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diptych.data.example import ImageIn, Pixels, Text
from diptych.evals.produce import plan
from diptych.evals.protocol import Earlier, Output, Request
from diptych.evals.references import REFERENCE_NAMES, Reference
from diptych.evals.score import reference_table
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks import TaskEntry, register_task
from diptych.evals.tasks.scenes import SceneItems
from diptych.scenes.captions import caption
from diptych.scenes.parse import parse
from diptych.scenes.sample import sample_scene
from diptych.scenes.scene import Scene
from diptych.scenes.scores import ScoreTable, score_table
from diptych.scenes.split import split_scene


def share_returned(scene: Scene, drawn: Scene) -> float:
    """Objects that are in both, by shape and colour, over those of the picture that has more."""
    before, after = (Counter(item.type for item in one.objects) for one in (scene, drawn))
    return (before & after).total() / max(before.total(), after.total())


@dataclass(frozen=True, kw_only=True)
class Retold(SceneItems):
    """Pictures of one to four objects."""

    name: str = "retold"
    needs: tuple[str, ...] = ("image_to_text", "text_to_image")

    @property
    def label(self) -> str:
        return self.name + self.mark

    @cached_property
    def scenes(self) -> dict[str, Scene]:
        """By id; the category is the number of objects."""
        found = {}
        for number in range(2 if self.split == "test" else 1, 5):
            rng = np.random.default_rng([self.seed, number])
            for index in range(self.num_per_category):
                found[f"{number}-{index:04d}"] = split_scene(rng, self.split, min_objects=number, max_objects=number)
        return found

    def requests(self) -> list[Request]:
        asked = []
        for index, (name, scene) in enumerate(self.scenes.items()):
            picture = ImageIn(self._picture(scene))
            asked.append(Request(f"{name}/told", "text", (picture, Text("Describe the image in detail."))))
            asked.append(Request(f"{name}/drawn", "image", (Earlier(f"{name}/told"),), self.seed + index))
        return asked

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        return [
            {"told": output} if isinstance(output, str) else self._compare(request, parse(output).scene)
            for request, output in zip(requests, outputs, strict=True)
        ]

    def _compare(self, request: Request, drawn: Scene) -> Verdict:
        return {"share": share_returned(self.scenes[request.id.split("/")[0]], drawn)}

    def units(self, verdicts: Verdicts) -> list[Unit]:
        drawn = [name for name in verdicts if name.endswith("/drawn")]
        return [
            Unit(name, f"{name[0]} objects", name, verdict["share"] if (verdict := verdicts[name]) else 0.0)
            for name in drawn
        ]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        units = self.units(verdicts)
        return score_table(self.label, contender, [unit.category for unit in units], [unit.value for unit in units])

    def references(self) -> list[ScoreTable]:
        rows = [Reference(name, self, self.image_size) for name in REFERENCE_NAMES]
        return [reference_table(self, row, plan(self, row)) for row in rows]

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        scene = self.scenes[request.id.split("/")[0]]
        rng = np.random.default_rng([self.seed, *request.id.encode()])
        if reference == "chance":
            scene = sample_scene(rng)
        return caption(scene, rng, "long") if request.kind == "text" else self._picture(scene)


register_task(
    "retold",
    TaskEntry(
        "describe a picture, draw it again from the description: how many objects come back?",
        ("image_to_text", "text_to_image"),
        lambda options, _: Retold(**options.scene_items()),
    ),
)
