"""The vector description of a picture: objects with shape, colour, size and continuous position on a background.

Coordinates are fractions of the image side: ``x`` to the right, ``y`` down, both in (0, 1). numpy only.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "ring")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("white", "black", "gray", "beige")

SIZE_RADIUS = {"small": 0.09, "medium": 0.13, "large": 0.18}
"""Radius of the bounding circle as a fraction of the (shorter) side; at 64 px 5.8, 8.3 and 11.5 px."""

ObjectType: TypeAlias = tuple[str, str]
"""(shape, colour): what two objects share when they are "the same kind of thing"."""


def size_radius(size: str) -> float:
    """Radius of the bounding circle of a size class, as a fraction of the shorter side."""
    return SIZE_RADIUS[size]


@dataclass(frozen=True, order=True)
class SceneObject:
    """One object; ``x`` and ``y`` are its centre (the centre of its bounding circle) in fractions of the side."""

    shape: str
    color: str
    size: str
    x: float
    y: float

    def __post_init__(self) -> None:
        for name, value, known in (
            ("shape", self.shape, SHAPES),
            ("color", self.color, COLORS),
            ("size", self.size, SIZES),
        ):
            if value not in known:
                raise ValueError(f"SceneObject.{name} must be one of {', '.join(known)}, got {value!r}.")

    @property
    def type(self) -> ObjectType:
        return (self.shape, self.color)


@dataclass(frozen=True)
class Scene:
    """A picture as data. Two scenes are equal when objects (in order) and background are."""

    objects: tuple[SceneObject, ...]
    background: str = "white"

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"Scene.background must be one of {', '.join(BACKGROUNDS)}, got {self.background!r}.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``Scene.from_dict`` reads it back."""
        return {
            "background": self.background,
            "objects": [{"shape": o.shape, "color": o.color, "size": o.size, "x": o.x, "y": o.y} for o in self.objects],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scene":
        return cls(tuple(SceneObject(**item) for item in data["objects"]), data["background"])
