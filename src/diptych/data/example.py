"""One data item: an ordered list of parts, each a piece of text or an image.

Text-to-image, captioning, question answering, chat, editing, multi-reference and interleaved stories are all lists of
parts; no task has a format of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Role: TypeAlias = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

Pixels: TypeAlias = NDArray[np.uint8]
"""uint8 RGB, shape ``height width 3``."""


@runtime_checkable
class ImageHandle(Protocol):
    """An image that is read or drawn only when it is needed; equal keys mean equal pixels."""

    @property
    def key(self) -> str:
        """Identifies the pixels: two handles with the same key load the same image."""
        ...

    def load(self) -> Pixels: ...


@dataclass(frozen=True)
class LazyImage:
    """An image behind a function, identified by its key."""

    key: str
    read: Callable[[], Pixels]
    labels: Callable[[], NDArray[np.float32]] | None = None
    """What is where in the image, ``labels rows cols`` of 0 and 1, for encoders that learn from labels."""

    def load(self) -> Pixels:
        return self.read()


ImageLike: TypeAlias = Image.Image | Pixels | ImageHandle


@dataclass(frozen=True)
class Text:
    """A piece of text.

    Attributes:
        is_target: the model learns to write it.
        is_thought: it is no answer, but was written to find one, or before an image was drawn.
        weight: multiplies the loss of its tokens, beside the example's own weight.
    """

    text: str
    role: Role = "user"
    is_target: bool = False
    is_thought: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.is_thought and self.role != "assistant":
            raise ValueError(
                f'a thought is the assistant\'s: give Text(..., role="assistant"), got role {self.role!r}.'
            )


@dataclass(frozen=True)
class ImageIn:
    """An image that the model looks at."""

    image: ImageLike
    role: Role = "user"
    is_target: bool = False

    def __post_init__(self) -> None:
        if self.is_target:
            raise ValueError("ImageIn cannot be a target: use ImageOut for an image that the model learns to draw.")


@dataclass(frozen=True)
class ImageOut:
    """An image that the model draws (``is_target``) or has drawn earlier in the conversation.

    ``image`` is ``None`` only in a prompt that asks for the image. ``size`` is (height, width) in pixels, needed when
    there is no image to take it from.
    """

    image: ImageLike | None = None
    role: Role = "assistant"
    is_target: bool = True
    size: tuple[int, int] | None = None


Part: TypeAlias = Text | ImageIn | ImageOut


def is_thought(part: Part) -> bool:
    """Whether a part was written before an answer or an image, not as one."""
    return isinstance(part, Text) and part.is_thought


@dataclass(frozen=True)
class Example:
    """One data item.

    Attributes:
        parts: in reading order; consecutive parts of one role form a turn.
        key: names the item in logs and reports; unique within its source.
        weight: multiplies the example's loss (0 leaves it out of the loss but not out of the count of examples).
        metadata: anything a scorer needs (a scene's program, a label); never shown to the model.
    """

    parts: tuple[Part, ...]
    key: str = ""
    weight: float = 1.0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError(f"Example {self.key!r} has no parts: give at least one Text, ImageIn or ImageOut.")
        for part in self.parts:
            if not isinstance(part, Text | ImageIn | ImageOut):
                raise TypeError(
                    f"Example {self.key!r}: parts must be Text, ImageIn or ImageOut, got {type(part).__name__}."
                )
            if part.role not in ROLES:
                raise ValueError(f"Example {self.key!r}: role must be one of {', '.join(ROLES)}, got {part.role!r}.")


def load_pixels(image: ImageLike) -> Pixels:
    """Any accepted image as uint8 RGB ``height width 3``; transparency is composited on white.

    Raises:
        TypeError: ``image`` is of another type.
        ValueError: an array of another shape or dtype.
    """
    if isinstance(image, Image.Image):
        return pil_to_pixels(image)
    if isinstance(image, np.ndarray):
        if image.ndim == 4:
            raise ValueError(
                f"an array of shape {image.shape} is a video or a batch, and an image is one picture: videos are not "
                "read. Give single frames as images."
            )
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"an image array must be uint8 of shape (height, width, 3), got {image.dtype} of {image.shape}. "
                "Convert it, or pass a PIL image."
            )
        return image
    if isinstance(image, ImageHandle):
        return load_pixels(image.load())
    raise TypeError(
        "an image must be a PIL image, a uint8 array (height, width, 3) or an image handle, "
        f"got {type(image).__name__}. Open a file with PIL.Image.open."
    )


def pil_to_pixels(image: Image.Image) -> Pixels:
    """A PIL image of any mode as uint8 RGB; 16-bit greys are scaled down, transparency is composited on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        grey = np.clip(values / top * 255, 0, 255).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))
