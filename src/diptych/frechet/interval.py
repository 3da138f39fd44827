"""A value with a 95 % interval, from the jack-knife (Efron and Stein 1981)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

_NORMAL_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and how sure it is."""

    value: float
    standard_error: float
    """Jack-knife, of the draw of the examples that were given."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by the normal distribution; rough below some 30 examples and where the value is at its limit."""
        half = _NORMAL_95 * self.standard_error
        return self.value - half, self.value + half


def estimate_of_mean(contributions: Float[Tensor, " num"]) -> Estimate:
    """The mean of what each example contributes; its jack-knife error is ``std / sqrt(num)`` exactly."""
    error = contributions.std().item() / len(contributions) ** 0.5 if len(contributions) > 1 else float("nan")
    return Estimate(value=contributions.mean().item(), standard_error=error)


def jackknife_variance(left_out: Float[Tensor, " num"]) -> float:
    """Variance of a statistic, from its values with each example left out in turn: ``(n - 1) / n sum (v - mean)^2``."""
    num = len(left_out)
    return (num - 1) / num * (left_out - left_out.mean()).square().sum().item()
