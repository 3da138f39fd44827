"""Weights of the SANA denoiser in the names of diffusers (``SanaTransformer2DModel``; ``model.sana.*`` in BLIP3o-NEXT).

Released there: time runs from data to noise and the network predicts ``noise - data``. Here every denoiser returns
``data - noise``, so the last layer changes its sign on the way in. In that layer diffusers orders the values of a patch
(row, column, channel); ours has the channels first, as the input has in both.
"""

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from torch import Tensor

from diptych.interop.weight_files import count_layers, strip_prefix

_PARTS = {
    "patch_embed.proj": "patch_in",
    "time_embed.emb.timestep_embedder.linear_1": "time_in.0",
    "time_embed.emb.timestep_embedder.linear_2": "time_in.2",
    "time_embed.linear": "modulation",
    "caption_projection.linear_1": "condition_in.0",
    "caption_projection.linear_2": "condition_in.2",
    "caption_norm": "condition_norm",
    "proj_out": "patch_out",
}
_ATTENTIONS = {"attn1": "self_attention", "attn2": "cross_attention"}
_ATTENTION_PARTS = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "norm_q": "query_norm",
    "norm_k": "key_norm",
    "to_out.0": "out",
}
_FFN_PARTS = {"conv_inverted": "widen", "conv_depth": "neighbours", "conv_point": "narrow"}


def from_diffusers_sana(state_dict: Mapping[str, Tensor], prefix: str = "", patch_size: int = 1) -> dict[str, Tensor]:
    """Weights for `SanaTransformer` from those keys of a checkpoint that start with ``prefix``.

    Raises:
        ValueError: no key has the prefix, or one that has it belongs to no layer of this architecture.
    """
    given = strip_prefix(state_dict, prefix)
    names = sana_key_map(count_layers(given, "transformer_blocks"))
    unknown = sorted(given.keys() - names.keys())
    if unknown:
        raise ValueError(f"{len(unknown)} keys belong to no layer of the SANA denoiser, such as {unknown[0]!r}.")
    return {names[key]: convert_sana_tensor(key, value, patch_size) for key, value in given.items()}


def convert_sana_tensor(key: str, value: Tensor, patch_size: int) -> Tensor:
    """One tensor of diffusers, of the key without prefix, as ours."""
    if key == "patch_embed.proj.weight":
        return value.flatten(1)
    if key.startswith("proj_out."):
        return -rearrange(value, "(p q c) ... -> (c p q) ...", p=patch_size, q=patch_size)
    return value


def sana_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the `SanaTransformer` that a config of diffusers describes.

    Raises:
        ValueError: it has something that this network does not: other widths of the cross-attention, position
            embeddings, embedded guidance, another norm of queries and keys.
    """
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    expected: dict[str, tuple[Any, ...]] = {
        "cross_attention_dim": (dim,),
        "out_channels": (config["in_channels"], None),
        "interpolation_scale": (None,),
        "guidance_embeds": (False, None),
        "attention_bias": (False,),
        "norm_elementwise_affine": (False,),
        "qk_norm": (None, "rms_norm_across_heads"),
    }
    for name, known in expected.items():
        if config.get(name) not in known:
            raise ValueError(f"a SANA denoiser with {name} {config.get(name)!r} is not known, only {known[0]!r}.")
    return {
        "channels": config["in_channels"],
        "condition_dim": config["caption_channels"],
        "dim": dim,
        "num_layers": config["num_layers"],
        "num_heads": config["num_attention_heads"],
        "num_cross_heads": config["num_cross_attention_heads"],
        "ffn_ratio": config["mlp_ratio"],
        "patch_size": config["patch_size"],
        "qk_norm": config.get("qk_norm") is not None,
        "prediction": "velocity",
    }


def sana_key_map(num_layers: int) -> dict[str, str]:
    """Every key a checkpoint may have in diffusers -> ours."""
    modules = dict(_PARTS)
    names = {"scale_shift_table": "out_table"}
    for layer in range(num_layers):
        theirs, ours = f"transformer_blocks.{layer}", f"blocks.{layer}"
        names[f"{theirs}.scale_shift_table"] = f"{ours}.table"
        modules |= {
            f"{theirs}.{attention}.{part}": f"{ours}.{own}.{name}"
            for attention, own in _ATTENTIONS.items()
            for part, name in _ATTENTION_PARTS.items()
        }
        modules |= {f"{theirs}.ff.{part}": f"{ours}.ffn.{name}" for part, name in _FFN_PARTS.items()}
    for theirs, ours in modules.items():
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    return names
