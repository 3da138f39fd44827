"""BLIP3-o (arXiv 2505.09568) from a minute on two cores to the published setting."""

from dataclasses import replace

from diptych.data.sources.scenes import ScenesSource
from diptych.flow.time import UniformTime
from diptych.methods.blip3o import Blip3oConfig
from diptych.recipes._blip3o_curriculum import (
    demo_data,
    demo_stages,
    small_data,
    small_stages,
    think_data,
    think_stages,
)
from diptych.recipes._blip3o_paper import published_recipe
from diptych.scenes.labels import LABELS
from diptych.train.part_configs import BackboneConfig, FeaturesConfig, LoraConfig, LuminaConfig, VitConfig
from diptych.train.recipe import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    Recipe,
    SamplingConfig,
    Stage,
)

SCENE_FEATURES = FeaturesConfig(
    encoder=VitConfig(dim=96, num_layers=3, num_heads=4),
    channels=32,
    pool=2,
    decoder_dim=96,
    decoder_layers=4,
    decoder_heads=4,
    mean_scale=0.85,
    detail_scale=2.1,
    num_labels=len(LABELS),
    gate=True,
)
"""Features of the built-in world: 4 x 4 cells of 32 channels for 64 pixels.

80 % of the variance of the trained features is that of their mean over the cells; the scales make it 40 % of 1.
"""


PLAIN_FEATURES = replace(SCENE_FEATURES, mean_scale=1.0, detail_scale=1.0, num_labels=0, gate=False)
"""The same sizes without labels: what other pictures than scenes begin with, where ``start_from`` is empty."""


def features() -> Recipe[Blip3oConfig]:
    """The encoder of the built-in world, with a first, shallow decoder. `decoder` follows.

    RAE (arXiv 2510.11690, section 3) trains a decoder on noised features of an encoder that was pre-trained for what
    images mean. Here both learn together: the decoder to reconstruct, the encoder also to tell from noised features
    what is where (the labels of `diptych.scenes.labels`), so that most of a feature is about meaning and what follows
    learns from fewer examples.
    """
    first = Stage(
        trainable=("autoencoder",),
        mix={"pictures": 1.0},
        objectives={"reconstruction": 1.0, "labels": 0.05},
        num_steps=8000,
        batch_size=32,
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=100, schedule="wsd", decay_fraction=0.4),
    )
    return Recipe(
        name="blip3o:features",
        model=Blip3oConfig(
            features=replace(SCENE_FEATURES, decoder_layers=2),
            backbone=BackboneConfig(dim=64, num_layers=1, num_heads=2, num_kv_heads=2, ffn_dim=128),
            denoiser=LuminaConfig(dim=64, num_layers=1, num_heads=2),
            feature_noise=0.5,
        ),
        data={"pictures": ScenesSource(task="text_to_image", num_scenes=1_000_000, seed=1, label_cells=4)},
        stages={
            "features": first,
            "finish": replace(
                first,
                objectives={"reconstruction": 2.0, "labels": 0.05},
                num_steps=4500,
                optimizer=replace(first.optimizer, lr=2e-3, decay_fraction=0.6),
            ),
        },
        checkpoints=CheckpointConfig(every_steps=1000),
        logging=LoggingConfig(every_steps=50, sample_every=1000),
        precision="auto",
    )


def decoder() -> Recipe[Blip3oConfig]:
    """A deeper decoder for the frozen encoder of ``features()``: what the other presets draw with.

    The encoder is taken from ``runs/features``; elsewhere it is named by ``--model.start-from``.
    """
    base = features()
    taken = ("encoder", "bottleneck", "gate", "cell_labels", "image_labels")
    return replace(
        base,
        name="blip3o:decoder",
        model=replace(
            base.model,
            features=replace(SCENE_FEATURES, frozen_encoder=True),
            start_from={f"autoencoder.{name}": "runs/features" for name in taken},
        ),
        data={"pictures": ScenesSource(task="text_to_image", num_scenes=1_000_000, seed=2)},
        stages={
            "decoder": replace(
                base.stages["features"],
                objectives={"reconstruction": 1.0},
                num_steps=12_000,
                optimizer=OptimizerConfig(lr=3e-3, warmup_steps=100, schedule="wsd", decay_fraction=0.5),
            )
        },
    )


def sharpen() -> Recipe[Blip3oConfig]:
    """The decoder of ``decoder()`` trained on with Muon and a third of the noise, so that small shapes get their edges.

    It is taken from ``runs/decoder``; elsewhere it is named by ``--model.start-from.autoencoder``. Of the pictures that
    the GenEval twin asks for, encoded and decoded, 89 % are read as correct before and 99 % after.
    """
    base = decoder()
    stage = base.stages["decoder"]
    return replace(
        base,
        name="blip3o:sharpen",
        model=replace(base.model, feature_noise=0.25, start_from={"autoencoder": "runs/decoder"}),
        data={"pictures": ScenesSource(task="text_to_image", num_scenes=1_000_000, seed=3)},
        stages={
            "sharpen": replace(
                stage,
                num_steps=6000,
                optimizer=replace(stage.optimizer, name="muon", lr=1e-3, matrix_lr=0.01, warmup_steps=50),
            )
        },
    )


def tiny() -> Recipe[Blip3oConfig]:
    """Everything at toy size, generation space included, under a minute on two cores; for tests and a first look."""
    scenes = ScenesSource(num_scenes=500)
    return Recipe(
        name="blip3o:tiny",
        model=Blip3oConfig(
            features=FeaturesConfig(
                encoder=VitConfig(dim=48, num_layers=1, num_heads=4),
                channels=16,
                decoder_dim=48,
                decoder_layers=1,
                decoder_heads=4,
            ),
            backbone=BackboneConfig(dim=64, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=160),
            denoiser=LuminaConfig(dim=64, num_layers=2, num_heads=4),
            num_queries=8,
            row_length=128,
        ),
        data={
            "draw": replace(scenes, task="text_to_image", caption_style="short"),
            "ask": replace(scenes, task="question_answering"),
            "edit": replace(scenes, task="image_edit"),
        },
        stages={
            "features": Stage(
                trainable=("autoencoder",),
                mix={"draw": 1.0},
                objectives={"reconstruction": 1.0},
                num_steps=60,
                batch_size=16,
                optimizer=OptimizerConfig(lr=4e-3, warmup_steps=10),
            ),
            "joint": Stage(
                trainable=("connector", "backbone", "image_head"),
                mix={"draw": 0.5, "ask": 0.3, "edit": 0.2},
                objectives={"text": 1.0, "flow": 1.0},
                num_steps=60,
                batch_size=16,
                optimizer=OptimizerConfig(lr=2e-3, warmup_steps=10),
            ),
        },
        sampling=SamplingConfig(num_steps=8, guidance_scale=2.0),
        evaluation=EvaluationConfig(scorers=("geneval", "questions", "editing"), num_prompts=2),
        checkpoints=CheckpointConfig(every_steps=50),
        logging=LoggingConfig(every_steps=10),
    )


def tiny_sequential() -> Recipe[Blip3oConfig]:
    """``tiny`` in the order of the paper (section 4): understanding first, then a frozen backbone and generation."""
    base = tiny()
    joint = base.stages["joint"]
    return replace(
        base,
        name="blip3o:tiny_sequential",
        stages={
            "features": base.stages["features"],
            "understanding": replace(
                joint, trainable=("connector", "backbone"), mix={"ask": 1.0}, objectives={"text": 1.0}
            ),
            "generation": replace(
                joint, trainable=("image_head",), mix={"draw": 0.7, "edit": 0.3}, objectives={"flow": 1.0}
            ),
        },
    )


def small() -> Recipe[Blip3oConfig]:
    """BLIP3-o on the built-in world. ``think()`` follows, and both trained the bundled ``diptych-scenes``.

    Starts from ``features()``, ``decoder()`` and ``sharpen()``, frozen, as BLIP3-o starts from EVA-CLIP and SDXL.
    Backbone, queries and denoiser start from scratch and learn in a curriculum, because a mixture of tasks hides each
    skill that they share, while alone it is learnt in a tenth of the examples: is there a red circle among no others;
    colours, shapes, sizes and numbers of one or two objects; where an object is; how two lie to each other; one object
    drawn where it is asked for, then two; pictures of which one thing changes and all else is copied; then everything.

    Differs from the paper in size, in joint training of backbone and image head, in predicting the data with a loss on
    the velocity, in uniform times shifted towards noise, in queries that see each other, in positions of the cells of a
    looked-at picture, in Muon, and in what lets a short training find the prompt: an open cross-attention gate, small
    initial queries, and an error near the end of the path that weighs no more than eleven times that at its start.
    """
    return Recipe(
        name="blip3o:small",
        model=Blip3oConfig(
            features=PLAIN_FEATURES,
            backbone=BackboneConfig(dim=128, num_layers=6, num_heads=4, num_kv_heads=4, ffn_dim=352, residual_init=1.0),
            denoiser=LuminaConfig(dim=128, num_layers=5, num_heads=4, initial_gate=1.0),
            position_dim=32,
            num_queries=16,
            full_queries=True,
            query_std=0.1,
            sees_context=True,
            time=UniformTime(shift=5.0),
            noise_repeats=3,
            loss_floor=0.3,
            row_length=128,
            start_from={"autoencoder": "diptych-scenes"},
        ),
        data=small_data(),
        stages=small_stages(),
        sampling=SamplingConfig(num_steps=20, guidance_scale=4.0, time_shift=3.0),
        evaluation=EvaluationConfig(scorers=("geneval", "questions", "editing", "multi-reference"), num_prompts=60),
        checkpoints=CheckpointConfig(every_steps=500),
        logging=LoggingConfig(every_steps=50, sample_every=500),
        precision="auto",
    )


def think() -> Recipe[Blip3oConfig]:
    """``small()`` learns to think before it draws and answers, and a denoiser that reads the thought.

    A thought before a picture is its layout in words (`diptych.scenes.layouts`); a thought about a picture is what is
    seen and what follows from it (`diptych.scenes.thoughts`). Backbone and connector are taken from ``runs/small``;
    elsewhere they are named by ``--model.start-from``. They learn first to read pictures and then, in words alone, what
    of it is meant by a phrase and what an edit makes new. The denoiser starts from scratch: beside the queries it
    attends to the hidden states of the text, where each object of a layout is told in a few words.
    """
    base = small()
    return replace(
        base,
        name="blip3o:think",
        model=replace(
            base.model,
            sees_text=True,
            row_length=208,
            start_from={"autoencoder": "diptych-scenes", "backbone": "runs/small", "connector": "runs/small"},
        ),
        data=think_data(),
        stages=think_stages(base.stages),
        sampling=replace(base.sampling, guidance_scale=2.0, think=True, think_temperature=0.0),
    )


def lora() -> Recipe[Blip3oConfig]:
    """Fine-tuning on a small budget: low-rank adapters on backbone and denoiser of ``diptych-scenes``.

    Starts from the bundled model; another of its sizes is named by ``--model.start-from``. Pictures of your own take
    the place of the built-in world's in ``data``. For BLIP3-o as released see ``docs/blip3o-inference.md``.
    """
    base = think()
    stage = base.stages["arrange"]
    parts = ("autoencoder", "connector", "backbone", "image_head")
    return replace(
        base,
        name="blip3o:lora",
        model=replace(
            base.model,
            start_from=dict.fromkeys(parts, "diptych-scenes"),
            lora=LoraConfig(parts=("backbone", "denoiser"), rank=8, alpha=16.0),
        ),
        data={name: base.data[name] for name in ("draw", "ask")},
        stages={
            "tune": replace(
                stage,
                trainable=("backbone", "image_head"),
                mix={"draw": 0.7, "ask": 0.3},
                num_steps=300,
                batch_size=16,
                optimizer=OptimizerConfig(lr=1e-3, warmup_steps=20),
            )
        },
        evaluation=EvaluationConfig(),
    )


def joint() -> Recipe[Blip3oConfig]:
    """All tasks in one stage: what pictures and texts of your own start from, put in place of the built-in world.

    The sizes of ``small`` without its curriculum, which is about the built-in world. The time shift is that of features
    that were not trained for a gate.
    """
    base = small()
    scenes = ScenesSource(num_scenes=1_000_000)
    stage = base.stages["all"]
    return replace(
        base,
        name="blip3o:joint",
        model=replace(base.model, time=UniformTime(shift=1.5)),
        data={
            "draw": replace(scenes, task="text_to_image", caption_style="short"),
            "ask": replace(scenes, task="question_answering", questions_per_image=5),
            "edit": replace(scenes, task="image_edit"),
        },
        stages={"joint": replace(stage, mix={"draw": 0.4, "ask": 0.3, "edit": 0.3}, num_steps=4000)},
        evaluation=replace(base.evaluation, scorers=("geneval", "questions", "editing")),
    )


def demo() -> Recipe[Blip3oConfig]:
    """A model in minutes: backbone, queries and denoiser from scratch on two cores, what ``make demo`` trains.

    Two layers of backbone and one of denoiser fewer than ``small()``. It reads pictures first, whose every word is
    learnt from every picture, then answers at once, and draws from a layout that it writes as a thought (`think()`).
    Relations take longer to learn than there is time, and edits are left out.
    """
    base = small()
    assert isinstance(base.model.backbone, BackboneConfig)
    return replace(
        base,
        name="blip3o:demo",
        model=replace(
            base.model,
            backbone=replace(base.model.backbone, num_layers=4),
            denoiser=replace(base.model.denoiser, num_layers=4),
            sees_text=True,
        ),
        data=demo_data(),
        stages=demo_stages(base.stages),
        sampling=replace(base.sampling, guidance_scale=2.0, think=True, think_to_answer=False, think_temperature=0.0),
        evaluation=replace(base.evaluation, scorers=("geneval", "questions", "editing")),
        logging=LoggingConfig(every_steps=20, sample_every=310),
    )


def demo_sequential() -> Recipe[Blip3oConfig]:
    """``demo`` in the order of the paper: understanding, then generation with the backbone frozen.

    A frozen backbone learns no thoughts, so pictures are drawn without them.
    """
    base = demo()
    last = base.stages["arrange"]
    generation = replace(
        last, trainable=("image_head",), mix={"draw_one": 0.2, "draw_two": 0.35, "draw": 0.45}, objectives={"flow": 1.0}
    )
    at_once = {name: replace(base.data[name], thinks=False) for name in generation.mix}
    understanding = {name: stage for name, stage in base.stages.items() if "image_head" not in stage.trainable}
    return replace(
        base,
        name="blip3o:demo_sequential",
        data={**base.data, **at_once},
        stages={**understanding, "generation": generation},
        sampling=replace(base.sampling, think=False),
    )


def paper() -> Recipe[Blip3oConfig]:
    """BLIP3-o 4B as published: queries and denoiser on a frozen Qwen2.5-VL-3B; 36 million pictures, then BLIP3o-60k.

    Not run here: 32 H200 for ten days are published. Reads the published tars (``KEY.jpg``, ``KEY.txt``) in ``data/``,
    EVA-CLIP's tower and Emu2's decoder in ``checkpoints/``. How it differs is in ``docs/blip3o-training.md``.
    """
    return published_recipe(
        "blip3o:paper", "Qwen/Qwen2.5-VL-3B-Instruct", "BLIP3o-Model-4B", ("long", "short", "journeydb", "instructions")
    )


def paper_8b() -> Recipe[Blip3oConfig]:
    """``paper`` on Qwen2.5-VL-7B; not run here. The paper's own 8B also saw 30 million pictures that are not public."""
    return published_recipe(
        "blip3o:paper_8b",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "BLIP3o-Model-8B",
        ("long", "short", "journeydb", "instructions"),
    )


def sft_60k() -> Recipe[Blip3oConfig]:
    """The last stage of ``paper`` alone, on BLIP3o-60k, from the image head of ``runs/blip3o-paper``; not run here.

    BLIP3o-60k holds prompts made like GenEval's (``geneval_train.tar``): say so beside a score.
    """
    recipe = published_recipe("blip3o:sft_60k", "Qwen/Qwen2.5-VL-3B-Instruct", "BLIP3o-Model-4B", ("instructions",))
    return replace(recipe, model=replace(recipe.model, start_from={"image_head": "runs/blip3o-paper"}))
