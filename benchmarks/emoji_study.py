"""The design study of docs/compare.md on real pictures: captioned emoji, in features trained with captions (which stand
for CLIP's) and in the latents of a released tiny autoencoder (the VAE).

A contrastive encoder is trained on pictures and captions of the training split, then a decoder of its features; the six
recipes are those of `study:*` with these data and spaces, and ``diptych compare`` trains and scores them. Commands are
printed, so that each can be typed by hand; what is done is kept, and a second call goes on from there.

Data: a folder with ``images/emoji``, ``images/nlvr``, ``models/taef2`` and ``models/imagenet`` (docs/real-data.md).

    python benchmarks/emoji_study.py --data DATA [--out runs/emoji-study] [--seeds 0] [--examples 24000] [--processes 2]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from real_data import diptych_command, prepare

from diptych.data.sources import WebDatasetSource
from diptych.interop.taef2 import Taef2Config
from diptych.methods.blip3o import Blip3oConfig
from diptych.recipes import study
from diptych.train.part_configs import FeaturesConfig, SavedPartConfig, SpaceEncoderConfig, TokenizerConfig
from diptych.train.presets import presets_of
from diptych.train.recipe import Recipe
from diptych.train.serialization import to_json

TARS = "diptych.data.sources:WebDatasetSource"
NETWORK = "mobilenet_v2_100.graph.json"
CLIP_STEPS, SPACE_STEPS = 300, 500
OPTIMIZER = {"lr": 2e-3, "warmup_steps": 30, "schedule": "wsd", "decay_fraction": 0.4, "weight_decay": 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--examples", type=int, default=24_000, help="of each of the six runs")
    parser.add_argument("--pictures", type=int, default=100, help="scored, of each of the two styles")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    out: Path = arguments.out
    packs = prepare(arguments.data, out)
    train_space(packs, out)
    recipes = write_recipes(packs, arguments.data, out)
    diptych_command(
        "compare", *recipes, "--seeds", *map(str, arguments.seeds), "--budget", f"examples={arguments.examples}",
        "--pictures", packs["emoji-test"], "--category", "style", "--group", "family",
        "--num-per-category", str(arguments.pictures),
        "--features", f"pixels,mobilenet2@96={arguments.data / 'models' / 'imagenet' / NETWORK}",
        "--processes", str(arguments.processes), "--out", str(out / "compare"),
    )  # fmt: skip


def train_space(packs: dict[str, str], out: Path) -> None:
    """The stand-in for CLIP: an encoder by captions, and a decoder of its features, which stay as they are (RAE)."""
    pictures = json.dumps({"kind": TARS, "urls": [packs["emoji-train"]]})
    clip_stage = {"trainable": ["*"], "mix": {"pairs": 1}, "objectives": {"contrastive": 1}, "num_steps": CLIP_STEPS,
                  "batch_size": 128, "optimizer": OPTIMIZER}  # fmt: skip
    if not (out / "clip" / "report.html").exists():
        diptych_command(
            "train", "clip:small", "--out", str(out / "clip"), "--data.pairs", pictures,
            "--model.tokenizer.path", packs["emoji-words"], "--stages", json.dumps({"contrastive": clip_stage}),
            "--evaluation.scorers",
        )  # fmt: skip
    features = {"kind": "diptych.train.part_configs:FeaturesConfig", "channels": None, "pool": 2, "pool_mode": "mean",
                "frozen_encoder": True, "encoder": {"kind": "diptych.train.part_configs:SavedPartConfig",
                                                    "path": str(out / "clip"), "part": "encoder"}}  # fmt: skip
    stage = {"trainable": ["autoencoder"], "mix": {"pictures": 1}, "objectives": {"reconstruction": 1},
             "num_steps": SPACE_STEPS, "batch_size": 32, "optimizer": OPTIMIZER}  # fmt: skip
    if not (out / "space" / "report.html").exists():
        diptych_command(
            "train", "blip3o:features", "--out", str(out / "space"), "--data.pictures", pictures,
            "--model.features", json.dumps(features), "--model.tokenizer.path", packs["emoji-words"],
            "--stages", json.dumps({"features": stage}), "--evaluation.scorers",
        )  # fmt: skip


def write_recipes(packs: dict[str, str], data: Path, out: Path) -> list[str]:
    """Files of the six recipes: those of ``study`` with these pictures, words and spaces, and nothing else changed."""
    folder = out / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, preset in presets_of(study).items():
        recipe = on_emoji(name, preset(), packs, data, out)
        file = folder / f"{name}.json"
        file.write_text(to_json(recipe), encoding="utf-8")
        files.append(str(file))
    return files


def on_emoji(name: str, recipe: Recipe[Any], packs: dict[str, str], data: Path, out: Path) -> Recipe[Any]:
    config = recipe.model if isinstance(recipe.model, Blip3oConfig) else recipe.model.base
    config = replace(
        config,
        tokenizer=TokenizerConfig(path=packs["emoji-words"]),
        encoder=SpaceEncoderConfig(source=str(out / "space")),
        cache_features=True,
    )
    if name.startswith("vae"):
        config = replace(config, features=Taef2Config(path=str(data / "models" / "taef2")), start_from={})
    else:
        encoder = SavedPartConfig(path=str(out / "clip"), part="encoder")
        features = FeaturesConfig(encoder=encoder, channels=None, pool=2, pool_mode="mean", frozen_encoder=True)
        config = replace(config, features=features, start_from={"autoencoder": str(out / "space")})
    model = config if isinstance(recipe.model, Blip3oConfig) else replace(recipe.model, base=config)
    tars = WebDatasetSource(urls=(packs["emoji-train"],))
    return replace(
        recipe,
        name=f"emoji:{name}",
        model=model,
        data={"ask": replace(tars, task="image_to_text"), "draw": tars},
        stages={key: stage for key, stage in recipe.stages.items() if key != "vae"},
    )


if __name__ == "__main__":
    main()
