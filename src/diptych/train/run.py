"""What the stages of a run share: where it stands, where it writes, and what it shows."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from accelerate import Accelerator

from diptych.data.picture_files import save_contact_sheet
from diptych.train.interrupt import StopRequest
from diptych.train.progress import RunDisplay
from diptych.train.recipe import Recipe
from diptych.train.run_folder import RunFolder
from diptych.train.task import TrainingTask


@dataclass
class Run:
    """A run.

    Attributes:
        trained_parts: parts that any stage trains; checkpoints hold these.
        frozen: fingerprints of the other parts.
        is_sharded: parameters are cut up over processes (``sharding``).
        step: optimizer steps done in the whole run.
        seconds_before: the run's time in earlier sessions.
        ended: stages with which everything was done in an earlier session, samples and scores included.
        scores: what ``evaluate`` returned, by stage.
    """

    task: TrainingTask
    recipe: Recipe[Any]
    folder: RunFolder
    accelerator: Accelerator
    display: RunDisplay
    stop: StopRequest
    trained_parts: set[str]
    frozen: dict[str, str]
    is_sharded: bool = False
    step: int = 0
    seconds_before: float = 0.0
    ended: set[str] = field(default_factory=set)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    started: float = field(default_factory=perf_counter)

    @property
    def seconds(self) -> float:
        """The run's time so far, over all sessions."""
        return self.seconds_before + perf_counter() - self.started

    def log(self, stage: str, event: str, values: dict[str, Any]) -> None:
        """Adds a line to the metrics, and tells the trackers."""
        if not self.accelerator.is_main_process:
            return
        self.folder.metrics.append(
            {"event": event, "step": self.step, "stage": stage, "time": round(self.seconds, 3), **values}
        )
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self.accelerator.trackers and numbers:
            self.accelerator.log({f"{stage}/{name}": value for name, value in numbers.items()}, step=self.step)

    def draw_samples(self, stage: str) -> None:
        """A grid of pictures of the model as it is, in ``samples/``."""
        if self.task.sample is not None and self.accelerator.is_main_process:
            pictures = self.task.sample(stage, self.step)
            if pictures:
                images, captions = zip(*pictures, strict=True)
                facts = {"recipe": self.recipe.name, "stage": stage, "step": self.step}
                path = self.folder.samples / f"{self.step:06d}-{stage}.png"
                save_contact_sheet(path, images, captions, metadata=facts)
        self.accelerator.wait_for_everyone()

    def evaluate(self, stage: str) -> None:
        """Scores of the model as it is, to the metrics."""
        if self.task.evaluate is not None and self.accelerator.is_main_process:
            scores = dict(self.task.evaluate(stage))
            self.scores[stage] = scores
            self.log(stage, "scores", {f"score/{name}": value for name, value in scores.items()})
        self.accelerator.wait_for_everyone()
