"""BLIP3-o (arXiv 2505.09568) from a minute on two cores to the published setting."""

from diptych.data.sources.scenes import ScenesSource
from diptych.methods.blip3o import Blip3oConfig
from diptych.train.part_configs import BackboneConfig, FeaturesConfig, LuminaConfig, VitConfig
from diptych.train.recipe import (
    CheckpointConfig,
    LoggingConfig,
    OptimizerConfig,
    Recipe,
    Stage,
)

SCENE_FEATURES = FeaturesConfig(
    encoder=VitConfig(dim=96, num_layers=2, num_heads=4),
    channels=32,
    pool=2,
    decoder_dim=96,
    decoder_layers=2,
    decoder_heads=4,
)
"""Features of the built-in world: 4 x 4 cells of 32 channels for 64 pixels."""


def features() -> Recipe[Blip3oConfig]:
    """The encoder of the built-in world and the decoder of its features, which the other presets start from.

    Trained on reconstruction alone, from features with noise (RAE, arXiv 2510.11690, section 3); unlike RAE's the
    encoder is not pre-trained elsewhere but learns together with the decoder.
    """
    return Recipe(
        name="blip3o:features",
        model=Blip3oConfig(
            features=SCENE_FEATURES,
            backbone=BackboneConfig(dim=64, num_layers=1, num_heads=2, num_kv_heads=2, ffn_dim=128),
            denoiser=LuminaConfig(dim=64, num_layers=1, num_heads=2),
            feature_noise=0.5,
        ),
        data={"pictures": ScenesSource(task="text_to_image", num_scenes=1_000_000, seed=1)},
        stages={
            "features": Stage(
                trainable=("autoencoder",),
                mix={"pictures": 1.0},
                objectives={"reconstruction": 1.0},
                num_steps=8000,
                batch_size=32,
                optimizer=OptimizerConfig(lr=3e-3, warmup_steps=100, schedule="wsd", decay_fraction=0.4),
            )
        },
        checkpoints=CheckpointConfig(every_steps=1000),
        logging=LoggingConfig(every_steps=50, sample_every=1000),
        seed=0,
    )
