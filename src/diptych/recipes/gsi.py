"""GSI-Bench (arXiv 2604.20570): a model that is fine-tuned on synthetic spatial edits, and what that does to it.

The paper tunes BAGEL on 10,500 synthetic edits and finds that real and synthetic edits obey better, and that questions
about space are answered a little better too. Its learning rate, batch and number of steps stand in an appendix that was
not at hand, so those here are our own. ``control`` is the same training without a single told number.
"""

from dataclasses import replace

from diptych.data.sources.scenes import ScenesSource
from diptych.data.sources.spatial_scenes import SpatialScenesSource
from diptych.methods.blip3o import Blip3oConfig
from diptych.recipes.blip3o import think
from diptych.train.recipe import CheckpointConfig, EvaluationConfig, LoggingConfig, OptimizerConfig, Recipe, Stage

PARTS = ("autoencoder", "backbone", "connector", "image_head")


def tiny() -> Recipe[Blip3oConfig]:
    """The bundled model learns edits told in numbers, in minutes on one core, on 9,600 of them; encoder and decoder are
    frozen.

    Nothing but spatial edits is shown, as in the paper, so that whatever happens to answers is their doing.
    """
    base = think()
    return replace(
        base,
        name="gsi:tiny",
        model=replace(base.model, start_from=dict.fromkeys(PARTS, "diptych-scenes")),
        data={"spatial": SpatialScenesSource(num_examples=1_000_000, seed=21, thinks=True)},
        stages={
            "spatial": Stage(
                trainable=("connector", "backbone", "image_head"),
                mix={"spatial": 1.0},
                objectives={"text": 1.0, "flow": 1.0},
                num_steps=300,
                batch_size=32,
                optimizer=OptimizerConfig(
                    name="muon",
                    lr=3e-4,
                    matrix_lr=5e-3,
                    warmup_steps=20,
                    schedule="wsd",
                    decay_fraction=0.5,
                    weight_decay=0.1,
                ),
            )
        },
        evaluation=EvaluationConfig(scorers=("questions", "editing"), num_prompts=20),
        checkpoints=CheckpointConfig(every_steps=100),
        logging=LoggingConfig(every_steps=10, sample_every=100),
    )


def control() -> Recipe[Blip3oConfig]:
    """``tiny`` with ordinary edits of the built-in world, none told in numbers: what so many steps do by themselves."""
    base = tiny()
    edits = ScenesSource(task="image_edit", num_scenes=1_000_000, seed=21, thinks=True)
    stage = base.stages["spatial"]
    return replace(base, name="gsi:control", data={"edit": edits}, stages={"edit": replace(stage, mix={"edit": 1.0})})


def rehearsed() -> Recipe[Blip3oConfig]:
    """``tiny`` with a quarter of its examples questions and ordinary edits, so that they are not forgotten."""
    base = tiny()
    scenes = ScenesSource(num_scenes=1_000_000, seed=22, thinks=True)
    stage = base.stages["spatial"]
    return replace(
        base,
        name="gsi:rehearsed",
        data={
            **base.data,
            "ask": replace(scenes, task="question_answering", questions_per_image=3, answer_weight=5.0),
            "edit": replace(scenes, task="image_edit"),
        },
        stages={"spatial": replace(stage, mix={"spatial": 0.75, "ask": 0.15, "edit": 0.1})},
    )
