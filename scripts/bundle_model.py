"""Puts the model of a finished run into the package: scores it, writes its card, stores it in float16.

python scripts/bundle_model.py RUN [--name diptych-scenes] [--num-per-category 300]
"""

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import diptych
from diptych.evals.scenes import SCENE_TASKS, evaluate_scenes
from diptych.unified import UnifiedModel
from diptych.unified.folder import BUNDLED, load_part, save_model


def summary(run: Path, split_scores: dict[str, object], command: str, note: str) -> dict[str, object]:
    """What the card says, from the run's own records."""
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = max(int(line["step"]) for line in lines)
    minutes = max(float(line["time"]) for line in lines) / 60
    examples = sum(stage["num_steps"] * stage["batch_size"] for stage in recipe["stages"].values())
    return {
        "description": (
            "A small BLIP3-o trained by the diptych project on its built-in world of coloured shapes. It draws "
            "pictures of 64 pixels from prompts such as 'a red circle above a blue square', edits them and "
            "answers questions about them. Everything it knows is synthetic."
        ),
        "licence": "Apache-2.0",
        "training": {
            "command": command,
            "recipe": recipe["name"],
            "seed": recipe["seed"],
            "steps": steps,
            "examples": examples,
            "minutes": round(minutes),
            "machine": f"{torch.get_num_threads()} threads, {platform.machine()}, no GPU",
            "date": datetime.now(UTC).date().isoformat(),
            **({"note": note} if note else {}),
        },
        "data": "The training split of the built-in world (diptych.scenes); no picture or text from elsewhere.",
        "scores": split_scores,
        "limits": "Knows eight shapes, eight colours, three sizes and up to six objects, and nothing else.",
    }


def take_decoder(model: UnifiedModel, other: Any) -> None:
    """The autoencoder ``other`` in place of the model's, if both have the same latents.

    Backbone and denoiser learn from latents alone, so a decoder may be trained beside them.
    """
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        if not torch.equal(model.autoencoder.encode(noise), other.encode(noise)):
            raise SystemExit("the autoencoder has another encoder than the model was trained with.")
    model.autoencoder = other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="diptych-scenes")
    parser.add_argument(
        "--command",
        default="diptych train blip3o:features --out runs/features; diptych train blip3o:decoder --out runs/decoder; "
        "diptych train blip3o:sharpen --out runs/sharpen; "
        "diptych train blip3o:small --model.start-from.autoencoder runs/sharpen",
    )
    parser.add_argument(
        "--autoencoder", type=Path, help="a run whose decoder is taken; its encoder must be the model's own"
    )
    parser.add_argument("--note", default="", help="what of the training this run's records do not tell")
    parser.add_argument("--num-per-category", type=int, default=300)
    arguments = parser.parse_args()

    model = diptych.load(arguments.run, device="cpu")
    if arguments.autoencoder is not None:
        take_decoder(model, load_part(arguments.autoencoder, "autoencoder"))
    scores: dict[str, object] = {}
    for split in ("test", "novel"):
        tasks = tuple(SCENE_TASKS) if split == "test" else ("geneval", "questions")
        result = evaluate_scenes(model, tasks, arguments.num_per_category, split=split, references=False)  # type: ignore[arg-type]
        for table in result.tables:
            row = {name: f"{s.value:.3f} [{s.low:.3f}, {s.high:.3f}]" for name, s in table.categories.items()}
            overall = table.overall
            row["overall"] = f"{overall.value:.3f} [{overall.low:.3f}, {overall.high:.3f}]"
            scores[f"{table.benchmark} ({split}, {arguments.num_per_category} a category)"] = row
            print(split, table.benchmark, row["overall"], flush=True)
    model.card = {"name": arguments.name, **summary(arguments.run, scores, arguments.command, arguments.note)}
    folder = BUNDLED / arguments.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, folder, torch.float16)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
