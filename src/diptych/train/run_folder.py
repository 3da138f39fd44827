"""The folder of a run.

``recipe.json``, ``environment.json``, ``manifest.json``, ``metrics.jsonl``, ``samples/``, ``checkpoints/``.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.train.checkpoint import latest_checkpoint
from diptych.train.metrics import MetricsLog
from diptych.train.recipe import Recipe
from diptych.train.serialization import recipe_from_dict, recipe_to_dict, to_json

FREE_TO_CHANGE = ("name", "checkpoints", "logging", "evaluation")
"""Fields of a recipe that decide nothing about the weights: a run may be resumed with others."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def metrics(self) -> MetricsLog:
        return MetricsLog(self.path / "metrics.jsonl")

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file whole or not at all."""
        write_text(self.path / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def add_session(self, environment: Mapping[str, Any]) -> None:
        """Adds a session to ``environment.json``: the first start of the run or a resumption."""
        file = self.path / "environment.json"
        sessions = json.loads(file.read_text(encoding="utf-8"))["sessions"] if file.exists() else []
        self.write_json("environment.json", {"sessions": [*sessions, environment]})


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def open_run(run_dir: Path, recipe: Recipe[Any], resume: bool) -> RunFolder:
    """A run folder that can be written, new or to be resumed; writes ``recipe.json``.

    Raises:
        FileExistsError: a run is already there and ``resume`` is False.
        FileNotFoundError: there is no run to resume.
        NotADirectoryError: the path is a file.
        PermissionError: the folder cannot be written.
    """
    folder = RunFolder(run_dir)
    if run_dir.exists() and not run_dir.is_dir():
        raise NotADirectoryError(f"the run folder {run_dir} is a file. Choose another path.")
    has_run = (run_dir / "recipe.json").exists() or latest_checkpoint(run_dir) is not None
    if has_run and not resume:
        raise FileExistsError(
            f"{run_dir} already holds a run. Continue it with `diptych resume {run_dir}`, delete it, or choose another "
            "folder."
        )
    if resume and not has_run:
        raise FileNotFoundError(f"there is no run to resume in {run_dir}: it has no recipe.json and no checkpoint.")
    check_writable(run_dir)
    write_text(run_dir / "recipe.json", to_json(recipe))
    return folder


def check_writable(folder: Path) -> None:
    """Makes the folder and a file in it, before any work is lost to a folder that cannot be written.

    Raises:
        PermissionError: it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(
            f"the run folder {folder} cannot be written ({error.strerror}). Choose another one, or change its rights."
        ) from error


def recipe_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Every field that differs between two recipes as JSON values, as ``stages.a.num_steps: 50 -> 60``."""
    old, new = _flatten(saved), _flatten(current)

    def shown(fields: Mapping[str, Any], name: str) -> str:
        return json.dumps(fields[name], ensure_ascii=False) if name in fields else "(absent)"

    return [
        f"{name}: {shown(old, name)} -> {shown(new, name)}"
        for name in dict.fromkeys([*old, *new])
        if shown(old, name) != shown(new, name)
    ]


def check_same_recipe(saved: Mapping[str, Any], recipe: Recipe[Any], run_dir: Path) -> None:
    """Refuses to resume with a recipe that would have led to other weights.

    A field that was not there when the recipe was saved counts as having had its default.

    Raises:
        ValueError: a field differs that is not in ``FREE_TO_CHANGE``; the message lists old and new values.
    """
    changes = [
        change
        for change in recipe_changes(_with_defaults(saved), recipe_to_dict(recipe))
        if change.split(":", 1)[0].split(".", 1)[0] not in FREE_TO_CHANGE
    ]
    if changes:
        listed = "\n  ".join(changes)
        raise ValueError(
            f"the recipe differs from the one that {run_dir} was trained with:\n  {listed}\n"
            f"Take these changes back, in the command or in {run_dir / 'recipe.json'}, or start a new run. "
            f"Only {', '.join(FREE_TO_CHANGE)} may change."
        )


def _with_defaults(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved recipe with the fields that recipes have got since; as it is where it cannot be read any more."""
    try:
        return recipe_to_dict(recipe_from_dict(saved))
    except ValueError:
        return saved


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat |= _flatten(item, f"{prefix}.{key}" if prefix else key)
        return flat
    return {prefix: value}
