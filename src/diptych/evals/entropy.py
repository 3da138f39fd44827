"""Matrix-based Rényi entropy of sets of hidden states, and what a response adds to its prompt.

After arXiv 2604.10949: a Gaussian Gram matrix of n states, divided by its trace, has n eigenvalues that sum to 1; their
entropy of order alpha says how many directions the states fill, from 0 (all equal) to ``log2(n)`` (all far apart).
The paper gives neither bandwidth nor base. Here entropies are in bits and the bandwidth is a fixed multiple of the
median distance between the states that are compared, so that the scale of a layer has no influence.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ALPHA = 1.01
BANDWIDTH = 0.4
"""Times the median distance. Much less and every set of states is full, much more and none is."""
_TINY = 1e-7
"""Distances below this share of the largest norm are rounding."""


@dataclass(frozen=True)
class PairEntropy:
    """Entropies of a prompt and a response under one bandwidth, in bits.

    Attributes:
        sigma: bandwidth, in units of the root mean square of the centred states of both.
        conditional: ``joint - prompt``; negative where the response is more alike than the prompt.
    """

    prompt: float
    response: float
    joint: float
    conditional: float
    sigma: float


def distances(states: Float[Tensor, "n dim"]) -> Float[Tensor, "n n"]:
    """Euclidean, float64, exactly 0 between equal states.

    Raises:
        ValueError: no states, or states that are not finite.
    """
    if len(states) == 0:
        raise ValueError("entropy needs at least one state, got none.")
    if not bool(torch.isfinite(states).all()):
        raise ValueError("entropy needs finite states, got some that are infinite or not a number.")
    exact = states.double()
    return torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")


def median_bandwidth(states: Float[Tensor, "n dim"], factor: float = BANDWIDTH) -> float:
    """``factor`` times the median distance between different states; 1 where no two differ, which has no influence.

    Raises:
        ValueError: the factor is not positive.
    """
    if not factor > 0:
        raise ValueError(f"the bandwidth must be a positive multiple of the median distance, got {factor}.")
    apart = distances(states)
    pairs = apart[tuple(torch.triu_indices(len(apart), len(apart), offset=1, device=apart.device))]
    pairs = pairs[pairs > _TINY * states.double().norm(dim=-1).max()]
    return factor * float(pairs.median()) if len(pairs) else 1.0


def renyi_entropy(states: Float[Tensor, "n dim"], sigma: float, alpha: float = ALPHA) -> float:
    """Entropy of order alpha of the trace-normalised Gram matrix, in bits, from 0 to ``log2(n)``.

    Raises:
        ValueError: ``sigma`` is not positive, ``alpha`` is not positive or is 1, or the states are not finite.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}.")
    if not alpha > 0 or alpha == 1:
        raise ValueError(f"alpha must be positive and not 1 (1.01 is near Shannon's entropy), got {alpha}.")
    gram = torch.exp(-distances(states).square() / (2 * sigma**2))
    # A Gram matrix of repeated states is singular: rounding puts eigenvalues a little below 0.
    eigenvalues = torch.linalg.eigvalsh(gram / len(gram)).clamp(min=0)
    eigenvalues = eigenvalues / eigenvalues.sum()
    return max(0.0, float(torch.log2(eigenvalues.pow(alpha).sum()) / (1 - alpha)))


def pair_entropy(
    prompt: Float[Tensor, "n dim"],
    response: Float[Tensor, "m width"],
    bandwidth: float = BANDWIDTH,
    alpha: float = ALPHA,
) -> PairEntropy:
    """Entropies of a prompt and a response with equally many states; one bandwidth from both.

    Raises:
        ValueError: lengths or widths differ, there are fewer than two states each, or a value is bad.
    """
    if prompt.shape != response.shape:
        raise ValueError(
            f"prompt and response must have equally many states of one width, got {tuple(prompt.shape)} and "
            f"{tuple(response.shape)}. Entropy grows with their number: draw equally many of both."
        )
    if len(prompt) < 2:
        raise ValueError("a prompt of one token has no entropy (always 0). Give at least two tokens.")
    both = torch.cat([prompt, response]).double()
    both = both - both.mean(dim=0)
    scale = both.square().mean().sqrt()
    both = both / scale if scale > 0 else both
    sigma = median_bandwidth(both, bandwidth)
    first, second = both[: len(prompt)], both[len(prompt) :]
    own, joint = renyi_entropy(first, sigma, alpha), renyi_entropy(both, sigma, alpha)
    return PairEntropy(own, renyi_entropy(second, sigma, alpha), joint, joint - own, sigma)
