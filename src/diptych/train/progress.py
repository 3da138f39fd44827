"""What a person sees while a run goes on: a bar in a terminal, a line now and then elsewhere."""

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

SECONDS_BETWEEN_LINES = 10.0


class RunDisplay:
    """Shows one stage after the other; silent in processes other than the main one.

    Args:
        steps_after: by stage, the optimizer steps that come after it, for the time left of the whole run.
    """

    def __init__(self, console: Console, steps_after: Mapping[str, int], is_main: bool = True) -> None:
        self._console = console
        self._steps_after = steps_after
        self._is_main = is_main
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._stage = ""
        self._num_steps = 0
        self._last_line = 0.0

    def show(self, content: RenderableType) -> None:
        """Prints something that stays, above the bar."""
        if self._is_main:
            (self._bar.console if self._bar else self._console).print(content)

    def start_stage(self, name: str, step: int, num_steps: int) -> None:
        """A new stage, at its step ``step``."""
        self._stage, self._num_steps, self._last_line = name, num_steps, time.monotonic()
        if self._is_main and self._console.is_terminal:
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(name, total=num_steps, completed=step, text="")
            self._bar.start()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """The stage has done ``step`` steps; ``metrics`` are those of the run's log."""
        if not self._is_main:
            return
        text = self._describe(step, metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES or step == self._num_steps:
            self._last_line = time.monotonic()
            self._console.print(f"{self._stage} {step}/{self._num_steps} {text}", highlight=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """The bar moves at every step, the figures beside it only when they are measured."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def end_stage(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _describe(self, step: int, metrics: Mapping[str, float]) -> str:
        losses = [
            f"{name.removeprefix('loss/')} {value:.4g}"
            for name, value in metrics.items()
            if name.startswith("loss/") and "/sigma" not in name
        ]
        pieces = [*losses, f"{metrics['examples_per_second']:.4g} examples/s"]
        if "tokens_per_second" in metrics:
            pieces.append(f"{metrics['tokens_per_second']:.4g} tokens/s")
        if "mfu" in metrics:
            pieces.append(f"MFU {metrics['mfu']:.1%}")
        remaining = self._num_steps - step + self._steps_after.get(self._stage, 0)
        left = timedelta(seconds=round(remaining * metrics["seconds_per_step"]))
        return "  ".join([*pieces, f"{left} left"])
