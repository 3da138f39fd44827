"""Kernel Inception distance (arXiv 1801.01401, section 4): unbiased squared MMD with a cubic polynomial kernel."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.interval import Estimate
from diptych.frechet.mmd import squared_mmd


def kid(generated: Float[Tensor, "num dim"], real: Float[Tensor, "num_real dim"]) -> Estimate:
    """The distance over all pairs at once, with kernel ``(x^T y / dim + 1)^3``. May be negative."""
    return squared_mmd(generated, real, polynomial_kernel, is_unbiased=True)


@dataclass(frozen=True, kw_only=True)
class KidOfSubsets:
    """KID as papers print it."""

    mean: float
    """Over subsets."""
    std: float
    """Between subsets (divided by their number): not the error of the mean."""


def kid_of_subsets(
    generated: Float[Tensor, "num dim"],
    real: Float[Tensor, "num_real dim"],
    generator: torch.Generator,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
) -> KidOfSubsets:
    """Mean over random subsets of both sets, drawn without replacement, as the authors' code and torch-fidelity do.

    Raises:
        ValueError: a set is smaller than a subset.
    """
    smallest = min(len(generated), len(real))
    if subset_size > smallest:
        raise ValueError(f"kid.subset_size must be at most the smaller set's {smallest} rows, got {subset_size}.")

    def draw(features: Tensor) -> Tensor:
        order = torch.randperm(len(features), generator=generator, device=generator.device)
        return features[order[:subset_size].to(features.device)]

    values = [
        squared_mmd(draw(generated), draw(real), polynomial_kernel, is_unbiased=True).value for _ in range(num_subsets)
    ]
    over = torch.tensor(values, dtype=torch.float64)
    return KidOfSubsets(mean=over.mean().item(), std=over.std(correction=0).item())


def polynomial_kernel(x: Float[Tensor, "chunk dim"], y: Float[Tensor, "num dim"]) -> Float[Tensor, "chunk num"]:
    """``(x^T y / dim + 1)^3``."""
    return (x @ y.T / x.shape[1] + 1) ** 3
