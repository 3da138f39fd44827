"""FD-loss on class-conditional generators: one call is one Euler step, distances fall, runs resume, inputs are
checked."""

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.data.example import Example, Text
from diptych.data.sources.class_labels import ClassLabels
from diptych.flow.path import to_velocity
from diptych.flow.solvers import SOLVERS
from diptych.flow.time import time_grid
from diptych.frechet.distance import frechet_distance
from diptych.interop.feature_networks import FeatureNetwork
from diptych.methods.class_fd_loss import (
    ClassBatch,
    ClassFDLossConfig,
    ClassGenerator,
    collate_classes,
    load_class_generator,
)
from diptych.methods.fd_loss import MovingAverageConfig
from diptych.methods.training import build_task
from diptych.models.autoencoders.pixels import PixelSpace
from diptych.models.denoisers.jit import JiT
from diptych.models.denoisers.pmf import MeanFlowCondition, MiT
from diptych.train.loop import train
from diptych.train.recipe import CheckpointConfig, LoggingConfig, OptimizerConfig, Recipe, SamplingConfig, Stage
from diptych.unified.folder import load_model

NUM_CLASSES = 4
SHAPE = {"image_size": 8, "patch_size": 2, "dim": 32, "num_layers": 2, "num_heads": 4, "num_classes": NUM_CLASSES}


@dataclass(frozen=True, kw_only=True)
class TinyGenerator:
    """A network of open gates: what it draws is neither zero nor like anything real."""

    name: str = "jit"
    """jit, pmf (data) or imf (velocity)."""

    def build(self) -> JiT | MiT:
        torch.manual_seed(3)
        if self.name == "jit":
            model = JiT(**SHAPE, bottleneck_dim=8, in_context_start=1, num_in_context=2, learned_positions=True)
            opened = [block.modulation.weight for block in model.blocks] + [model.out_modulation.weight]
        else:
            is_pmf = self.name == "pmf"
            own = {"bottleneck_dim": 8, "noise_scale": 2.0} if is_pmf else {"bottleneck_dim": None}
            model = MiT(**SHAPE, **own, ffn_dim=64, prediction="data" if is_pmf else "velocity")
            opened = [gate for block in model.blocks for gate in (block.attention_gate, block.ffn_gate)]
        for weight in (*opened, model.patch_out.weight):
            torch.nn.init.normal_(weight, std=0.2)
        return model


def real_images(count):
    """Two-coloured pictures: a bright left, a dark right, with little noise."""
    generator = torch.Generator().manual_seed(5)
    colours = torch.rand(count, 3, 1, 1, generator=generator) * 0.5
    images = torch.cat((0.3 + colours.expand(-1, -1, 8, 4), -0.3 - colours.expand(-1, -1, 8, 4)), dim=3)
    return images + 0.05 * torch.randn(count, 3, 8, 8, generator=generator)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A file of moments of real images, in the space of 4 x 4 pixels."""
    network = FeatureNetwork("pixels@4").build()
    moments = network.new_moments()
    moments.update(network(real_images(600), value_range=(-1, 1), outside="keep"))
    path = tmp_path_factory.mktemp("moments") / "real.npz"
    moments.save(path)
    return str(path)


def recipe(reference, name="jit", num_steps=4, batch_size=16, **fields):
    fields = {"guidance_scale": 1.0 if name == "jit" else 5.0, "num_warm_start": 128} | fields
    return Recipe(
        name="class_fd_loss",
        model=ClassFDLossConfig(
            generator=TinyGenerator(name=name),
            representations={"pixels": FeatureNetwork("pixels@4")},
            references={"pixels": reference},
            population=MovingAverageConfig(decay=0.8),
            **fields,
        ),
        data={"classes": ClassLabels(num_classes=NUM_CLASSES)},
        stages={
            "one_step": Stage(
                trainable=("denoiser",),
                mix={"classes": 1.0},
                objectives={"fd": 1.0},
                num_steps=num_steps,
                batch_size=batch_size,
                optimizer=OptimizerConfig(lr=1e-2, warmup_steps=5, clip_norm=None),
            )
        },
        sampling=SamplingConfig(num_steps=1, guidance_scale=1.0),
        checkpoints=CheckpointConfig(every_steps=2, keep=5),
        logging=LoggingConfig(every_steps=1, sample_every=-1),
    )


def run(plan, folder, resume=False):
    return train(build_task(plan, folder), plan, folder, resume=resume)


@pytest.mark.parametrize("name", ["jit", "pmf", "imf"])
def test_one_call_is_one_euler_step_from_noise(name):
    denoiser = TinyGenerator(name=name).build()
    guidance = {} if name == "jit" else {"guidance_scale": 5.0, "guidance_interval": (0.3, 0.9)}
    model = ClassGenerator(denoiser=denoiser, **guidance)
    batch = ClassBatch(torch.tensor([0, 1, 3]), torch.tensor([7, 8, 9]))
    seen = []
    denoiser.register_forward_pre_hook(lambda _, args: seen.append(args))
    drawn = model(batch)
    assert drawn.requires_grad
    noise, start, condition = seen[0]
    assert torch.equal(start, torch.zeros(3))
    assert noise.std().item() == pytest.approx(denoiser.noise_scale, rel=0.1)
    if name == "jit":
        assert torch.equal(condition, batch.labels)
    else:
        assert isinstance(condition, MeanFlowCondition)
        assert condition.guidance_scale.tolist() == [5.0] * 3 and condition.guidance_start[0].item() == pytest.approx(
            0.3
        )

    def velocity(x, t):
        return to_velocity(denoiser(x, t, condition), denoiser.prediction, x, t)

    torch.testing.assert_close(drawn, SOLVERS["euler"](velocity, noise, time_grid(1, 1.0)), rtol=1e-4, atol=1e-5)
    in_pixel_space = ClassGenerator(denoiser=denoiser, autoencoder=PixelSpace(), **guidance)
    torch.testing.assert_close(in_pixel_space(batch), drawn)


@pytest.mark.parametrize("name", ["jit", "pmf", "imf"])
def test_distances_fall_and_the_loss_stays_at_the_number_of_representations(reference, tmp_path, name):
    """Batches of 32 images for 48 numbers each."""
    plan = recipe(reference, name, num_steps=60, batch_size=32)
    plan = replace(plan, checkpoints=CheckpointConfig(every_steps=60))
    before = build_task(plan, tmp_path).companion
    run(plan, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "train"]
    assert len(steps) == 60 and all(0.8 < line["loss"] < 1.01 for line in steps)
    assert steps[-1]["fd/pixels"] < steps[0]["fd/pixels"] / 5
    network, moments = before.networks["pixels"], before.references["pixels"]

    def distance(model):
        companion = plan.model.companion(model, tmp_path)
        fresh = network.new_moments()
        fresh.update(companion.drawn_features(1024)["pixels"])
        return frechet_distance(fresh, moments)

    trained = load_class_generator(tmp_path / "run")
    assert distance(trained) < distance(before.model) / 10


def test_a_resumed_run_ends_as_one_that_was_not_stopped(reference, tmp_path):
    plan = recipe(reference)
    run(plan, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-000004")
    run(plan, tmp_path / "resumed", resume=True)
    for name in ("weights", "companion"):
        first, second = (
            load_file(tmp_path / which / "checkpoints" / "step-000004" / "state" / f"{name}.safetensors")
            for which in ("run", "resumed")
        )
        assert first.keys() == second.keys() and len(first) > 1
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_term_may_be_divided_by_a_validation_distance(reference, tmp_path):
    plan = recipe(reference, validation_distances={"pixels": 0.25}, weights={"pixels": 2.0})
    run(plan, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "train"]
    assert len(steps) == 4
    for line in steps:
        assert line["loss"] == pytest.approx(2 * line["fd/pixels"] / 0.25, rel=1e-5)


def test_a_saved_generator_draws_the_same(tmp_path):
    for name in ("jit", "imf"):
        guidance = {} if name == "jit" else {"guidance_scale": 5.0, "guidance_interval": (0.3, 0.9)}
        model = ClassGenerator(denoiser=TinyGenerator(name=name).build(), card={"name": name}, **guidance)
        model.save(tmp_path / name)
        again = load_class_generator(tmp_path / name)
        batch = ClassBatch(torch.tensor([2, 0]), torch.tensor([1, 2]))
        assert torch.equal(again(batch), model(batch)) and again.card == model.card
        assert not (tmp_path / name / "tokenizer").exists()
        with pytest.raises(
            ValueError,
            match=r"class_generator, which draws classes and no prompts. Load it with .*load_class_generator",
        ):
            load_model(tmp_path / name)
    with pytest.raises(ValueError, match="holds no class-conditional generator"):
        load_class_generator("diptych-scenes")


def test_classes_come_equally_often():
    source = ClassLabels(num_classes=3).build()
    assert len(source) == 3
    batch = collate_classes([source.example(index) for index in (2, 0, 1)], [5, 6, 2**62])
    assert batch.labels.tolist() == [2, 0, 1] and batch.example_seeds.tolist() == [5, 6, 2**62]
    with pytest.raises(ValueError, match=r"example 'x' names no class. Use diptych.data.sources.class_labels"):
        collate_classes([Example((Text("a cat"),), key="x")], [0])
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ClassLabels(num_classes=0)


def test_what_cannot_be_trained_is_refused(reference, tmp_path):
    model = recipe(reference).model
    for changes, message in (
        ({"representations": {}}, "representations is empty"),
        ({"references": {}}, "references must have a file for each of pixels, got none"),
        ({"weights": {"dino": 2.0}}, "weights names dino; the representations are pixels"),
        ({"validation_distances": {"mae": 0.04}}, "validation_distances names mae; the representations are pixels"),
        ({"validation_distances": {"pixels": 0.0}}, r"validation_distances\.pixels must be positive, got 0"),
        ({"num_warm_start": 1}, "num_warm_start must be at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(model, **changes)
    with pytest.raises(ValueError, match=r"guidance_scale must be 1 for JiT, which takes no guidance as input, got 3"):
        replace(model, guidance_scale=3.0).build()
    other = replace(model, representations={"pixels": FeatureNetwork("pixels@2")})
    with pytest.raises(ValueError, match=r"references.pixels: .*real.npz is of the preprocessing"):
        other.companion(other.build(), tmp_path)
    cut = recipe(reference)
    cut = replace(cut, stages={"one_step": replace(cut.stages["one_step"], gradient_accumulation=2)})
    with pytest.raises(ValueError, match=r"stages\.one_step\.gradient_accumulation must be 1, got 2"):
        run(cut, tmp_path / "cut")
    plain = tmp_path / "plain.npz"
    np.savez(plain, mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(ValueError, match=r"references.pixels: .*plain.npz has 5 dimensions, the network gives 48"):
        replace(model, references={"pixels": str(plain)}).companion(model.build(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file of moments at none.npz"):
        replace(model, references={"pixels": "none.npz"}).companion(model.build(), tmp_path)
