"""Order of the records of an epoch as a function of a key: nothing is stored, any place can be asked for at once.

A permutation of n numbers is a Feistel network on the smallest power of two that holds n, repeated until the result is
below n ("cycle walking": Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002, method 2). The network
is a bijection whatever its round function is, so every record comes exactly once. It is written in plain integers and
depends on no library's random generator, so a run can be resumed under another version of numpy or torch.
"""

import hashlib
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate

from diptych.data.sources.protocol import ShardedSource, Source

_MASK64 = (1 << 64) - 1
_NUM_ROUNDS = 8
_MIN_BITS = 4


def derive_key(*parts: str | int) -> int:
    """A 64-bit number that depends on all parts; the same on every machine."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class KeyedPermutation:
    """A pseudo-random permutation of 0 ... size - 1; ``permutation(position)`` takes microseconds at any size."""

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got size {size}.")
        bits = max(_MIN_BITS, (size - 1).bit_length())
        self.size = size
        self._right_bits = bits // 2
        self._left_bits = bits - self._right_bits
        self._round_keys = [_mix64(key + (number + 1) * 0x9E3779B97F4A7C15) for number in range(_NUM_ROUNDS)]

    def __call__(self, position: int) -> int:
        if not 0 <= position < self.size:
            raise IndexError(f"position must be in [0, {self.size}), got {position}.")
        value = self._encrypt(position)
        while value >= self.size:
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        right_bits, left_bits = self._right_bits, self._left_bits
        left, right = value >> right_bits, value & ((1 << right_bits) - 1)
        for key in self._round_keys:
            # The halves swap places and, when they differ in length, lengths: still a bijection of the whole.
            left, right = right, left ^ (_mix64(right ^ key) & ((1 << left_bits) - 1))
            left_bits, right_bits = right_bits, left_bits
        return (left << right_bits) | right


class EpochOrder:
    """Which record of a source comes at which position of an epoch.

    Plain sources are shuffled as a whole. Of a ``ShardedSource`` the order of the shards is shuffled, and then the
    records inside windows of ``shuffle_window`` consecutive ones, so that only a few shards are in use at a time.
    """

    def __init__(self, source: Source, key: int) -> None:
        self._key = key
        self._size = len(source)
        self._sizes: list[int] | None = None
        if not isinstance(source, ShardedSource):
            self._permutation = KeyedPermutation(self._size, key)
            return
        sizes = list(source.shard_sizes)
        shard_order = KeyedPermutation(len(sizes), derive_key(key, "shards"))
        shards = [shard_order(place) for place in range(len(sizes))]
        starts = [0, *accumulate(sizes)]
        self._sizes = sizes
        self._window = source.shuffle_window
        self._record_starts = [starts[shard] for shard in shards]
        self._place_starts = [0, *accumulate(sizes[shard] for shard in shards)]
        self._window_permutation = lru_cache(maxsize=2)(self._make_window_permutation)

    def __call__(self, position: int) -> int:
        """The record at ``position`` in [0, len(source))."""
        if self._sizes is None:
            return self._permutation(position)
        window, offset = divmod(position, self._window)
        place = window * self._window + self._window_permutation(window)(offset)
        shard_place = bisect_right(self._place_starts, place) - 1
        return self._record_starts[shard_place] + place - self._place_starts[shard_place]

    def _make_window_permutation(self, window: int) -> KeyedPermutation:
        size = min(self._window, self._size - window * self._window)
        return KeyedPermutation(size, derive_key(self._key, "window", window))


def _mix64(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): every input bit changes every output bit."""
    value &= _MASK64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK64
    return value ^ (value >> 31)
