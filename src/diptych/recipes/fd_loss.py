"""FD-loss (arXiv 2604.28190): a model that draws in many steps becomes one that draws in one."""

from dataclasses import replace

from diptych.data.sources.scenes import ScenesSource
from diptych.interop.feature_networks import FeatureNetwork
from diptych.methods.fd_loss import FDLossConfig, MovingAverageConfig
from diptych.train.recipe import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    Recipe,
    SamplingConfig,
    Stage,
)


def tiny() -> Recipe[FDLossConfig]:
    """The bundled model, a few dozen steps with the networks in the box; for tests and a first look.

    Trained in the space of the encoder that the model draws by; pixels of tiny pictures are held out.
    """
    scenes = ScenesSource(num_scenes=100_000, task="text_to_image", caption_style="short", max_objects=4)
    return Recipe(
        name="fd_loss:tiny",
        model=FDLossConfig(
            representations={"scenes": FeatureNetwork("scenes")},
            held_out={"pixels": FeatureNetwork("pixels")},
            reference=replace(scenes, seed=11),
            num_reference=2000,
            num_warm_start=512,
        ),
        data={"draw": replace(scenes, seed=12)},
        stages={
            "one_step": Stage(
                trainable=("image_head",),
                mix={"draw": 1.0},
                objectives={"fd": 1.0},
                num_steps=60,
                batch_size=32,
                optimizer=OptimizerConfig(lr=3e-4, warmup_steps=10),
            )
        },
        sampling=SamplingConfig(num_steps=1, guidance_scale=1.0),
        evaluation=EvaluationConfig(scorers=("fdr",), num_prompts=512),
        checkpoints=CheckpointConfig(every_steps=50),
        logging=LoggingConfig(every_steps=10, sample_every=0),
    )


def small() -> Recipe[FDLossConfig]:
    """The bundled model in one step, by two representations: its own encoder's and CLIP's (of ``clip:small``).

    Begins with a window of about ten batches and ends with one of a hundred. The paper (section 4.1) takes a decay of
    0.999 throughout, at learning rates of 1e-6 to 1e-5 and 62,500 steps; from a base whose one-step pictures are far
    from real that diverges in a short training.
    """
    base = tiny()
    return replace(
        base,
        name="fd_loss:small",
        model=replace(
            base.model,
            representations={"scenes": FeatureNetwork("scenes"), "clip": FeatureNetwork("scenes=runs/clip_small")},
            population=MovingAverageConfig(decay=0.9, final_decay=0.99),
            num_reference=20_000,
            num_warm_start=4096,
        ),
        stages={
            "one_step": replace(
                base.stages["one_step"],
                num_steps=4000,
                batch_size=64,
                optimizer=OptimizerConfig(lr=3e-4, warmup_steps=100, betas=(0.9, 0.95)),
            )
        },
        evaluation=EvaluationConfig(scorers=("fdr", "geneval"), num_prompts=2000),
        checkpoints=CheckpointConfig(every_steps=500),
        logging=LoggingConfig(every_steps=25, sample_every=500),
    )
