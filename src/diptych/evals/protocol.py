"""What enters the harness: requests, and the contenders that answer them.

A contender is anything that turns parts into text or pictures: a model of diptych, a pair of models, a server behind a
URL, or a reference that only shows what a score means. It needs no base class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from diptych.data.example import ImageIn, ImageOut, Part, Pixels

Kind: TypeAlias = Literal["text", "image", "log_likelihood"]
"""What a request asks for: words, a picture, or how likely each of its ``choices`` is as an answer."""


@dataclass(frozen=True)
class Earlier:
    """Among the parts of a request: what an earlier request of the same task led to, a picture or a text."""

    id: str


@dataclass(frozen=True)
class Request:
    """One sample that a task wants."""

    id: str
    """Unique within its task."""
    kind: Kind
    parts: tuple[Part | Earlier, ...]
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the task fixes: ``max_new_tokens``, ``temperature``, ``num_steps``, ``guidance_scale``, ``size``."""
    choices: tuple[str, ...] = ()
    """The answers of a ``log_likelihood``."""
    rewriter: str = ""
    """Name and revision of what rewrote the benchmark's own prompt; empty where nothing did."""

    @property
    def capability(self) -> str:
        """What a contender must be able to do for it."""
        if self.kind == "log_likelihood":
            return "log_likelihood"
        sees = any(isinstance(part, ImageIn | ImageOut | Earlier) for part in self.parts)
        if self.kind == "text":
            return "image_to_text" if sees else "text"
        return "image_edit" if sees else "text_to_image"


@dataclass(frozen=True)
class Failure:
    """A sample that could not be made, and why; it is tried again when the run is resumed."""

    reason: str


Output: TypeAlias = Pixels | str | tuple[float, ...] | Failure
"""A picture (uint8 RGB, ``height width 3``), a text, or a log-likelihood (natural) for each choice."""


@runtime_checkable
class Contender(Protocol):
    """What is measured. In one call of a method all requests have the same ``kind`` and ``settings``.

    What it gets has no ``Earlier`` among its parts, and its ``settings`` are those that ``settings`` returned.
    """

    @property
    def name(self) -> str:
        """As tables show it."""
        ...

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Among text, image_to_text, text_to_image, image_edit, log_likelihood, hidden_states."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that tasks of the built-in world show it."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON-able: everything about the model that changes what comes out of it, so that it belongs to every key."""
        ...

    def settings(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
        """All sampling settings of a kind of request, those not given from the model's own defaults.

        Raises:
            ValueError: a setting that the contender does not have.
        """
        ...

    def draw(self, requests: Sequence[Request]) -> Sequence[Output]:
        """A picture for each request."""
        ...

    def write(self, requests: Sequence[Request]) -> Sequence[Output]:
        """A text for each request."""
        ...


@runtime_checkable
class WithLogLikelihood(Protocol):
    """A contender whose capabilities include ``log_likelihood``."""

    def log_likelihood(self, requests: Sequence[Request]) -> Sequence[Output]:
        """For each request the log-likelihood of each of its choices."""
        ...


@runtime_checkable
class WithHiddenStates(Protocol):
    """A contender whose capabilities include ``hidden_states``."""

    def hidden_states(self, request: Request, layers: Sequence[int]) -> dict[int, Any]:
        """Hidden states ``seq dim`` of one prompt by layer."""
        ...
