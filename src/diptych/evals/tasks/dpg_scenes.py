"""DPG-Bench's twin on the built-in world: captions that tell all, and a graph of questions about each.

Scenes are those of the consistency benchmark, two or three objects of different shapes and colours. Of each object it
is asked whether its shape is there, whether in its colour, and, given that, whether in its size and at its place; of
two objects how they lie; of the picture how many objects it has, and its background.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from diptych.data.example import Pixels
from diptych.evals.judges import VisionJudge
from diptych.evals.protocol import Request
from diptych.evals.scene_judge import SceneJudge
from diptych.evals.score import reference_tables
from diptych.evals.tasks.dense_graphs import DensePrompt, Proposition
from diptych.evals.tasks.dpg import OFFICIAL_SAMPLES, DenseGraph
from diptych.scenes.consistency import ConsistencyItem, consistency_items
from diptych.scenes.draw import draw
from diptych.scenes.phrases import NUMBER_WORDS, PLACE_PHRASES, place_of, type_name, with_article
from diptych.scenes.relations import relations_of
from diptych.scenes.sample import sample_scene
from diptych.scenes.scene import Scene
from diptych.scenes.scores import ScoreTable
from diptych.scenes.split import Split

DENSE = "dense-prompts"


def propositions_of(scene: Scene) -> tuple[Proposition, ...]:
    """The questions about a scene of different shapes and colours; all of them are to be answered yes."""
    found: list[Proposition] = []

    def ask(category: str, question: str, *parents: int) -> int:
        found.append(Proposition(len(found) + 1, parents or (0,), category, question))
        return len(found)

    types = []
    for item in scene.objects:
        name = type_name(item.type)
        whole = ask("entity - whole", f"Is there {with_article(item.shape)}?")
        types.append(ask("attribute - color", f"Is there {with_article(name)}?", whole))
        ask("attribute - size", f"Is there {with_article(f'{item.size} {name}')}?", types[-1])
        place = PLACE_PHRASES[place_of(item)]
        ask("attribute - place", f"Is there {with_article(name)} {place}?", types[-1])
    for i, first in enumerate(scene.objects):
        for j, second in enumerate(scene.objects[:i]):
            for relation in relations_of(first, second)[:1]:
                names = type_name(first.type), type_name(second.type)
                ask("relation - spatial", f"Is the {names[0]} {relation} the {names[1]}?", types[i], types[j])
    ask("other - count", f"Are there {NUMBER_WORDS[len(scene.objects)]} objects?")
    ask("global - background", f"Is the background {scene.background}?")
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class DenseScenes(DenseGraph):
    """The twin, with the scenes that are asked for."""

    items: tuple[ConsistencyItem, ...]
    image_size: tuple[int, int] = (64, 64)

    @cached_property
    def _scenes(self) -> Mapping[str, Scene]:
        return {item.id: item.scene for item in self.items}

    def references(self) -> list[ScoreTable]:
        return reference_tables(replace(self, examiner=SceneJudge()), self.image_size)

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        """``oracle``: the scene drawn; ``chance``: a random scene."""
        rng = np.random.default_rng([self.seed, *request.id.encode()])
        scene = self._scenes[request.id.rpartition("/")[0]] if reference == "oracle" else sample_scene(rng)
        return draw(scene, self.image_size)


def dense_scenes(
    split: Split = "test",
    num_per_category: int = 60,
    seed: int = 0,
    samples: int = OFFICIAL_SAMPLES,
    image_size: tuple[int, int] = (64, 64),
    mark: str = "",
    examiner: VisionJudge | None = None,
) -> DenseScenes:
    """The twin.

    Args:
        num_per_category: prompts; there are no categories of prompts.
        examiner: the scene parser where none is given.
    """
    items = tuple(consistency_items(split, num_per_category, seed))
    return DenseScenes(
        name="dpg",
        label=DENSE + mark,
        prompts=tuple(DensePrompt(item.id, item.caption, propositions_of(item.scene)) for item in items),
        items=items,
        examiner=examiner or SceneJudge(),
        samples=samples,
        seed=seed,
        source={"split": split, "num_per_category": num_per_category},
        judged_at_once=64,
        image_size=image_size,
    )
