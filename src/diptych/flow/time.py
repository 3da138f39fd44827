"""Times: how they are drawn for training, how they are shifted, and the grids a sampler walks.

All times run from noise (0) to data (1); ``sigma = 1 - t``.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor


def shift_time(t: Float[Tensor, " *times"], shift: float) -> Float[Tensor, " *times"]:
    """``t / (s - (s - 1) t)``: for s > 1 more time near noise; 0 and 1 stay.

    In sigma: ``s sigma / (1 + (s - 1) sigma)`` (Stable Diffusion 3, arXiv 2403.03206, equation 23; its t is our sigma).
    Shifts by a and then b are one by a * b.
    """
    return t / (shift - (shift - 1) * t)


def dimension_shift(num_dims: int, base: int = 4096, minimum: float = 1.0) -> float:
    """``sqrt(num_dims / base)``, the shift for a space of ``num_dims = tokens * channels`` numbers.

    RAE, arXiv 2510.11690. Below ``base`` the rule would move time towards data, which small spaces do not want;
    ``minimum`` stops it.
    """
    return max(minimum, math.sqrt(num_dims / base))


@dataclass(frozen=True, kw_only=True)
class UniformTime:
    """t uniform in [0, 1), then shifted."""

    shift: float = 1.0
    """See `shift_time`; 1 is none."""
    stratified: bool = False
    """One draw from each of ``batch`` equal slices, in random order: same distribution of each t, less noise in the
    batch mean (VDM, arXiv 2107.00630, appendix I.1)."""

    def __post_init__(self) -> None:
        _check_shift(self.shift)

    def at(self, quantile: Float[Tensor, " *times"]) -> Float[Tensor, " *times"]:
        """The times at quantiles in [0, 1): uniform numbers in give times of this distribution out."""
        return shift_time(quantile, self.shift)

    def sample(self, batch: int, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """``batch`` times in float32, on the generator's device."""
        return self.at(_uniform(batch, generator, self.stratified))


@dataclass(frozen=True, kw_only=True)
class LogitNormalTime:
    """``t = sigmoid(mean + std * n)``, n standard normal, then shifted (arXiv 2403.03206, section 3.1)."""

    mean: float = 0.0
    """Positive means more time near data. A mean quoted for sigma changes sign."""
    std: float = 1.0
    """Spread of the logit."""
    shift: float = 1.0
    """See `shift_time`; 1 is none."""
    stratified: bool = False
    """See `UniformTime`."""

    def __post_init__(self) -> None:
        _check_shift(self.shift)
        if self.std <= 0:
            raise ValueError(f"time.std must be positive, got {self.std}.")

    def at(self, quantile: Float[Tensor, " *times"]) -> Float[Tensor, " *times"]:
        """The times at quantiles in [0, 1): uniform numbers in give times of this distribution out."""
        return shift_time(torch.sigmoid(self.mean + self.std * torch.special.ndtri(quantile)), self.shift)

    def sample(self, batch: int, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """``batch`` times in float32, on the generator's device."""
        return self.at(_uniform(batch, generator, self.stratified))


@dataclass(frozen=True, kw_only=True)
class DiscreteTime:
    """sigma uniform in {1/n, 2/n, ..., 1}: pure noise is drawn, pure data never (the code of BLIP3-o, 2505.09568)."""

    num_levels: int = 1000
    """n."""
    shift: float = 1.0
    """See `shift_time`; 1 is none."""
    stratified: bool = False
    """See `UniformTime`."""

    def __post_init__(self) -> None:
        _check_shift(self.shift)
        if self.num_levels < 1:
            raise ValueError(f"time.num_levels must be at least 1, got {self.num_levels}.")

    def at(self, quantile: Float[Tensor, " *times"]) -> Float[Tensor, " *times"]:
        """The times at quantiles in [0, 1): uniform numbers in give times of this distribution out."""
        return shift_time((quantile * self.num_levels).floor() / self.num_levels, self.shift)

    def sample(self, batch: int, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """``batch`` times in float32, on the generator's device."""
        return self.at(_uniform(batch, generator, self.stratified))


TimeDistribution: TypeAlias = UniformTime | LogitNormalTime | DiscreteTime
"""How times are drawn in training."""


def time_grid(num_steps: int, shift: float = 1.0) -> Float[Tensor, " times"]:
    """``num_steps + 1`` times from 0 to 1, even before the shift, float64 on the CPU.

    Without shift this is BLIP3-o's grid ``sigma = linspace(1, 1/N, N)`` followed by 0.

    Raises:
        ValueError: ``num_steps`` below 1, ``shift`` not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    _check_shift(shift)
    return shift_time(torch.linspace(0, 1, num_steps + 1, dtype=torch.float64), shift)


def truncate_sigma(t: Float[Tensor, " batch"], num_levels: int = 1000) -> Float[Tensor, " batch"]:
    """The time whose sigma is cut down to a multiple of ``1 / num_levels``.

    BLIP3-o's sampler hands its network ``int(1000 * sigma)``. To repeat its numbers, wrap the network; a sampler that
    tells the true time differs by less than one level.
    """
    level = (1 - t.float()) * num_levels
    return 1 - (level + 1e-3).floor() / num_levels  # a float32 time puts whole levels up to 1e-4 beside the integer


def _uniform(batch: int, generator: torch.Generator, stratified: bool) -> Float[Tensor, " batch"]:
    draws = torch.rand(batch, generator=generator, device=generator.device)
    if not stratified:
        return draws
    slices = torch.randperm(batch, generator=generator, device=generator.device)
    return ((slices + draws) / batch).clamp(max=1 - 2**-24)  # where the quotient rounds up to 1


def _check_shift(shift: float) -> None:
    if shift <= 0:
        raise ValueError(f"time.shift must be positive, got {shift}. 1 is no shift.")
