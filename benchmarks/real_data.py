"""The recipe of the built-in world on real pictures, by flags alone: packs, trains, scores, prints the table.

Data: a folder with ``images/emoji``, ``images/nlvr``, ``models/taef2`` and ``models/imagenet`` (docs/real-data.md says
what they hold). The commands that are run are printed, so that each can be typed by hand.

    python benchmarks/real_data.py --data DATA [--out runs/real] [--runs nlvr emoji-taef2 emoji-features] [--scale 1]
"""

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np

import diptych
from diptych.cli.main import main as command
from diptych.data.example import Example
from diptych.data.picture_files import save_contact_sheet
from diptych.data.records import Columns
from diptych.data.sources import WebDatasetSource
from diptych.evals.real_pictures import answer_choices, encoder_features, score_choices, score_drawings
from diptych.evals.scores_file import write_scores
from diptych.interop.plain_graph import load_plain_graph_encoder
from diptych.scenes.scores import ScoreTable

TARS = "diptych.data.sources:WebDatasetSource"
NUM_STEPS = {"nlvr": 2000, "emoji-taef2": 4000, "emoji-features": 4000}
OPTIMIZER = {"lr": 1.5e-3, "warmup_steps": 50, "schedule": "wsd", "decay_fraction": 0.35, "weight_decay": 0.01}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--runs", nargs="+", choices=tuple(NUM_STEPS), default=list(NUM_STEPS))
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the training steps")
    parser.add_argument("--items", type=int, default=200, help="items of each score but NLVR's, which takes them all")
    arguments = parser.parse_args()
    packs = prepare(arguments.data, arguments.out)
    for run in arguments.runs:
        steps = max(2, int(NUM_STEPS[run] * arguments.scale))
        flags = {"nlvr": nlvr_flags, "emoji-taef2": taef2_flags, "emoji-features": features_flags}[run]
        folder = arguments.out / run
        started = time.perf_counter()
        diptych_command("train", "blip3o:joint", "--out", str(folder), *flags(packs, arguments.data, steps))
        trained = time.perf_counter()
        model = diptych.load(folder, device="cpu")
        tables = score_nlvr(model, packs) if run == "nlvr" else score_emoji(model, packs, arguments, folder)
        scored = time.perf_counter()
        minutes = {"training": (trained - started) / 60, "scoring": (scored - trained) / 60}
        write_scores(tables, folder / "scores.json", {"model": run, "steps": steps, "minutes": minutes})
        print_tables(run, steps, minutes, tables)


def diptych_command(*words: str) -> None:
    print("diptych", shlex.join(words), flush=True)
    if code := command(list(words)):
        raise SystemExit(code)


def prepare(data: Path, out: Path) -> dict[str, str]:
    """Tars and tokenizers, made once; paths by name."""
    emoji, nlvr = str(data / "images" / "emoji"), str(data / "images" / "nlvr")
    packs = {
        f"{name}-{split}": [source, "--kind", kind, "--split", split]
        for split in ("train", "test")
        for name, source, kind in (("emoji", emoji, "emoji"), ("edits", emoji, "emoji_edit"), ("nlvr", nlvr, "nlvr"))
    }
    packs["nlvr-test"] += ["--num-orders", "1"]
    found = {name: str(out / "packed" / name) for name in packs}
    for name, words in packs.items():
        if not Path(found[name]).exists():
            diptych_command("data", "pack", *words, "--out", found[name])
    for name, size, sources in (("emoji-words", "2048", ("emoji", "edits")), ("nlvr-words", "512", ("nlvr",))):
        found[name] = str(out / name)
        if not Path(found[name]).exists():
            paths = [found[f"{source}-train"] for source in sources]
            diptych_command("data", "tokenizer", *paths, "--out", found[name], "--vocab-size", size)
    return found


def common_flags(tokenizer: str, data: dict[str, Any]) -> list[str]:
    return [
        "--data", json.dumps(data),
        "--model.tokenizer.path", tokenizer,
        "--model.start-from", "{}",
        "--model.cache-features",
        "--evaluation.scorers",
    ]  # fmt: skip


def nlvr_flags(packs: dict[str, str], data: Path, steps: int) -> list[str]:
    """Understanding: features, connector and backbone learn together, from answers and from painting the picture."""
    ask = {"kind": TARS, "urls": [packs["nlvr-train"]], "task": "image_to_text",
           "columns": {"question": ["json.question"]}}  # fmt: skip
    stage = {
        "trainable": ["autoencoder", "connector", "backbone"],
        "mix": {"ask": 1.0},
        "objectives": {"text": 1.0, "reconstruction": 1.0},
        "num_steps": steps,
        "batch_size": 32,
        "optimizer": OPTIMIZER,
    }
    return [
        *common_flags(packs["nlvr-words"], {"ask": ask}),
        "--model.images.size", "48", "192",
        "--model.images.multiple", "16",
        "--stages", json.dumps({"understanding": stage}),
    ]  # fmt: skip


def emoji_data(packs: dict[str, str]) -> dict[str, Any]:
    return {
        "draw": {"kind": TARS, "urls": [packs["emoji-train"]]},
        "name": {"kind": TARS, "urls": [packs["emoji-train"]], "task": "image_to_text"},
        "edit": {"kind": TARS, "urls": [packs["edits-train"]], "task": "image_edit"},
    }


def joint_stage(steps: int) -> dict[str, Any]:
    return {
        "trainable": ["connector", "backbone", "image_head"],
        "mix": {"draw": 0.5, "name": 0.25, "edit": 0.25},
        "objectives": {"text": 0.5, "flow": 1.0},
        "num_steps": steps,
        "batch_size": 32,
        "optimizer": {**OPTIMIZER, "ema_decay": 0.99},
    }


def taef2_flags(packs: dict[str, str], data: Path, steps: int) -> list[str]:
    """Drawing, naming and editing in the latents of the released tiny autoencoder."""
    space = {"kind": "diptych.interop.taef2:Taef2Config", "path": str(data / "models" / "taef2")}
    return [
        *common_flags(packs["emoji-words"], emoji_data(packs)),
        "--model.features", json.dumps(space),
        "--model.denoiser.patch-size", "2",
        "--stages", json.dumps({"joint": joint_stage(steps)}),
    ]  # fmt: skip


def features_flags(packs: dict[str, str], data: Path, steps: int) -> list[str]:
    """The same in features whose encoder and decoder learn from these pictures first, a third of the steps."""
    features = {
        "trainable": ["autoencoder"],
        "mix": {"draw": 1.0},
        "objectives": {"reconstruction": 1.0},
        "num_steps": max(1, steps // 3),
        "batch_size": 32,
        "optimizer": {**OPTIMIZER, "lr": 3e-3},
    }
    stages = {"features": features, "joint": joint_stage(max(1, 2 * steps // 3))}
    return [
        *common_flags(packs["emoji-words"], emoji_data(packs)),
        "--model.feature-noise", "0.5",
        "--stages", json.dumps(stages),
    ]  # fmt: skip


def examples_of(path: str, task: Any, limit: int = 0, has_question: bool = False) -> list[Example]:
    """Test examples, evenly spread; emoji with a skin tone are left out, whose names differ in the tone alone."""
    columns = Columns(question=("json.question",)) if has_question else Columns()
    source = WebDatasetSource(urls=(path,), task=task, columns=columns).build()
    found = [source.example(index, 0) for index in range(len(source))]
    found = [example for example in found if not example.metadata.get("skin_tone")]
    places = np.linspace(0, len(found) - 1, min(limit or len(found), len(found))).round().astype(int)
    return [found[place] for place in places]


def score_nlvr(model: Any, packs: dict[str, str]) -> list[ScoreTable]:
    examples = examples_of(packs["nlvr-test"], "image_to_text", has_question=True)
    return score_choices(model, answer_choices(examples), "NLVR, true or false")


def score_emoji(model: Any, packs: dict[str, str], arguments: argparse.Namespace, run: Path) -> list[ScoreTable]:
    network = arguments.data / "models" / "imagenet" / "mobilenet_v2_100.graph.json"
    features = encoder_features(load_plain_graph_encoder(network, resize="fixed"))
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    tables = []

    def style(example: Example) -> str:
        return str(example.metadata["style"])

    def family(example: Example) -> str:
        return str(example.metadata["family"])

    for split in ("test", "train"):
        named = examples_of(packs[f"emoji-{split}"], "image_to_text", arguments.items)
        choices = answer_choices(named, 20, category=style, group=family)
        tables += score_choices(model, choices, f"naming among 20, {split}", white)
        drawn = examples_of(packs[f"emoji-{split}"], "text_to_image", arguments.items)
        found, pictures = score_drawings(
            model, drawn, features, f"drawing among 20, {split}", category=style, group=family
        )
        tables += found
        texts = [example.parts[0].text for example in drawn]  # type: ignore[union-attr]
        save_contact_sheet(run / "drawn" / f"{split}.png", pictures[::5], texts[::5])
    edits = examples_of(packs["edits-test"], "image_edit", arguments.items)
    found, pictures = score_drawings(model, edits, features, "editing among 20, test")
    save_contact_sheet(run / "drawn" / "edits.png", pictures[::5], [e.parts[1].text for e in edits[::5]])  # type: ignore[union-attr]
    return tables + found


def print_tables(run: str, steps: int, minutes: dict[str, float], tables: list[ScoreTable]) -> None:
    print(
        f"\n{run}: {steps} steps, {minutes['training']:.1f} min of training, {minutes['scoring']:.1f} min of scoring\n"
    )
    print("| score | row | % | 95 % interval | items | mean rank |\n| --- | --- | ---: | --- | ---: | ---: |")
    for table in tables:
        score = table.overall
        interval = f"{100 * score.low:.1f} – {100 * score.high:.1f}" if table.contender != "chance" else ""
        rank = f"{table.details['mean_rank']:.1f}" if "mean_rank" in table.details else ""
        cells = (table.benchmark, table.contender, f"{100 * score.value:.1f}", interval, str(score.num_items), rank)
        print(f"| {' | '.join(cells)} |")
    for table in tables:
        if "nearer_than_input" in table.details:
            print(
                f"{table.contender}: {100 * table.details['nearer_than_input']:.1f} % nearer to the goal than the input"
            )
    print(flush=True)


if __name__ == "__main__":
    main()
