"""The design study of BLIP3-o (arXiv 2505.09568, section 3 and 4) on the built-in world: what is drawn, how, and when.

Three designs, each trained jointly and sequentially, on one backbone, one set of sources, one view of the pictures:

- ``clip_mse``: features, by regression of the hidden states at the queries;
- ``clip_flow``: features, by flow matching (the design that the paper chooses);
- ``vae_flow``: latents of an autoencoder that was trained for reconstruction alone, by flow matching.

The features are those of ``diptych-scenes``, which stand for EVA-CLIP; pictures are looked at by them in all designs.
Sequential is understanding first and then generation with the backbone frozen; joint has the same examples of both
mixed. ``diptych compare`` trains them side by side: docs/compare.md has the command and what came out.
"""

from dataclasses import replace
from typing import Any

from diptych.data.sources.scenes import ScenesSource
from diptych.flow.time import UniformTime
from diptych.methods.blip3o import Blip3oConfig
from diptych.methods.clip_mse import ClipMseConfig
from diptych.recipes.blip3o import PLAIN_FEATURES
from diptych.train.part_configs import BackboneConfig, FeaturesConfig, LuminaConfig, SpaceEncoderConfig, VitConfig
from diptych.train.recipe import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    Recipe,
    SamplingConfig,
    Stage,
)

VAE_LATENTS = FeaturesConfig(
    encoder=VitConfig(dim=96, num_layers=2, num_heads=4),
    channels=8,
    pool=1,
    decoder_dim=96,
    decoder_layers=2,
    decoder_heads=4,
)
"""8 x 8 cells of 8 channels for 64 pixels: four times the cells of the features and as many numbers.

Like a VAE's they are noised before they are decoded, with a deviation that is drawn and not predicted, and are kept to
unit size by a norm where a VAE has its KL term.
"""

_QUERIES = 16
_ASK_STEPS, _DRAW_STEPS = 200, 300
_OPTIMIZER = OptimizerConfig(name="muon", lr=1e-3, warmup_steps=30, schedule="wsd", decay_fraction=0.4, ema_decay=0.98)


def clip_mse_joint() -> Recipe[Any]:
    """CLIP + MSE, understanding and generation at once: hidden states at the queries are regressed to features."""
    return _recipe("clip_mse_joint", ClipMseConfig(base=_clip(), query_std=0.1), {"joint": _joint("mse")})


def clip_mse_sequential() -> Recipe[Any]:
    """CLIP + MSE, understanding first and then generation with the backbone frozen."""
    return _recipe("clip_mse_sequential", ClipMseConfig(base=_clip(), query_std=0.1), _sequential("mse"))


def clip_flow_joint() -> Recipe[Any]:
    """CLIP + flow matching, understanding and generation at once."""
    return _recipe("clip_flow_joint", _clip(), {"joint": _joint("flow")})


def clip_flow_sequential() -> Recipe[Any]:
    """CLIP + flow matching, understanding first and then generation with the backbone frozen: the paper's choice."""
    return _recipe("clip_flow_sequential", _clip(), _sequential("flow"))


def vae_flow_joint() -> Recipe[Any]:
    """VAE + flow matching, understanding and generation at once, after a stage ``vae`` that trains the autoencoder."""
    return _recipe("vae_flow_joint", _vae(), {"vae": _autoencoder(), "joint": _joint("flow")})


def vae_flow_sequential() -> Recipe[Any]:
    """VAE + flow matching, understanding first, after a stage ``vae`` that trains the autoencoder."""
    return _recipe("vae_flow_sequential", _vae(), {"vae": _autoencoder(), **_sequential("flow")})


def _clip() -> Blip3oConfig:
    """Everything but the head as in the other designs; pictures are looked at and drawn by the same features."""
    return Blip3oConfig(
        features=PLAIN_FEATURES,
        encoder=SpaceEncoderConfig(),
        backbone=BackboneConfig(dim=128, num_layers=4, num_heads=4, num_kv_heads=4, ffn_dim=352, residual_init=1.0),
        denoiser=LuminaConfig(dim=128, num_layers=3, num_heads=4, initial_gate=1.0),
        position_dim=32,
        num_queries=_QUERIES,
        full_queries=True,
        query_std=0.1,
        time=UniformTime(shift=3.0),
        noise_repeats=2,
        loss_floor=0.3,
        row_length=128,
        start_from={"autoencoder": "diptych-scenes"},
    )


def _vae() -> Blip3oConfig:
    """The same with latents in place of the features that are drawn; two latents a side make a token."""
    base = _clip()
    return replace(
        base,
        features=VAE_LATENTS,
        feature_noise=0.3,
        denoiser=replace(base.denoiser, patch_size=2),
        start_from={},
    )


def _autoencoder() -> Stage:
    return Stage(
        trainable=("autoencoder",),
        mix={"draw": 1.0},
        objectives={"reconstruction": 1.0},
        num_steps=400,
        batch_size=32,
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=50, schedule="wsd", decay_fraction=0.5),
    )


def _joint(objective: str) -> Stage:
    return Stage(
        trainable=("connector", "backbone", "image_head"),
        mix={"ask": float(_ASK_STEPS), "draw": float(_DRAW_STEPS)},
        objectives={"text": 1.0, objective: 1.0},
        num_steps=_ASK_STEPS + _DRAW_STEPS,
        batch_size=32,
        optimizer=_OPTIMIZER,
    )


def _sequential(objective: str) -> dict[str, Stage]:
    joint = _joint(objective)
    return {
        "understanding": replace(
            joint,
            trainable=("connector", "backbone"),
            mix={"ask": 1.0},
            objectives={"text": 1.0},
            num_steps=_ASK_STEPS,
        ),
        "generation": replace(
            joint, trainable=("image_head",), mix={"draw": 1.0}, objectives={objective: 1.0}, num_steps=_DRAW_STEPS
        ),
    }


def _recipe(name: str, model: Any, stages: dict[str, Stage]) -> Recipe[Any]:
    scenes = ScenesSource(num_scenes=1_000_000)
    return Recipe(
        name=f"study:{name}",
        model=model,
        data={
            "ask": replace(
                scenes,
                task="question_answering",
                max_objects=2,
                question_kinds=("existence", "color", "shape", "size", "count"),
                questions_per_image=6,
            ),
            "draw": replace(scenes, task="text_to_image", caption_style="short", max_objects=2),
        },
        stages=stages,
        sampling=SamplingConfig(num_steps=20, guidance_scale=3.0, time_shift=2.0),
        evaluation=EvaluationConfig(scorers=("geneval", "questions"), num_prompts=30),
        checkpoints=CheckpointConfig(every_steps=200),
        logging=LoggingConfig(every_steps=20, sample_every=-1),
    )
