"""Writes small random models in exactly the layout of BLIP3o-Model-4B and -8B: all files, all names, all keys.

The language and vision parts are those of transformers' own model, whose forward is then what ours is held against.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diptych.data.tokenizer import FastTokenizer, train_tokenizer
from diptych.interop.blip3o_layout import SPECIAL_TOKENS

WIDTH, CHANNELS, NUM_QUERIES = 32, 112, 4
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
               "<|video_pad|>")  # fmt: skip
TEXT = "You are a helpful assistant. Please generate image based on the following caption: system user What is it?\n"
DENOISER_DIM, FFN = 16, 48


def write_tokenizer(folder: Path, names=(*QWEN_TOKENS, *SPECIAL_TOKENS)) -> FastTokenizer:
    tokenizer = train_tokenizer([TEXT] * 4, 300, names)
    tokenizer.save(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    return tokenizer


def reference_model(tokenizer: FastTokenizer, tied: bool) -> Any:
    """transformers' Qwen2.5-VL with random weights, wide enough that a wrong mask or position shows."""
    import transformers as hf

    text = {
        "vocab_size": tokenizer.vocab_size + 5,  # released embeddings are not cut to the tokenizer either
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
    }
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "out_hidden_size": WIDTH,
              "fullatt_block_indexes": [1]}  # fmt: skip
    special = {
        f"{kind}_token_id": tokenizer.special[f"<|{name}|>"]
        for kind, name in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **special)
    model = hf.Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.25)
    return model.eval()


def released_config(model: Any, pool: int = 2) -> dict[str, Any]:
    """``config.json`` as transformers 4.51 and BLIP3-o's trainer write it: flat, with fields of its own."""
    text, vision = model.config.text_config, model.config.vision_config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act")  # fmt: skip
    kept = ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
            "spatial_merge_size", "temporal_patch_size", "window_size", "tokens_per_second")  # fmt: skip
    return {
        "architectures": ["blip3oQwenForCausalLM"],
        "model_type": "blip3o_qwen",
        **{name: getattr(text, name) for name in names},
        "rope_theta": 1e6,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 1, 1]},
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 28,
        "tie_word_embeddings": model.config.tie_word_embeddings,
        "image_token_id": model.config.image_token_id,
        "vision_config": {
            **{name: getattr(vision, name) for name in kept},
            "in_chans": 3,
            "fullatt_block_indexes": list(vision.fullatt_block_indexes),
            "model_type": "qwen2_5_vl",
        },
        "gen_vision_tower": "eva-clip-E-14-plus",
        "gen_hidden_size": CHANNELS,
        "gen_pooling": f"early_pool2d_{pool}",
        "n_query": NUM_QUERIES,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "torch_dtype": "bfloat16",
    }


def released_weights(model: Any, with_tower: bool = False) -> dict[str, torch.Tensor]:
    """All keys as published: names of transformers 4.51, the denoiser's of diffusers."""
    weights = {}
    for key, value in model.state_dict().items():
        key = key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        if not (key == "lm_head.weight" and model.config.tie_word_embeddings):
            weights[key] = value
    generator = torch.Generator().manual_seed(1)

    def draw(shape):
        scale = 0.3 if len(shape) == 1 else 0.7 * shape[-1] ** -0.5
        return torch.randn(shape, generator=generator) * scale

    weights["model.latent_queries"] = torch.randn(1, NUM_QUERIES, WIDTH, generator=generator)
    weights |= {f"model.dit.model.{key}": draw(shape) for key, shape in denoiser_shapes().items()}
    if with_tower:
        prefix = "model.gen_vision_tower.vision_tower.model."
        weights |= {prefix + key: draw(shape) for key, shape in tower_shapes().items()}
    return weights


def denoiser_shapes() -> dict[str, tuple[int, ...]]:
    dim, time = DENOISER_DIM, DENOISER_DIM
    linear = {
        "caption_projection.linear_1": (dim, WIDTH),
        "caption_projection.linear_2": (dim, dim),
        "patch_embedder.proj": (dim, CHANNELS),
        "time_caption_embed.timestep_embedder.linear_1": (time, 256),
        "time_caption_embed.timestep_embedder.linear_2": (time, time),
        "time_caption_embed.caption_embedder.1": (time, dim),
        "norm_out.linear_1": (dim, time),
        "norm_out.linear_2": (CHANNELS, dim),
    }
    shapes = {
        "time_caption_embed.caption_embedder.0.weight": (dim,),
        "time_caption_embed.caption_embedder.0.bias": (dim,),
    }
    for layer in range(2):
        block = f"layers.{layer}"
        linear[f"{block}.norm1.linear"] = (4 * dim, time)
        shapes |= {
            f"{block}.{norm}.weight": (dim,)
            for norm in ("norm1.norm", "norm2", "ffn_norm1", "ffn_norm2", "norm1_context")
        }
        shapes[f"{block}.gate"] = (2,)
        for attention in ("attn1", "attn2"):
            shapes |= {f"{block}.{attention}.to_{part}.weight": (dim, dim) for part in "qkv"}
            shapes |= {f"{block}.{attention}.norm_{p}.{kind}": (dim,) for p in "qk" for kind in ("weight", "bias")}
        shapes[f"{block}.attn2.to_out.0.weight"] = (dim, dim)
        shapes |= {f"{block}.feed_forward.linear_{i}.weight": (FFN, dim) for i in (1, 3)}
        shapes[f"{block}.feed_forward.linear_2.weight"] = (dim, FFN)
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def tower_shapes() -> dict[str, tuple[int, ...]]:
    """EVA-CLIP of one head, for images of 56 pixels: 4 x 4 patches, pooled to 2 x 2."""
    shapes = {"cls_token": (1, 1, CHANNELS), "pos_embed": (1, 17, CHANNELS),
              "patch_embed.proj.weight": (CHANNELS, 3, 14, 14), "patch_embed.proj.bias": (CHANNELS,)}  # fmt: skip
    for i in range(2):
        block = {"attn.qkv": (3 * CHANNELS, CHANNELS), "attn.proj": (CHANNELS, CHANNELS), "mlp.fc1": (24, CHANNELS),
                 "mlp.fc2": (CHANNELS, 24), "norm1": (CHANNELS,), "norm2": (CHANNELS,)}  # fmt: skip
        for name, shape in block.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    return shapes


def write_weights(
    folder: Path, weights: dict[str, torch.Tensor], suffix: str = ".safetensors", num_shards: int = 3
) -> None:
    """Shards and their index, by the names that transformers gives them."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = [f"{stem}-{i:05d}-of-{num_shards:05d}{suffix}" for i in range(1, num_shards + 1)]
    places = {key: names[i * num_shards // len(weights)] for i, key in enumerate(sorted(weights))}
    for name in names:
        shard = {key: weights[key].contiguous() for key in weights if places[key] == name}
        if suffix == ".safetensors":
            save_file(shard, folder / name, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / name)
    size = sum(value.numel() * value.element_size() for value in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


def write_decoder(folder: Path, channels: int = CHANNELS) -> None:
    """``diffusion-decoder`` as diffusers saves it in bf16 files: a small SDXL told by CLIP tokens."""
    import diffusers

    torch.manual_seed(2)
    root = folder / "diffusion-decoder"
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=(2, 2), transformer_layers_per_block=(1, 1), use_linear_projection=True,
        cross_attention_dim=channels, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=channels + 6 * 8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, norm_num_groups=4, scaling_factor=0.13025,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    unet.save_pretrained(root / "unet", variant="bf16")
    vae.save_pretrained(root / "vae", variant="bf16")
    scheduler.save_pretrained(root / "scheduler")
    index = {
        "_class_name": "EmuVisualGenerationPipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (root / "model_index.json").write_text(json.dumps(index))
    (root / "pipeline_llava_gen.py").write_text("raise RuntimeError('code of a model folder is never run')\n")


def write_blip3o(
    folder: Path, tied: bool = False, suffix: str = ".safetensors", with_tower: bool = False
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The whole folder; returns the language and vision model of transformers, and all weights by their keys."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder)
    model = reference_model(tokenizer, tied)
    weights = released_weights(model, with_tower)
    (folder / "config.json").write_text(json.dumps(released_config(model)))
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.05, "temperature": 1e-6}))
    write_weights(folder, weights, suffix)
    write_decoder(folder)
    return model, weights
