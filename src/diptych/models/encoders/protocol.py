"""What every vision encoder offers: images in [-1, 1] to tokens on a grid, with any layer's tokens on request."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class EncoderOutput:
    """What a vision encoder returns.

    Attributes:
        tokens: one per patch in row-major order, after the encoder's final norm; no class or register tokens.
        grid: rows and columns of the patches; their product is the number of tokens.
        pooled: one vector per image, by the encoder's own pooling; None where the encoder has none.
        layer_tokens: the layers asked for with ``layers``, by index; 0 is the embedding, ``i`` the output of block i,
            before any final norm. Networks with stages have finer grids and other widths in their lower layers.
    """

    tokens: Float[Tensor, "batch patches dim"]
    grid: tuple[int, int]
    pooled: Float[Tensor, "batch pooled_dim"] | None = None
    layer_tokens: dict[int, Float[Tensor, "batch _ _"]] = field(default_factory=dict)


@runtime_checkable
class VisionEncoder(Protocol):
    """An image encoder; an ``nn.Module`` in every implementation, built again by ``part.build_part(config_dict())``."""

    dim: int
    patch_size: int
    num_layers: int

    def preprocess(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """The image at the size the encoder takes, in [-1, 1]; ``None`` is the size it was trained at.

        The resize rule is the one the encoder was trained with; the encoder's own mean and std are applied in forward.
        """
        ...

    def __call__(self, images: Float[Tensor, "batch 3 height width"], layers: Sequence[int] = ()) -> EncoderOutput: ...

    def config_dict(self) -> dict[str, Any]:
        """What is needed to build the same encoder again, JSON-able, with its ``kind``."""
        ...


def check_image_size(images: Float[Tensor, "batch 3 height width"], multiple: int, where: str) -> None:
    """Refuses images whose sides are no multiples of ``multiple``.

    Raises:
        ValueError: with the nearest sizes that fit.
    """
    height, width = images.shape[-2:]
    if height % multiple == 0 and width % multiple == 0 and height and width:
        return
    lower = tuple(max(multiple, side // multiple * multiple) for side in (height, width))
    upper = tuple(max(multiple, -(-side // multiple) * multiple) for side in (height, width))
    raise ValueError(
        f"{where} takes images whose height and width are multiples of {multiple}, got {height}x{width}. "
        f"Resize them to {lower[0]}x{lower[1]} or {upper[0]}x{upper[1]} (resize policy 'pad', 'crop' or 'native')."
    )


def check_layers(layers: Sequence[int], num_layers: int, where: str) -> None:
    """Refuses indices of layers that an encoder does not have.

    Raises:
        ValueError: an index outside 0 … num_layers.
    """
    wrong = [layer for layer in layers if not 0 <= layer <= num_layers]
    if wrong:
        raise ValueError(
            f"{where} has layers 0 (embedding) to {num_layers}, but {', '.join(map(str, wrong))} was asked for."
        )
