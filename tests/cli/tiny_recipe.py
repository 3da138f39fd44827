"""A recipe of seconds, found by the command line as ``tests.cli.tiny_recipe:seconds``."""

from typing import Any

from diptych.data.sources.scenes import ScenesSource
from diptych.train.recipe import LoggingConfig, Recipe, SamplingConfig, Stage
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
