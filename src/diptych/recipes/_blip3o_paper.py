"""What the published trainings of BLIP3-o have in common (section 4 of the paper, and its code's scripts)."""

from diptych.data.sources.webdataset import WebDatasetSource
from diptych.flow.time import DiscreteTime
from diptych.interop.blip3o_space import EvaFeaturesConfig
from diptych.methods.blip3o import Blip3oConfig
from diptych.train.part_configs import LuminaConfig, PretrainedBackboneConfig, TokenizerConfig
from diptych.train.recipe import CheckpointConfig, LoggingConfig, OptimizerConfig, Recipe, SamplingConfig, Stage
from diptych.unified import ImagePolicy

PRETRAINING = {"long": 27.2, "short": 4.77, "journeydb": 4.28}
"""Published sources and their millions of images, which weigh the mix."""


def published_recipe(name: str, language_model: str, released: str, sources: tuple[str, ...]) -> Recipe[Blip3oConfig]:
    """The model with data and no stage but `pretraining` and `instruction_tuning`, by the sources that are named."""
    folders = {
        "long": "BLIP3o-Pretrain-Long-Caption",
        "short": "BLIP3o-Pretrain-Short-Caption",
        "journeydb": "BLIP3o-Pretrain-JourneyDB",
        "instructions": "BLIP3o-60k",
    }
    stages = {"pretrain": pretraining(), "sft": instruction_tuning()}
    return Recipe(
        name=name,
        model=Blip3oConfig(
            images=ImagePolicy(size=(448, 448), resize="crop", multiple=8),
            prompt_format="chatml",
            tokenizer=TokenizerConfig(path=language_model),
            features=EvaFeaturesConfig(
                encoder_file="checkpoints/eva_clip_vision_tower/pytorch_model.bin", decoder=f"checkpoints/{released}"
            ),
            backbone=PretrainedBackboneConfig(path=language_model),
            denoiser=LuminaConfig(dim=1792, num_layers=24, num_heads=28, ffn_multiple=256, prediction="velocity"),
            num_queries=64,
            query_std=1.0,
            time=DiscreteTime(),
            condition_drop=0.1,
            row_length=1024,
        ),
        data={source: WebDatasetSource(urls=(f"data/{folders[source]}/*.tar",)) for source in sources},
        stages={stage: value for stage, value in stages.items() if set(value.mix) <= set(sources)},
        sampling=SamplingConfig(num_steps=30, guidance_scale=3.0),
        checkpoints=CheckpointConfig(every_steps=1000),
        logging=LoggingConfig(every_steps=50, sample_every=5000),
        precision="bfloat16",
    )


def pretraining() -> Stage:
    """150,000 steps of 512 (16 a GPU on 32 of them), learning rate 1e-4 to 1e-5."""
    return Stage(
        trainable=("image_head",),
        mix=PRETRAINING,
        objectives={"flow": 1.0},
        num_steps=150_000,
        batch_size=512,
        optimizer=OptimizerConfig(
            lr=1e-4,
            betas=(0.9, 0.999),
            warmup_steps=450,  # a share of 0.003
            schedule="cosine",
            min_lr_ratio=0.1,
            clip_norm=1.0,
        ),
    )


def instruction_tuning() -> Stage:
    """10,000 steps of 128 (16 a GPU on 8 of them) on 60 thousand pictures, learning rate 1e-4 to 0."""
    return Stage(
        trainable=("image_head",),
        mix={"instructions": 1.0},
        objectives={"flow": 1.0},
        num_steps=10_000,
        batch_size=128,
        optimizer=OptimizerConfig(
            lr=1e-4, betas=(0.9, 0.999), warmup_steps=30, schedule="cosine", min_lr_ratio=0.0, clip_norm=1.0
        ),
    )
