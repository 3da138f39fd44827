"""The key-value cache of every backbone here: extended without touching the given one, appended to in place when safe.

A cache is a view of the first ``length`` positions of its tensors. Decoding appends one position at a time; copying the
whole prefix for each would cost quadratic time, so a cache that is extended a second time without a graph moves into
buffers with room to spare. Several caches may share them: whoever extends a cache that ends where the used part of the
buffers ends appends in place, everybody else copies. No position that a cache can see is ever written again.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SPARE_POSITIONS = 64


class _Buffers:
    """Keys and values with room behind the used part; ``used`` is the longest cache that lives here."""

    def __init__(self, used: int) -> None:
        self.used = used
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def has_room(self, length: int) -> bool:
        return bool(self.keys) and length <= self.keys[0].shape[2]

    def is_writable(self) -> bool:
        """A tensor made under inference_mode refuses writes outside of it."""
        return torch.is_inference_mode_enabled() or not self.keys[0].is_inference()


@dataclass(frozen=True)
class KeyValueCache:
    """Keys (already rotated) and values of a prefix, one tensor ``batch kv_heads length head_dim`` per layer."""

    keys: tuple[Float[Tensor, "batch kv_heads length head_dim"], ...] = ()
    values: tuple[Float[Tensor, "batch kv_heads length head_dim"], ...] = ()
    buffers: _Buffers | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        """Number of cached positions, padding included."""
        return self.keys[0].shape[2] if self.keys else 0

    @property
    def batch_size(self) -> int | None:
        """Rows of the cache; ``None`` while it is empty."""
        return self.keys[0].shape[0] if self.keys else None

    def select(self, rows: Int[Tensor, " rows"]) -> "KeyValueCache":
        """The cache of the given rows, in that order; a row may be taken several times (guidance, several images)."""
        return KeyValueCache(
            tuple(keys.index_select(0, rows.to(keys.device)) for keys in self.keys),
            tuple(values.index_select(0, rows.to(values.device)) for values in self.values),
        )

    def crop(self, length: int) -> "KeyValueCache":
        """The first ``length`` positions.

        Raises:
            ValueError: the cache is shorter, or ``length`` is negative.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cache.crop: length must be between 0 and {self.length}, got {length}.")
        return KeyValueCache(
            tuple(keys[:, :, :length] for keys in self.keys),
            tuple(values[:, :, :length] for values in self.values),
            self.buffers,
        )


class CacheExtension:
    """The keys and values that one forward pass adds to a cache, layer by layer; the given cache stays valid."""

    def __init__(self, cache: KeyValueCache, num_new: int) -> None:
        self._past = cache
        self._start = cache.length
        self._end = cache.length + num_new
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._buffers = None if torch.is_grad_enabled() else self._claim_buffers()

    @property
    def num_layers(self) -> int:
        """Layers that have been added so far."""
        return len(self._keys)

    def append(
        self, key: Float[Tensor, "batch kv_heads seq head_dim"], value: Float[Tensor, "batch kv_heads seq head_dim"]
    ) -> tuple[Float[Tensor, "batch kv_heads keys head_dim"], Float[Tensor, "batch kv_heads keys head_dim"]]:
        """Keys and values of the next layer: those of the cache followed by the new ones."""
        layer = len(self._keys)
        if self._start > 0:
            past_key, past_value = self._past.keys[layer].to(key.dtype), self._past.values[layer].to(value.dtype)
            if self._buffers is None:
                key, value = torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)
            else:
                key = self._write(self._buffers.keys, layer, past_key, key)
                value = self._write(self._buffers.values, layer, past_value, value)
        self._keys.append(key)
        self._values.append(value)
        return key, value

    def finish(self) -> KeyValueCache:
        """The extended cache, once every layer has been added."""
        return KeyValueCache(tuple(self._keys), tuple(self._values), self._buffers)

    def _claim_buffers(self) -> _Buffers | None:
        """The cache's own buffers where appending is safe, else new ones; none for the first piece of a cache."""
        if self._start == 0:
            return None
        buffers = self._past.buffers
        ends_here = buffers is not None and buffers.used == self._start
        if buffers is not None and ends_here and buffers.has_room(self._end) and buffers.is_writable():
            buffers.used = self._end
            return buffers
        return _Buffers(used=self._end)

    def _write(self, buffers: list[Tensor], layer: int, past: Tensor, new: Tensor) -> Tensor:
        if layer == len(buffers):
            batch, heads, _, head_dim = new.shape
            capacity = self._end + max(_SPARE_POSITIONS, self._end // 2)
            buffers.append(new.new_empty(batch, heads, capacity, head_dim))
            buffers[layer][:, :, : self._start] = past
        elif buffers[layer].dtype != new.dtype:
            buffers[layer] = buffers[layer].to(new.dtype)
        buffers[layer][:, :, self._start : self._end] = new
        return buffers[layer][:, :, : self._end]


def check_cache(cache: object, batch_size: int, num_layers: int) -> KeyValueCache:
    """The cache, if it fits a batch and a backbone.

    Raises:
        TypeError: the cache is of another kind.
        ValueError: it holds another number of rows or layers.
    """
    if not isinstance(cache, KeyValueCache):
        raise TypeError(f"cache must come from this backbone's new_cache(), got {type(cache).__name__}.")
    if cache.keys and len(cache.keys) != num_layers:
        raise ValueError(
            f"the cache holds {len(cache.keys)} layers and the backbone has {num_layers}: it belongs to another one."
        )
    if cache.batch_size not in (None, batch_size):
        raise ValueError(
            f"the cache holds {cache.batch_size} rows and the embeddings {batch_size}. "
            "Repeat or choose rows with cache.select(rows)."
        )
    return cache
