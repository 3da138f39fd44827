"""Trains the three small networks that see the built-in world differently, and puts them into the package.

One tells what there is (``objects``), one where something is (``layout``), one packs the picture so that it can be
unpacked (``autoencoder``). Fréchet distances in their spaces agree about little, which is what a study of FD-loss
needs: spaces to train in and spaces to hold out. Prints what each is worth on pictures it has not seen.

python scripts/scene_networks.py [--num-scenes 60000] [--epochs 6]
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.data.sources.scenes import ScenesSource
from diptych.interop.feature_networks import SCENE_NETWORKS
from diptych.interop.plain_graph import FORMAT, PlainGraph
from diptych.scenes.draw import draw
from diptych.scenes.labels import LABELS, cell_labels

SIDE, WIDTH, CELLS = 64, 64, 8
BATCH = 128


def graph_of(name: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Strided convolutions to a map of 8 x 8; for ``objects`` the mean of one more, which does not know where, else a
    dense layer on one of 4 x 4. The features are linear: no rectifier makes them sparse."""
    plan = [(32, 3, 2, 1), (48, 3, 2, 1), (64, 3, 2, 1)]
    plan += [(WIDTH, 3, 1, 1)] if name == "objects" else [(96, 3, 2, 1), (WIDTH, 4, 1, 0)]
    nodes: list[dict[str, Any]] = []
    shapes: dict[str, list[int]] = {}
    before, channels = "x", 3
    for number, (width, kernel, stride, pad) in enumerate(plan, 1):
        out = f"conv{number}"
        shapes |= {f"{out}.weight": [width, channels, kernel, kernel], f"{out}.bias": [width]}
        nodes.append(
            {
                "op": "conv2d", "in": [before], "out": out, "weight": f"{out}.weight", "bias": f"{out}.bias",
                "stride": [stride, stride], "pad": [pad] * 4, "dilation": [1, 1], "groups": 1,
                "act": "none" if number == len(plan) else "relu",
            }
        )  # fmt: skip
        before, channels = out, width
    nodes += [
        {"op": "global_avgpool", "in": [before], "out": "pool"},
        {"op": "flatten", "in": ["pool"], "out": "features", "start": 1},
    ]
    settings = {"shape": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "order": "RGB"}
    outputs = {"features": "features"}
    return {"format": FORMAT, "name": f"scenes-{name}", "input": settings, "nodes": nodes, "outputs": outputs}, shapes


class Decoder(nn.Sequential):
    """64 numbers to a picture of 32 pixels."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(WIDTH, 96 * 16), nn.Unflatten(1, (96, 4, 4)), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(96, 64, 3, padding=1), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(64, 48, 3, padding=1), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(48, 3, 3, padding=1),
        )  # fmt: skip


def scenes(split: Any, num: int) -> dict[str, Tensor]:
    """Pictures (uint8), the labels of each, and on an 8 x 8 grid which cells hold an object of which size."""
    source = ScenesSource(num_scenes=num, image_size=SIDE, seed=77, split=split).build()
    places = [LABELS.index(name) for name in ("object", "small", "medium", "large")]
    rows: dict[str, list[Tensor]] = {"images": [], "objects": [], "layout": []}
    for index in range(num):
        scene = source.scene(index)
        grid = torch.from_numpy(cell_labels(scene, CELLS))
        rows["images"].append(torch.from_numpy(draw(scene, SIDE)).permute(2, 0, 1))
        rows["objects"].append(grid.amax((1, 2)))
        rows["layout"].append(grid[places].flatten())
    return {name: torch.stack(values) for name, values in rows.items()}


def train(name: str, data: dict[str, Tensor], test: dict[str, Tensor], epochs: int) -> tuple[PlainGraph, float]:
    """The network, and what it is worth on pictures it has not seen."""
    torch.manual_seed(0)
    graph, shapes = graph_of(name)
    network = PlainGraph(graph=graph, weight_shapes=shapes)
    for key, weight in network.weights.items():
        if key.endswith("weight"):
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
    heads = {
        "objects": nn.Linear(WIDTH, len(LABELS)),
        "layout": nn.Linear(WIDTH, 4 * CELLS**2),
        "autoencoder": Decoder(),
    }
    head = heads[name]
    parameters = [*network.parameters(), *head.parameters()]
    steps = epochs * (len(data["images"]) // BATCH)
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    loss_of, worth = TASKS[name]
    step, started = 0, time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(data["images"])).split(BATCH):
            if len(rows) < BATCH:
                continue
            batch = {key: values[rows] for key, values in data.items()}
            images = batch["images"].float() / 127.5 - 1
            loss = loss_of(head(network(images)["features"]), batch, images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 200 == 0:
                speed = step / (time.perf_counter() - started)
                print(f"\r{name} {step}/{steps} loss {loss.item():.4f} {speed:.1f} steps/s ", end="", flush=True)
    with torch.no_grad():
        found = []
        for rows in torch.arange(len(test["images"])).split(500):
            batch = {key: values[rows] for key, values in test.items()}
            images = batch["images"].float() / 127.5 - 1
            found.append(worth(head(network(images)["features"]), batch, images))
    return network, torch.stack(found).mean().item()


def small(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 2)


def average_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Of the label that the network is surest of first, over all labels and pictures."""
    hits = labels.flatten()[logits.flatten().argsort(descending=True)]
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return (precision * hits).sum() / hits.sum()


Measure = Callable[[Tensor, dict[str, Tensor], Tensor], Tensor]


TASKS: dict[str, tuple[Measure, Measure]] = {
    "objects": (
        lambda out, batch, images: F.binary_cross_entropy_with_logits(out, batch["objects"]),
        lambda out, batch, images: average_precision(out, batch["objects"]),
    ),
    "layout": (
        lambda out, batch, images: F.binary_cross_entropy_with_logits(out, batch["layout"]),
        lambda out, batch, images: average_precision(out, batch["layout"]),
    ),
    "autoencoder": (
        lambda out, batch, images: F.mse_loss(out, small(images)),
        lambda out, batch, images: -10 * (F.mse_loss(out, small(images)) / 4).log10(),
    ),
}
"""By name: the loss, and the worth: average precision, or decibels."""


CARD = """# Networks that see the built-in world

Three small convolutional networks of 64-pixel pictures with 64 features each, in the layout `plain-graph/1`, made by
`python scripts/scene_networks.py --num-scenes {num_scenes} --epochs {epochs}`. Everything they know is synthetic.
Licence: Apache-2.0.

| name | trained to tell | on 2,000 pictures of the test split |
| --- | --- | --- |
| `scenes-objects` | which of the labels of `diptych.scenes.labels` hold anywhere | average precision {objects:.3f} |
| `scenes-layout` | which cells of an 8 x 8 grid hold an object, of which size | average precision {layout:.3f} |
| `scenes-autoencoder` | the picture at 32 pixels, from its 64 features | {autoencoder:.1f} dB |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-scenes", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    found: dict[str, float] = {}
    data, test = scenes("train", options.num_scenes), scenes("test", 2000)
    SCENE_NETWORKS.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        network, found[name] = train(name, data, test, options.epochs)
        print(f"\n{name}: {found[name]:.3f} on 2,000 pictures of the test split", flush=True)
        graph = json.dumps(network.graph, separators=(",", ":"))
        (SCENE_NETWORKS / f"{name}.graph.json").write_text(graph + "\n", encoding="utf-8")
        tensors = {key.replace("/", "."): value.detach().half() for key, value in network.weights.items()}
        save_file(tensors, str(SCENE_NETWORKS / f"{name}.safetensors"))
    card = CARD.format(num_scenes=options.num_scenes, epochs=options.epochs, **found)
    (SCENE_NETWORKS / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
