"""Weights of the Lumina-Next denoiser in the names of diffusers, as BLIP3-o publishes them (``dit.model.*``).

Released there: time runs from data to noise and the network predicts ``noise - data``. Here every denoiser returns
``data - noise``, so the last layer changes its sign on the way in and out. In that layer diffusers orders the values of
a patch (row, column, channel); ours has the channels first, as the input has in both.
"""

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from torch import Tensor

from diptych.interop.weight_files import count_layers, strip_prefix

_PARTS = {
    "patch_embedder.proj": "patch_in",
    "caption_projection.linear_1": "condition_in.0",
    "caption_projection.linear_2": "condition_in.2",
    "time_caption_embed.timestep_embedder.linear_1": "time_in.0",
    "time_caption_embed.timestep_embedder.linear_2": "time_in.2",
    "time_caption_embed.caption_embedder.0": "pooled_in.0",
    "time_caption_embed.caption_embedder.1": "pooled_in.1",
    "norm_out.linear_1": "out_scale",
    "norm_out.linear_2": "patch_out",
}
_BLOCK_PARTS = {
    "attn1.to_q": "attention.query",
    "attn1.to_k": "attention.key",
    "attn1.to_v": "attention.value",
    "attn1.norm_q": "attention.query_norm",
    "attn1.norm_k": "attention.key_norm",
    "attn2.to_q": "attention.cross_query",
    "attn2.to_k": "attention.cross_key",
    "attn2.to_v": "attention.cross_value",
    "attn2.norm_q": "attention.cross_query_norm",
    "attn2.norm_k": "attention.cross_key_norm",
    "attn2.to_out.0": "attention.out",
    "norm1.linear": "modulation",
    "norm1.norm": "attention_in_norm",
    "norm1_context": "attention.condition_norm",
    "norm2": "attention_out_norm",
    "ffn_norm1": "ffn_in_norm",
    "ffn_norm2": "ffn_out_norm",
    "feed_forward.linear_1": "ffn.gate",
    "feed_forward.linear_2": "ffn.down",
    "feed_forward.linear_3": "ffn.up",
}
_IGNORED = {"pad_token"}  # declared in diffusers, never used


def from_diffusers_lumina(state_dict: Mapping[str, Tensor], prefix: str = "", patch_size: int = 1) -> dict[str, Tensor]:
    """Weights for `LuminaDiT` from those keys of a checkpoint that start with ``prefix``.

    The prefix is ``model.dit.model.`` in BLIP3-o's files.

    Raises:
        ValueError: no key has the prefix, or one that has it belongs to no layer of this architecture.
    """
    given = strip_prefix(state_dict, prefix)
    names = lumina_key_map(count_layers(given, "layers"))
    unknown = sorted(given.keys() - names.keys() - _IGNORED)
    if unknown:
        raise ValueError(f"{len(unknown)} keys belong to no layer of the Lumina-Next denoiser, such as {unknown[0]!r}.")
    return {names[key]: convert_lumina_tensor(key, v, patch_size) for key, v in given.items() if key not in _IGNORED}


def convert_lumina_tensor(key: str, value: Tensor, patch_size: int = 1) -> Tensor:
    """One tensor of diffusers, of the key without prefix, as ours: the last layer points from noise to data."""
    if not key.startswith("norm_out.linear_2."):
        return value
    return -rearrange(value, "(p q c) ... -> (c p q) ...", p=patch_size, q=patch_size)


def to_diffusers_lumina(state_dict: Mapping[str, Tensor], prefix: str = "", patch_size: int = 1) -> dict[str, Tensor]:
    """The inverse of `from_diffusers_lumina`.

    Raises:
        ValueError: a key is not one of `LuminaDiT`.
    """
    names = {ours: theirs for theirs, ours in lumina_key_map(count_layers(state_dict, "blocks")).items()}
    unknown = sorted(state_dict.keys() - names.keys())
    if unknown:
        raise ValueError(f"{len(unknown)} keys are no weights of LuminaDiT, such as {unknown[0]!r}.")
    converted = dict(state_dict)
    for key in ("patch_out.weight", "patch_out.bias"):
        converted[key] = -rearrange(converted[key], "(c p q) ... -> (p q c) ...", p=patch_size, q=patch_size)
    return {prefix + names[key]: value for key, value in converted.items()}


def lumina_config(state_dict: Mapping[str, Any], prefix: str = "", patch_size: int = 1) -> dict[str, Any]:
    """Arguments of the `LuminaDiT` that the weights of a checkpoint (names of diffusers) belong to.

    The patch size leaves no trace in the shapes and has to be known: 1 in BLIP3-o. Only ``shape`` of a value is read.
    """
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    dim, patch_dim = given["patch_embedder.proj.weight"].shape
    return {
        "channels": patch_dim // patch_size**2,
        "condition_dim": given["caption_projection.linear_1.weight"].shape[1],
        "dim": dim,
        "num_layers": count_layers(given, "layers"),
        "num_heads": given["layers.0.gate"].shape[0],
        "patch_size": patch_size,
        "ffn_dim": given["layers.0.feed_forward.linear_1.weight"].shape[0],
        "time_dim": given["layers.0.norm1.linear.weight"].shape[1],
        "qk_norm": "layers.0.attn1.norm_q.weight" in given,
        "prediction": "velocity",
    }


def lumina_key_map(num_layers: int) -> dict[str, str]:
    """Every key a checkpoint may have in diffusers -> ours."""
    modules = dict(_PARTS)
    names = {}
    for layer in range(num_layers):
        modules |= {f"layers.{layer}.{theirs}": f"blocks.{layer}.{ours}" for theirs, ours in _BLOCK_PARTS.items()}
        names[f"layers.{layer}.gate"] = f"blocks.{layer}.attention.gate"
    for theirs, ours in modules.items():
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    return names
