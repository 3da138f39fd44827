"""FD-loss on real photographs: EuroSAT at 64 pixels, in the spaces of networks trained on ImageNet and CIFAR.

``distances`` computes distances of real sets that are known, beside the known values. ``base`` trains a small generator
of ten classes from captions, ``one`` and ``two`` post-train it to one step by FD-loss in one space and in two, and
``scores`` draws from each and prints FD in every space, FDr^k, pictures a second and minutes. Training and scoring are
commands of diptych, which are printed, so that each can be typed by hand; what is done is kept, and a second call goes
on from there.

Data: a folder with ``images/eurosat``, ``images/emoji``, ``models/imagenet``, ``models/cifar_resnet`` and, for
``--space taef2``, ``models/taef2``.

    python benchmarks/fd_real.py --data DATA [--out runs/fd-real] [--parts distances base one two scores] [--scale 1]
"""

import argparse
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import diptych
from diptych.cli.main import main as command
from diptych.data.picture_files import save_contact_sheet, save_png
from diptych.data.pictures import open_pictures
from diptych.frechet import Moments, frechet_distance
from diptych.frechet.extraction import PixelRule, extract, extraction_folder, missing_chunks, read_extracted
from diptych.interop.feature_networks import load_features

PARTS = ("distances", "base", "one", "two", "scores")
NETWORKS = {
    "squeezenet": ("imagenet/squeezenet_v1_1.graph.json", 224),
    "mobilenet1": ("imagenet/mobilenet_v1_075_192.graph.json", 192),
    "mobilenet2": ("imagenet/mobilenet_v2_100.graph.json", 224),
    "cifar": ("cifar_resnet/resnet20.safetensors", 32),
}
"""By name: the file, and the size it was trained at, which the known distances are of."""
KNOWN = {
    "EuroSAT train, even against odd rows": {"squeezenet": 18.07, "mobilenet1": 8.22, "mobilenet2": 17.49},
    "EuroSAT train against test": {"squeezenet": 21.87, "mobilenet1": 10.28, "mobilenet2": 22.50},
    "EuroSAT forest against industry": {"squeezenet": 5023.0, "mobilenet1": 565.5, "mobilenet2": 745.5},
    "emoji, flat against 3D": {"squeezenet": 932.6, "mobilenet1": 149.5, "mobilenet2": 203.0},
    "EuroSAT against flat emoji": {"squeezenet": 5805.0, "mobilenet1": 591.3, "mobilenet2": 627.8},
}
"""Distances that come with the data, to four digits."""

TARS = "diptych.data.sources:WebDatasetSource"
BASE_STEPS, POST_STEPS = 4000, 400
CONTENDERS = {
    "base, 1 step": ("base", 1),
    "base, 50 steps": ("base", 50),
    "one space, 1 step": ("one", 1),
    "two spaces, 1 step": ("two", 1),
}
"""By name: the run, and the steps that it draws in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/fd-real"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the training steps")
    parser.add_argument("--space", choices=("pixels", "taef2"), default="pixels", help="what the generator draws")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS)[:3])
    parser.add_argument("--side", type=int, default=96, help="pixels a side that networks take in training and scores")
    parser.add_argument("--images", type=int, default=2000, help="pictures drawn for a score; as many as the test set")
    parser.add_argument("--guidance", type=float, default=1.0, help="of the 50 steps; one step has none")
    arguments = parser.parse_args()
    if len(arguments.networks) < 2:
        parser.error("--networks: two at least, the first one and the first two are trained against")
    packs = prepare(arguments.data, arguments.out)
    work: dict[str, Callable[[], None]] = {
        "distances": lambda: known_distances(arguments),
        "base": lambda: train("base", "blip3o:joint", base_flags(arguments, packs), arguments),
        "one": lambda: train("one", "fd_loss:tiny", post_flags(arguments, packs, 1), arguments),
        "two": lambda: train("two", "fd_loss:tiny", post_flags(arguments, packs, 2), arguments),
        "scores": lambda: scores(arguments, packs),
    }
    for part in PARTS:
        if part in arguments.parts:
            work[part]()


def diptych_command(*words: str) -> None:
    print("diptych", shlex.join(words), flush=True)
    if code := command(list(words)):
        raise SystemExit(code)


def prepare(data: Path, out: Path) -> dict[str, str]:
    """Tars and a tokenizer of the ten captions, made once; paths by name."""
    found = {split: str(out / "packed" / split) for split in ("train", "test")} | {"words": str(out / "words")}
    for split in ("train", "test"):
        if not Path(found[split]).exists():
            source = str(data / "images" / "eurosat")
            diptych_command("data", "pack", source, "--kind", "eurosat", "--split", split, "--out", found[split])
    if not Path(found["words"]).exists():
        diptych_command("data", "tokenizer", found["test"], "--out", found["words"], "--vocab-size", "400")
    return found


# -- distances that are known ------------------------------------------------------------------------------------------


def rows_of(path: Path, spec: str, cache: Path) -> np.ndarray:
    """Features of all pictures of a blob-npz file, on white, from the cache as far as they are there."""
    pictures, features = open_pictures(str(path)), load_features(spec)
    folder = extraction_folder(cache, pictures, features, PixelRule())
    if missing_chunks(folder, len(pictures)):
        extract(
            pictures,
            features,
            folder,
            progress=lambda done: print(
                f"\r{features.name} {path.stem}: {done} of {len(pictures)} ", end="", flush=True
            ),
        )
        print()
    found = read_extracted(folder, len(pictures))
    if found.faults:
        raise ValueError(f"{path}: {len(found.faults)} pictures cannot be read, the first is {found.faults[0]}.")
    return np.asarray(found.features)


def moments_of(rows: np.ndarray) -> Moments:
    moments = Moments(rows.shape[1])
    moments.update(torch.from_numpy(np.ascontiguousarray(rows)))
    return moments


def known_distances(arguments: argparse.Namespace) -> None:
    images, cache = arguments.data / "images", arguments.out / "features"
    blob = images / "eurosat" / "eurosat_rgb64.npz"
    classes = json.loads((images / "eurosat" / "classes.json").read_text(encoding="utf-8"))["classes"]
    captions = (images / "emoji" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    paired = [row for row in map(json.loads, captions) if row["noto"] is not None and row["fluent3d"] is not None]
    with np.load(blob) as arrays:
        labels, is_train = arrays["label"], arrays["split"] == 0
    print("\n| distance | network | ours | known | apart |\n| --- | --- | ---: | ---: | ---: |", flush=True)
    for name in arguments.networks:
        spec = network_spec(arguments, name, NETWORKS[name][1])
        land = rows_of(blob, spec, cache)
        flat, solid = (rows_of(images / "emoji" / f"{style}_128.npz", spec, cache) for style in ("noto", "fluent3d"))
        train = land[is_train]
        sides = {
            "EuroSAT train, even against odd rows": (train[::2], train[1::2]),
            "EuroSAT train against test": (train, land[~is_train]),
            "EuroSAT forest against industry": tuple(
                land[labels == classes.index(name)] for name in ("Forest", "Industrial")
            ),
            "emoji, flat against 3D": (
                flat[[row["noto"] for row in paired]],
                solid[[row["fluent3d"] for row in paired]],
            ),
            "EuroSAT against flat emoji": (land, flat),
        }
        for title, (a, b) in sides.items():
            found, known = frechet_distance(moments_of(a), moments_of(b)), KNOWN[title].get(name)
            apart = "" if known is None else f"{100 * abs(found / known - 1):.2f} %"
            print(f"| {title} | {name} | {found:.2f} | {known or ''} | {apart} |", flush=True)


# -- training ----------------------------------------------------------------------------------------------------------


def train(run: str, recipe: str, flags: list[str], arguments: argparse.Namespace) -> None:
    """A run by command, unless it is there; one that was stopped goes on."""
    folder = arguments.out / run
    if (folder / "minutes.json").exists():
        return
    started = time.perf_counter(), time.process_time()
    if (folder / "recipe.json").exists():
        diptych_command("resume", str(folder))
    else:
        diptych_command("train", recipe, "--out", str(folder), *flags)
    minutes = {
        "wall": (time.perf_counter() - started[0]) / 60,
        "processor": (time.process_time() - started[1]) / 60,
    }
    (folder / "minutes.json").write_text(json.dumps(minutes) + "\n", encoding="utf-8")


def source_of(packs: dict[str, str]) -> dict[str, Any]:
    return {"kind": TARS, "urls": [packs["train"]]}


def base_flags(arguments: argparse.Namespace, packs: dict[str, str]) -> list[str]:
    """A tiny backbone, which has ten captions to tell apart, and a denoiser of 64 tokens."""
    space = {"kind": "diptych.train.part_configs:PixelsConfig", "shift": -0.25, "scale": 0.3}
    patch = 8
    if arguments.space == "taef2":
        space = {"kind": "diptych.interop.taef2:Taef2Config", "path": str(arguments.data / "models" / "taef2")}
        patch = 1
    steps = max(2, int(BASE_STEPS * arguments.scale))
    stage = {
        "trainable": ["backbone", "image_head"],
        "mix": {"draw": 1.0},
        "objectives": {"flow": 1.0},
        "num_steps": steps,
        "batch_size": 32,
        "optimizer": {
            "name": "muon",
            "lr": 1e-3,
            "warmup_steps": 50,
            "schedule": "wsd",
            "decay_fraction": 0.5,
            "ema_decay": 0.99,
        },
    }
    return [
        "--data", json.dumps({"draw": source_of(packs)}),
        "--stages", json.dumps({"land": stage}),
        "--model.features", json.dumps(space),
        "--model.cache-features",
        "--model.start-from", "{}",
        "--model.tokenizer.path", packs["words"],
        "--model.backbone.dim", "64",
        "--model.backbone.num-layers", "1",
        "--model.backbone.ffn-dim", "128",
        "--model.num-queries", "4",
        "--model.noise-repeats", "1",
        "--model.denoiser.dim", "96",
        "--model.denoiser.num-heads", "3",
        "--model.denoiser.num-layers", "4",
        "--model.denoiser.patch-size", str(patch),
        "--sampling.num-steps", "50",
        "--sampling.guidance-scale", str(arguments.guidance),
        "--sampling.time-shift", "1.5",
        "--logging.sample-every", "0",
        "--evaluation.scorers",
    ]  # fmt: skip


def post_flags(arguments: argparse.Namespace, packs: dict[str, str], num_spaces: int) -> list[str]:
    """FD-loss in the first spaces; the others are held out, and scored from files like all."""
    steps = max(2, int(POST_STEPS * arguments.scale))
    num_train = json.loads((Path(packs["train"]) / "pack.json").read_text(encoding="utf-8"))["num_records"]
    kind = "diptych.interop.feature_networks:FeatureNetwork"
    spaces = {
        name: {"kind": kind, "spec": network_spec(arguments, name, arguments.side)}
        for name in arguments.networks[:num_spaces]
    }
    return [
        "--model.start-from", str(arguments.out / "base"),
        "--model.representations", json.dumps(spaces),
        "--model.held-out", "{}",
        "--model.reference", json.dumps(source_of(packs)),
        "--model.num-reference", str(num_train),
        "--model.num-warm-start", str(min(1024, num_train)),
        "--model.population.final-decay", "0.98",
        "--model.gradient-tolerance", "1e-4",
        "--data", json.dumps({"draw": source_of(packs)}),
        "--stages.one-step.num-steps", str(steps),
        "--stages.one-step.batch-size", "64",
        "--evaluation.scorers",
    ]  # fmt: skip


def network_spec(arguments: argparse.Namespace, name: str, side: int) -> str:
    """A name that ``--features`` takes; CIFAR's network is always at its own size."""
    file, own_side = NETWORKS[name]
    return f"{name}@{own_side if name == 'cifar' else side}={arguments.data}/models/{file}"


# -- scores ------------------------------------------------------------------------------------------------------------


def scores(arguments: argparse.Namespace, packs: dict[str, str]) -> None:
    """FD of what every contender draws from the training set, and the table."""
    specs = ",".join(network_spec(arguments, name, arguments.side) for name in arguments.networks)
    rows = []
    for name, (run, steps) in CONTENDERS.items():
        if not (arguments.out / run / "minutes.json").exists():
            continue
        guidance = f"-guided-{arguments.guidance:g}" if steps > 1 and arguments.guidance != 1 else ""
        folder = arguments.out / "drawn" / f"{run}-{steps}-{arguments.images}{guidance}"
        speed = draw(arguments, packs, run, steps, folder)
        report = arguments.out / "fd" / f"{folder.name}-{arguments.side}"
        if scored_networks(report / "fd.json") != arguments.networks:
            words = ("--val", packs["test"], "--features", specs, "--cache", str(arguments.out / "features"))
            diptych_command("fd", str(folder), packs["train"], *words, "--out", str(report))
        found = json.loads((report / "fd.json").read_text(encoding="utf-8"))
        rows.append((name, {score["features"]: score for score in found["scores"]}, found["fdr_k"], speed))
    names = arguments.networks
    print("\n| contender |", " | ".join(f"FD {name}" for name in names), "| FDr^k | pictures/s |")
    print("| --- |", " | ".join("---:" for _ in names), "| ---: | ---: |")
    for name, by_network, mean, speed in rows:
        cells = " | ".join(distance_cell(by_network[network]) for network in names)
        print(f"| {name} | {cells} | {mean:.2f} | {speed:.1f} |")
    if rows:
        real = " | ".join(f"{rows[0][1][network]['normaliser']:.2f}" for network in names)
        print(f"| test pictures | {real} | 1.00 | |")
    for run in ("base", "one", "two"):
        if (file := arguments.out / run / "minutes.json").exists():
            minutes = json.loads(file.read_text(encoding="utf-8"))
            print(f"{run}: {minutes['wall']:.1f} minutes, {minutes['processor']:.1f} of a processor's time")


def scored_networks(file: Path) -> list[str]:
    """Networks of a report; one of a command that was stopped has the first ones only."""
    if not file.exists():
        return []
    return [score["features"] for score in json.loads(file.read_text(encoding="utf-8"))["scores"]]


def distance_cell(score: dict[str, Any]) -> str:
    distance = score["distance"]
    return f"{distance['value']:.2f} [{distance['low']:.2f}, {distance['high']:.2f}]"


def draw(arguments: argparse.Namespace, packs: dict[str, str], run: str, steps: int, folder: Path) -> float:
    """PNG files of a contender, in the captions' turn, with a grid of the first; pictures a second of drawing."""
    record = folder.with_suffix(".json")
    if record.exists():
        return float(json.loads(record.read_text(encoding="utf-8"))["pictures_a_second"])
    captions = list(json.loads((arguments.data / "images/eurosat/classes.json").read_text())["captions"].values())
    prompts = [captions[index % len(captions)] for index in range(arguments.images)]
    model = diptych.load(arguments.out / run, device="auto")
    scale = arguments.guidance if steps > 1 else 1.0
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[Image.Image] = []
    started = time.perf_counter()
    for start in range(0, len(prompts), 100):
        seeds = list(range(start, min(start + 100, len(prompts))))
        pictures += model.generate_image(
            prompts[start : start + 100], num_steps=steps, guidance_scale=scale, seed=seeds, batch_size=100
        )
    speed = len(pictures) / (time.perf_counter() - started)
    for index, picture in enumerate(pictures):
        save_png(picture, folder / f"{index:05d}.png")
    save_contact_sheet(arguments.out / "grids" / f"{folder.name}.png", pictures[:40], columns=10)
    record.write_text(json.dumps({"pictures_a_second": speed}) + "\n", encoding="utf-8")
    return speed


if __name__ == "__main__":
    main()
