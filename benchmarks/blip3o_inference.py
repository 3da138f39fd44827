"""Pictures a second of BLIP3-o's two diffusion stages: the original's way of sampling, and ours in batches.

The original's way, written plainly here (its code: `main` of the released repository): one picture at a time; at every
step the denoiser is given the condition and the null condition as they come from the backbone, and embeds both anew. It
runs guidance as one call of two rows; the plainest way, in two calls, stands beside it.

Pictures of all rows are asserted to be equal (one level of 255 in float32), but for the last: fewer steps draw others.
On a CPU the sizes are small and times are of the processor (one thread: what a busy machine does beside does not
count); with --device cuda they are those of BLIP3-o 4B with random weights in bfloat16, and memory is told too.

    python benchmarks/blip3o_inference.py [--device cuda] [--batch-sizes 1 8 32] [--single 2]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.data.example import Example, ImageOut, Text
from diptych.data.prompt_format import chatml_format
from diptych.flow.time import time_grid
from diptych.methods.blip3o import QueryFlowHead
from diptych.models.autoencoders.rendered_features import RenderedFeatures
from diptych.models.backbones.transformer import CausalTransformer
from diptych.models.backbones.transformers_lm import TransformersBackbone
from diptych.models.denoisers.lumina import LuminaDiT
from diptych.train.part_configs import TokenizerConfig
from diptych.unified import DrawSettings, ImagePolicy, UnifiedModel

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
             "timestep_spacing": "leading"}  # fmt: skip
WORDS = ("a large red cat", "sits on", "the blue sofa", "beside two small dogs", "under an old lamp", "by the window")


@dataclass(frozen=True)
class Sizes:
    """What a model is made of, and the steps of its two stages."""

    backbone: Callable[[int], torch.nn.Module]
    channels: int
    denoiser: dict[str, int]
    num_queries: int
    unet: dict[str, Any]
    vae: dict[str, Any]
    steps: tuple[int, int]


def small_sizes() -> Sizes:
    """For one CPU core: 8 x 8 features that a small SDXL renders at 32 pixels."""
    unet = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "cross_attention_dim": 96,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 96 + 6 * 16,
    }
    vae = {
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "scaling_factor": 0.13025,
    }

    def backbone(vocab_size: int) -> torch.nn.Module:
        return CausalTransformer(
            vocab_size=vocab_size, dim=192, num_layers=4, num_heads=4, num_kv_heads=2, ffn_dim=512, residual_init=1.0
        )

    return Sizes(backbone, 96, {"dim": 192, "num_layers": 4, "num_heads": 4}, 64, unet, vae, (30, 50))


def released_sizes() -> Sizes:
    """BLIP3-o 4B: Qwen2.5-3B, the published denoiser, SDXL told by 64 CLIP features."""
    unet = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "cross_attention_dim": 1792,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 3328,
    }
    vae = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
    }
    config = {"model_type": "qwen2", "vocab_size": 151_668, "hidden_size": 2048, "intermediate_size": 11_008,
              "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True,
              "rope_theta": 1e6, "max_position_embeddings": 32_768}  # fmt: skip
    denoiser = {"dim": 1792, "num_layers": 24, "num_heads": 28}
    return Sizes(lambda vocab_size: TransformersBackbone(config=config), 1792, denoiser, 64, unet, vae, (30, 50))


def make_model(sizes: Sizes, device: str, dtype: torch.dtype) -> UnifiedModel:
    torch.manual_seed(0)
    tokenizer = TokenizerConfig().build()
    form = chatml_format()
    tokenizer = tokenizer.with_special_tokens([n for n in form.special_tokens() if n not in tokenizer.special])
    with torch.device(device):
        backbone: Any = sizes.backbone(tokenizer.vocab_size)
        denoiser = LuminaDiT(channels=sizes.channels, condition_dim=backbone.dim, initial_gate=0.5, **sizes.denoiser)
        head = QueryFlowHead(denoiser=denoiser, num_queries=sizes.num_queries, dim=backbone.dim)
        side = round(sizes.num_queries**0.5)
        space = RenderedFeatures(
            channels=sizes.channels,
            grid=(side, side),
            unet=sizes.unet,
            vae=sizes.vae,
            scheduler=SCHEDULER,
            input_size=56 * side,
            image_size=sizes.unet["sample_size"] * 2 ** (len(sizes.vae["block_out_channels"]) - 1),
            num_steps=sizes.steps[1],
        )
        space.null_features.normal_()
    return (
        UnifiedModel(
            backbone=backbone.to(dtype),
            tokenizer=tokenizer,
            prompt_format=form,
            image_head=head.to(dtype),
            autoencoder=space.to(dtype),
            images=ImagePolicy(size=(56 * side,) * 2, resize="crop"),
            draw=DrawSettings(num_steps=sizes.steps[0], guidance_scale=3.0),
        )
        .to(device)
        .eval()
    )


def make_prompts(count: int) -> list[str]:
    """Of 2 to 40 words."""
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, size=int(random.integers(1, 11)))) for _ in range(count)]


@torch.inference_mode()
def original_way(model: UnifiedModel, prompt: str, seed: int, has_two_calls: bool) -> Image.Image:
    """One picture as the original draws it, with the noise that ours would have."""
    head, space, settings = model.image_head, model.autoencoder, model.draw_settings
    example = Example((Text(prompt), ImageOut(size=model.images.size)))
    batch = model.collator()([example]).to(model.device)
    states = model(batch).hidden_states.flatten(0, 1)
    condition = states[batch.outputs[0].slots[0]][None]

    def guided(
        predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, told: Tensor, null: Tensor, scale: float
    ) -> Tensor:
        if has_two_calls:
            conditional, blank = predict(x, told), predict(x, null)
        else:
            blank, conditional = predict(torch.cat([x, x]), torch.cat([null, told])).chunk(2)
        return blank + scale * (conditional - blank)

    times = time_grid(settings.num_steps).tolist()
    shape = space.latent_shape(*model.images.size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))[None].to(model.device)
    for start, end in pairwise(times):

        def velocity(x: Tensor, told: Tensor, start: float = start) -> Tensor:
            return head.velocity(x, torch.full((len(x),), start, device=x.device), told)

        x = x + (end - start) * guided(velocity, x, condition, torch.zeros_like(condition), settings.guidance_scale)
    features = x.to(condition.dtype)
    scheduler = space._scheduler()
    scheduler.set_timesteps(space.num_steps, device=x.device)
    latents = space._noise([seed]).to(x.device) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:

        def noise_in(given: Tensor, told: Tensor, timestep: Tensor = timestep) -> Tensor:
            tokens = told.flatten(2).transpose(1, 2).to(space.unet.dtype)
            sides = [space.image_size, space.image_size, 0, 0, space.image_size, space.image_size]
            time_ids = torch.tensor([sides] * len(given), device=given.device)
            added = {"text_embeds": tokens.mean(1), "time_ids": time_ids}
            given = given.to(space.unet.dtype)
            output = space.unet(given, timestep, encoder_hidden_states=tokens, added_cond_kwargs=added)
            return output.sample.float()

        given = scheduler.scale_model_input(latents, timestep)
        predicted = guided(noise_in, given, features, space.null_features[None], space.guidance_scale)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    decoded = space.vae.decode((latents / space.vae.config.scaling_factor).to(space.vae.dtype)).sample
    levels = ((decoded[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def seconds_of(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Processor seconds on a CPU, seconds on a GPU; and what came of it."""
    if device == "cpu":
        started = time.process_time()
        found = run()
        return time.process_time() - started, found
    torch.cuda.synchronize()
    started = time.perf_counter()
    found = run()
    torch.cuda.synchronize()
    return time.perf_counter() - started, found


def check_equal(images: Sequence[Image.Image], expected: Sequence[Image.Image], dtype: torch.dtype) -> None:
    for image, other in zip(images, expected, strict=False):
        apart = np.abs(np.asarray(image, int) - np.asarray(other, int))
        if dtype == torch.float32:
            assert apart.max() <= 1, f"pictures differ by {apart.max()} levels"
        else:
            assert apart.mean() < 8, f"pictures differ by {apart.mean():.1f} levels on average"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--single", type=int, default=2, help="pictures of the rows that draw one at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs=2, help="of the two stages; 30 and 50 as released")
    parser.add_argument("--few-steps", type=int, default=12, help="of both stages in the last row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    sizes = small_sizes() if device == "cpu" else released_sizes()
    sizes = replace(sizes, steps=tuple(arguments.steps)) if arguments.steps else sizes
    model = make_model(sizes, device, dtype)
    prompts = make_prompts(max(arguments.batch_sizes))
    model.generate_image(prompts[0], num_steps=1)  # warms up
    single = range(arguments.single)
    print(f"{device}, {sizes.steps[0]} and {sizes.steps[1]} steps\n\n| way | pictures/s | times (a) |\n|---|---|---|")
    first, expected = 0.0, []

    def show(name: str, seconds: float, count: int) -> None:
        print(f"| {name} | {count / seconds:.3f} | {count / seconds / first:.2f} |", flush=True)

    for name, has_two_calls in (
        ("(a) the original's way, one at a time", False),
        ("the same, guidance in two calls", True),
    ):
        seconds, images = seconds_of(
            lambda calls=has_two_calls: [original_way(model, prompts[i], i, calls) for i in single],  # type: ignore[misc]
            device,
        )
        first = first or len(single) / seconds
        expected = expected or images
        check_equal(images, expected, dtype)
        show(name, seconds, len(single))
    for size in arguments.batch_sizes:
        count = arguments.single if size == 1 else size
        seconds, images = seconds_of(
            lambda size=size, count=count: model.generate_image(prompts[:count], batch_size=size),  # type: ignore[misc]
            device,
        )
        check_equal(images, expected, dtype)
        show(f"ours, batches of {size}", seconds, count)
    size = arguments.batch_sizes[-1]
    model.draw_settings = replace(model.draw_settings, num_steps=arguments.few_steps, solver="multistep")
    model.autoencoder.num_steps, model.autoencoder.solver = arguments.few_steps, "multistep"
    seconds, _ = seconds_of(lambda: model.generate_image(prompts[:size], batch_size=size), device)
    show(f"option: --few-steps {arguments.few_steps}, batches of {size}", seconds, size)
    if device == "cpu":
        print("\n| BLIP3-o 4B's sizes on a GPU | pictures/s |\n|---|---|\n| all rows | not measured |")
        return
    for offloads in (False, True):
        if offloads:
            model.offload_to(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds, _ = seconds_of(lambda: model.generate_image(prompts[:size], batch_size=size), device)
        memory = torch.cuda.max_memory_allocated() / 2**30
        show(f"few steps, {'offloaded' if offloads else 'all on the GPU'}: peak {memory:.1f} GiB", seconds, size)


if __name__ == "__main__":
    main()
