"""Numbers of classes as data: what a class-conditional generator is asked for when no image is needed."""

from dataclasses import dataclass

from diptych.data.example import Example, Text


@dataclass(frozen=True, kw_only=True)
class ClassLabels:
    """Every class once an epoch; ``metadata["label"]`` is its number."""

    num_classes: int = 1000
    """Classes, numbered from 0."""

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"data.num_classes must be at least 1, got {self.num_classes}.")

    def build(self) -> "ClassLabelReader":
        return ClassLabelReader(self.num_classes)


@dataclass(frozen=True)
class ClassLabelReader:
    """The source of `ClassLabels`."""

    num_classes: int

    def __len__(self) -> int:
        return self.num_classes

    def example(self, index: int, epoch: int = 0) -> Example:
        """The class of that number."""
        return Example((Text(f"class {index}"),), key=f"class-{index}", metadata={"label": index})
