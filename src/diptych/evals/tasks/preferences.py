"""Human preference, as a reward model foretells it: HPSv2 (arXiv 2306.09341), HPSv3 (2508.03789) and ImageReward
(2304.05977), one picture a prompt.

What rates is a ``RewardModel``. HPSv2 is 100 times the cosine of a tuned CLIP ViT-H/14, over four styles of 800
prompts; its versions 2.0 and 2.1 are not comparable. HPSv3 and ImageReward are means of what their packages return, on
any prompts; ImageReward's is standardised already: the raw number minus 0.16717, over 1.03334.

A missing picture counts as the lowest reward of the run: zero is no bad reward on such scales. The official HPSv2 rates
the next picture in its place.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from diptych.data.example import Text
from diptych.evals.json_lines import json_lines
from diptych.evals.places import Place
from diptych.evals.protocol import Failure, Output, Request
from diptych.evals.rewards import RewardModel
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.published import NO_JUDGE, Published, source_revision
from diptych.scenes.scores import ScoreTable, mean_score, score_table

Preference: TypeAlias = Literal["hpsv2", "hpsv3", "image-reward"]
STYLES = ("anime", "concept-art", "paintings", "photo")
"""Of HPSv2, each a JSON file of prompts."""
GROUP = 80
"""Prompts of one of the groups whose means HPSv2 prints the deviation of."""


@dataclass(frozen=True)
class RatedPrompt:
    """One prompt; ``index`` counts within its style."""

    style: str
    index: int
    prompt: str


def read_styles(path: str | Path) -> tuple[RatedPrompt, ...]:
    """HPSv2's folder of ``anime.json``, ``concept-art.json``, ``paintings.json`` and ``photo.json``, or one of them.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is no JSON list of texts.
    """
    path = Path(path)
    files = [file for style in STYLES if (file := path / f"{style}.json").is_file()] if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"There is no {path} with {', '.join(f'{style}.json' for style in STYLES)}.")
    found: list[RatedPrompt] = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON ({error}).") from None
        if not isinstance(content, list) or not content or not all(_is_text(text) for text in content):
            raise ValueError(f"{file}: a JSON list of prompts is expected.")
        found += [RatedPrompt(file.stem, index, text) for index, text in enumerate(content)]
    return tuple(found)


def read_plain(path: str | Path) -> tuple[RatedPrompt, ...]:
    """A text file with a prompt a line, or JSON lines with ``prompt`` and perhaps ``category``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong, or there is none.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        pairs = []
        for number, record in json_lines(path):
            if not _is_text(record.get("prompt")):
                raise ValueError(f"{path}, line {number}: prompt must be a text, got {record.get('prompt')!r}.")
            pairs.append((str(record.get("category") or "all"), record["prompt"]))
    elif path.is_file():
        pairs = [("all", line.strip()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        raise FileNotFoundError(f"There is no file {path}. Give --prompts a text file with a prompt a line.")
    if not pairs:
        raise ValueError(f"{path} holds no prompts.")
    counted: dict[str, int] = {}
    found = []
    for style, prompt in pairs:
        found.append(RatedPrompt(style, counted.get(style, 0), prompt))
        counted[style] = counted.get(style, 0) + 1
    return tuple(found)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


@dataclass(frozen=True, kw_only=True)
class Preferences(Published):
    """One picture for every prompt.

    Attributes:
        name: whose rules they are.
    """

    name: Preference
    prompts: tuple[RatedPrompt, ...]
    examiner: RewardModel | None = None
    missing_counts_as: str = "the lowest reward of the run"

    @cached_property
    def _asked(self) -> dict[str, tuple[int, RatedPrompt]]:
        return {f"{item.style}/{item.index:05d}": (place, item) for place, item in enumerate(self.prompts)}

    def requests(self) -> list[Request]:
        """Prompt i has the seed ``seed + i``."""
        return [
            Request(name, "image", (Text(item.prompt),), self.seed + place)
            for name, (place, item) in self._asked.items()
        ]

    def judge_record(self) -> dict[str, Any]:
        return NO_JUDGE if self.examiner is None else {"judge": self.examiner.record(), "rules": self.name}

    def unready(self) -> str:
        if self.examiner is not None:
            return ""
        return f"{self.name} needs a reward model: give --judge MODULE:FUNCTION, or a file of rewards"

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict | Failure]:
        if self.examiner is None:
            raise ValueError(f"{self.unready()}.")
        names = [request.id for request in requests]
        images = [output for output in outputs if isinstance(output, np.ndarray)]
        values = self.examiner.rate(names, [self._asked[name][1].prompt for name in names], images)
        return [value if isinstance(value, Failure) else {"reward": self._scaled(value)} for value in values]

    def _scaled(self, value: float) -> float:
        if self.name != "hpsv2":
            return value
        if not -1 <= value <= 1:
            raise ValueError(f"hpsv2 is 100 times a cosine; the reward model returned {value:g}. Return the cosine.")
        return 100 * value

    def units(self, verdicts: Verdicts) -> list[Unit]:
        known = [verdict["reward"] for verdict in verdicts.values() if verdict]
        lowest = min(known, default=0.0)
        return [
            Unit(name, item.style, name, verdict["reward"] if (verdict := verdicts[name]) else lowest)
            for name, (_, item) in self._asked.items()
            if name in verdicts
        ]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        """Means by style, and over all pictures; for HPSv2 the mean of the styles, and deviations of its groups."""
        units = self.units(verdicts)
        styles, values = [unit.category for unit in units], [unit.value for unit in units]
        if self.name != "hpsv2":
            table = score_table(self.label, contender, styles, values)
            details = {"overall_is": "the mean over all pictures, on the scale of the reward model."}
            return ScoreTable(self.label, contender, mean_score(values), table.categories, details)
        deviations: dict[str, Any] = {
            "overall_is": "the mean of the styles: 100 times the cosine of picture and prompt.",
            "deviation_of_groups": {
                style: deviation_of_groups([unit.value for unit in units if unit.category == style])
                for style in dict.fromkeys(styles)
            },
        }
        return score_table(self.label, contender, styles, values, details=deviations)

    def places(self) -> dict[str, Place]:
        """HPSv2's ``<style>/00000.jpg``; of the others PNG files of such names."""
        suffix = "jpg" if self.name == "hpsv2" else "png"
        return {name: Place(f"{name}.{suffix}") for name in self._asked}

    def companions(self) -> dict[str, str]:
        """The prompts by file, where the scorer has no list of its own."""
        if self.name == "hpsv2":
            return {}
        rows = [{"image": f"{name}.png", "prompt": item.prompt} for name, (_, item) in self._asked.items()]
        return {"prompts.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)}


def deviation_of_groups(values: Sequence[float]) -> float | None:
    """The deviation (of the population) of the means of every 80 pictures; None where they are not whole groups."""
    if not values or len(values) % GROUP:
        return None
    return float(np.std([np.mean(values[start : start + GROUP]) for start in range(0, len(values), GROUP)]))


def preference_task(
    name: Preference,
    prompts: str | Path,
    *,
    examiner: RewardModel | None = None,
    num_per_category: int | None = None,
    seed: int = 0,
) -> Preferences:
    """
    Args:
        num_per_category: only the first prompts of each style.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is wrong.
    """
    read = read_styles if name == "hpsv2" else read_plain
    chosen = [item for item in read(prompts) if num_per_category is None or item.index < num_per_category]
    source = {"prompts": source_revision(prompts), "num_per_category": num_per_category}
    return Preferences(name=name, prompts=tuple(chosen), examiner=examiner, seed=seed, source=source)
