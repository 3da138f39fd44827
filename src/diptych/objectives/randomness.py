"""Random numbers from one seed per example, drawn for the whole batch at once.

Noise, time and dropped conditions of an example depend on its seed alone: not on its neighbours, its place in the
batch, the micro-batch or the process. A counter-based generator (SplitMix64, Steele et al. 2014, as a hash of seed,
purpose and index) needs no state and runs on any device.
"""

import math
import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of signed 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _bits(seeds: Tensor, count: int, purpose: str) -> Tensor:
    """64 random bits for every seed and index: shape ``examples count``."""
    offset = (zlib.crc32(purpose.encode()) * _GOLDEN + 2**63) % 2**64 - 2**63  # wrapped to a signed 64-bit integer
    start = _mix(seeds + offset)
    index = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64) * _GOLDEN
    return _mix(start[:, None] + index[None, :])


def uniform_from_seeds(
    seeds: Int[Tensor, " examples"], shape: Sequence[int], purpose: str
) -> Float[Tensor, " examples *event"]:
    """Uniform numbers in [0, 1), float32. Different purposes give independent numbers for the same seeds."""
    bits = _bits(seeds, math.prod(shape), purpose)
    return (_shift_right(bits, 40).float() / 2**24).reshape(len(seeds), *shape)


def normal_from_seeds(
    seeds: Int[Tensor, " examples"], shape: Sequence[int], purpose: str
) -> Float[Tensor, " examples *event"]:
    """Standard normal numbers, float32 (Box-Muller)."""
    count = math.prod(shape)
    bits = _bits(seeds, (count + 1) // 2, purpose)
    radius = torch.sqrt(-2 * torch.log((_shift_right(bits, 40).float() + 1) / 2**24))
    angle = 2 * math.pi * (_shift_right(bits, 16) & (2**24 - 1)).float() / 2**24
    pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return pairs[:, :count].reshape(len(seeds), *shape)
