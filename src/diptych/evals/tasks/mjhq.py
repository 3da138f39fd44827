"""MJHQ-30K (Playground v2): 30,000 prompts of ten categories, one picture each; FID to the pictures they came with.

A distance belongs to a set and not to a picture, so the pictures are made and written here, and ``diptych fd`` measures
their distance, overall and by category, and says with which network, resizing and number.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diptych.data.example import Text
from diptych.evals.places import Place
from diptych.evals.protocol import Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.geneval import file_revision
from diptych.evals.tasks.published import NO_JUDGE, Published, first_of_each
from diptych.scenes.scores import ScoreTable

CATEGORIES = (
    "animals", "art", "fashion", "food", "indoor", "landscape", "logo", "people", "plants", "vehicles"
)  # fmt: skip


@dataclass(frozen=True)
class MjhqPrompt:
    """One prompt; ``id`` is the name of the picture that it came with."""

    id: str
    category: str
    prompt: str


def read_meta(path: str | Path) -> tuple[MjhqPrompt, ...]:
    """``meta_data.json``: by name of the picture its ``category`` and ``prompt``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an entry is wrong; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Give --prompts meta_data.json of MJHQ-30K.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}).") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: an object with an entry for each picture is expected.")
    found = []
    for name, entry in content.items():
        category, prompt = (entry.get(key) if isinstance(entry, dict) else None for key in ("category", "prompt"))
        if category not in CATEGORIES:
            raise ValueError(f"{path}, {name!r}: category must be one of {', '.join(CATEGORIES)}, got {category!r}.")
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{path}, {name!r}: prompt must be a text, got {prompt!r}.")
        if not name or "/" in name:
            raise ValueError(f"{path}, {name!r}: this is no name of a picture.")
        found.append(MjhqPrompt(name, category, prompt))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Mjhq(Published):
    """One picture for every prompt, to be measured as a set."""

    prompts: tuple[MjhqPrompt, ...]
    name: str = "mjhq"

    @cached_property
    def _asked(self) -> dict[str, MjhqPrompt]:
        return {f"{item.category}/{item.id}": item for item in self.prompts}

    def requests(self) -> list[Request]:
        """Prompt i has the seed ``seed + i``."""
        return [
            Request(name, "image", (Text(item.prompt),), self.seed + place)
            for place, (name, item) in enumerate(self._asked.items())
        ]

    def judge_record(self) -> dict[str, Any]:
        return NO_JUDGE

    def unready(self) -> str:
        return (
            f"{self.name} is a distance between sets: write the pictures with --export DIR, then `diptych fd DIR "
            "mjhq30k_imgs --features inception`, and the same of each category's folder"
        )

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        raise ValueError(f"{self.unready()}.")

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return []

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        raise ValueError(f"{self.unready()}.")

    def places(self) -> dict[str, Place]:
        """``<category>/<name>.png``, beside the ``<category>/<name>.jpg`` of the reference."""
        return {name: Place(f"{name}.png") for name in self._asked}


def mjhq_task(prompts: str | Path, *, num_per_category: int | None = None, seed: int = 0) -> Mjhq:
    """
    Args:
        num_per_category: only the first prompts of each category; the distance to all 3,000 is then another one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an entry of it is wrong.
    """
    chosen = first_of_each(read_meta(prompts), lambda item: item.category, num_per_category)
    source = {"prompts": file_revision(prompts), "num_per_category": num_per_category}
    return Mjhq(prompts=chosen, seed=seed, source=source)
