"""A small real training task: a two-part network with two losses of unequal counts, on the real stream.

Run as a script it trains in a run folder, so that tests can start it in processes of its own and kill it:
``python toy_task.py RUN_DIR [--resume] [--kill-at CALL] [--field value ...]``.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.data.example import Example, Text
from diptych.data.stream import MixtureStream
from diptych.objectives.loss_term import LossTerm
from diptych.objectives.randomness import normal_from_seeds, uniform_from_seeds
from diptych.train.recipe import CheckpointConfig, LoggingConfig, OptimizerConfig, Recipe, Stage
from diptych.train.task import TrainingTask

NUM_FEATURES = 6


@dataclass(frozen=True)
class NumbersSource:
    """Short rows of numbers: ``length`` of them follow from the index. A config and its source in one."""

    size: int = 40
    salt: int = 0

    def build(self) -> "NumbersSource":
        return self

    def __len__(self) -> int:
        return self.size

    def example(self, index: int, epoch: int) -> Example:
        generator = torch.Generator().manual_seed(1000 * self.salt + index)
        length = 1 + index % 5
        numbers = torch.randn(length, NUM_FEATURES, generator=generator).flatten().tolist()
        text = " ".join(f"{number:.4f}" for number in numbers)
        return Example((Text(text, is_target=True),), key=f"{self.salt}/{index}/{epoch}")


@dataclass(frozen=True)
class ToyBatch:
    """Rows of different lengths, padded.

    Attributes:
        values: rows, positions, features.
        mask: which positions are there.
        example_seeds: one for each row.
    """

    values: Tensor
    mask: Tensor
    example_seeds: Tensor

    @property
    def num_tokens(self) -> int:
        return self.mask.numel()

    def to(self, device: torch.device) -> "ToyBatch":
        return ToyBatch(self.values.to(device), self.mask.to(device), self.example_seeds.to(device))


def collate(examples: Sequence[Example], seeds: Sequence[int]) -> ToyBatch:
    rows = []
    for example in examples:
        part = example.parts[0]
        assert isinstance(part, Text)
        rows.append(torch.tensor([float(word) for word in part.text.split()]).reshape(-1, NUM_FEATURES))
    values = torch.zeros(len(rows), max(len(row) for row in rows), NUM_FEATURES)
    mask = torch.zeros(values.shape[:2], dtype=torch.bool)
    for index, row in enumerate(rows):
        values[index, : len(row)] = row
        mask[index, : len(row)] = True
    return ToyBatch(values, mask, torch.tensor(list(seeds), dtype=torch.int64))


class ToyModel(nn.Module):
    """encoder -> trunk -> head; the denoiser sees the trunk's mean. ``scale`` is a parameter of the model itself."""

    def __init__(self, dim: int = 16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(NUM_FEATURES, dim), nn.Tanh())
        self.trunk = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.head = nn.Linear(dim, 3)
        self.denoiser = nn.Sequential(nn.Linear(dim + 4, dim), nn.GELU(), nn.Linear(dim, 3))
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, values: Tensor) -> Tensor:
        return self.trunk(self.encoder(values)) * self.scale


def text_objective(model: ToyModel, batch: ToyBatch, generator: torch.Generator) -> dict[str, LossTerm]:
    """Squared error of three numbers that follow from each position; its count is that of the positions."""
    target = torch.sin(2 * batch.values[..., :3])
    error = (model.head(model(batch.values)) - target).float().square().sum(-1)
    return {"text": LossTerm((error * batch.mask).sum(), batch.mask.sum().float())}


def flow_objective(model: ToyModel, batch: ToyBatch, generator: torch.Generator) -> dict[str, LossTerm]:
    """Flow matching of each row's first numbers; noise and time from the example's own seed. Its count is that of rows
    that are longer than one, so a batch may have none."""
    keep = batch.mask.sum(1) > 1
    seeds = batch.example_seeds[keep]
    if not len(seeds):
        return {}
    data = batch.values[keep, 0, :3]
    noise = normal_from_seeds(seeds, (3,), "noise")
    t = uniform_from_seeds(seeds, (1,), "time")
    x_t = t * data + (1 - t) * noise
    mask = batch.mask[keep, :, None]
    hidden = (model(batch.values[keep]) * mask).sum(1) / mask.sum(1)  # padding must not count
    velocity = model.denoiser(torch.cat([hidden, x_t, t], dim=1)).float()
    losses = (velocity - (data - noise)).square().mean(1)
    count = torch.tensor(float(len(losses)))
    return {"flow": LossTerm(losses.sum(), count, values=losses.detach(), levels=1 - t[:, 0])}


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Of the toy model."""

    dim: int = 16
    """Width."""
    rank: int = 0
    """Of adapters on the trunk, which then learns by them alone; 0 for none."""

    def build(self) -> ToyModel:
        model = ToyModel(self.dim)
        if self.rank:
            from diptych.models.adapters import add_adapters

            add_adapters(model.trunk, rank=self.rank, alpha=2.0 * self.rank, where="the trunk")
        return model


def toy_recipe(**changes: Any) -> Recipe[ToyConfig]:
    """Two stages: the trunk alone, then everything but the encoder with an average of the weights."""
    optimizer = OptimizerConfig(lr=1e-2, warmup_steps=2, weight_decay=0.01)
    first = Stage(
        trainable=("trunk", "head"), mix={"a": 1.0}, objectives={"text": 1.0}, num_steps=8, batch_size=8,
        optimizer=optimizer,
    )  # fmt: skip
    second = Stage(
        trainable=("trunk", "head", "denoiser", "scale"),
        mix={"a": 2.0, "b": 1.0},
        objectives={"text": 0.5, "flow": 1.0},
        num_steps=12,
        batch_size=8,
        gradient_accumulation=2,
        optimizer=replace(optimizer, ema_decay=0.9, lr_multipliers={"trunk": 0.5}, schedule="wsd"),
    )
    recipe = Recipe(
        name="toy",
        model=ToyConfig(),
        data={"a": NumbersSource(), "b": NumbersSource(size=17, salt=1)},
        stages={"first": first, "second": second},
        checkpoints=CheckpointConfig(every_steps=3),
        logging=LoggingConfig(every_steps=1),
        seed=5,
    )
    return replace(recipe, **changes)


def one_stage(**changes: Any) -> Recipe[ToyConfig]:
    """The toy recipe with one stage of both losses, and changed fields of that stage."""
    stage = replace(toy_recipe().stages["second"], gradient_accumulation=1, optimizer=OptimizerConfig(lr=1e-2))
    return replace(toy_recipe(), stages={"only": replace(stage, **changes)})


def save_model_folder(model: nn.Module, path: Path) -> None:
    path.mkdir()
    save_file(
        {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, path / "model.safetensors"
    )


def toy_task(recipe: Recipe[ToyConfig], model: ToyModel | None = None, **changes: Any) -> TrainingTask:
    """The task of a recipe. ``changes`` replace fields of it."""
    model = model if model is not None else recipe.model.build()
    sources = {name: source.build() for name, source in recipe.data.items()}

    def open_stream(name: str, stage: Stage, rank: int, world_size: int) -> MixtureStream:
        return MixtureStream(
            sources=sources, weights=stage.mix, seed=recipe.seed, batch_size=stage.batch_size, rank=rank,
            world_size=world_size,
        )  # fmt: skip

    task = TrainingTask(
        model=model,
        objectives={"text": text_objective, "flow": flow_objective},
        collate=collate,
        open_stream=open_stream,
        save_model_folder=lambda path: save_model_folder(model, path),
    )
    return replace(task, **changes)


def killing(objective: Callable[..., Any], call: int, number: int = signal.SIGKILL) -> Callable[..., Any]:
    """The objective, which sends its process a signal at its ``call``-th call."""
    calls = 0

    def run(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return objective(*arguments)

    return run


def overflowing(call: int) -> Callable[..., Any]:
    """The text objective, whose trunk gives infinite values from its ``call``-th call on."""
    calls = 0

    def run(model: ToyModel, batch: ToyBatch, generator: torch.Generator) -> dict[str, LossTerm]:
        nonlocal calls
        calls += 1
        if calls < call:
            return text_objective(model, batch, generator)
        handle = model.trunk[1].register_forward_hook(lambda module, inputs, output: output / 0, prepend=True)
        try:
            return text_objective(model, batch, generator)
        finally:
            handle.remove()

    return run


def main(argv: list[str]) -> None:
    """Trains the toy recipe, with overrides; ``--kill-at``, ``--kill-in-save`` end the process in the middle."""
    from diptych.train.loop import train
    from diptych.train.override import override

    run_dir = Path(argv.pop(0))
    options = {
        "--resume": False,
        "--stop-at": 0,
        "--overflow-at": 0,
        "--kill-at": 0,
        "--kill-in-save": 0,
        "--one-stage": False,
    }
    for option, default in options.items():
        if option in argv:
            index = argv.index(option)
            argv.pop(index)
            options[option] = True if default is False else int(argv.pop(index))
    recipe = override(one_stage() if options["--one-stage"] else toy_recipe(), argv)
    task = toy_task(recipe)
    if options["--kill-at"]:
        task = replace(task, objectives={**task.objectives, "text": killing(text_objective, options["--kill-at"])})
    if options["--stop-at"] and os.environ.get("RANK", "0") == "0":
        task = replace(
            task, objectives={**task.objectives, "text": killing(text_objective, options["--stop-at"], signal.SIGINT)}
        )
    if options["--overflow-at"] and os.environ.get("RANK") == "1":
        task = replace(task, objectives={**task.objectives, "text": overflowing(options["--overflow-at"])})
    if options["--kill-in-save"]:
        save = killing(lambda path: None, options["--kill-in-save"])

        def save_and_die(path: Path) -> None:
            task_save(path)
            save(path)

        task_save = task.save_model_folder
        task = replace(task, save_model_folder=save_and_die)
    result = train(task, recipe, run_dir, resume=options["--resume"])
    print(json.dumps({"finished": result.finished, "step": result.step}))


if __name__ == "__main__":
    main(sys.argv[1:])
