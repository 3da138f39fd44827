"""The features of a generation space as a vision encoder: what one model draws, another one looks at images with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.models.encoders.protocol import EncoderOutput
from diptych.models.part import build_part, part_kind
from diptych.models.preprocess import resize_pixels, to_float


class SpaceEncoder(nn.Module):
    """A generation space that only encodes; a ``VisionEncoder``.

    Args:
        space: a ``GenerationSpace``, or its ``config_dict()``.
        image_size: (height, width) in pixels of `preprocess`.
    """

    num_layers = 0

    def __init__(self, *, space: nn.Module | Mapping[str, Any], image_size: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        built: Any = space if isinstance(space, nn.Module) else build_part(space)
        self.space = built
        self.image_size = (image_size[0], image_size[1])
        self.dim: int = built.channels
        self.patch_size: int = built.stride

    def preprocess(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """The image padded to a size, in [-1, 1]."""
        return to_float(resize_pixels(pixels, size or self.image_size, "bicubic", "pad"))

    def forward(self, images: Float[Tensor, "batch 3 height width"], layers: Sequence[int] = ()) -> EncoderOutput:
        """Latents as tokens, row by row.

        Raises:
            ValueError: layers are asked for, which a generation space does not show.
        """
        if layers:
            raise ValueError(f"a generation space shows its latents alone, but layers {list(layers)} were asked for.")
        latents = self.space.encode(images)
        return EncoderOutput(tokens=latents.flatten(2).transpose(1, 2), grid=(latents.shape[2], latents.shape[3]))

    def config_dict(self) -> dict[str, Any]:
        space = {**self.space.config_dict(), "kind": part_kind(self.space)}
        return {"kind": part_kind(self), "space": space, "image_size": list(self.image_size)}
