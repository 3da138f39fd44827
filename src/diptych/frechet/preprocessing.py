"""What happens to images before a feature network, as one value with a fingerprint.

Two sets of features can be compared only if all of it is equal, so its hash goes into every file of moments.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

from diptych.frechet.resize import resize_antialiased, resize_bilinear_tf1

Resize: TypeAlias = Literal["tf1-bilinear", "bicubic", "bilinear", "pillow-bicubic", "pillow-bilinear", "none"]
Pooling: TypeAlias = Literal["class-token", "mean", "attention", "network"]
FeatureDtype: TypeAlias = Literal["float32", "bfloat16"]
Outside: TypeAlias = Literal["refuse", "clamp", "keep"]
"""What becomes of float values outside their range: ``keep`` is for training, where a clamp would cut the gradient."""

RANGE_TOLERANCE = 1e-3
"""How far outside the range a value may lie, in parts of the range."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From pixels to what a network takes, and from its output to a feature."""

    size: tuple[int, int]
    """Height and width that images are stretched to; the aspect ratio is given up, as for every published FID."""
    resize: Resize = "bicubic"
    """``tf1-bilinear`` for the Inception network of FID; ``bicubic`` and ``bilinear`` are antialiased, on floats for
    8-bit images too, so that a generator's floats and its files go the same way; ``pillow-`` rounds to 8 bits as Pillow
    does (distances of smooth pictures that are enlarged move by 2 % with that); ``none`` refuses other sizes."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Per channel, of images in [0, 1]."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pad_multiple: int = 1
    """After mean and std, zeros are put on the right and below up to a multiple of this (a patch size)."""
    pooling: Pooling = "network"
    """What of the network's output is the feature: ``class-token`` and ``attention`` are before any projection;
    ``network`` is the network's own single output."""
    dtype: FeatureDtype = "float32"
    """What the network computes in; bfloat16 is autocast, with features returned as float32."""

    def __post_init__(self) -> None:
        for field, known in (("resize", Resize), ("pooling", Pooling), ("dtype", FeatureDtype)):
            if getattr(self, field) not in get_args(known):
                raise ValueError(
                    f"preprocessing.{field} must be one of {', '.join(get_args(known))}, got {getattr(self, field)!r}."
                )
        if min(self.size) < 1 or self.pad_multiple < 1 or min(self.std) <= 0:
            raise ValueError(
                "preprocessing.size, pad_multiple and std must be positive, got "
                f"{self.size}, {self.pad_multiple} and {self.std}."
            )

    def fingerprint(self) -> str:
        """16 hexadecimal digits over all fields."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def apply(
        self, images: Shaped[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 padded_height padded_width"]:
        """Resized, normalised and padded.

        Args:
            images: uint8, or float in [0, 1].

        Raises:
            ValueError: another size with ``none``, or floats with ``pillow-``.
        """
        if images.shape[2:] != self.size:
            if self.resize == "none":
                got = f"{images.shape[2]}x{images.shape[3]}"
                raise ValueError(f"the feature network takes {self.size[0]}x{self.size[1]} pixels only, got {got}.")
            if self.resize == "tf1-bilinear":
                images = resize_bilinear_tf1(_unit(images), self.size)
            elif self.resize == "bicubic" or self.resize == "bilinear":
                images = resize_antialiased(_unit(images), self.size, self.resize)
            elif images.dtype != torch.uint8:
                raise ValueError(f"the resize {self.resize} is of 8-bit images: say quantize=True, or use bicubic.")
            else:
                images = resize_antialiased(images, self.size, "bicubic" if "bicubic" in self.resize else "bilinear")
        images = _unit(images)
        shape = (1, 3, 1, 1)
        mean, std = (torch.tensor(value, device=images.device).reshape(shape) for value in (self.mean, self.std))
        images = (images - mean) / std
        bottom, right = (-side % self.pad_multiple for side in self.size)
        return F.pad(images, (0, right, 0, bottom)) if bottom or right else images


def unit_images(
    images: Shaped[Tensor, "batch 3 height width"],
    value_range: tuple[float | int, float | int] | None = None,
    *,
    outside: Outside = "refuse",
    quantize: bool = False,
) -> tuple[Shaped[Tensor, "batch 3 height width"], str]:
    """uint8 images as they are and floats moved to [0, 1], with a word that says which, for the record.

    Args:
        value_range: the values that mean black and white; required for floats, refused for uint8.
        outside: ``refuse`` raises for values beyond 1e-3 of the range outside of it.
        quantize: floats become uint8, as saving them as PNG would make them; there is no gradient through that.

    Raises:
        ValueError: no or an empty value range for floats, a value outside it or not finite, another dtype.
    """
    if images.dtype == torch.uint8:
        if value_range is not None and tuple(value_range) != (0, 255):
            raise ValueError(f"uint8 images have the value range (0, 255), got {value_range}.")
        return images, "uint8"
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 or float, got {str(images.dtype).removeprefix('torch.')}.")
    if value_range is None:
        raise ValueError("float images need a value_range, such as (-1, 1) or (0, 1): the values cannot tell.")
    if outside not in get_args(Outside):
        raise ValueError(f"outside must be one of {', '.join(get_args(Outside))}, got {outside!r}.")
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must be (low, high) with low < high, got {value_range}.")
    unit = (images.float() - low) / (high - low)
    if outside == "refuse" and unit.numel():
        smallest, largest = (value.item() for value in unit.detach().aminmax())
        if not (smallest >= -RANGE_TOLERANCE and largest <= 1 + RANGE_TOLERANCE):
            span = high - low
            raise ValueError(
                f"images must lie in [{low:g}, {high:g}], got values from {low + smallest * span:.4g} to "
                f"{low + largest * span:.4g}. State their real value_range, or say outside='clamp'."
            )
    if quantize:
        return _to_uint8(unit), "float quantized to 8 bits"
    return (unit.clamp(0, 1), "float clamped") if outside == "clamp" else (unit, "float")


@torch.no_grad()
def _to_uint8(unit: Float[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch 3 height width"]:
    return (unit * 255).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
