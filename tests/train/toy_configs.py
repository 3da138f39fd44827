"""Config classes of every shape a recipe may hold; importable, so that JSON can name them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diptych.train.recipe import OptimizerConfig, Recipe, Stage


@dataclass(frozen=True, kw_only=True)
class OwnBackbone:
    """A backbone of our own."""

    dim: int = 8
    """Width."""
    rotary_base: float = 10000.0
    """Base of the rotary angles."""

    def build(self) -> Any:
        return self


@dataclass(frozen=True, kw_only=True)
class HubBackbone:
    """A backbone from a hub."""

    hub_id: str
    """Where it is."""

    def build(self) -> Any:
        return self


@dataclass(frozen=True, kw_only=True)
class ToyModelConfig:
    """A model with a choice between kinds, tuples, literals and optional fields."""

    backbone: OwnBackbone | HubBackbone = field(default_factory=OwnBackbone)
    """Which backbone."""
    encoder: OwnBackbone | None = None
    """An optional part."""
    image_size: tuple[int, int] = (32, 32)
    """Height and width."""
    resize: Literal["pad", "crop"] = "pad"
    """What happens to other sizes."""
    levels: tuple[tuple[str, float], ...] = (("a", 1.0),)
    """Nested tuples."""

    def build(self) -> Any:
        return self


@dataclass(frozen=True, kw_only=True)
class NumbersSource:
    """Numbers."""

    num_scenes: int = 10
    """How many."""
    root: Path | None = None
    """A folder."""

    def __post_init__(self) -> None:
        if self.num_scenes < 1:
            raise ValueError(f"num_scenes must be at least 1, got {self.num_scenes}.")

    def build(self) -> Any:
        return range(self.num_scenes)


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A folder."""

    path: str
    """Where it is."""
    captions: tuple[str, ...] = ()
    """Suffixes."""

    def build(self) -> Any:
        return self


NOT_A_CONFIG = 3


def tiny() -> Recipe[ToyModelConfig]:
    """A small recipe."""
    return Recipe(
        name="toy:tiny",
        model=ToyModelConfig(),
        data={"scenes": NumbersSource(), "mine": FolderSource(path="pictures", captions=(".txt",))},
        stages={
            "alignment": Stage(
                trainable=("backbone",), mix={"scenes": 1.0}, objectives={"text": 1.0}, num_steps=5, batch_size=4
            ),
            "generation": Stage(
                trainable=("backbone", "head"),
                mix={"scenes": 0.5, "mine": 0.5},
                objectives={"text": 1.0},
                num_steps=7,
                batch_size=4,
                optimizer=OptimizerConfig(ema_decay=0.99, lr_multipliers={"backbone": 0.1}),
            ),
        },
        seed=1,
    )


def variant(backbone: str = "Qwen/none") -> Recipe[ToyModelConfig]:
    """The same with a backbone from the hub."""
    from dataclasses import replace

    return replace(
        tiny(), model=ToyModelConfig(backbone=HubBackbone(hub_id=backbone), encoder=OwnBackbone(dim=3)), seed=2
    )


def broken() -> Any:
    """No recipe."""
    return {"name": "broken"}


def needs_argument(x: int) -> Recipe[ToyModelConfig]:
    """Not a preset: it cannot be called without an argument."""
    raise AssertionError(x)
