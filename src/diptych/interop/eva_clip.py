"""Weights of EVA-CLIP's vision tower in the names of its released code (``jiuhai/eva_clip_vision_tower``).

BLIP3-o's file has no prefix; inside one of its training checkpoints the prefix is `CHECKPOINT_PREFIX`, and in the
files of EVA-CLIP itself ``visual.``. Those are other weights: the tower that BLIP3-o's decoder renders was fine-tuned.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.interop.weight_files import (
    count_layers,
    load_exactly,
    read_checkpoint,
    read_weights,
    strip_prefix,
)
from diptych.models.encoders.eva_clip import EvaClipEncoder

CHECKPOINT_PREFIX = "model.gen_vision_tower.vision_tower.model."

_MODULES = {"patch_embed.proj": "patch_embedding"}
_BLOCK_MODULES = {
    "norm1": "attention_norm",
    "norm2": "feed_forward_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.fc1": "feed_forward.0",
    "mlp.fc2": "feed_forward.2",
}
_HEAD_DIM = 112
"""Leaves no trace in the weights."""


def eva_clip_key_map(num_layers: int) -> dict[str, str]:
    """Every key of the released tower -> ours."""
    modules = dict(_MODULES)
    for layer in range(num_layers):
        modules |= {f"blocks.{layer}.{theirs}": f"blocks.{layer}.{ours}" for theirs, ours in _BLOCK_MODULES.items()}
    names = {"cls_token": "class_token", "pos_embed": "positions"}
    for theirs, ours in modules.items():
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    return names


def convert_eva_clip_tensor(key: str, value: Tensor) -> Tensor:
    """One released tensor, of the key without prefix, in the shape that ours has."""
    if key == "patch_embed.proj.weight":
        return value.flatten(1)  # a convolution over patches is a linear layer of patches
    if key in ("cls_token", "pos_embed"):
        return value.flatten(0, -2).squeeze(0)
    return value


def from_official_eva_clip(state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Weights for `EvaClipEncoder` from those keys of a checkpoint that start with ``prefix``.

    Raises:
        ValueError: no key has the prefix, or one that has it belongs to no layer of this architecture.
    """
    given = strip_prefix(state_dict, prefix)
    names = eva_clip_key_map(count_layers(given, "blocks"))
    unknown = sorted(given.keys() - names.keys())
    if unknown:
        raise ValueError(f"{len(unknown)} keys belong to no layer of EVA-CLIP's tower, such as {unknown[0]!r}.")
    return {names[key]: convert_eva_clip_tensor(key, value) for key, value in given.items()}


def eva_clip_config(state_dict: Mapping[str, Any], prefix: str = "", num_heads: int | None = None) -> dict[str, Any]:
    """Arguments of the `EvaClipEncoder` that the weights of a checkpoint (released names) belong to.

    Args:
        state_dict: anything with a ``shape`` by key.
        num_heads: leaves no trace in the weights; None takes heads of 112 channels, as released.
    """
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    dim, _, patch_size, _ = given["patch_embed.proj.weight"].shape
    num_patches = given["pos_embed"].shape[1] - 1
    return {
        "image_size": round(num_patches**0.5) * patch_size,
        "patch_size": patch_size,
        "dim": dim,
        "num_layers": count_layers(given, "blocks"),
        "num_heads": num_heads or dim // _HEAD_DIM,
        "ffn_dim": given["blocks.0.mlp.fc1.weight"].shape[0],
    }


def load_eva_clip(path: str | Path) -> EvaClipEncoder:
    """The tower of BLIP3-o's ``pytorch_model.bin``, or of a safetensors file, in evaluation mode.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, another network, or a file that holds more than tensors.
    """
    state_dict = read_weights(path) if Path(path).suffix == ".safetensors" else read_checkpoint(path, "model")
    if "patch_embed.proj.weight" not in state_dict:
        raise ValueError(
            f"{path} does not hold EVA-CLIP's vision tower as BLIP3-o publishes it: 'patch_embed.proj.weight' is "
            f"missing, the first key is {next(iter(state_dict), None)!r}. Take pytorch_model.bin of "
            "jiuhai/eva_clip_vision_tower."
        )
    encoder = EvaClipEncoder(**eva_clip_config(state_dict))
    load_exactly(encoder, from_official_eva_clip(state_dict), f"{path} does not hold EVA-CLIP's vision tower")
    return encoder.eval()
