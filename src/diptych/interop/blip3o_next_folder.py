"""Released BLIP3o-NEXT models (arXiv 2510.15857): Pretrain, SFT, GRPO and edit, by the layout of `blip3o_next_layout`.

As for BLIP3-o, everything is checked from names and shapes before a weight is read, and every tensor goes from the
mapped file to its place.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diptych.data.prompt_format import PromptFormat
from diptych.data.tokenizer import FastTokenizer
from diptych.interop.blip3o_layout import NEXT_FIELD
from diptych.interop.blip3o_next_layout import (
    CONNECTOR,
    FIRST_SCALE,
    LATENT_CONNECTOR,
    START_TAG,
    TOWER,
    autoencoder_config,
    diffusion_config,
    next_places,
    next_text_config,
    read_next_config,
    sana_of_shapes,
    tower_of_shapes,
)
from diptych.interop.empty_parts import build_empty, fill, finish
from diptych.interop.sharded_weights import ShardedWeights, StoredTensor
from diptych.interop.weight_files import UNREADABLE
from diptych.interop.weight_places import check_keys, fill_parts
from diptych.methods.blip3o_next import TokenFlowHead, next_format
from diptych.models.autoencoders.diffusers import DiffusersAutoencoder
from diptych.models.backbones.transformers_lm import TransformersBackbone
from diptych.models.denoisers.sana import SanaTransformer
from diptych.models.encoders.huggingface import HuggingFaceEncoder
from diptych.models.encoders.ta_tok import TextAlignedTokenizer
from diptych.models.part import part_kind
from diptych.unified import DrawSettings, ImagePolicy, UnifiedModel

_LATENT_SIDE = 32
"""Rows and columns of the latents, fixed in the released code: 1024 pixels."""
_NUM_TOKENS = 729
"""Image tokens that the released inference writes, where no TA-Tok tells otherwise."""
_LICENCE = (
    "BLIP3o-NEXT's weights are tagged Apache-2.0; Qwen3 is Apache-2.0, SANA 1.5 and DC-AE have licences of their own"
)


def load_blip3o_next(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    encoder_file: str | Path | None = None,
    diffusion_folder: str | Path | None = None,
    can_draw: bool = True,
    allow_unknown: bool = False,
    place: Callable[[UnifiedModel], None] | None = None,
) -> UnifiedModel:
    """The model in a folder of the released layout, in evaluation mode.

    Args:
        dtype: of the weights; None keeps that of the files.
        encoder_file: weights of TA-Tok (``ta_tok.pth``), for shards without them. Pictures that are looked at, edited
            or trained on need it; drawing does not.
        diffusion_folder: SANA's folder, whose configs describe SANA and DC-AE; None takes those of the published
            SANA1.5_1.6B_1024px unless ``diffusion_name_or_path`` is a folder.
        can_draw: False leaves out all that has to do with pictures: the language model alone.
        allow_unknown: leave keys aside that the layout does not have, instead of refusing them.
        place: brings the loaded model from ``device``, then the CPU, to where it runs: its ``offload_to`` or ``place``.

    Raises:
        FileNotFoundError: a file of the layout or a shard is missing.
        ValueError: a damaged or cut file, files of two models, unknown or missing keys, a tokenizer without the image
            tokens, a variant that is not read.
    """
    folder = Path(folder)
    config = read_next_config(folder)
    weights = ShardedWeights(folder)
    _check_width(folder, config, weights.tensors)
    tokenizer = read_next_tokenizer(folder, config)
    parts = empty_next_parts(folder, config, weights.tensors, diffusion_folder, dtype)
    found, unknown = next_places(list(weights.tensors), parts["image_head"].denoiser.patch_size)
    if unknown and not allow_unknown:
        raise ValueError(
            f"{folder} holds {len(unknown)} weights that BLIP3o-NEXT's released models do not have: "
            f"{', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''}. They belong to another model or branch; "
            "allow_unknown=True loads the rest without them."
        )
    if encoder_file is not None:
        parts.pop("encoder", None)
    if not can_draw:
        parts = {"backbone": parts["backbone"]}
    wanted = check_keys(folder, parts, found, weights.tensors)
    fill_parts(parts, wanted, weights, device, dtype)
    if encoder_file is not None and can_draw:
        parts["encoder"] = load_ta_tok(encoder_file, config["num_image_tokens"], device, dtype)
    model = _compose(parts, tokenizer, config)
    if place is not None:
        place(model)
    return model


def load_ta_tok(
    file: str | Path, num_codes: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> TextAlignedTokenizer:
    """TA-Tok as it is published (``ta_tok.pth``: ``model.args`` and ``model.sd``), without its decoder.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, or another file.
    """
    saved = _read_ta_tok(Path(file))
    tensors = {TOWER + key: StoredTensor(Path(file), tuple(value.shape)) for key, value in saved.items()}
    try:
        described = tower_of_shapes(tensors, num_codes)
    except KeyError as error:
        raise ValueError(f"{file} lacks {error.args[0]}: it is no ta_tok.pth of csuhan/TA-Tok, or not whole.") from None
    if described is None:
        raise ValueError(f"{file} holds no tensors. Take ta_tok.pth of csuhan/TA-Tok.")
    tower: TextAlignedTokenizer = build_empty(_tower_part(described))
    found, unknown = next_places(list(tensors), 1)
    if unknown:
        raise ValueError(
            f"{file} holds {len(unknown)} tensors that TA-Tok does not have, such as "
            f"{unknown[0].removeprefix(TOWER)!r}. Take ta_tok.pth of csuhan/TA-Tok."
        )
    wanted = check_keys(Path(file), {"encoder": tower}, found, tensors)
    fill(tower, ((place.name, saved[key.removeprefix(TOWER)]) for key, place in wanted.items()), device, dtype)
    finish(tower, device)
    return tower.eval()


def _read_ta_tok(file: Path) -> dict[str, torch.Tensor]:
    """The tensors. The arguments beside them are an ``easydict.EasyDict``, read as the dictionary that it is."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. It is ta_tok.pth of csuhan/TA-Tok.")
    try:
        with torch.serialization.safe_globals([(OrderedDict, "easydict.EasyDict")]):
            saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        tensors = saved["model"]["sd"]
    except (*UNREADABLE, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{file} is no ta_tok.pth with model.sd in it, or is damaged or cut off ({reason}). Copy or download it "
            "again."
        ) from None
    return {key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)}


def empty_next_parts(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    diffusion_folder: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Backbone, image head, autoencoder and, where the shards have it, encoder, without weights.

    Args:
        dtype: of the scale of the latents, which no file holds.

    Raises:
        FileNotFoundError: ``diffusion_folder`` lacks a config.
        ValueError: a part is not there, or the connector has another width than the language model.
    """
    read = lambda name: diffusion_config(folder, config, diffusion_folder, name)  # noqa: E731
    try:
        denoiser = sana_of_shapes(tensors, read("transformer"))
        tower = tower_of_shapes(tensors, config["num_image_tokens"])
        width = tensors[CONNECTOR + "0.weight"].shape[1]
    except KeyError as error:
        raise ValueError(
            f"{folder} lacks the weight {error.args[0]}: it is no BLIP3o-NEXT model, or not whole. Copy or download it "
            "again."
        ) from None
    if width != config["hidden_size"]:
        raise ValueError(
            f"{folder}: the connector takes hidden states of width {width}, the language model has "
            f"{config['hidden_size']}. The folder mixes shards of two models; copy it again."
        )
    autoencoder = autoencoder_config(read("vae"))
    encoder = None if tower is None else build_empty(_tower_part(tower))
    is_edit = LATENT_CONNECTOR + "0.weight" in tensors
    head = {
        "denoiser": {"kind": part_kind(SanaTransformer), **denoiser},
        "dim": width,
        "num_tokens": _NUM_TOKENS if encoder is None else encoder.fixed_grid()[0] * encoder.fixed_grid()[1],
        "num_codes": config["num_image_tokens"],
        "first_token": config["scale_start_token_id"],
        "first_code": config[NEXT_FIELD],
        "reads_codes": True,
        "latent_channels": denoiser["channels"] if is_edit else 0,
        "references_in_noise": bool(config.get("use_und_image_vae_as_noise")),
        "frozen_denoiser": True,
    }
    parts = {
        "backbone": build_empty({"kind": part_kind(TransformersBackbone), "config": next_text_config(config)}),
        "image_head": build_empty({"kind": part_kind(TokenFlowHead), **head}),
        "autoencoder": build_empty(
            {"kind": part_kind(DiffusersAutoencoder), "model_class": "AutoencoderDC", "model_config": autoencoder}
        ),
    }
    space = parts["autoencoder"]
    for name, value in (("shift", 0.0), ("scale", 1.0 / space.model.config.scaling_factor)):
        setattr(space, name, torch.full(getattr(space, name).shape, value, dtype=dtype))
    return parts if encoder is None else {**parts, "encoder": encoder}


def _tower_part(described: Mapping[str, Any]) -> dict[str, Any]:
    encoder = {"kind": part_kind(HuggingFaceEncoder), "model_config": described["encoder"]}
    return {"kind": part_kind(TextAlignedTokenizer), **described, "encoder": encoder}


def read_next_tokenizer(folder: Path, config: Mapping[str, Any]) -> FastTokenizer:
    """The text tokens, and those that start and end an image; those of scales and codes are rows of the backbone alone.

    So no text can name the latter and no answer can contain them.

    Raises:
        ValueError: the tokens of images are not where ``config.json`` says.
    """
    has_own_file = (folder / "tokenizer.json").is_file()
    whole = FastTokenizer.load(folder) if has_own_file else FastTokenizer.from_transformers(folder)
    definition = json.loads(whole.definition)
    ids = {entry["content"]: entry["id"] for entry in definition["added_tokens"]}
    count = config["num_image_tokens"]
    expected = {
        START_TAG: config["image_start_tag_id"],
        FIRST_SCALE: config["scale_start_token_id"],
        "<I0>": config[NEXT_FIELD],
        f"<I{count - 1}>": config[NEXT_FIELD] + count - 1,
    }
    for name, place in expected.items():
        if ids.get(name) != place:
            raise ValueError(
                f"the tokenizer in {folder} has {name} at {ids.get(name)}, config.json at {place}. Take the tokenizer "
                "files of the released model, not those of Qwen3."
            )
    first = config["scale_start_token_id"]
    if config[NEXT_FIELD] < first or config[NEXT_FIELD] + count > config["vocab_size"]:
        raise ValueError(
            f"{folder / 'config.json'}: image tokens {config[NEXT_FIELD]} to {config[NEXT_FIELD] + count - 1} must lie "
            f"between {first} and the {config['vocab_size']} tokens of the model. Copy the file again."
        )
    definition["added_tokens"] = [entry for entry in definition["added_tokens"] if entry["id"] < first]
    return FastTokenizer(json.dumps(definition, ensure_ascii=False))


def _check_width(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    embedding = tensors.get("model.embed_tokens.weight")
    expected = (config["vocab_size"], config["hidden_size"])
    if embedding is not None and embedding.shape != expected:
        raise ValueError(
            f"{folder}: the weights are of a model of {embedding.shape[0]} tokens and width {embedding.shape[1]}, "
            f"config.json is of one of {expected[0]} tokens and width {expected[1]}. Take all files from one of them."
        )


def released_next_format() -> PromptFormat:
    """The released inference's prompt: ChatML with an open turn, ``<im_start>``, then ``<S0>`` and the codes.

    The instruction of an edit stands before the picture.
    """
    return replace(
        next_format(),
        draw_start=START_TAG,
        edit_prompt="Please edit this image according to the following instruction: {text}.\n",
        edit_text_first=True,
        stop=("<|im_end|>", "<|endoftext|>"),
    )


def _compose(parts: Mapping[str, Any], tokenizer: FastTokenizer, config: Mapping[str, Any]) -> UnifiedModel:
    space = parts.get("autoencoder")
    side = _LATENT_SIDE * (32 if space is None else space.stride)
    return UnifiedModel(
        backbone=parts["backbone"],
        tokenizer=tokenizer,
        prompt_format=released_next_format(),
        encoder=parts.get("encoder"),
        image_head=parts.get("image_head"),
        autoencoder=space,
        images=ImagePolicy(size=(side, side), resize="crop", multiple=side // _LATENT_SIDE),
        draw=DrawSettings(num_steps=30, guidance_scale=2.0),
        card={
            "name": f"BLIP3o-NEXT, Qwen3 of width {config['hidden_size']}",
            "description": "BLIP3o-NEXT (arXiv 2510.15857), read from its released files.",
            "licence": _LICENCE,
            "limits": f"Draws {side}x{side} only.",
        },
    ).eval()
