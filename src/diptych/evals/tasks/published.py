"""What published benchmarks share: what they ask comes from files, and nobody knows what right pictures would be."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from diptych.data.example import Pixels
from diptych.evals.json_lines import prompt_files
from diptych.evals.protocol import Request
from diptych.evals.tasks.geneval import file_revision
from diptych.scenes.scores import ScoreTable

Item = TypeVar("Item")

NO_JUDGE: dict[str, Any] = {"name": "none"}
"""The record of a benchmark whose pictures are made and not judged."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """The part of a ``Task`` that is alike in all of them; each adds requests, verdicts and a table."""

    name: str
    seed: int = 0
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where the prompts come from, and which of them are asked; JSON-able."""
    version: int = 1
    needs: tuple[str, ...] = ("text_to_image",)

    @property
    def label(self) -> str:
        return self.name

    def config(self) -> dict[str, Any]:
        return {**self.source, "seed": self.seed}

    def companions(self) -> dict[str, str]:
        """Text files that the official scorer reads beside the pictures, by name."""
        return {}

    def references(self) -> list[ScoreTable]:
        """None, since there is no oracle."""
        return []

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        """
        Raises:
            ValueError: there is no such output.
        """
        raise ValueError(f"{self.name} has no {reference}: nobody knows a right picture of what it asks for.")


def first_of_each(items: Iterable[Item], category: Callable[[Item], Hashable], number: int | None) -> tuple[Item, ...]:
    """The first ``number`` items of each category, in their order; all of them without it."""
    seen: dict[Hashable, int] = {}
    chosen = []
    for item in items:
        own = category(item)
        seen[own] = seen.get(own, 0) + 1
        if number is None or seen[own] <= number:
            chosen.append(item)
    return tuple(chosen)


def source_revision(path: str | Path) -> str:
    """Name and digest of a file, or of the files of a folder that can hold prompts."""
    path = Path(path)
    if path.is_dir():
        return f"{path.resolve().name}: " + ", ".join(file_revision(file) for file in prompt_files(path))
    return file_revision(path)
