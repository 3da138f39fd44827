"""Stable Diffusion 3 in one step against the pipeline of diffusers, from a small random one in its released layout."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.data.example import Example, ImageIn
from diptych.data.sources.scenes import ScenesSource
from diptych.data.tokenizer import train_tokenizer
from diptych.interop.feature_networks import FeatureNetwork
from diptych.interop.sd3 import CaptionBatch, SD3Pipeline, collate_captions
from diptych.methods.class_fd_loss import ClassFDLossConfig
from diptych.methods.fd_loss import MovingAverageConfig
from diptych.methods.training import build_task
from diptych.models.denoisers.sd3 import SD3Denoiser
from diptych.objectives.randomness import normal_from_seeds
from diptych.recipes import fd_loss
from diptych.train.loop import train
from diptych.train.recipe import CheckpointConfig, LoggingConfig

CAPTIONS = ("a red circle", "a blue square above a very small green star on white")
MEDIUM = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 24, "attention_head_dim": 64,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "out_channels": 16, "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm",
}  # fmt: skip
"""SD3.5-Medium's."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder as diffusers' pipeline saves it, and the pipeline."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd3")
    train_tokenizer(list(CAPTIONS), 280, ("<pad>",)).save(folder)
    tokenizers = [
        transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="<pad>", model_max_length=12
        )
        for _ in range(3)
    ]
    vocab = len(tokenizers[0])
    text = {"vocab_size": vocab, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 12}
    clips = [
        transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(
                **text, hidden_size=dim, intermediate_size=dim, projection_dim=dim, bos_token_id=0, eos_token_id=1
            )
        )
        for dim in (8, 16)
    ]
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=vocab, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=24, out_channels=4,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=1.5, shift_factor=0.06,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    made = diffusers.StableDiffusion3Pipeline(
        transformer=network.eval(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae.eval(),
        text_encoder=clips[0].eval(), tokenizer=tokenizers[0], text_encoder_2=clips[1].eval(),
        tokenizer_2=tokenizers[1], text_encoder_3=t5.eval(), tokenizer_3=tokenizers[2],
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(folder / "pipeline")
    return folder / "pipeline", made


def test_one_step_is_that_of_the_released_pipeline(pipeline):
    folder, theirs = pipeline
    ours = SD3Pipeline(path=str(folder), image_size=16, num_t5_tokens=20).build()
    batch = CaptionBatch(CAPTIONS, torch.tensor([3, 4]))
    images = ours(batch)
    assert images.shape == (2, 3, 16, 16) and images.requires_grad
    noise = normal_from_seeds(batch.example_seeds, (4, 8, 8), "noise")
    drawn = theirs(
        list(CAPTIONS), height=16, width=16, num_inference_steps=1, guidance_scale=1.0, latents=noise,
        max_sequence_length=20, output_type="pt",
    ).images  # fmt: skip
    assert drawn.std() > 0.01
    torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), drawn, rtol=1e-4, atol=1e-5)
    images.square().sum().backward()
    gradient = ours.denoiser.model.proj_out.weight.grad.clone()
    assert gradient.abs().sum() > 0
    assert all(p.grad is None for part in (ours.text_encoder, ours.autoencoder) for p in part.parameters())
    ours.zero_grad()
    ours.checkpoint_activations()
    ours(batch).square().sum().backward()
    torch.testing.assert_close(ours.denoiser.model.proj_out.weight.grad, gradient)


def test_post_training_saves_the_transformer_in_its_own_layout(pipeline, tmp_path):
    folder, _ = pipeline
    network = FeatureNetwork("pixels@2").build()
    real = network.new_moments()
    real.update(network(torch.rand(200, 3, 16, 16, generator=torch.Generator().manual_seed(1)), value_range=(0, 1)))
    real.save(tmp_path / "real.npz")
    base = fd_loss.paper_sd35()
    stage = base.stages["one_step"]
    captions = ScenesSource(task="text_to_image", caption_style="short", num_scenes=64)
    plan = replace(
        base,
        model=replace(
            base.model,
            generator=SD3Pipeline(path=str(folder), image_size=16, num_t5_tokens=20),
            prompts=captions,
            representations={"pixels": FeatureNetwork("pixels@2")},
            references={"pixels": str(tmp_path / "real.npz")},
            population=MovingAverageConfig(decay=0.8),
            num_warm_start=64,
        ),
        data={"captions": captions},
        stages={
            "one_step": replace(
                stage, num_steps=12, batch_size=8, optimizer=replace(stage.optimizer, lr=3e-3, warmup_steps=0)
            )
        },
        checkpoints=CheckpointConfig(every_steps=12),
        logging=LoggingConfig(every_steps=1, sample_every=-1),
    )
    train(build_task(plan, tmp_path / "run"), plan, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "train"]
    assert steps[-1]["fd/pixels"] < 0.9 * steps[0]["fd/pixels"]
    saved = tmp_path / "run" / "checkpoints" / "step-000012" / "model"
    before = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    after = load_file(saved / "transformer" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    again = replace(plan.model.generator, transformer=str(saved)).build()
    assert torch.equal(again.denoiser.model.proj_out.weight, after["proj_out.weight"])


def test_sd35_medium_has_its_published_size():
    """2.5 billion (the paper's and the model card's) are its parameters and the table of positions, which is fixed."""
    with torch.device("meta"):
        model = SD3Denoiser(model_config=MEDIUM | {"pos_embed_max_size": 8, "sample_size": 8})  # a small table is quick
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == 2_243_171_520
    assert round((total + MEDIUM["pos_embed_max_size"] ** 2 * 1536) / 1e9, 1) == 2.5


def test_what_cannot_be_drawn_is_refused(pipeline):
    folder, _ = pipeline
    with pytest.raises(ValueError, match=r"image_size must be a multiple of 4, got 18"):
        SD3Pipeline(path=str(folder), image_size=18).build()
    with pytest.raises(ValueError, match=r"example 'x' begins with no text. Use data of the task text_to_image"):
        collate_captions([Example((ImageIn(np.zeros((2, 2, 3), np.uint8)),), key="x")], [0])
    config = ClassFDLossConfig(
        generator=SD3Pipeline(path=str(folder), image_size=16),
        representations={"pixels": FeatureNetwork("pixels@2")},
        references={"pixels": "real.npz"},
        population=MovingAverageConfig(decay=0.8),
    )
    with pytest.raises(ValueError, match=r"model.prompts must name a source of captions for a SD3Generator, got none"):
        config.build()
    with pytest.raises(ValueError, match=r"makes a whole SD3Generator: leave out model.autoencoder and guidance_scale"):
        replace(config, guidance_scale=3.0).build()
