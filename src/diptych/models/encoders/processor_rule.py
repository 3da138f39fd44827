"""The resize rules of the image processors of ``transformers``, on Pillow alone and equal to them to the last bit.

What a ``preprocessor_config.json`` says is read once into a ``ProcessorRule``, which goes into the encoder's config.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diptych.models.preprocess import Filter, center_crop, resize_pixels, resize_shortest_edge, to_float

ResizeRule: TypeAlias = Literal["fixed", "fixed_float", "shortest_edge", "crop_pct", "patch_budget"]

_PILLOW_NUMBERS: dict[int, Filter] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

_HALF = (0.5, 0.5, 0.5)
_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "resample": 3,
}
_SQUARE = {"image_mean": _HALF, "image_std": _HALF, "size": {"height": 224, "width": 224}, "do_center_crop": False}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "BitImageProcessor": _CLIP,
    "SiglipImageProcessor": _SQUARE | {"resample": 3},
    "Siglip2ImageProcessor": _SQUARE | {"resample": 2, "patch_size": 16, "max_num_patches": 256},
    "ViTImageProcessor": _SQUARE | {"resample": 2},
    "DINOv3ViTImageProcessor": _SQUARE | _IMAGENET | {"resample": 2},
    "ConvNextImageProcessor": _SQUARE | {"resample": 3, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
}
"""What each processor class of transformers assumes where its file says nothing."""


@dataclass(frozen=True, kw_only=True)
class ProcessorRule:
    """How pixels become what a released encoder was trained on."""

    rule: ResizeRule
    """``fixed``: to ``height x width``, aspect ratio given up. ``fixed_float``: the same by torch on floats (DINOv3).
    ``shortest_edge``: shorter side to ``shortest_edge``, then the middle ``height x width``. ``crop_pct``: as ConvNeXt,
    shorter side to ``height / crop_pct`` and the middle square, or a stretched square from 384 pixels on.
    ``patch_budget``: SigLIP 2, aspect ratio kept, at most ``max_num_patches`` patches."""
    height: int
    width: int
    filter: Filter
    mean: tuple[float, float, float]
    """Per channel, of images in [0, 1]."""
    std: tuple[float, float, float]
    shortest_edge: int = 0
    crop_pct: float = 1.0
    patch_size: int = 0
    max_num_patches: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ProcessorRule":
        """The rule that ``to_dict`` wrote."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    @classmethod
    def from_processor_config(cls, config: Mapping[str, Any]) -> "ProcessorRule":
        """Reads the content of a ``preprocessor_config.json``.

        Raises:
            ValueError: a processor that is not known here, or one that rescales by another factor than 1/255.
        """
        name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        name = name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
        if name not in _DEFAULTS:
            raise ValueError(
                f"the image processor {name or 'without a name'!r} is not known; known are {', '.join(_DEFAULTS)}."
            )
        values = _DEFAULTS[name] | {key: value for key, value in config.items() if value is not None}
        factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
        if abs(factor * 255 - 1) > 1e-6:
            raise ValueError(f"{name}: pixels must be rescaled by 1/255, its config says {factor:g}.")
        if not values.get("do_resize", True):
            raise ValueError(f"{name}: its config turns resizing off, so it does not say which size the encoder takes.")
        is_normalized = values.get("do_normalize", True)
        size, crop = _sides(values["size"]), _sides(values.get("crop_size") or 0)
        settings: dict[str, Any] = {
            "filter": _PILLOW_NUMBERS[int(values["resample"])],
            "mean": tuple(values["image_mean"]) if is_normalized else (0.0, 0.0, 0.0),
            "std": tuple(values["image_std"]) if is_normalized else (1.0, 1.0, 1.0),
        }
        if name == "Siglip2ImageProcessor":
            patch_size, budget = values["patch_size"], values["max_num_patches"]
            side = math.isqrt(budget) * patch_size
            settings |= {"rule": "patch_budget", "patch_size": patch_size, "max_num_patches": budget}
            return cls(height=side, width=side, **settings)
        if name == "ConvNextImageProcessor":
            edge = size if isinstance(size, int) else size[0]
            return cls(rule="crop_pct", height=edge, width=edge, crop_pct=values["crop_pct"], **settings)
        if values["do_center_crop"]:
            height, width = (crop, crop) if isinstance(crop, int) else crop
            if isinstance(size, int):
                return cls(rule="shortest_edge", height=height, width=width, shortest_edge=size, **settings)
            if size != (height, width):
                raise ValueError(f"{name}: a crop of {crop} out of a fixed size {size} is not supported.")
            return cls(rule="fixed", height=height, width=width, **settings)
        height, width = (size, size) if isinstance(size, int) else size
        rule: ResizeRule = "fixed_float" if name == "DINOv3ViTImageProcessor" else "fixed"
        return cls(rule=rule, height=height, width=width, **settings)

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def apply(self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None) -> Float[Tensor, "3 height width"]:
        """The resized image in [-1, 1], before mean and std.

        ``size`` asks for another size by the same rule: stretched where the rule stretches, else covering it and cut.
        """
        if size is not None:
            return self._apply_at(pixels, size)
        if self.rule == "shortest_edge":
            scaled = resize_shortest_edge(pixels, self.shortest_edge, self.filter)
            return to_float(center_crop(scaled, (self.height, self.width)))
        if self.rule == "crop_pct" and self.height < 384:
            scaled = resize_shortest_edge(pixels, int(self.height / self.crop_pct), self.filter)
            return to_float(center_crop(scaled, (self.height, self.width)))
        if self.rule == "patch_budget":
            height, width = pixels.shape[:2]
            target = size_within_patch_budget(height, width, self.patch_size, self.max_num_patches)
            return to_float(resize_pixels(pixels, target, self.filter, "stretch"))
        return self._apply_at(pixels, (self.height, self.width))

    def _apply_at(self, pixels: NDArray[np.uint8], size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
        if self.rule == "fixed_float":
            images = F.interpolate(to_float(pixels)[None], size, mode=_float_mode(self.filter), antialias=True)
            return images[0].clamp(-1, 1)
        if self.rule == "shortest_edge":
            margin = self.shortest_edge / min(self.height, self.width)
        elif self.rule == "crop_pct" and min(size) < 384:
            margin = 1 / self.crop_pct
        else:
            return to_float(resize_pixels(pixels, size, self.filter, "stretch"))
        outer = max(size[0], int(size[0] * margin)), max(size[1], int(size[1] * margin))
        return to_float(center_crop(resize_pixels(pixels, outer, self.filter, "crop"), size))


def normalize(
    images: Float[Tensor, "batch 3 height width"], mean: Sequence[float | int], std: Sequence[float | int]
) -> Float[Tensor, "batch 3 height width"]:
    """Images in [-1, 1] as ``(image01 - mean) / std``, mean and std per channel of images in [0, 1]."""
    shape = (1, 3, 1, 1)
    mean_tensor = torch.tensor(mean, dtype=images.dtype, device=images.device).reshape(shape)
    std_tensor = torch.tensor(std, dtype=images.dtype, device=images.device).reshape(shape)
    return ((images + 1) / 2 - mean_tensor) / std_tensor


def size_within_patch_budget(height: int, width: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """The largest size with about the same aspect ratio that has at most ``max_num_patches`` patches (SigLIP 2).

    Sides are rounded up to whole patches. The scale is searched by halving, between the bounds and with the precision
    of the original, so that ties fall the same way.
    """

    def sides(scale: float) -> tuple[int, int]:
        scaled = [max(patch_size, math.ceil(side * scale / patch_size) * patch_size) for side in (height, width)]
        return scaled[0], scaled[1]

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, cols = (side // patch_size for side in sides(middle))
        low, high = (middle, high) if rows * cols <= max_num_patches else (low, middle)
    return sides(low)


def _sides(size: Any) -> int | tuple[int, int]:
    """The shapes a size takes in processor configs: a number is the shortest edge."""
    if isinstance(size, Mapping):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        if set(size) == {"shortest_edge"}:
            return int(size["shortest_edge"])
        raise ValueError(f"an image processor's size must be height and width or shortest_edge, got {dict(size)}.")
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[1])
    return int(size)


def _float_mode(filter: Filter) -> str:
    if filter not in ("bilinear", "bicubic"):
        raise ValueError(f"resizing floats knows bilinear and bicubic, got {filter!r}.")
    return filter
