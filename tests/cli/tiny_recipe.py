"""Recipes of seconds, found by the command line as ``tests.cli.tiny_recipe:seconds`` and so on."""

from dataclasses import replace
from typing import Any

from diptych.data.sources.scenes import ScenesSource
from diptych.methods.clip_mse import ClipMseConfig
from diptych.train.recipe import CheckpointConfig, LoggingConfig, Recipe, SamplingConfig, Stage
from tests.tiny_models import TINY


def seconds() -> Recipe[Any]:
    """Two stages of a few steps at the smallest size."""
    return Recipe(
        name="tests:seconds",
        model=TINY,
        data={
            "pictures": ScenesSource(num_scenes=32),
            "questions": ScenesSource(task="question_answering", num_scenes=32),
        },
        stages={
            "features": Stage(
                trainable=("autoencoder",),
                mix={"pictures": 1.0},
                objectives={"reconstruction": 1.0},
                num_steps=3,
                batch_size=4,
            ),
            "joint": Stage(
                trainable=("backbone", "connector", "image_head"),
                mix={"pictures": 1.0, "questions": 1.0},
                objectives={"flow": 1.0, "text": 1.0},
                num_steps=4,
                batch_size=4,
            ),
        },
        sampling=SamplingConfig(num_steps=2, guidance_scale=1.0),
        logging=LoggingConfig(every_steps=1, sample_every=2),
    )


def regressed() -> Recipe[Any]:
    """``seconds`` with CLIP + MSE in place of flow matching, understanding first."""
    base = seconds()
    joint = base.stages["joint"]
    return replace(
        base,
        name="tests:regressed",
        model=ClipMseConfig(base=TINY),
        stages={
            "features": base.stages["features"],
            "understanding": replace(
                joint, trainable=("backbone", "connector"), mix={"questions": 1.0}, objectives={"text": 1.0}
            ),
            "generation": replace(
                joint, trainable=("image_head",), mix={"pictures": 1.0}, objectives={"mse": 1.0}, num_steps=6
            ),
        },
    )


def long() -> Recipe[Any]:
    """``seconds`` with so many steps that it can be killed among them."""
    base = seconds()
    stages = {name: replace(stage, num_steps=stage.num_steps * 12) for name, stage in base.stages.items()}
    return replace(base, name="tests:long", stages=stages, checkpoints=CheckpointConfig(every_steps=5))


def broken() -> Recipe[Any]:
    """``seconds`` whose head cannot start from where it is told to."""
    base = seconds()
    return replace(base, name="tests:broken", model=replace(TINY, start_from={"image_head": "no-such-model"}))
