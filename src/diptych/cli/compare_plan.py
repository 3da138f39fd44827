"""The plan of a comparison: what is asked, kept in ``comparison.json``, and the recipes of its cells."""

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diptych.data.picture_files import file_slug
from diptych.train.budget import Budget, num_examples, within_budget
from diptych.train.recipe import EvaluationConfig, Recipe
from diptych.train.run_folder import recipe_changes, write_text
from diptych.train.serialization import from_json, recipe_to_dict, to_json

PLAN_FILE = "comparison.json"
FORMAT_VERSION = 1
NUM_MEASURED_STEPS = 6
SECONDS_TO_WAIT = 90
"""For processes of a killed comparison, which save and end."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How every cell is scored."""

    tasks: tuple[str, ...]
    num_per_category: int
    num_prompts: int
    """Of the grid and of diversity."""
    num_noises: int
    """Pictures of each of these prompts."""
    features: tuple[str, ...]
    """Representations of diversity and FD, by the names of ``diptych fd``."""
    pictures: tuple[str, ...] = ()
    """Tars of held-out pictures with texts; empty for the built-in world."""
    category: str = ""
    """Key of their metadata; a picture is told apart from others of its category."""
    group: str = ""
    """Key of their metadata; of the pictures of one group and category only the first counts."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Recipes x seeds under one budget."""

    recipes: Mapping[str, Recipe[Any]]
    """By name, as they are written; the budget changes their steps."""
    seeds: tuple[int, ...]
    budget: Budget
    uncounted: tuple[str, ...]
    scoring: Scoring

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "format_version": FORMAT_VERSION,
            "recipes": {name: recipe_to_dict(recipe) for name, recipe in self.recipes.items()},
            "seeds": list(self.seeds),
            "budget": str(self.budget),
            "uncounted": list(self.uncounted),
            "scoring": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.scoring).items()},
        }

    def cell(self, folder: Path, recipe: str, seed: int) -> Path:
        return folder / "cells" / f"{file_slug(recipe)}-{seed}"


def make_plan(
    recipes: Sequence[Recipe[Any]], seeds: Sequence[int], budget: Budget | None, uncounted: Sequence[str],
    scoring: Scoring,
) -> Plan:  # fmt: skip
    """A plan, checked; without a budget that of as many examples as the first recipe has.

    Raises:
        ValueError: recipes of one name, seeds twice, or uncounted stages that no recipe has.
    """
    from diptych.train.nearest import nearest

    names = [recipe.name for recipe in recipes]
    slugs = [file_slug(name) for name in names]
    for index, slug in enumerate(slugs):
        if slug in slugs[:index]:
            raise ValueError(
                f"two recipes are called {names[index]!r}: give each a name of its own, the field `name` of its JSON."
            )
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds names a seed twice: {' '.join(map(str, seeds))}.")
    stages = {stage for recipe in recipes for stage in recipe.stages}
    for name in uncounted:
        if name not in stages:
            raise ValueError(f"--uncounted: no recipe has a stage {name!r}. {nearest(name, sorted(stages))}")
    chosen = budget or Budget("examples", float(num_examples(recipes[0], uncounted)))
    return Plan(
        recipes=dict(zip(names, recipes, strict=True)),
        seeds=tuple(seeds),
        budget=chosen,
        uncounted=tuple(uncounted),
        scoring=scoring,
    )


def check_folder(folder: Path, plan: Plan) -> None:
    """Writes the plan into a folder without cells; in one that has cells, makes sure that they are of this plan.

    Raises:
        ValueError: the folder has another plan; the message lists old and new values.
    """
    file = folder / PLAN_FILE
    given = json.loads(json.dumps(plan.to_dict()))
    if not file.exists() or not (folder / "cells").exists():
        shutil.rmtree(folder / "measured", ignore_errors=True)
        write_text(file, json.dumps(given, indent=2, ensure_ascii=False) + "\n")
        return
    changes = recipe_changes(json.loads(file.read_text(encoding="utf-8")), given)
    if changes:
        shown = "\n  ".join(changes[:8]) + (f"\n  and {len(changes) - 8} more" if len(changes) > 8 else "")
        raise ValueError(
            f"{folder} holds another comparison:\n  {shown}\n"
            "Take these changes back to go on with it, or choose another folder with --out."
        )


def read_scoring(folder: Path) -> Scoring:
    """How the cells of a comparison are scored."""
    entry = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))["scoring"]
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Scoring(**values)


def measuring_recipe(recipe: Recipe[Any], seed: int, num_steps: int = NUM_MEASURED_STEPS) -> Recipe[Any]:
    """A few steps of every stage, to learn what one costs."""
    stages = {name: replace(stage, num_steps=num_steps) for name, stage in recipe.stages.items()}
    quiet = replace(recipe.logging, every_steps=1, sample_every=-1, trackers=(), cost=True)
    return replace(recipe, stages=stages, seed=seed, evaluation=EvaluationConfig(), logging=quiet)


def cell_recipe(
    recipe: Recipe[Any], seed: int, plan: Plan, step_costs: Mapping[str, float]
) -> Recipe[Any]:  # fmt: skip
    """What a cell trains: the recipe within the budget, with the seed, its cost logged, and understanding scored after
    every stage. A method with benchmarks of its own keeps what its recipe scores."""
    scaled = within_budget(recipe, plan.budget, step_costs, plan.uncounted)
    evaluation = recipe.evaluation
    if not has_own_scorers(recipe):
        asks = "questions" in plan.scoring.tasks and learns_text(recipe) and not plan.scoring.pictures
        evaluation = EvaluationConfig(
            scorers=("questions",) if asks else (),
            num_prompts=plan.scoring.num_per_category,
            every_stage=True,
            seed=plan.scoring.seed,
        )
    logging = replace(recipe.logging, cost=True)
    return replace(scaled, seed=seed, evaluation=evaluation, logging=logging)


def has_own_scorers(recipe: Recipe[Any]) -> bool:
    """Whether the method is scored on benchmarks of its own, as one whose model is no unified one."""
    return hasattr(recipe.model, "scorers")


def learns_text(recipe: Recipe[Any]) -> bool:
    """Whether any stage learns to answer."""
    return any(stage.objectives.get("text", 0) > 0 for stage in recipe.stages.values())


def write_cell_recipe(folder: Path, recipe: Recipe[Any]) -> None:
    """Makes a cell's folder; a recipe that is there stays, since the run was begun with it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "recipe.json").exists():
        write_text(folder / "recipe.json", to_json(recipe))


def read_cell_recipe(folder: Path) -> Recipe[Any]:
    return from_json((folder / "recipe.json").read_text(encoding="utf-8"))


@contextmanager
def sole_use(folder: Path, seconds: float = SECONDS_TO_WAIT) -> Iterator[int]:
    """The folder for this comparison and the processes that inherit the descriptor; they hold it until they end.

    Raises:
        ValueError: another comparison is at work there.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        deadline, is_told = time.monotonic() + seconds, False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"another comparison is at work in {folder}. Wait for it, or choose another folder with --out."
                    ) from None
                if not is_told:
                    print(f"{folder} is in use: waiting for up to {seconds:.0f} s", file=sys.stderr)
                    is_told = True
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)
