"""CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343) on the built-in world: encoders trained from captions."""

from dataclasses import replace

from diptych.data.sources.scenes import ScenesSource
from diptych.methods.clip import ClipConfig
from diptych.train.part_configs import BackboneConfig, VitConfig
from diptych.train.recipe import CheckpointConfig, EvaluationConfig, LoggingConfig, OptimizerConfig, Recipe, Stage
from diptych.unified import ImagePolicy


def tiny() -> Recipe[ClipConfig]:
    """CLIP at toy size, pictures of 32 pixels, under a minute on two cores; for tests and a first look.

    240 steps find 27 % of 100 held-out captions (chance 1 %); with SigLIP's loss, whose plateau is longer, 13 %.
    """
    return Recipe(
        name="clip:tiny",
        model=ClipConfig(
            images=ImagePolicy(size=(32, 32)),
            encoder=VitConfig(image_size=(32, 32), patch_size=8, dim=96, num_layers=2, num_heads=4),
            text_encoder=BackboneConfig(
                dim=96, num_layers=2, num_heads=4, num_kv_heads=4, ffn_dim=256, residual_init=1.0
            ),
            dim=96,
            loss="clip",
        ),
        data={"pairs": ScenesSource(task="text_to_image", num_scenes=100_000, image_size=32, caption_style="short")},
        stages={
            "contrastive": Stage(
                trainable=("*",),
                mix={"pairs": 1.0},
                objectives={"contrastive": 1.0},
                num_steps=240,
                batch_size=64,
                optimizer=OptimizerConfig(lr=2e-3, warmup_steps=20),
            )
        },
        evaluation=EvaluationConfig(scorers=("retrieval",), num_prompts=100),
        checkpoints=CheckpointConfig(every_steps=200),
        logging=LoggingConfig(every_steps=20, sample_every=-1),
    )


def small() -> Recipe[ClipConfig]:
    """A vision encoder of 64 pixels for the built-in world, about as large as the one of the bundled model.

    Differs from CLIP in size and data, and in batches of 256, where the paper has 32,768.
    """
    base = tiny()
    return replace(
        base,
        name="clip:small",
        model=replace(
            base.model,
            images=ImagePolicy(size=(64, 64)),
            encoder=VitConfig(dim=128, num_layers=4, num_heads=4),
            text_encoder=BackboneConfig(
                dim=128, num_layers=4, num_heads=4, num_kv_heads=4, ffn_dim=352, residual_init=1.0
            ),
            dim=128,
        ),
        data={"pairs": ScenesSource(task="text_to_image", num_scenes=1_000_000)},
        stages={
            "contrastive": replace(
                base.stages["contrastive"],
                num_steps=10_000,
                batch_size=256,
                optimizer=OptimizerConfig(
                    lr=1e-3, warmup_steps=300, weight_decay=0.05, schedule="wsd", decay_fraction=0.4, ema_decay=0.999
                ),
            )
        },
        evaluation=replace(base.evaluation, num_prompts=1000),
        checkpoints=CheckpointConfig(every_steps=1000),
        logging=LoggingConfig(every_steps=50, sample_every=-1),
        precision="bfloat16",
    )
