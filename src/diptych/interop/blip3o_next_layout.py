"""The layout of BLIP3o-NEXT's released models: what ``config.json`` says, and where every key belongs.

config.json, generation_config.json                a Qwen3 configuration and the ids of the image tokens
model-0000x-of-0000y.safetensors, its index
  model.embed_tokens, model.layers, model.norm, lm_head     the language model (lm_head is absent where tied)
  model.sana.*, model.sana_vae.*                            SANA and DC-AE, in the names of diffusers
  model.diffusion_connector.{0,2,3}                         hidden states to rows of SANA's condition
  model.vision_tower.vision_tower.*                         TA-Tok
  model.und_image_vae_connector.{0,2,3}                     BLIP3o-NEXT-edit: latents to further rows
tokenizer.json, tokenizer_config.json, …           Qwen3's tokenizer with the image tokens

Read from the published code (branches BLIP3o-NEXT and BLIP3o-NEXT-edit); the index of the weights could not be seen.
SANA and DC-AE are described by no file of the folder: the released code fetches their configs from
``diffusion_name_or_path``. Of SANA the shapes tell what is needed but for the widths of its heads.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diptych.interop.blip3o_layout import NEXT_FIELD, read_json, released_config
from diptych.interop.blip3o_next import DC_AE_F32C32, SANA_1_6B, SIGLIP2_SO400M
from diptych.interop.sana import convert_sana_tensor, sana_config, sana_key_map
from diptych.interop.sharded_weights import StoredTensor
from diptych.interop.weight_files import count_layers
from diptych.interop.weight_places import Place

SANA = "model.sana."
AUTOENCODER = "model.sana_vae."
TOWER = "model.vision_tower.vision_tower."
CONNECTOR = "model.diffusion_connector."
LATENT_CONNECTOR = "model.und_image_vae_connector."
START_TAG, FIRST_SCALE = "<im_start>", "<S0>"
"""Names of the tokens before an image: what starts it, and its first scale, which stands at the head's own position."""

_CODE_IDS = ("image_start_tag_id", "scale_start_token_id", NEXT_FIELD, "num_image_tokens")
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "attention_bias",
    "tie_word_embeddings",
)
_NUM_NEEDED = 7
_TOWER_PARTS = {
    "encode_task_layer.0": "task.0",
    "bottleneck.in_linear": "bottleneck",
    "bottleneck.regularizer.embedding_proj": "codebook_map",
}
_WORDS = "bottleneck.regularizer.embedding.weight"
_UNUSED = re.compile(
    re.escape(TOWER)
    + r"(decoder\.(vision_model\.)?(embeddings|encoder\.layers\.\d+|post_layernorm|head)\."
    + r"|decode_task_layer\.[02]\.|bottleneck\.out_linear\.|scale_layer\.(shift|scale)$)"
    + r"|model\.und_image_vae_as_noise_connector\.0\.(weight|bias)$"
)
"""What the released code holds and BLIP3o-NEXT never uses: TA-Tok's way back from codes to features, the scaling of
pixels that its processor has done already, and a convolution that is switched off."""
_HEAD_DIM = {name: SANA_1_6B["dim"] // SANA_1_6B[name] for name in ("num_heads", "num_cross_heads")}
_TOWER_HEAD_DIM = SIGLIP2_SO400M["hidden_size"] // SIGLIP2_SO400M["num_attention_heads"]  # type: ignore[operator]
_AGAIN = "Copy the file of the released model again."


def is_next_folder(folder: str | Path) -> bool:
    """Whether a folder is laid out as BLIP3o-NEXT's released models are."""
    config = released_config(folder)
    return config is not None and NEXT_FIELD in config


def read_next_config(folder: Path) -> dict[str, Any]:
    """``config.json``, checked.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, of another kind of model, without a field that is needed, or a variant that is not read.
    """
    file = folder / "config.json"
    config = read_json(file)
    if not is_next_folder(folder):
        raise ValueError(
            f"{file} is of a model of type {config.get('model_type')!r} and "
            f"{'has' if NEXT_FIELD in config else 'lacks'} {NEXT_FIELD}: it is not of BLIP3o-NEXT. "
            "Give the folder as it was downloaded, whole."
        )
    lacking = [name for name in (*_TEXT_FIELDS[:_NUM_NEEDED], *_CODE_IDS) if not isinstance(config.get(name), int)]
    if lacking:
        raise ValueError(f"{file} lacks {', '.join(lacking)}. {_AGAIN}")
    if config.get("use_tar_siglip_features"):
        raise ValueError(
            f"{file}: use_tar_siglip_features is set. Models that look at pictures through SigLIP's own features are "
            "not read, only those that look at their codes."
        )
    if config.get("only_use_und_image_vae_as_noise"):
        raise ValueError(
            f"{file}: only_use_und_image_vae_as_noise is set. Of BLIP3o-NEXT-edit models are read whose latents are "
            "rows of the condition."
        )
    return config


def next_text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's configuration, for `TransformersBackbone`."""
    given = {name: config[name] for name in _TEXT_FIELDS if name in config}
    rope = {"rope_type": "default", "rope_theta": given.pop("rope_theta", 1e6)}
    given.setdefault("tie_word_embeddings", False)  # transformers leaves out what its class has by default
    return {**given, "model_type": "qwen3", "rope_parameters": rope, "use_sliding_window": False}


def diffusion_config(folder: Path, config: Mapping[str, Any], given: str | Path | None, name: str) -> Any:
    """The config of SANA (``transformer``) or DC-AE (``vae``) in SANA's folder; None if that folder is not at hand.

    Args:
        folder: of the model.
        given: SANA's folder; None looks where ``diffusion_name_or_path`` points to, if that is a folder.

    Raises:
        FileNotFoundError: ``given`` does not hold it.
    """
    said = str(config.get("diffusion_name_or_path") or "")
    candidates = [Path(said), folder / said] if given is None and said else [] if given is None else [Path(given)]
    for candidate in candidates:
        if given is not None or (candidate / name / "config.json").is_file():
            return read_json(candidate / name / "config.json")
    return None


def sana_of_shapes(tensors: Mapping[str, StoredTensor], described: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of the `SanaTransformer` of a checkpoint; heads as ``described``, else of SANA 1.6B's widths.

    Raises:
        KeyError: a weight of SANA is missing; its name without prefix.
    """
    if described is not None:
        return sana_config(described)

    def shape(name: str) -> tuple[int, ...]:
        try:
            return tensors[SANA + name].shape
        except KeyError:
            raise KeyError(name) from None

    dim, channels, patch_size, _ = shape("patch_embed.proj.weight")
    return {
        "channels": channels,
        "condition_dim": shape("caption_projection.linear_1.weight")[1],
        "dim": dim,
        "num_layers": count_layers(tensors, SANA + "transformer_blocks"),
        **{name: dim // width for name, width in _HEAD_DIM.items()},
        "ffn_ratio": shape("transformer_blocks.0.ff.conv_inverted.weight")[0] / (2 * dim),
        "patch_size": patch_size,
        "qk_norm": SANA + "transformer_blocks.0.attn1.norm_q.weight" in tensors,
        "prediction": "velocity",
    }


def autoencoder_config(described: Mapping[str, Any] | None) -> dict[str, Any]:
    """The config of DC-AE: as ``described``, else the one that SANA 1.5 comes with."""
    return dict(DC_AE_F32C32 if described is None else described)


def tower_of_shapes(tensors: Mapping[str, StoredTensor], num_codes: int, prefix: str = TOWER) -> dict[str, Any] | None:
    """Arguments of the `TextAlignedTokenizer` of a checkpoint, without a decoder; None if there is none.

    Raises:
        KeyError: a weight of it is missing; its name without prefix.
    """
    if not any(key.startswith(prefix) for key in tensors):
        return None

    def shape(name: str) -> tuple[int, ...]:
        try:
            return tensors[prefix + name].shape
        except KeyError:
            raise KeyError(name) from None

    dim, _, patch_size, _ = shape("encoder.embeddings.patch_embedding.weight")
    side = round(shape("encoder.embeddings.position_embedding.weight")[0] ** 0.5)
    published = SIGLIP2_SO400M["image_size"]
    num_layers = count_layers(tensors, prefix + "encoder.encoder.layers")
    image_size = published if side == published // patch_size else side * patch_size  # type: ignore[operator]
    encoder = {
        "model_type": "siglip_vision_model",
        "hidden_size": dim,
        "intermediate_size": shape("encoder.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, dim // _TOWER_HEAD_DIM),
        "image_size": image_size,
        "patch_size": patch_size,
    }
    return {
        "encoder": encoder,
        "num_codes": num_codes,
        "code_dim": shape("bottleneck.in_linear.weight")[0],
        "word_dim": shape(_WORDS)[1],
        "layer": num_layers - 1,
        "image_size": image_size,
        "decoder_layers": 0,
        "standardised": False,
    }


def next_places(keys: list[str], patch_size: int) -> tuple[dict[str, Place], list[str]]:
    """The place of every key, and the keys that have none. What is never used (`_UNUSED`) is left out."""
    names = dict.fromkeys(keys)
    sana_keys = sana_key_map(count_layers(names, SANA + "transformer_blocks"))
    found: dict[str, Place] = {}
    unknown: list[str] = []
    for key in keys:
        place = _place_of(key, sana_keys, patch_size)
        if place is not None:
            found[key] = place
        elif not _UNUSED.match(key) and not key.endswith(".inv_freq"):
            unknown.append(key)
    return found, unknown


def _place_of(key: str, sana_keys: Mapping[str, str], patch_size: int) -> Place | None:
    if key.startswith(SANA):
        inner = key.removeprefix(SANA)
        if inner not in sana_keys:
            return None
        convert = partial(convert_sana_tensor, inner, patch_size=patch_size)
        return Place("image_head", "denoiser." + sana_keys[inner], inner, convert)
    if key.startswith(AUTOENCODER):
        return Place("autoencoder", "model." + key.removeprefix(AUTOENCODER), key)
    for prefix, name in ((CONNECTOR, "connector."), (LATENT_CONNECTOR, "latent_connector.")):
        if key.startswith(prefix):
            return Place("image_head", name + key.removeprefix(prefix), key)
    if key.startswith(TOWER):
        return _place_in_tower(key.removeprefix(TOWER))
    if key.startswith(("model.embed_tokens.", "model.layers.", "model.norm.")) or key == "lm_head.weight":
        return Place("backbone", key, key)
    return None


def _place_in_tower(key: str) -> Place | None:
    if key == _WORDS:
        return Place("encoder", "words", key)
    if key.startswith("encoder."):
        return Place("encoder", "encoder.model." + key.removeprefix("encoder."), key)
    module, _, kind = key.rpartition(".")
    return Place("encoder", f"{_TOWER_PARTS[module]}.{kind}", key) if module in _TOWER_PARTS else None
