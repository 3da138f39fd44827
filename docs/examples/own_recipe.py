"""Recipes of one's own: start from a preset, replace fields. ``diptych train docs.examples.own_recipe:pictures``."""

from dataclasses import replace

from diptych.data.sources import FolderSource
from diptych.methods.blip3o import Blip3oConfig
from diptych.recipes import blip3o
from diptych.train.recipe import Recipe


def pictures() -> Recipe[Blip3oConfig]:
    """``blip3o:tiny`` that learns to draw the captioned pictures of the folder ``pictures`` too."""
    base = blip3o.tiny()
    joint = base.stages["joint"]
    return replace(
        base,
        name="mine:pictures",
        data={**base.data, "mine": FolderSource(path="pictures")},
        stages={
            "features": replace(base.stages["features"], mix={"draw": 0.5, "mine": 0.5}),
            "joint": replace(joint, mix={"draw": 0.2, "mine": 0.5, "ask": 0.3}),
        },
    )


def longer() -> Recipe[Blip3oConfig]:
    """``pictures`` with a hundred times the steps and an average of the weights."""
    base = pictures()
    stages = {
        name: replace(stage, num_steps=100 * stage.num_steps, optimizer=replace(stage.optimizer, ema_decay=0.999))
        for name, stage in base.stages.items()
    }
    return replace(base, name="mine:longer", stages=stages)
