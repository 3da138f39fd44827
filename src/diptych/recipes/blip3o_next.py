"""BLIP3o-NEXT (arXiv 2510.15857) on the built-in world in two minutes, and at the published sizes."""

from dataclasses import replace

from diptych.data.sources.scenes import ScenesSource
from diptych.data.sources.webdataset import WebDatasetSource
from diptych.interop.blip3o_next import DeepCompression, Qwen3, Sana15, SigLip2
from diptych.interop.feature_networks import FeatureNetwork
from diptych.methods.blip3o_next import Blip3oNextConfig
from diptych.methods.grpo import GrpoConfig, SceneReward
from diptych.train.part_configs import (
    GrownBackboneConfig,
    SanaConfig,
    SavedPartConfig,
    TextAlignedTokenizerConfig,
    TokenizerConfig,
)
from diptych.train.recipe import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    Recipe,
    SamplingConfig,
    Stage,
)
from diptych.unified import ImagePolicy
from diptych.unified.tokens import TokenSettings


def tiny() -> Recipe[Blip3oNextConfig]:
    """Tokens, drawing, questions and edits in two minutes on one core; for tests and a first look.

    Starts as the paper does, from parts that were trained before: the backbone of the bundled model in place of Qwen3,
    its picture encoder in place of SigLIP 2 and its generation space in place of DC-AE, the last two frozen. The
    denoiser, which the paper takes from SANA 1.5, starts from scratch and is all trained. The first stage trains the
    tokenizer on the encoder's features, the others backbone and denoiser by cross-entropy plus flow matching.
    """
    scenes = ScenesSource(num_scenes=100_000, max_objects=1)
    draw = Stage(
        trainable=("connector", "backbone", "image_head"),
        mix={"draw": 1.0},
        objectives={"tokens": 1.0, "flow": 1.0},
        num_steps=200,
        batch_size=24,
        optimizer=OptimizerConfig(name="muon", lr=1e-3, warmup_steps=20, schedule="wsd", decay_fraction=0.4),
    )
    return Recipe(
        name="blip3o_next:tiny",
        model=Blip3oNextConfig(
            image_tokenizer=TextAlignedTokenizerConfig(
                encoder=SavedPartConfig(path="diptych-scenes", part="autoencoder.encoder"),
                num_codes=256,
                code_dim=16,
                pool=2,
                image_size=64,
                decoder_layers=1,
            ),
            features=SavedPartConfig(path="diptych-scenes", part="autoencoder"),
            backbone=GrownBackboneConfig(path="diptych-scenes", spread=1.0),
            denoiser=SanaConfig(dim=96, condition_dim=96, num_layers=3, num_heads=3, prediction="data"),
            position_dim=32,
            references=("condition",),
            token_sampling=TokenSettings(top_p=0.95, top_k=0),
            noise_repeats=2,
            loss_floor=0.3,
            row_length=128,
        ),
        data={
            "draw": replace(scenes, task="text_to_image", caption_style="short"),
            "ask": replace(scenes, task="question_answering", questions_per_image=2),
            "edit": replace(scenes, task="image_edit", edit_kinds=("recolor", "reshape", "resize")),
        },
        stages={
            "tokenizer": Stage(
                trainable=("encoder",),
                mix={"draw": 1.0},
                objectives={"features": 1.0, "codebook": 1.0, "usage": 0.3},
                num_steps=200,
                batch_size=32,
                optimizer=OptimizerConfig(lr=3e-3, warmup_steps=20),
            ),
            "draw": draw,
            "joint": replace(
                draw,
                mix={"draw": 0.6, "ask": 0.15, "edit": 0.25},
                objectives={"text": 1.0, "tokens": 1.0, "flow": 1.0},
                num_steps=150,
            ),
        },
        sampling=SamplingConfig(num_steps=8, guidance_scale=2.0),
        evaluation=EvaluationConfig(scorers=("geneval", "questions", "editing"), num_prompts=10),
        checkpoints=CheckpointConfig(every_steps=200),
        logging=LoggingConfig(every_steps=25),
    )


def grpo() -> Recipe[GrpoConfig]:
    """``tiny()`` after reinforcement learning by the exact rules of the built-in world, in minutes on one core.

    The model is taken from ``runs/blip3o_next_tiny``; elsewhere it is named by ``--model.start-from``. It must draw
    some of its pictures right for there to be a reward: train it with ``--stages.draw.num-steps 800``. The numbers are
    those of ``paper_grpo`` but for the learning rate, since a small model takes larger steps, the number of prompts,
    and groups of 8.
    """
    draw = ScenesSource(num_scenes=100_000, task="text_to_image", caption_style="short", max_objects=1, seed=21)
    return Recipe(
        name="blip3o_next:grpo",
        model=GrpoConfig(
            start_from="runs/blip3o_next_tiny",
            reward=SceneReward(partial=0.5),
            group_size=8,
            held_out=replace(draw, num_scenes=10_000, seed=22),
            features=FeatureNetwork("scenes"),
        ),
        data={"draw": draw},
        stages={
            "grpo": Stage(
                trainable=("backbone",),
                mix={"draw": 1.0},
                objectives={"policy": 1.0, "kl": 1e-3},
                num_steps=150,
                batch_size=16,
                optimizer=OptimizerConfig(lr=6e-5, warmup_steps=5, schedule="constant"),
            )
        },
        sampling=SamplingConfig(num_steps=8, guidance_scale=2.0),
        evaluation=EvaluationConfig(scorers=("held_out",), num_prompts=256),
        checkpoints=CheckpointConfig(every_steps=50),
        logging=LoggingConfig(every_steps=10, sample_every=-1),
    )


def paper() -> Recipe[Blip3oNextConfig]:
    """The published pre-training of BLIP3o-NEXT (project page): 336,000 steps of 512 pictures on 32 H200.

    Its parts are read from the hub (`diptych.interop.blip3o_next`). ``pretrain`` and ``sft`` have the numbers of the
    project page; optimizer, schedule and warm-up are those of the released scripts, whose rates are others (5e-5 to
    1e-5). The pictures are to be put in place of ``data``: folders of WebDataset shards with captions. TA-Tok's weights
    (``ta_tok.pth``) are not read: its codebook starts at random and needs a stage of its own, as in ``tiny``.
    Never run here; the numbers of parameters are tested.
    """
    optimizer = OptimizerConfig(lr=1e-4, betas=(0.9, 0.999), schedule="cosine", min_lr_ratio=0.1, warmup_steps=3360)
    pretrain = Stage(
        trainable=("backbone", "image_head"),
        mix={"long": 27.2, "short": 4.77, "journeydb": 4.28},
        objectives={"tokens": 1.0, "flow": 1.0},
        num_steps=336_000,
        batch_size=512,
        optimizer=optimizer,
    )
    return Recipe(
        name="blip3o_next:paper",
        model=Blip3oNextConfig(
            images=ImagePolicy(size=(1024, 1024), resize="crop", multiple=32),
            prompt_format="chatml",
            tokenizer=TokenizerConfig(path="Qwen/Qwen3-1.7B"),
            image_tokenizer=TextAlignedTokenizerConfig(
                encoder=SigLip2(), num_codes=65_536, code_dim=1536, layer=26, image_size=384, decoder_heads=16
            ),
            features=DeepCompression(),
            backbone=Qwen3(),
            denoiser=Sana15(),
            frozen_denoiser=True,
            reads="codes",
        ),
        data={
            name: WebDatasetSource(urls=(f"data/BLIP3o-Pretrain-{folder}",))
            for name, folder in (("long", "Long-Caption"), ("short", "Short-Caption"), ("journeydb", "JourneyDB"))
        }
        | {"sft": WebDatasetSource(urls=("data/BLIP3o-60k",))},
        stages={
            "pretrain": pretrain,
            "sft": replace(
                pretrain,
                mix={"sft": 1.0},
                num_steps=7000,
                batch_size=128,
                optimizer=replace(optimizer, lr=5e-5, warmup_steps=70),
            ),
        },
        sampling=SamplingConfig(num_steps=30, guidance_scale=2.0),
        precision="bfloat16",
    )


def paper_grpo() -> Recipe[GrpoConfig]:
    """RL-GenEval of the project page: 400 steps of 256 pictures in groups of 16 on 16 H100, learning rate 5e-6.

    The reward there is GenEval's detector behind a server; `diptych.methods.grpo.Reward` is the call it has to answer,
    and the one here, of the built-in world, is to be replaced by it. RL-Text has 900 steps of 512 pictures at 1e-6.
    Never run here.
    """
    base = grpo()
    stage = base.stages["grpo"]
    optimizer = OptimizerConfig(lr=5e-6, betas=(0.9, 0.999), schedule="cosine")
    return replace(
        base,
        name="blip3o_next:paper_grpo",
        model=replace(base.model, start_from="runs/blip3o_next_paper", group_size=16, features=None),
        stages={"grpo": replace(stage, num_steps=400, batch_size=16, optimizer=optimizer)},
        sampling=SamplingConfig(num_steps=30, guidance_scale=2.0),
        precision="bfloat16",
    )


def paper_edit() -> Recipe[Blip3oNextConfig]:
    """BLIP3o-NEXT-edit: latents of the picture in the condition and beside the noise, one epoch at 12 x 8 pictures.

    Starts from the weights of ``paper``. The number of steps follows from the data, which is not published in full: the
    one here is a placeholder for the size of yours. Never run here.
    """
    base = paper()
    stage = base.stages["sft"]
    return replace(
        base,
        name="blip3o_next:paper_edit",
        model=replace(base.model, references=("condition", "noise")),
        data={"edit": base.data["sft"]},
        stages={"edit": replace(stage, mix={"edit": 1.0}, num_steps=10_000, batch_size=96)},
    )
