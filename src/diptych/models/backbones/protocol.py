"""What every backbone offers: one call from embeddings to hidden states, with a cache that can be reshaped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class BackboneOutput:
    """What a backbone returns.

    Attributes:
        hidden_states: after the final norm.
        cache: the given cache extended by this call, or None if none was given.
        layer_states: the states asked for with ``layers``, by index; 0 is the embedding, ``i`` the output of block i.
    """

    hidden_states: Float[Tensor, "batch seq dim"]
    cache: "Cache | None" = None
    layer_states: dict[int, Float[Tensor, "batch seq dim"]] = field(default_factory=dict)


@runtime_checkable
class Cache(Protocol):
    """Keys and values of a prefix. Every method but the backbone's own extension returns a new cache."""

    @property
    def length(self) -> int:
        """Number of cached positions, padding included."""
        ...

    def select(self, rows: Int[Tensor, " rows"]) -> "Cache":
        """The cache of the given rows, in that order; a row may be taken several times (guidance, several images)."""
        ...

    def crop(self, length: int) -> "Cache":
        """The first ``length`` positions."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """A decoder language model over embeddings; an ``nn.Module`` in every implementation."""

    dim: int
    vocab_size: int
    num_layers: int

    def embed(self, token_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]: ...

    def __call__(
        self,
        embeddings: Float[Tensor, "batch seq dim"],
        positions: Int[Tensor, "batch seq"] | Int[Tensor, "batch seq axes"],
        mask: Bool[Tensor, "batch seq keys"] | None = None,
        cache: Cache | None = None,
        layers: Sequence[int] = (),
    ) -> BackboneOutput:
        """One pass. ``mask[b, i, j]`` is True where query i may attend to key j; keys are the cached positions followed
        by the new ones (``keys = cache.length + seq``). ``None`` means causal. A row that may attend to nothing
        (padding) gives finite values."""
        ...

    def new_cache(self) -> Cache:
        """An empty cache."""
        ...

    def logits(self, hidden_states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]: ...

    def config_dict(self) -> dict[str, Any]:
        """What is needed to build the same backbone again, JSON-able."""
        ...
