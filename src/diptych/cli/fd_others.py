"""What ``diptych fd --also`` computes beside the Fréchet distance, from the features that are kept."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diptych.frechet.interval import Estimate

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.cli.fd_sides import Side

OTHERS = {
    "kid": "kernel Inception distance, unbiased",
    "cmmd": "squared MMD of unit-length embeddings, Gaussian kernel, times 1000",
    "fd-infinity": "FD extrapolated to infinitely many images",
    "precision-recall": "shares of each set on the other's manifold, 3 neighbours",
    "density-coverage": "the same with balls around real features only, 5 neighbours",
}
"""By the name ``--also`` takes."""


def other_scores(names: Sequence[str], generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    """Each measure with its jack-knife error, by what it is printed as.

    Args:
        seed: of the subsets of ``fd-infinity``.

    Raises:
        ValueError: a side was given as statistics where its features are needed, or holds too few images.
    """
    found: dict[str, Estimate] = {}
    for name in names:
        found |= _COMPUTED[name](generated, reference, seed)
    return found


def _rows(side: "Side", name: str) -> "Tensor":
    import torch

    if side.extracted is None:
        raise ValueError(f"--also {name} needs the images of {side.name}, which holds statistics alone.")
    return torch.from_numpy(side.extracted.features)


def _kid(generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    from diptych.frechet.kid import kid

    return {"KID": kid(_rows(generated, "kid").double(), _rows(reference, "kid").double())}


def _cmmd(generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    from diptych.frechet.cmmd import cmmd

    return {"CMMD": cmmd(_rows(generated, "cmmd"), _rows(reference, "cmmd"))}


def _fd_infinity(generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    import torch

    from diptych.frechet.fd_infinity import fd_infinity
    from diptych.frechet.ratio import merged

    rows = _rows(generated, "fd-infinity")
    least = min(5000, len(rows) // 2)  # the paper's subsets start at 5,000 of 50,000
    if least < 2:
        raise ValueError(f"--also fd-infinity needs at least 4 images, got {len(rows)} in {generated.name}.")
    generator = torch.Generator().manual_seed(seed)
    return {"FD∞": fd_infinity(rows, merged(reference.groups), generator, min_size=least).estimate}


def _precision_recall(generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    from diptych.frechet.precision_recall import precision_recall

    found = precision_recall(_rows(generated, "precision-recall"), _rows(reference, "precision-recall"))
    return {"precision": found.precision, "recall": found.recall}


def _density_coverage(generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    from diptych.frechet.density_coverage import density_coverage

    found = density_coverage(_rows(generated, "density-coverage"), _rows(reference, "density-coverage"))
    return {"density": found.density, "coverage": found.coverage}


_COMPUTED: dict[str, Callable[["Side", "Side", int], dict[str, Estimate]]] = {
    "kid": _kid,
    "cmmd": _cmmd,
    "fd-infinity": _fd_infinity,
    "precision-recall": _precision_recall,
    "density-coverage": _density_coverage,
}
