"""The layout of BLIP3o-Model-4B and -8B: what ``config.json`` says, and where every key belongs.

config.json, generation_config.json                  a Qwen2.5-VL configuration and BLIP3-o's own fields
model-0000x-of-0000y.safetensors, its index          or pytorch_model-*.bin
  model.embed_tokens, model.layers, model.norm, lm_head        the language model (lm_head is absent where tied)
  visual.*                                                     Qwen2.5-VL's vision tower
  model.latent_queries, model.dit.model.*                      the 64 queries and the denoiser
  model.gen_vision_tower.vision_tower.model.*                  EVA-CLIP, in training checkpoints only
tokenizer.json, tokenizer_config.json, …             Qwen's tokenizer with [IMG], [/IMG] and <image>
diffusion-decoder/{unet,vae,scheduler}               Emu2's visual decoder
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diptych.interop.eva_clip import CHECKPOINT_PREFIX, convert_eva_clip_tensor, eva_clip_key_map
from diptych.interop.lumina import convert_lumina_tensor, lumina_key_map
from diptych.interop.weight_files import count_layers
from diptych.interop.weight_places import Place

VARIANTS = {2048: "BLIP3o-Model-4B", 3584: "BLIP3o-Model-8B"}
"""Released models by the width of their language model."""
DENOISER_PREFIX = "model.dit.model."
SPECIAL_TOKENS = {"[IMG]": 151_665, "[/IMG]": 151_666, "<image>": 151_667}
"""As published, behind Qwen2.5's own."""
DECODER = "diffusion-decoder"
NEXT_FIELD = "image_start_token_id"
"""What BLIP3o-NEXT has in ``config.json`` and BLIP3-o has not: the id of its first image token."""
_UNUSED = ("pad_token",)
_MODEL_TYPES = ("blip3o_qwen", "blip3o_qwen_inference")
_OWN_FIELDS = {"n_query": int, "gen_pooling": str}
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "tie_word_embeddings",
)
_AGAIN = "Copy the file of the released model again."


def is_blip3o_folder(folder: str | Path) -> bool:
    """Whether a folder is laid out as BLIP3-o's released models are; those of BLIP3o-NEXT have the same type."""
    config = released_config(folder)
    return config is not None and NEXT_FIELD not in config


def released_config(folder: str | Path) -> dict[str, Any] | None:
    """``config.json`` of a folder of BLIP3-o or BLIP3o-NEXT; None of any other."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and config.get("model_type") in _MODEL_TYPES else None


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``, checked.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, of another kind of model, or without a field that is needed.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") not in _MODEL_TYPES:
        raise ValueError(
            f"{folder / 'config.json'} is of a model of type {config.get('model_type')!r}, not of BLIP3-o "
            f"({' or '.join(_MODEL_TYPES)}). Other branches than main and BLIP3o-NEXT have another layout and are not "
            "read."
        )
    lacking = [name for name in (*_TEXT_FIELDS[:6], "vision_config", *_OWN_FIELDS) if name not in config]
    if lacking:
        raise ValueError(f"{folder / 'config.json'} lacks {', '.join(lacking)}. {_AGAIN}")
    for name, kind in _OWN_FIELDS.items():
        if not isinstance(config[name], kind):
            raise ValueError(
                f"{folder / 'config.json'}: {name} must be {kind.__name__}, got {config[name]!r}. {_AGAIN}"
            )
    pooling = config["gen_pooling"]
    if not (pooling.startswith("early_pool2d_") and pooling.removeprefix("early_pool2d_").isdigit()):
        raise ValueError(
            f"{folder / 'config.json'}: gen_pooling must be early_pool2d_N, as in the released models, got {pooling!r}."
        )
    return config


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. {_AGAIN}")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. {_AGAIN}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} is damaged: it holds no object. {_AGAIN}")
    return value


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's configuration, for `TransformersBackbone`."""
    given = {name: config[name] for name in _TEXT_FIELDS if name in config}
    scaling = given.pop("rope_scaling", None) or {}
    section = scaling.get("mrope_section") or [16, 24, 24]
    rope = {"rope_type": "default", "mrope_section": section, "rope_theta": given.pop("rope_theta", 1e6)}
    given.setdefault("tie_word_embeddings", False)  # transformers leaves out what its class has by default
    return {**given, "model_type": "qwen2_5_vl_text", "rope_parameters": rope}


def vision_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The vision tower's configuration, for `QwenVisionEncoder`."""
    given = dict(config["vision_config"])
    given.pop("model_type", None)
    if "in_chans" in given:
        given["in_channels"] = given.pop("in_chans")
    given.setdefault("out_hidden_size", config["hidden_size"])
    return given


def place_of(key: str, denoiser_keys: Mapping[str, str], eva_keys: Mapping[str, str]) -> Place | None:
    """The place of a released key; None if it is not known."""
    if key.startswith("visual."):
        return Place("encoder", "model." + key.removeprefix("visual."), key)
    if key == "model.latent_queries":
        return Place("image_head", "queries", key, partial(torch.squeeze, dim=0))
    if key.startswith(DENOISER_PREFIX):
        inner = key.removeprefix(DENOISER_PREFIX)
        if inner not in denoiser_keys:
            return None
        return Place("image_head", "denoiser." + denoiser_keys[inner], inner, partial(convert_lumina_tensor, inner))
    if key.startswith(CHECKPOINT_PREFIX):
        inner = key.removeprefix(CHECKPOINT_PREFIX)
        if inner not in eva_keys:
            return None
        return Place("eva", eva_keys[inner], inner, partial(convert_eva_clip_tensor, inner))
    if key.startswith(("model.embed_tokens.", "model.layers.", "model.norm.")) or key == "lm_head.weight":
        return Place("backbone", key, key)
    return None


def places(keys: list[str]) -> tuple[dict[str, Place], list[str]]:
    """The place of every key, and the keys that have none. What the released code holds and never uses is left out."""
    names = dict.fromkeys(keys)
    denoiser_keys = lumina_key_map(count_layers(names, DENOISER_PREFIX + "layers"))
    eva_keys = eva_clip_key_map(count_layers(names, CHECKPOINT_PREFIX + "blocks"))
    found: dict[str, Place] = {}
    unknown: list[str] = []
    for key in keys:
        place = place_of(key, denoiser_keys, eva_keys)
        if place is not None:
            found[key] = place
        elif key.removeprefix(DENOISER_PREFIX) not in _UNUSED and not key.endswith(".inv_freq"):
            unknown.append(key)
    return found, unknown
