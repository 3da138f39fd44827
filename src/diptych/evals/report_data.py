"""What a report shows, as data: filled by a command or read from a run folder, written by ``diptych.evals.report``.

Every section is optional; an empty one does not appear.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from diptych.data.example import ImageLike

Number: TypeAlias = float | int
"""Written out because run-time type checks take ``float`` literally."""

Picture: TypeAlias = ImageLike | Path
"""An image, or a picture file."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured number with its 95 % interval."""

    value: Number
    low: Number | None = None
    high: Number | None = None
    count: int | None = None
    """How many examples it was measured on."""

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"Estimate needs both ends of its interval or none, got {self.low} and {self.high}.")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"Estimate.low must not exceed Estimate.high, got {self.low} and {self.high}.")


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One of the few numbers at the top of the page."""

    label: str
    system: str = ""
    """What was measured, e.g. a model's name."""
    estimate: Estimate | None = None
    """A share between 0 and 1; drawn with its interval."""
    text: str = ""
    """Shown instead of an estimate, e.g. ``7 min 40 s``."""
    goal: Number | None = None
    """What the estimate was to reach."""
    detail: str = ""

    def __post_init__(self) -> None:
        if (self.estimate is None) == (not self.text):
            raise ValueError(f"Headline {self.label!r} needs either an estimate or a text.")


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One category of a benchmark."""

    name: str
    scores: Mapping[str, Estimate]
    """By system; a system without an entry shows a dash."""
    is_total: bool = False
    """Set apart from the categories it sums up."""


@dataclass(frozen=True, kw_only=True)
class ScoreBoard:
    """Scores of one or several systems on one benchmark, all of them shares between 0 and 1."""

    title: str
    rows: tuple[ScoreRow, ...]
    systems: tuple[str, ...]
    """What was scored, in the order of the columns."""
    references: tuple[str, ...] = ()
    """Columns to compare with: oracle, chance, copy-input."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series of a chart; points with a value that is not finite are left out."""

    name: str
    x: tuple[Number, ...]
    y: tuple[Number, ...]
    low: tuple[Number, ...] = ()
    """Lower edge of a band around the line, such as the least of several runs; no band where it is empty."""
    high: tuple[Number, ...] = ()
    """Upper edge of the band."""

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"Line {self.name!r} needs as many x as y, got {len(self.x)} and {len(self.y)}.")
        if len(self.low) != len(self.high) or len(self.low) not in (0, len(self.x)):
            raise ValueError(
                f"Line {self.name!r} needs a band with both edges at all of its {len(self.x)} points, or none, got "
                f"{len(self.low)} and {len(self.high)} values."
            )

    def finite_band(self) -> list[tuple[Number, Number, Number]]:
        """x, lower and upper edge where all are finite."""
        edges = zip(self.x, self.low, self.high, strict=True) if self.low else ()
        return [edge for edge in edges if all(map(math.isfinite, edge))]

    def finite_points(self) -> list[tuple[Number, Number]]:
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line chart with named axes."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    colors: Literal["categories", "levels"] = "categories"
    """levels: the lines are steps of one quantity, from dark to light."""
    starts_at_zero: bool = False
    marks: tuple[tuple[Number, str], ...] = ()
    """Places on the x axis with a name, such as the start of a stage."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The same prompts drawn at one moment of the training."""

    label: str
    images: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class Filmstrip:
    """How drawings change during a stage: one row a prompt, one column a moment."""

    title: str
    frames: tuple[Frame, ...]
    captions: tuple[str, ...]
    """One a row. Without captions every frame is shown whole, one below the other."""
    note: str = ""

    def __post_init__(self) -> None:
        for frame in self.frames:
            if self.captions and len(frame.images) != len(self.captions):
                raise ValueError(
                    f"Filmstrip {self.title!r}, frame {frame.label!r}: {len(frame.images)} images "
                    f"for {len(self.captions)} captions."
                )


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One generated image."""

    image: Picture
    prompt: str
    is_right: bool | None = None
    """What the scorer found; ``None`` where nothing was scored."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Generated images, e.g. of one model."""

    title: str
    drawings: tuple[Drawing, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question about a picture, answered."""

    image: Picture
    question: str
    answer: str
    expected: str | None = None
    is_right: bool | None = None
    system: str = ""
    """Who answered; neighbours with one system stand under its name."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A picture changed as told."""

    source: Picture
    instruction: str
    result: Picture
    target: Picture | None = None
    is_right: bool | None = None
    detail: str = ""
    system: str = ""
    """Who did it; neighbours with one system stand under its name."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One module of the model."""

    name: str
    kind: str
    num_parameters: int
    num_trainable: int = 0
    dtype: str = ""
    trained_in: str = ""
    """Names of the stages that train it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Anything with a name for each row and column, as text."""

    title: str
    columns: tuple[str, ...]
    """Of the values; the names of the rows have no heading."""
    rows: tuple[tuple[str, ...], ...]
    """The name of the row and then its values."""
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns) + 1:
                raise ValueError(
                    f"Table {self.title!r}: a row needs a name and {len(self.columns)} values, got {len(row)} cells."
                )


@dataclass(frozen=True, kw_only=True)
class FileLink:
    """A file beside the report."""

    path: str
    """Relative to the report."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report can show."""

    title: str
    summary: str = ""
    created: str = ""
    """Local date and time, as it shall be read."""
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    headlines: tuple[Headline, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    score_boards: tuple[ScoreBoard, ...] = ()
    charts: tuple[Chart, ...] = ()
    filmstrips: tuple[Filmstrip, ...] = ()
    filmstrips_title: str = "Samples during training"
    tables: tuple[Table, ...] = ()
    tables_title: str = "Tables"
    answers: tuple[Answer, ...] = ()
    edits: tuple[Edit, ...] = ()
    parts: tuple[Part, ...] = ()
    recipe: Mapping[str, Any] | None = None
    files: tuple[FileLink, ...] = ()
