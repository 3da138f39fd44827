"""Which population FD-loss should keep: the batch alone, moving averages and queues of growing windows.

First the bundled model becomes a one-step model (``fd_loss:tiny``, longer). From there every population trains with a
small learning rate and batches smaller than the features are wide, as in figure 4 of FD-loss (arXiv 2604.28190), in one
space; another is held out. Prints FDr by population, mean and range over seeds, and writes ``populations.json`` and
``populations.png``. A run that is there is not trained again, so the command goes on where it was stopped.

    python benchmarks/fd_populations.py --out runs/populations
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.methods.fd_loss import BatchOnlyConfig, FDLossConfig, MovingAverageConfig, QueueConfig
from diptych.train.presets import load_preset
from diptych.train.recipe import Recipe
from diptych.train.serialization import to_json

POPULATIONS = {
    "batch alone": (1, BatchOnlyConfig()),
    "average 0.9": (10, MovingAverageConfig(decay=0.9)),
    "average 0.99": (100, MovingAverageConfig(decay=0.99)),
    "average 0.999": (1000, MovingAverageConfig(decay=0.999)),
    "queue of 10 batches": (10, QueueConfig(size=320)),
    "queue of 100 batches": (100, QueueConfig(size=3200)),
    "queue of 1000 batches": (1000, QueueConfig(size=32_000)),
}
"""By name: the window in batches, and the config."""


def trained(recipe: Recipe[Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Categories of the contender ``model``, from a run in a process of its own."""
    scores = folder / "scores.json"
    if not scores.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_suffix(".json")
        file.write_text(to_json(recipe), encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "diptych", "train", str(file), "--out", str(folder)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return {table["contender"]: table["categories"] for table in json.loads(scores.read_text())["tables"]}


def first_stage(steps: int) -> Recipe[FDLossConfig]:
    recipe = load_preset("fd_loss:tiny")
    stage = recipe.stages["one_step"]
    model = replace(recipe.model, population=MovingAverageConfig(decay=0.9, final_decay=0.95))
    return replace(recipe, model=model, stages={"one_step": replace(stage, num_steps=steps)})


def second_stage(start: Path, population: Any, seed: int, steps: int, lr: float) -> Recipe[FDLossConfig]:
    recipe = first_stage(steps)
    stage = recipe.stages["one_step"]
    optimizer = replace(stage.optimizer, lr=lr)
    model = replace(recipe.model, start_from=str(start), population=population, num_warm_start=4096)
    source = replace(recipe.data["draw"], seed=100 + seed)
    stages = {"one_step": replace(stage, optimizer=optimizer)}
    return replace(recipe, model=model, seed=seed, data={"draw": source}, stages=stages)


def plot(rows: dict[str, dict[str, Any]], before: dict[str, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(before), figsize=(5 * len(before), 3.4), layout="constrained")
    for axis, space in zip(axes, before, strict=True):
        for kind, marker in (("average", "o"), ("queue", "s"), ("batch", "x")):
            chosen = {name: row for name, row in rows.items() if name.startswith(kind)}
            windows = [POPULATIONS[name][0] for name in chosen]
            means = [sum(row[space]) / len(row[space]) for row in chosen.values()]
            low = [mean - min(row[space]) for mean, row in zip(means, chosen.values(), strict=True)]
            high = [max(row[space]) - mean for mean, row in zip(means, chosen.values(), strict=True)]
            axis.errorbar(windows, means, yerr=[low, high], marker=marker, capsize=3, label=kind)
        axis.axhline(before[space], color="grey", linestyle=":", label="before")
        axis.set(xscale="log", yscale="log", xlabel="window in batches", ylabel="FDr", title=space)
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/populations"))
    parser.add_argument("--first-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, which share the cores")
    options = parser.parse_args()
    start = options.out / "start"
    tables = trained(first_stage(options.first_steps), start)
    for contender, categories in tables.items():
        print(f"{contender:24}", *(f"{space} {score['value']:8.3f}" for space, score in categories.items()), flush=True)
    before = {space: score["value"] for space, score in tables["model"].items()}
    rows: dict[str, dict[str, Any]] = {name: {space: [] for space in before} for name in POPULATIONS}
    runs = [(name, seed) for seed in range(options.seeds) for name in POPULATIONS]

    def run(name: str, seed: int) -> dict[str, Any]:
        recipe = second_stage(start, POPULATIONS[name][1], seed, options.steps, options.lr)
        return trained(recipe, options.out / f"{name.replace(' ', '-')}-{seed}")["model"]

    if options.processes > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.processes))
    with ThreadPoolExecutor(options.processes) as pool:
        for (name, seed), found in zip(runs, pool.map(run, *zip(*runs, strict=True)), strict=True):
            for space in before:
                rows[name][space].append(found[space]["value"])
            shown = (f"{space} {found[space]['value']:8.3f}" for space in before)
            print(f"{name:24}", *shown, f"  seed {seed}", flush=True)
    print(f"\nmean [least, most] of {options.seeds} seeds")
    for name, row in rows.items():
        shown = (f"{space} {sum(v) / len(v):8.3f} [{min(v):.3f}, {max(v):.3f}]" for space, v in row.items())
        print(f"{name:24}", *shown)
    record = {"before": before, "after": rows, "steps": options.steps, "lr": options.lr}
    (options.out / "populations.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    plot(rows, before, options.out / "populations.png")


if __name__ == "__main__":
    main()
