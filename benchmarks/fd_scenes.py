"""FD-loss (arXiv 2604.28190) at small scale, on the built-in world: what the paper says of it, measured.

``spaces`` makes the bundled model a one-step model by the distance in one space, in two and in three, each of a network
trained for another task (what there is, where something is, an autoencoder); two more are always held out.
``populations`` goes on from a longer run in three spaces with a small learning rate, in one space, and batches smaller
than its features are wide: the batch alone, moving averages and queues of growing windows (the paper's figure 4).
``prompts`` draws the GenEval twin before and after, with the distance of pictures alone (marginal, the paper's) and of
pictures together with a vector of the prompt (joint).

Every part trains with several seeds, prints mean and range, and writes ``PART.json`` (``populations.svg`` too). What is
there is not computed again, so the command goes on where it was stopped.

    OMP_NUM_THREADS=1 python benchmarks/fd_scenes.py --processes 2 [--out runs/fd-scenes] [--parts spaces populations]
"""

import argparse
import json
import multiprocessing
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diptych
from diptych.evals.scenes import evaluate_scenes
from diptych.interop.feature_networks import FeatureNetwork
from diptych.methods.fd_loss import (
    BatchOnlyConfig,
    FDLossConfig,
    FDPostTraining,
    MovingAverageConfig,
    QueueConfig,
    drawn_images,
    one_step_images,
)
from diptych.methods.training import build_task
from diptych.train.loop import train
from diptych.train.presets import load_preset
from diptych.train.recipe import EvaluationConfig, Recipe

PARTS = ("spaces", "populations", "prompts")
NETWORKS = {
    "objects": FeatureNetwork("scenes-objects"),
    "layout": FeatureNetwork("scenes-layout"),
    "autoencoder": FeatureNetwork("scenes-autoencoder"),
    "captions": FeatureNetwork("scenes"),
    "pixels": FeatureNetwork("pixels"),
}
"""By name; the first three are trained in, the others are held out always."""
SPACES: tuple[tuple[str, ...], ...] = (
    ("objects",),
    ("layout",),
    ("autoencoder",),
    ("objects", "layout"),
    ("objects", "layout", "autoencoder"),
)
BATCH = 48
"""Fewer than the 64 features of the first three."""
POPULATION_BATCH = 16
"""Fewer still, so that a batch alone says little of a population."""
POPULATIONS = {
    "batch alone": BatchOnlyConfig(),
    "average 0.9": MovingAverageConfig(decay=0.9),
    "average 0.99": MovingAverageConfig(decay=0.99),
    "average 0.999": MovingAverageConfig(decay=0.999),
    "queue of 10 batches": QueueConfig(size=10 * POPULATION_BATCH),
    "queue of 100 batches": QueueConfig(size=100 * POPULATION_BATCH),
    "queue of 1000 batches": QueueConfig(size=1000 * POPULATION_BATCH),
}
JOINT_WIDTHS = {"marginal": 0, "joint": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fd-scenes"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="of a run of spaces and prompts")
    parser.add_argument("--start-steps", type=int, default=400, help="of the run that populations go on from")
    parser.add_argument("--population-steps", type=int, default=400, help="of a run of populations")
    parser.add_argument("--lr", type=float, default=1e-4, help="of a run of populations")
    parser.add_argument("--images", type=int, default=2000, help="pictures of a score")
    parser.add_argument("--prompts", type=int, default=60, help="of each of the twin's six categories")
    parser.add_argument(
        "--processes", type=int, default=1, help="runs at a time; set OMP_NUM_THREADS to share the cores"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    work = {"spaces": spaces, "populations": populations, "prompts": prompts}
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for part in PARTS:
            if part in options.parts:
                work[part](options, pool)


# -- one run -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A training, and what it is compared by."""

    title: str
    recipe: Recipe[FDLossConfig]
    folder: Path
    num_images: int
    num_prompts: int = 0
    """Of each category of the twin; 0 leaves it out."""


def run_of(options: argparse.Namespace, part: str, title: str, seed: int, trained: Sequence[str], steps: int) -> Run:
    """``fd_loss:tiny`` in the spaces named, all others held out; slower, with a shorter window and more images."""
    base = load_preset("fd_loss:tiny")
    stage = base.stages["one_step"]
    stage = replace(stage, optimizer=replace(stage.optimizer, lr=1e-4), num_steps=steps, batch_size=BATCH)
    recipe = replace(
        base,
        model=replace(
            base.model,
            representations={name: NETWORKS[name] for name in trained},
            held_out={name: network for name, network in NETWORKS.items() if name not in trained},
            num_reference=10_000,
            num_warm_start=1024,
            population=MovingAverageConfig(decay=0.8),
        ),
        seed=seed,
        data={"draw": replace(base.data["draw"], seed=100 + seed)},
        stages={"one_step": stage},
        evaluation=EvaluationConfig(scorers=()),
    )
    return Run(title, recipe, options.out / part / f"{title.replace(' ', '-')}-{seed}", options.images)


def outcome(run: Run) -> dict[str, Any]:
    """FDr by space, loss and distances of the training, and shares of the twin; trained if it is not there yet."""
    record = run.folder / "outcome.json"
    if not record.exists():
        share_moments(run)
        task = build_task(run.recipe, run.folder)
        train(task, run.recipe, run.folder, resume=(run.folder / "recipe.json").exists())
        model = diptych.load(run.folder)
        found: dict[str, Any] = {"title": run.title, "FDr": ratios(task.companion, model, run.num_images)}
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        lines = [line for line in lines if line["event"] == "train"]
        found["loss"] = [line["loss"] for line in lines]
        found["fd"] = {name: [line[f"fd/{name}"] for line in lines] for name in run.recipe.model.representations}
        if run.num_prompts:
            found["twin"] = twin(model, run.num_prompts)
        record.write_text(json.dumps(found) + "\n", encoding="utf-8")
    outcome: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return outcome


def share_moments(run: Run) -> None:
    """Moments of the real images, which are the same for all, from where `before` has put them."""
    for folder in sorted(run.folder.parent.parent.glob("*/before/fd")):
        shutil.copytree(folder, run.folder / "fd", dirs_exist_ok=True)


def ratios(companion: Any, model: Any, num_images: int) -> dict[str, float]:
    """FDr of one step by space."""
    assert isinstance(companion, FDPostTraining)
    (table,) = companion.tables({"model": partial(one_step_images, model)}, num_images)
    return {name: score.value for name, score in table.categories.items()}


def before(run: Run) -> dict[str, dict[str, Any]]:
    """FDr and the twin of the model that a run starts from, in one step and in its own number, without thoughts."""
    record = run.folder.parent / "before.json"
    if not record.exists():
        task = build_task(run.recipe, run.folder.parent / "before")
        assert isinstance(task.companion, FDPostTraining)
        model = diptych.load(run.recipe.model.start_from)
        many = f"before, {model.draw_settings.num_steps} steps"
        makers = {"before, 1 step": partial(one_step_images, model), many: partial(drawn_images, model)}
        tables = task.companion.tables(makers, run.num_images)
        found: dict[str, dict[str, Any]] = {
            table.contender: {"FDr": {name: score.value for name, score in table.categories.items()}}
            for table in tables
        }
        for name in found if run.num_prompts else ():
            settings = replace(model.draw_settings, think=False)
            if name != many:
                settings = replace(settings, num_steps=1, guidance_scale=1.0)
            model.draw_settings, kept = settings, model.draw_settings
            found[name]["twin"] = twin(model, run.num_prompts)
            model.draw_settings = kept
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(found) + "\n", encoding="utf-8")
    values: dict[str, dict[str, Any]] = json.loads(record.read_text(encoding="utf-8"))
    return values


def twin(model: Any, num_prompts: int) -> dict[str, float]:
    """Shares of the GenEval twin's prompts that are drawn right, by category and over all."""
    table = evaluate_scenes(model, ("geneval",), num_prompts, references=False).tables[0]
    return {name: score.value for name, score in table.categories.items()} | {"twin": table.overall.value}


def outcomes(pool: ProcessPoolExecutor, runs: Iterable[Run]) -> dict[str, list[dict[str, Any]]]:
    """By title, one of each seed, told as they come."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in pool.map(outcome, runs):
        found.setdefault(one["title"], []).append(one)
        print(f"{one['title']}:", *(f"{name} {value:.2f}" for name, value in one["FDr"].items()), flush=True)
    return found


def table(title: str, rows: Mapping[str, Sequence[Mapping[str, float]]], bold: Mapping[str, Sequence[str]]) -> None:
    """Means over seeds, with the range where there are several; what was trained in is in bold."""
    columns = list(next(iter(rows.values()))[0])
    print(f"\n| {title} | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name, runs in rows.items():
        cells = []
        for column in columns:
            values = [run[column] for run in runs]
            mean = f"{sum(values) / len(values):.2f}"
            mean = f"**{mean}**" if column in bold.get(name, ()) else mean
            cells.append(f"{mean} [{min(values):.2f}, {max(values):.2f}]" if len(values) > 1 else mean)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def with_mean(ratios: Mapping[str, float]) -> dict[str, float]:
    return {**ratios, "mean": sum(ratios.values()) / len(ratios)}


# -- the parts ---------------------------------------------------------------------------------------------------------


def spaces(options: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    runs = [
        run_of(options, "spaces", " + ".join(trained), seed, trained, options.steps)
        for seed in range(options.seeds)
        for trained in SPACES
    ]
    started = pool.submit(before, runs[0]).result()
    found = outcomes(pool, runs)
    rows = {name: [with_mean(row["FDr"])] for name, row in started.items()}
    rows |= {name: [with_mean(one["FDr"]) for one in ones] for name, ones in found.items()}
    table("FDr, trained in", rows, {" + ".join(trained): trained for trained in SPACES})
    for name, ones in found.items():
        losses = [loss for one in ones for loss in one["loss"]]
        falls = [f"{space} by {values[0] / values[-1]:.1f}" for space, values in ones[0]["fd"].items()]
        print(f"{name}: loss {min(losses):.3f} to {max(losses):.3f}, while distances fell: {', '.join(falls)}")
    record = {"before": started, "after": found}
    (options.out / "spaces.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def populations(options: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    first = run_of(options, "populations", "start", 0, SPACES[-1], options.start_steps)
    growing = MovingAverageConfig(decay=0.8, final_decay=0.95)
    first = replace(first, recipe=replace(first.recipe, model=replace(first.recipe.model, population=growing)))
    start = pool.submit(outcome, first).result()["FDr"]
    runs = []
    for seed in range(options.seeds):
        for title, population in POPULATIONS.items():
            run = run_of(options, "populations", title, seed, SPACES[0], options.population_steps)
            stage = run.recipe.stages["one_step"]
            model = replace(run.recipe.model, start_from=str(first.folder), population=population, num_warm_start=2048)
            stage = replace(stage, batch_size=POPULATION_BATCH, optimizer=replace(stage.optimizer, lr=options.lr))
            runs.append(replace(run, recipe=replace(run.recipe, model=model, stages={"one_step": stage})))
    found = outcomes(pool, runs)
    rows = {"before": [with_mean(start)]}
    rows |= {name: [with_mean(one["FDr"]) for one in ones] for name, ones in found.items()}
    table("FDr, population", rows, dict.fromkeys(POPULATIONS, SPACES[0]))
    record = {"before": start, "after": found}
    (options.out / "populations.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    plot(found, start, options.out / "populations.svg")


def window(population: Any) -> float:
    """In batches."""
    if isinstance(population, MovingAverageConfig):
        return 1 / (1 - population.decay)
    return population.size / POPULATION_BATCH if isinstance(population, QueueConfig) else 1


def plot(found: Mapping[str, Sequence[Mapping[str, Any]]], start: Mapping[str, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(NETWORKS)[:3]
    figure, axes = pyplot.subplots(1, len(names), figsize=(3.6 * len(names), 3.2), layout="constrained")
    for axis, space in zip(axes, names, strict=True):
        for kind, marker in (("average", "o"), ("queue", "s"), ("batch", "x")):
            chosen = {title: rows for title, rows in found.items() if title.startswith(kind)}
            values = [[row["FDr"][space] for row in rows] for rows in chosen.values()]
            means = [sum(row) / len(row) for row in values]
            error = [[mean - min(row) for mean, row in zip(means, values, strict=True)],
                     [max(row) - mean for mean, row in zip(means, values, strict=True)]]  # fmt: skip
            windows = [window(POPULATIONS[title]) for title in chosen]
            axis.errorbar(windows, means, yerr=error, marker=marker, capsize=3, label=kind)
        axis.axhline(start[space], color="grey", linestyle=":", label="before")
        title = f"{space} ({'trained in' if space in SPACES[0] else 'held out'})"
        axis.set(xscale="log", yscale="log", xlabel="window in batches", ylabel="FDr", title=title)
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})


def prompts(options: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    runs = []
    for seed in range(options.seeds):
        for title, width in JOINT_WIDTHS.items():
            run = run_of(options, "prompts", title, seed, SPACES[3], options.steps)
            model = replace(run.recipe.model, joint_width=width)
            runs.append(replace(run, recipe=replace(run.recipe, model=model), num_prompts=options.prompts))
    started = pool.submit(before, runs[0]).result()
    found = outcomes(pool, runs)
    all_rows = {name: [row] for name, row in started.items()} | found
    table("twin", {name: [row["twin"] for row in rows] for name, rows in all_rows.items()}, {})
    ratios = {name: [with_mean(row["FDr"]) for row in rows] for name, rows in all_rows.items()}
    table("FDr", ratios, dict.fromkeys(JOINT_WIDTHS, SPACES[3]))
    record = {"before": started, "after": found}
    (options.out / "prompts.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
