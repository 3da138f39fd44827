"""Inception score (arXiv 1606.03498, section 4): ``exp E KL(p(y|x) || p(y))``, from class probabilities."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.interval import Estimate, jackknife_variance
from diptych.frechet.moments import check_finite_rows

CHUNK = 4096
"""Rows that are left out at a time."""


@dataclass(frozen=True, kw_only=True)
class ScoreOfSplits:
    """The score as papers print it."""

    mean: float
    """Over splits."""
    std: float
    """Between splits (divided by their number): not the error of the mean."""


def inception_score(probabilities: Float[Tensor, "num classes"]) -> Estimate:
    """The score of all examples at once, between 1 and the number of classes. Biased downwards in small sets.

    Raises:
        ValueError: rows that are not probabilities, or fewer than two.
    """
    check_finite_rows(probabilities, "probabilities")
    probabilities = probabilities.double()
    sums = probabilities.sum(1)
    if (probabilities < 0).any() or (sums - 1).abs().max() > 1e-2:  # bfloat16 softmax is off by a few 1e-3
        raise ValueError(
            f"probabilities must be at least 0 and add up to 1, but rows add up to {sums.min().item():.4g} to "
            f"{sums.max().item():.4g} and the least is {probabilities.min().item():.4g}. Take the softmax of logits."
        )
    num = len(probabilities)
    if num < 2:
        raise ValueError(f"inception_score needs at least 2 rows, got {num}.")
    negative_entropy = torch.special.xlogy(probabilities, probabilities).sum(1)  # E KL = E sum p log p - sum q log q
    total, marginal = negative_entropy.sum(), probabilities.sum(0)
    score = (total / num - _plogp(marginal / num)).exp()
    left_out = [
        ((total - entropies) / (num - 1) - _plogp((marginal - rows) / (num - 1))).exp()
        for rows, entropies in zip(probabilities.split(CHUNK), negative_entropy.split(CHUNK), strict=True)
    ]
    return Estimate(value=score.item(), standard_error=jackknife_variance(torch.cat(left_out)) ** 0.5)


def inception_score_of_splits(probabilities: Float[Tensor, "num classes"], num_splits: int = 10) -> ScoreOfSplits:
    """Mean over consecutive splits of equal size, as the authors' code prints it; what is left over is not used."""
    size = len(probabilities) // num_splits
    scores = [inception_score(probabilities[i * size : (i + 1) * size]).value for i in range(num_splits)]
    over = torch.tensor(scores, dtype=torch.float64)
    return ScoreOfSplits(mean=over.mean().item(), std=over.std(correction=0).item())


def _plogp(marginals: Tensor) -> Tensor:
    marginals = marginals.clamp(min=0)  # a class of one example is left with rounding when that is taken out
    return torch.special.xlogy(marginals, marginals).sum(-1)
