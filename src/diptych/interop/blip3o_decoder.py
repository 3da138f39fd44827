"""The folder ``diffusion-decoder`` of BLIP3-o's released models: Emu2's visual decoder, as ``diffusers`` saves it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych.interop.blip3o_layout import DECODER, read_json
from diptych.interop.sharded_weights import ShardedWeights
from diptych.models.autoencoders.rendered_features import RenderedFeatures

_PATCH_SIZE = 14
"""Of EVA-CLIP."""
_SCHEDULER = "EulerDiscreteScheduler"
_WITHOUT = "Download it with the model, or load with can_draw=False a model that reads images and writes."


def load_decoder(
    folder: Path,
    channels: int,
    grid: tuple[int, int],
    pool: int,
    encoder: nn.Module | None,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> RenderedFeatures:
    """The generation space with the decoder's weights.

    Args:
        channels: of the features that the denoiser draws.
        grid: rows and columns of those features.
        pool: side of the squares of the encoder's features that make one.

    Raises:
        FileNotFoundError: the folder or a file of it is missing.
        ValueError: a damaged file, or a decoder of other features.
    """
    import diffusers

    root = folder / DECODER
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is missing: nothing can render the features that the model draws. {_WITHOUT}")
    for name in ("unet", "vae", "scheduler"):
        if not (root / name).is_dir():
            raise FileNotFoundError(f"{root / name} is missing: the decoder is not whole. {_WITHOUT}")
    scheduler = read_json(root / "scheduler" / "scheduler_config.json")
    if scheduler.get("_class_name", _SCHEDULER) != _SCHEDULER:
        raise ValueError(
            f"{root / 'scheduler'} is a {scheduler['_class_name']}, the released decoder has {_SCHEDULER}."
        )
    unet = read_json(root / "unet" / "config.json")
    if unet.get("cross_attention_dim") != channels:
        raise ValueError(
            f"{root / 'unet' / 'config.json'}: the decoder takes features of {unet.get('cross_attention_dim')} "
            f"channels, the denoiser draws {channels}. SDXL's own unet is no such decoder; take the model's."
        )
    vae = read_json(root / "vae" / "config.json")
    with torch.device("meta"):
        space = RenderedFeatures(
            channels=channels,
            grid=grid,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            encoder=encoder,
            input_size=grid[0] * pool * _PATCH_SIZE,
            image_size=_rendered_size(unet, vae),
        )
    space.unet = _load(diffusers.UNet2DConditionModel, root / "unet", dtype).to(device)
    space.vae = _load(diffusers.AutoencoderKL, root / "vae", dtype).to(device)
    for name, value in (("shift", torch.zeros), ("scale", torch.ones), ("null_features", torch.zeros)):
        setattr(space, name, value(getattr(space, name).shape, device=device))
    return space


def _rendered_size(unet: dict[str, Any], vae: dict[str, Any]) -> int:
    return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)


def _load(cls: Any, folder: Path, dtype: torch.dtype | None) -> Any:
    """A module of diffusers, whose files are checked first so that the message names the one that is wrong."""
    stem = "diffusion_pytorch_model"
    candidates = [f"{stem}{kind}.safetensors" for kind in (".bf16", "")]
    name = next((name for name in candidates if (folder / name).is_file()), None)
    if name is None:
        raise FileNotFoundError(f"{folder / candidates[0]} is missing. {_WITHOUT}")
    stored = ShardedWeights(folder / name)
    expected = {key: tuple(value.shape) for key, value in _empty(cls, folder).state_dict().items()}
    for key, tensor in stored.tensors.items():
        if key in expected and tensor.shape != expected[key]:
            raise ValueError(
                f"{tensor.file}: {key} has the shape {tensor.shape}, config.json beside it asks for {expected[key]}. "
                "Take both from one model."
            )
    module, info = cls.from_pretrained(
        folder,
        torch_dtype=dtype,
        variant="bf16" if ".bf16." in name else None,
        use_safetensors=True,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        raise ValueError(
            f"{folder / name} lacks {len(info['missing_keys'])} weights, such as {min(info['missing_keys'])!r}. "
            "Copy or download it again."
        )
    return module.eval()


def _empty(cls: Any, folder: Path) -> Any:
    with torch.device("meta"):
        return cls.from_config(cls.load_config(folder))
