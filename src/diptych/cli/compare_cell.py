"""One cell of a comparison in a process of its own: ``python -m diptych.cli.compare_cell train|measure FOLDER DEVICE``.

``train`` trains the folder's ``recipe.json``, or goes on with it, scores the model and writes ``cell.json``;
``measure`` writes ``costs.json``, what a step of each stage costs. Both files are written whole or not at all.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.compare_pictures import (
    MIN_FOR_DISTANCE,
    load_networks,
    picture_distances,
    picture_diversity,
    save_grid,
    score_on_pictures,
)
from diptych.cli.compare_plan import Scoring, has_own_scorers, read_cell_recipe, read_scoring
from diptych.cli.demo import learnt_tasks
from diptych.cli.main import INTERRUPTED, USER_ERROR, explain
from diptych.cli.scene_scores import NEEDS, Scored, score_model
from diptych.cli.train import train_recipe
from diptych.evals.comparison import CELL_FILE, FORMAT_VERSION
from diptych.evals.run_cost import read_cost, seconds_per_step
from diptych.train.run_folder import write_text

if TYPE_CHECKING:
    from diptych.frechet.features import Features
    from diptych.scenes.scores import Score, ScoreTable
    from diptych.train.recipe import Recipe
    from diptych.unified import UnifiedModel

COSTS_FILE = "costs.json"
SECONDS_BETWEEN_LOOKS = 0.5
REFERENCE_SEED, VALIDATION_SEED = 101, 202
"""Of the real pictures of the scored prompts: the reference of FD, and those whose distance from it is the unit."""


def main(words: Sequence[str]) -> int:
    """Runs one cell; an exit code as that of ``diptych``."""
    mode, folder, device = words
    end_with_parent(os.getppid())
    try:
        return measure(Path(folder), device) if mode == "measure" else train_and_score(Path(folder), device)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"diptych: {message}", file=sys.stderr)
        return USER_ERROR


def end_with_parent(parent: int) -> None:
    """Once the comparison is gone, however it went, this process is told to save and end."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def measure(folder: Path, device: str) -> int:
    """FLOPs and seconds of a step of each stage, by a few steps of it; the median, without the first."""
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    if not train_recipe(read_cell_recipe(folder), run_dir, device).finished:
        return INTERRUPTED
    seconds = seconds_per_step(run_dir)
    flops = {stage.name: stage.flops_per_step for stage in read_cost(run_dir).stages}
    costs = {name: {"flops": flops[name], "minutes": each / 60} for name, each in seconds.items()}
    write_text(folder / COSTS_FILE, json.dumps(costs, indent=2) + "\n")
    shutil.rmtree(run_dir)
    return 0


def train_and_score(folder: Path, device: str) -> int:
    """Trains what is left to train, scores, and writes the cell's file."""
    from diptych.evals.scores_file import read_scores
    from diptych.loading import load
    from diptych.unified import UnifiedModel

    recipe, scoring = read_cell_recipe(folder), read_scoring(folder.parents[1])
    run_dir = folder / "run"
    result = train_recipe(recipe, run_dir, device, resume=(run_dir / "recipe.json").exists())
    if not result.finished:
        return INTERRUPTED
    started = time.perf_counter()
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "cost": read_cost(run_dir).to_dict(),
        "tables": [],
        "stage_scores": {},
        "diversity": {},
        "diversity_of_real": {},
        "distances": {},
        "prompts": [],
        "num_noises": 0,
    }
    if has_own_scorers(recipe):
        tables = read_scores(run_dir / "scores.json") if (run_dir / "scores.json").exists() else []
        record["tables"] = [_named(table, recipe.name).to_dict() for table in tables]
    else:
        model = load(run_dir, device=device)
        assert isinstance(model, UnifiedModel)
        score = score_on_pictures if scoring.pictures else score_unified
        record |= score(model, recipe, scoring, folder)
    record["scoring_seconds"] = round(time.perf_counter() - started, 1)
    record["device"] = _device_name(device)
    write_text(folder / CELL_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return 0


def score_unified(model: "UnifiedModel", recipe: "Recipe[Any]", scoring: Scoring, folder: Path) -> dict[str, Any]:
    """Benchmarks, understanding after each stage, and what the pictures for the grid and of the benchmark say."""
    stage_tables = _stage_tables(folder / "run", recipe)
    tasks = [task for task in learnt_tasks(recipe, scoring.tasks) if NEEDS[task] in model.capabilities]
    if stage_tables:
        tasks.remove("questions")  # the run has scored them at its end
    scored = score_model(
        model, tasks, num_per_category=scoring.num_per_category, seed=scoring.seed, contender=recipe.name
    )
    last = list(recipe.stages)[-1]
    record: dict[str, Any] = {
        "tables": [table.to_dict() for table in (*scored.tables, *stage_tables.get(last, ()))],
        "stage_scores": _overall_by_stage(stage_tables, recipe.name),
    }
    if "text_to_image" in model.capabilities:
        networks = load_networks(scoring.features, model)
        record |= draw_for_grid(model, recipe, scoring, folder, networks)
        record["distances"] = distances(scored, scoring, model.images.size, networks)
    return record


def draw_for_grid(
    model: "UnifiedModel", recipe: "Recipe[Any]", scoring: Scoring, folder: Path, networks: "dict[str, Features]"
) -> dict[str, Any]:
    """The pictures of the grid, and how much those of one prompt differ, beside real ones that fit it."""
    import numpy as np

    from diptych.evals.scenes_report import evenly
    from diptych.scenes.draw import draw
    from diptych.scenes.twin import oracle_scenes, twin_prompts

    num = scoring.num_noises
    prompts = evenly(twin_prompts("test", -(-scoring.num_prompts // 6), scoring.seed), scoring.num_prompts)
    real = [draw(oracle_scenes([prompt], 1000 * i + k)[0], model.images.size)
            for i, prompt in enumerate(prompts) for k in range(num)]  # fmt: skip
    return {
        **save_grid(model, recipe, num, [str(prompt["prompt"]) for prompt in prompts], folder, networks),
        "diversity_of_real": picture_diversity(np.stack(real), networks, num),
    }


def distances(
    scored: Scored, scoring: Scoring, size: tuple[int, int], networks: "dict[str, Features]"
) -> dict[str, dict[str, Any]]:
    """FD of the benchmark's drawings from real pictures of the same prompts, and FDr; none of too few drawings."""
    import numpy as np

    from diptych.scenes.draw import draw
    from diptych.scenes.twin import oracle_scenes, twin_prompts

    drawn = [sample.drawn for sample in scored.samples if sample.benchmark == "geneval" and sample.drawn is not None]
    if len(drawn) < MIN_FOR_DISTANCE:
        return {}
    prompts = twin_prompts("test", scoring.num_per_category, scoring.seed)
    reference, validation = (
        np.stack([draw(scene, size) for scene in oracle_scenes(prompts, seed)])
        for seed in (REFERENCE_SEED, VALIDATION_SEED)
    )
    return picture_distances(np.stack(drawn), reference, validation, networks)


def _stage_tables(run_dir: Path, recipe: "Recipe[Any]") -> "dict[str, list[ScoreTable]]":
    """What the run scored after each stage, in the order of the stages."""
    from diptych.evals.scores_file import read_scores

    files = {name: run_dir / "scores" / f"{name}.json" for name in recipe.stages}
    return {
        name: [_named(table, recipe.name) for table in read_scores(file)]
        for name, file in files.items()
        if file.exists()
    }


def _overall_by_stage(tables: "dict[str, list[ScoreTable]]", contender: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for stage, own in tables.items():
        for table in own:
            if table.contender == contender:
                score: Score = table.overall
                found.setdefault(table.benchmark, {})[stage] = asdict(score)
    return found


def _named(table: "ScoreTable", name: str) -> "ScoreTable":
    """A run calls what it trains "model"."""
    return replace(table, contender=name) if table.contender == "model" else table


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "auto" and torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
