"""Writes small random models in the layout of BLIP3o-NEXT, made of the modules that the released code is made of."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import nn

from diptych.data.tokenizer import train_tokenizer
from tests.interop.blip3o_folder import QWEN_TOKENS, TEXT, write_weights

NUM_CODES, WIDTH, CONDITION, TOWER_DIM, CODE_DIM = 12, 32, 20, 72, 8
SANA = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 7, "attention_head_dim": 32, "num_layers": 1,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 112, "cross_attention_dim": 224,
        "mlp_ratio": 1.0, "caption_channels": CONDITION, "sample_size": 32, "patch_size": 1,
        "qk_norm": "rms_norm_across_heads"}  # fmt: skip
VAE = {"latent_channels": 4, "attention_head_dim": 4, "encoder_block_types": ["ResBlock"] * 2,
       "decoder_block_types": ["ResBlock"] * 2, "encoder_block_out_channels": [4, 8],
       "decoder_block_out_channels": [4, 8], "encoder_layers_per_block": [1, 1], "decoder_layers_per_block": [1, 1],
       "encoder_qkv_multiscales": [[], []], "decoder_qkv_multiscales": [[], []], "upsample_block_type": "interpolate",
       "downsample_block_type": "conv", "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
       "scaling_factor": 0.41407}  # fmt: skip


def write_next_tokenizer(folder: Path) -> tuple[int, int]:
    """Qwen's tokens, then those that the released training adds one after the other; number of tokens, first added."""
    text = train_tokenizer([TEXT] * 4, 300, QWEN_TOKENS)
    engine = Tokenizer.from_str(text.definition)
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<im_start>", "<im_end>")])
    engine.add_tokens([f"<S{i}>" for i in range(3)])
    engine.add_tokens([f"<I{i}>" for i in range(NUM_CODES)])
    size = engine.get_vocab_size(with_added_tokens=True)
    engine.add_special_tokens(["<image>"])  # added by the released dataset, beyond the embeddings
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    return size, text.vocab_size


class ConnectorNorm(nn.Module):
    """RMSNorm of diffusers, as the last layer of the connectors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), math.sqrt(5.5)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def connector(in_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, CONDITION), nn.GELU("tanh"), nn.Linear(CONDITION, CONDITION), ConnectorNorm(CONDITION)
    )


def ta_tok() -> nn.ModuleDict:
    """The modules of TA-Tok by the names of the released class."""
    import transformers as hf

    sizes = {"hidden_size": TOWER_DIM, "intermediate_size": 40, "num_attention_heads": 1}
    encoder = hf.SiglipVisionModel(hf.SiglipVisionConfig(**sizes, num_hidden_layers=2, image_size=28, patch_size=14))
    decoder = hf.Siglip2VisionModel(
        hf.Siglip2VisionConfig(**sizes, num_hidden_layers=1, num_channels=CODE_DIM, patch_size=1)
    )
    quantizer = nn.ModuleDict(
        {"embedding": nn.Embedding(NUM_CODES, CODE_DIM), "embedding_proj": nn.Linear(CODE_DIM, CODE_DIM)}
    )
    return nn.ModuleDict(
        {
            "encoder": encoder,
            "decoder": nn.ModuleDict({"vision_model": decoder}),  # the name in transformers 4.51
            "encode_task_layer": nn.Sequential(nn.Linear(TOWER_DIM, TOWER_DIM), nn.Tanh()),
            "decode_task_layer": nn.Sequential(
                nn.Linear(TOWER_DIM, TOWER_DIM), nn.Tanh(), nn.Linear(TOWER_DIM, TOWER_DIM)
            ),
            "bottleneck": nn.ModuleDict(
                {
                    "in_linear": nn.Linear(TOWER_DIM, CODE_DIM),
                    "out_linear": nn.Linear(CODE_DIM, CODE_DIM),
                    "regularizer": quantizer,
                }
            ),
        }
    )


def tower_weights(tower: nn.ModuleDict) -> dict[str, torch.Tensor]:
    """TA-Tok's tensors, with the scaling of pixels that the released class keeps as buffers."""
    scaling = {f"scale_layer.{name}": torch.full((1, 3, 1, 1), 0.5) for name in ("shift", "scale")}
    return {**tower.state_dict(), **scaling}


def write_blip3o_next(
    folder: Path, tied: bool = True, edit: bool = False, with_tower: bool = True
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The whole folder; returns the modules it was made of, and all weights by their keys."""
    import diffusers
    import transformers as hf

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size, first = write_next_tokenizer(folder)
    text = {"vocab_size": vocab_size, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": tied}  # fmt: skip
    modules: dict[str, Any] = {
        "language": hf.Qwen3ForCausalLM(hf.Qwen3Config(**text)),
        "sana": diffusers.SanaTransformer2DModel(**SANA),
        "sana_vae": diffusers.AutoencoderDC(**VAE),
        "diffusion_connector": connector(WIDTH),
        "vision_tower": ta_tok(),
    }
    if edit:
        modules["und_image_vae_connector"] = connector(SANA["in_channels"])
        modules["und_image_vae_as_noise_connector"] = nn.Sequential(nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        for module in modules.values():
            module.eval().requires_grad_(False)
        for parameter in modules["language"].parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.25)
    weights = dict(modules["language"].state_dict())
    if tied:
        del weights["lm_head.weight"]
    for name, module in modules.items():
        if name == "vision_tower":
            own = tower_weights(module) if with_tower else {}
            weights |= {f"model.vision_tower.vision_tower.{key}": value for key, value in own.items()}
        elif name != "language":
            weights |= {f"model.{name}.{key}": value for key, value in module.state_dict().items()}
    for name, module in (("transformer", modules["sana"]), ("vae", modules["sana_vae"])):
        module.save_config(folder / "sana" / name)  # SANA's own folder, of which the configs are read
    write_next_config(folder, text, first, edit)
    write_weights(folder, weights)
    return modules, weights


def write_next_config(folder: Path, text: dict[str, Any], first: int, edit: bool) -> None:
    """``config.json`` as transformers 4.51 and the released training write it."""
    rope = text.pop("rope_parameters")
    config = {
        "architectures": ["blip3oQwenForCausalLM"],
        "model_type": "blip3o_qwen",
        **text,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "image_start_tag_id": first,
        "image_end_tag_id": first + 1,
        "scale_start_token_id": first + 2,
        "scale_end_token_id": first + 4,
        "num_scale_tokens": 3,
        "image_start_token_id": first + 5,
        "image_end_token_id": first + 4 + NUM_CODES,
        "num_image_tokens": NUM_CODES,
        "mm_use_im_start_end": True,
        "mm_vision_tower": None,
        "mm_vision_select_layer": -2,
        "mm_patch_merge_type": "flat",
        "diffusion_name_or_path": "sana",
        "torch_dtype": "bfloat16",
    }
    if edit:
        config |= {"use_und_image_vae": True, "use_und_image_vae_as_noise": True, "use_tar_siglip_features": False}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
