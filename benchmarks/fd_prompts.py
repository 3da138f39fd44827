"""Whether FD-loss keeps pictures to their prompts: the GenEval twin before and after, with the distance of pictures
alone (marginal, the paper's) and of pictures together with a vector of the prompt (joint).

Every run is ``fd_loss:tiny`` with another seed and ``joint_width``; all draw the same prompts with the same noise,
without thoughts. Prints mean and range over seeds and writes ``prompts.json``. A run or score that is there is not
computed again, so the command goes on where it was stopped.

    python benchmarks/fd_prompts.py --out runs/fd-prompts
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diptych
from diptych.evals.scenes import evaluate_scenes
from diptych.methods.fd_loss import FDLossConfig
from diptych.train.presets import load_preset
from diptych.train.recipe import Recipe
from diptych.train.serialization import to_json
from diptych.unified import UnifiedModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fd-prompts"))
    parser.add_argument("--widths", nargs="+", type=int, default=[0, 16], help="of the prompt's vector; 0 is marginal")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="training steps of a run")
    parser.add_argument("--prompts", type=int, default=60, help="of each of the twin's six categories")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = load_preset("fd_loss:tiny").model.start_from
    found: dict[str, list[dict[str, float]]] = {}
    for steps in (1, None):
        model = diptych.load(start)
        settings = replace(model.draw_settings, think=False)
        if steps is not None:
            settings = replace(settings, num_steps=steps, guidance_scale=1.0)
        model.draw_settings = settings
        name = f"before, {settings.num_steps} step{'s' if settings.num_steps > 1 else ''}"
        found[name] = [twin(model, arguments.out / f"before-{settings.num_steps}.json", arguments.prompts)]
        show(name, found[name])
    for width in arguments.widths:
        name = f"after, joint of width {width}" if width else "after, marginal"
        for seed in range(arguments.seeds):
            folder = arguments.out / f"width-{width}-seed-{seed}"
            ratios = trained(recipe(width, seed, arguments.steps), folder, found)
            own = twin(diptych.load(folder), folder.with_suffix(".twin.json"), arguments.prompts)
            found.setdefault(name, []).append(own | ratios)
        show(name, found[name])
    (arguments.out / "prompts.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def recipe(width: int, seed: int, steps: int) -> Recipe[FDLossConfig]:
    base = load_preset("fd_loss:tiny")
    return replace(
        base,
        model=replace(base.model, joint_width=width),
        seed=seed,
        data={"draw": replace(base.data["draw"], seed=100 + seed)},
        stages={"one_step": replace(base.stages["one_step"], num_steps=steps)},
    )


def trained(run: Recipe[FDLossConfig], folder: Path, found: Mapping[str, list[dict[str, float]]]) -> dict[str, float]:
    """FDr by space of a run in a process of its own, which also tells those of the model it started from."""
    scores = folder / "scores.json"
    if not scores.exists():
        file = folder.with_suffix(".json")
        file.write_text(to_json(run), encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "diptych", "train", str(file), "--out", str(folder)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    tables = json.loads(scores.read_text(encoding="utf-8"))["tables"]
    ratios = {
        table["contender"]: {f"FDr {space}": score["value"] for space, score in table["categories"].items()}
        for table in tables
    }
    for contender, values in ratios.items():
        if contender in found:
            found[contender][0].update(values)
    return ratios["model"]


def twin(model: UnifiedModel, file: Path, num_prompts: int) -> dict[str, float]:
    """Shares of the GenEval twin's prompts that are drawn right, by category and over all."""
    if not file.exists():
        table = evaluate_scenes(model, ("geneval",), num_prompts, references=False).tables[0]
        shares = {name: score.value for name, score in table.categories.items()} | {"twin": table.overall.value}
        file.write_text(json.dumps(shares) + "\n", encoding="utf-8")
    values: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return values


def show(name: str, runs: list[dict[str, Any]]) -> None:
    """A line: mean over seeds, and the range where there are several."""
    cells = []
    for key in runs[0]:
        values = [run[key] for run in runs]
        spread = f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else ""
        cells.append(f"{key} {sum(values) / len(values):.3f}{spread}")
    print(f"{name}: {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
