"""Plain values that a model carries: how it draws, and how pictures are brought to its size."""

import hashlib
import json
import math
from dataclasses import MISSING, dataclass, fields
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diptych.flow.solvers import SOLVERS
from diptych.models.preprocess import (
    Filter,
    ResizePolicy,
    resize_pixels,
    size_within_pixel_budget,
    to_float,
)


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """How an image is drawn, and whether that and answers begin with a thought; a model carries its own defaults."""

    num_steps: int = 30
    guidance_scale: float = 3.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    solver: str = "euler"
    time_shift: float = 1.0
    whole_timesteps: bool = False
    """The denoiser is told sigma in whole thousandths, cut down, as BLIP3-o's released sampler tells it."""
    flat_positions: bool = False
    """Pictures of a prompt that asks for an image count their positions like text, in one dimension, even where the
    backbone has three axes: what BLIP3-o's released inference does."""
    think: bool = False
    """A thought is written before an image is drawn and before an answer."""
    think_to_answer: bool | None = None
    """Whether one is written before an answer, where that is not as before an image."""
    think_temperature: float = 0.7
    """Temperature of thoughts before images; those before answers have the answer's."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}.")
        if not 1 <= self.time_shift < math.inf:
            raise ValueError(f"time_shift must be at least 1, got {self.time_shift}.")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, got {self.guidance_scale}. 1 is off.")
        if not 0 <= self.think_temperature < math.inf:
            raise ValueError(f"think_temperature must be 0 or a positive number, got {self.think_temperature}.")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}.")

    @property
    def thinks_to_answer(self) -> bool:
        """Whether a thought is written before an answer."""
        return self.think if self.think_to_answer is None else self.think_to_answer


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """How pictures of any size become the model's pictures."""

    size: tuple[int, int] = (64, 64)
    """(height, width) in pixels that images are looked at and drawn in."""
    resize: ResizePolicy = "pad"
    """``pad``, ``crop``, ``stretch`` or ``native`` (aspect ratio kept, both sides a multiple of ``multiple``)."""
    filter: Filter = "bicubic"
    """Pillow's resize filter."""
    multiple: int = 8
    """Sides of native images are rounded to it; the patch size times any pooling."""
    input_pixels: tuple[int, int] | None = None
    """(least, most) pixels of an image that is looked at: it then keeps its aspect ratio, with sides rounded to
    ``input_multiple``, as Qwen2-VL's processor does it. None: looked-at images are brought to ``size`` too."""
    input_multiple: int = 28
    """See ``input_pixels``."""

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"images.multiple must be at least 1, got {self.multiple}.")
        if self.input_pixels is not None and not self.input_multiple**2 <= self.input_pixels[0] <= self.input_pixels[1]:
            raise ValueError(
                "images.input_pixels must be (least, most) pixels, the least no fewer than images.input_multiple "
                f"squared: got {self.input_pixels} and {self.input_multiple}."
            )
        if any(side < 1 or side % self.multiple for side in self.size):
            raise ValueError(
                "images.size must be multiples of images.multiple: "
                f"got {self.size[0]}x{self.size[1]} and {self.multiple}."
            )

    def prepare(self, pixels: Any, is_output: bool) -> Float[Tensor, "3 height width"]:
        """uint8 pixels as a float image of the model's size, or of their own where ``input_pixels`` says so."""
        if self.input_pixels is not None and not is_output:
            height, width = pixels.shape[:2]
            sides = size_within_pixel_budget(height, width, self.input_multiple, *self.input_pixels)
            return to_float(resize_pixels(pixels, sides, self.filter, "stretch"))
        return to_float(resize_pixels(pixels, self.size, self.filter, self.resize, self.multiple))

    def fingerprint(self, encoder: Any) -> str:
        """SHA-256 of all that decides what a network gets of a picture: this policy and the encoder's own rule."""
        own = [_unusual(value) for value in (self, getattr(encoder, "rule", None)) if value is not None]
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def _unusual(value: Any) -> dict[str, Any]:
    """Fields that differ from their defaults, so that a field which is added later changes no fingerprint."""
    given = ((field, getattr(value, field.name)) for field in fields(value))
    return {field.name: found for field, found in given if field.default is MISSING or found != field.default}


@dataclass(frozen=True)
class GridTable:
    """(height, width) in pixels to (rows, columns) of positions; plain numbers, so that it travels to workers."""

    pixels_per_position: int
    pixels_per_cell: tuple[int, int]
    fixed: tuple[int, int] | None = None
    """(rows, columns) of every image, where the encoder brings all of them to one size."""

    @classmethod
    def of(cls, model: Any) -> "GridTable":
        """
        Raises:
            ValueError: the generation space cannot hold images of the model's size.
        """
        cell_out = 0
        if model.autoencoder is not None:
            model.autoencoder.latent_shape(*model.images.size)
            cell_out = model.autoencoder.stride
        cell_in = cell_out if model.encoder is None else model.encoder.patch_size
        fixed = model.encoder.fixed_grid() if hasattr(model.encoder, "fixed_grid") else None
        return cls(cell_in, (cell_in, cell_out), fixed)

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        if self.fixed is not None:
            return self.fixed
        return max(1, height // self.pixels_per_position), max(1, width // self.pixels_per_position)
