"""What is known of a benchmark before it is built, and what a user may say about its samples."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from diptych.evals.judges import VisionJudge
from diptych.evals.rewards import RewardModel
from diptych.evals.task import Task
from diptych.evals.tasks.geneval import Detector
from diptych.evals.tasks.geneval2 import AtomScores
from diptych.evals.tasks.official_results import DoUndoResults, SpatialResults
from diptych.evals.tasks.t2i_compbench import CompResults
from diptych.evals.tasks.xtc_official import FactMarks
from diptych.scenes.split import Split

NUM_PER_CATEGORY = 60


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What a user may say about the samples of a task; JSON-able by ``to_dict``."""

    split: Split = "test"
    num_per_category: int | None = None
    """Items of each category; without it 60 of the built-in world, and all of a published benchmark."""
    samples: int | None = None
    """Pictures of each prompt; without it as the benchmark has it."""
    rounds: int = 1
    """How often in a row an edit is done and undone."""
    seed: int = 0
    image_size: tuple[int, int] = (64, 64)
    """(height, width) of the pictures that are shown."""
    mark: str = ""
    """What stands behind the benchmark's name: `` (novel)``."""
    prompts: str = ""
    """File of prompts, where the benchmark has one."""
    rewritten: str = ""
    """The same prompts in other words."""
    images: str = ""
    """Folder of pictures, where the benchmark has one."""
    include_path: str = ""
    """Folder of further tasks of lmms-eval."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TaskOptions":
        height, width = content["image_size"]
        return cls(**{**content, "image_size": (int(height), int(width))})

    def scene_items(self) -> dict[str, Any]:
        """The arguments of a task of the built-in world."""
        return {
            "split": self.split,
            "num_per_category": self.num_per_category or NUM_PER_CATEGORY,
            "seed": self.seed,
            "image_size": self.image_size,
            "mark": self.mark,
        }


Judge: TypeAlias = (
    Detector | VisionJudge | RewardModel | DoUndoResults | SpatialResults | AtomScores | CompResults | FactMarks
)
"""What judges a published benchmark: a detector, what answers questions or rates, or an official scorer's results."""

Builder = Callable[[TaskOptions, Judge | None], Task]


@dataclass(frozen=True)
class TaskEntry:
    """What is known of a benchmark before it is built."""

    summary: str
    needs: tuple[str, ...]
    """Capabilities."""
    build: Builder
    files: str = ""
    """What it needs beside the model."""
    has_splits: bool = True
    """Whether it is of the built-in world, with its splits."""
    pictures: int = 0
    """That a whole run asks for, of one split; of the built-in world with 60 items of each category."""
    answers: int = 0
    """The same of texts."""
    per_prompt: int = 1
    """Pictures of each prompt."""
    judge: str = "exact rules"
    """Who judges published results, and on what."""
