"""Released BLIP3-o models (arXiv 2505.09568): ``BLIP3o-Model-4B`` and ``-8B``, by the layout of `blip3o_layout`.

What is read, checked and told is decided from names and shapes alone, before any weight is read; then every tensor goes
from the mapped file to its place, so that no shard stands in memory twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.data.prompt_format import PromptFormat, chatml_format
from diptych.data.tokenizer import FastTokenizer
from diptych.interop.blip3o_decoder import load_decoder
from diptych.interop.blip3o_layout import (
    DENOISER_PREFIX,
    SPECIAL_TOKENS,
    VARIANTS,
    places,
    read_config,
    read_json,
    text_config,
    vision_config,
)
from diptych.interop.empty_parts import build_empty, fill, finish
from diptych.interop.eva_clip import CHECKPOINT_PREFIX, eva_clip_config
from diptych.interop.lumina import lumina_config
from diptych.interop.sharded_weights import ShardedWeights, StoredTensor
from diptych.interop.weight_places import Place, check_keys, fill_parts
from diptych.methods.blip3o import QueryFlowHead
from diptych.models.backbones.transformers_lm import TransformersBackbone
from diptych.models.connectors import IdentityConnector
from diptych.models.denoisers.lumina import LuminaDiT
from diptych.models.encoders.eva_clip import EvaClipEncoder
from diptych.models.encoders.qwen_vision import PIXEL_BUDGET, QwenVisionEncoder
from diptych.models.part import part_kind
from diptych.unified import DrawSettings, ImagePolicy, UnifiedModel
from diptych.unified.drawing import draw_features

_UNDERSTANDING = ("backbone", "encoder")
_LICENCE = (
    "BLIP3-o's weights are tagged Apache-2.0, Qwen2.5-VL-3B under the Qwen research licence; the decoder is Emu2's, "
    "whose authors allow non-commercial use"
)


def load_blip3o(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    encoder_file: str | Path | None = None,
    can_draw: bool = True,
    allow_unknown: bool = False,
    strict_original: bool = False,
    place: Callable[[UnifiedModel], None] | None = None,
) -> UnifiedModel:
    """The model in a folder of the released layout, in evaluation mode.

    Args:
        dtype: of the weights; None keeps that of the files.
        encoder_file: weights of the EVA-CLIP tower (``pytorch_model.bin`` of ``jiuhai/eva_clip_vision_tower``), which
            encodes images that are to be drawn: training needs it, drawing does not.
        can_draw: False leaves out queries, denoiser and decoder: a model that reads images and writes.
        allow_unknown: leave keys aside that the layout does not have, instead of refusing them.
        strict_original: pictures of a prompt that asks for an image have one-dimensional positions, as in the released
            inference, instead of Qwen2.5-VL's own.
        place: brings the loaded model from ``device``, then the CPU, to where it runs: its ``offload_to`` or ``place``.

    Raises:
        FileNotFoundError: a file of the layout, a shard or the decoder's folder is missing.
        ValueError: a damaged or cut file, files of two models, unknown or missing keys, a tokenizer without the special
            tokens.
    """
    folder = Path(folder)
    config = read_config(folder)
    weights = ShardedWeights(folder)
    _check_variant(folder, config, weights.tensors)
    tokenizer = _load_tokenizer(folder, config)
    found, unknown = places(list(weights.tensors))
    if unknown and not allow_unknown:
        raise ValueError(
            f"{folder} holds {len(unknown)} weights that BLIP3-o's released models do not have: "
            f"{', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''}. They belong to another model or branch; "
            "allow_unknown=True loads the rest without them."
        )
    parts = {
        name: part
        for name, part in empty_parts(folder, config, weights.tensors).items()
        if can_draw or name in _UNDERSTANDING
    }
    wanted = check_keys(folder, parts, found, weights.tensors)
    space = _load_space(folder, config, weights, found, encoder_file, device, dtype) if can_draw else None
    fill_parts(parts, wanted, weights, device, dtype)
    model = UnifiedModel(
        backbone=parts["backbone"],
        tokenizer=tokenizer,
        prompt_format=released_format(),
        connector=IdentityConnector(parts["backbone"].dim),
        encoder=parts["encoder"],
        image_head=parts.get("image_head"),
        autoencoder=space,
        images=_image_policy(folder, space),
        draw=DrawSettings(num_steps=30, guidance_scale=3.0, whole_timesteps=True, flat_positions=strict_original),
        card=_card(config),
    ).eval()
    if place is not None:
        place(model)
    if space is not None:
        space.null_features.copy_(blank_features(model))
    return model


def released_format() -> PromptFormat:
    """The released inference's prompt: ChatML with an open turn, then ``[IMG]``; answers also end at a text's end."""
    return replace(chatml_format(), stop=("<|im_end|>", "<|endoftext|>"))


@torch.inference_mode()
def blank_features(model: UnifiedModel, seed: int = 0) -> Tensor:
    """Features that the model draws for a single space without any template: the decoder's null condition.

    The released pipeline draws them once, with whatever noise comes first, and keeps them; here they have a seed.
    """
    tokens = [*model.tokenizer.encode(" "), model.tokenizer.special["[IMG]"]]
    head, backbone = model.image_head, model.backbone
    model.enter_stage("read")
    embedded = backbone.embed(torch.tensor([tokens], device=model.device))
    embedded = torch.cat([embedded, head.query_embeddings(1).to(embedded.dtype)], dim=1)
    positions = torch.arange(embedded.shape[1], device=model.device)[None]
    condition = backbone(embedded, positions).hidden_states[:, -head.num_queries :]
    shape = model.autoencoder.null_features.shape
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
    return draw_features(model, condition, None, None, noise, model.draw_settings)[0]


def _load_tokenizer(folder: Path, config: Mapping[str, Any]) -> FastTokenizer:
    has_own_file = (folder / "tokenizer.json").is_file()
    tokenizer = FastTokenizer.load(folder) if has_own_file else FastTokenizer.from_transformers(folder)
    needed = [*SPECIAL_TOKENS, *released_format().special_tokens()]
    lacking = [name for name in needed if name not in tokenizer.special]
    way_out = "Take the tokenizer files of the released model, not those of Qwen2.5-VL."
    if lacking:
        raise ValueError(f"the tokenizer in {folder} lacks the special tokens {', '.join(lacking)}. {way_out}")
    if tokenizer.vocab_size > config["vocab_size"]:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the model {config['vocab_size']}. {way_out}"
        )
    moved = {
        name: tokenizer.special[name] for name, place in SPECIAL_TOKENS.items() if tokenizer.special[name] != place
    }
    if moved and config["hidden_size"] in VARIANTS:
        name, place = next(iter(moved.items()))
        raise ValueError(
            f"the tokenizer in {folder} has {name} at {place}, the released models at {SPECIAL_TOKENS[name]}. {way_out}"
        )
    return tokenizer


def _check_variant(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or embedding.shape[1] == config["hidden_size"]:
        return
    given, expected = (
        f"{VARIANTS.get(width, 'a model')} (width {width})" for width in (embedding.shape[1], config["hidden_size"])
    )
    raise ValueError(
        f"{folder}: the weights are of {given}, config.json is of {expected}. Take all files from one of them."
    )


def empty_parts(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Backbone, encoder and image head without weights. Of the denoiser the shapes decide: no file describes it."""
    width = config["hidden_size"]
    try:
        denoiser = lumina_config(tensors, DENOISER_PREFIX)
    except KeyError as error:
        raise ValueError(
            f"{folder} lacks the denoiser's weight {DENOISER_PREFIX}{error.args[0]}: it is no BLIP3-o model, or not "
            "whole. Copy or download it again."
        ) from None
    if denoiser["condition_dim"] != width:
        raise ValueError(
            f"{folder}: the denoiser takes conditions of width {denoiser['condition_dim']}, the language model has "
            f"{width}. The folder mixes shards of two models; copy it again."
        )
    head = {"denoiser": {"kind": part_kind(LuminaDiT), **denoiser}, "num_queries": config["n_query"], "dim": width}
    configs: dict[str, dict[str, Any]] = {
        "backbone": {"kind": part_kind(TransformersBackbone), "config": text_config(config)},
        "encoder": {
            "kind": part_kind(QwenVisionEncoder),
            "config": vision_config(config),
            "pixel_budget": list(_pixel_budget(folder)),
        },
        "image_head": {"kind": part_kind(QueryFlowHead), **head},
    }
    return {name: build_empty(described) for name, described in configs.items()}


def _load_space(
    folder: Path,
    config: Mapping[str, Any],
    weights: ShardedWeights,
    found: Mapping[str, Place],
    encoder_file: str | Path | None,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Any:
    """The generation space; its encoder from a file of its own, or from the shards if they have it."""
    channels = weights.tensors[f"{DENOISER_PREFIX}patch_embedder.proj.weight"].shape[1]
    side = round(config["n_query"] ** 0.5)
    pool = int(config["gen_pooling"].rpartition("_")[2])
    own = {key: place for key, place in found.items() if place.part == "eva"}
    if encoder_file is not None:
        weights = ShardedWeights(encoder_file)
        prefixed = {CHECKPOINT_PREFIX + key: value for key, value in weights.tensors.items()}
        placed, unknown = places(list(prefixed))
        if unknown or not placed:
            first = next(iter(weights.tensors), None)
            raise ValueError(
                f"{encoder_file} does not hold the EVA-CLIP tower as BLIP3-o publishes it (first key {first!r}). Take "
                "pytorch_model.bin of jiuhai/eva_clip_vision_tower."
            )
        own = {key.removeprefix(CHECKPOINT_PREFIX): place for key, place in placed.items()}
    encoder = None
    if own:
        described = eva_clip_config({place.key: weights.tensors[key] for key, place in own.items()})
        encoder = build_empty({"kind": part_kind(EvaClipEncoder), **described})
        fill(encoder, ((own[key].name, own[key].convert(value)) for key, value in weights.stream(own)), device, dtype)
        finish(encoder, device)
    return load_decoder(folder, channels, (side, side), pool, encoder, device, dtype)


def _pixel_budget(folder: Path) -> tuple[int, int]:
    """Of ``preprocessor_config.json`` where there is one; the released models come without."""
    if not (folder / "preprocessor_config.json").is_file():
        return PIXEL_BUDGET
    values = read_json(folder / "preprocessor_config.json")
    size = values.get("size") or {}
    return (
        int(values.get("min_pixels") or size.get("shortest_edge") or PIXEL_BUDGET[0]),
        int(values.get("max_pixels") or size.get("longest_edge") or PIXEL_BUDGET[1]),
    )


def _image_policy(folder: Path, space: Any) -> ImagePolicy:
    side = 448 if space is None else space.input_size
    return ImagePolicy(size=(side, side), resize="crop", multiple=8, input_pixels=_pixel_budget(folder))


def _card(config: Mapping[str, Any]) -> dict[str, Any]:
    name = VARIANTS.get(config["hidden_size"], "A model of BLIP3-o's layout")
    return {
        "name": name,
        "description": "BLIP3-o (arXiv 2505.09568), read from its released files.",
        "licence": _LICENCE,
        "limits": "Draws 1024x1024 only. Editing was not trained. Understanding is that of Qwen2.5-VL, unchanged.",
    }
