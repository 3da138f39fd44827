"""What ``diptych fd --also`` computes beside the Fréchet distance, from the features that are kept."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from diptych.frechet.interval import Estimate

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.cli.fd_sides import Side
    from diptych.frechet.features import Features


def check_others(names: Sequence[str], generated: str, reference: str | None, statistics: Collection[str]) -> None:
    """Refuses what cannot be computed, before anything is.

    Args:
        generated: what the command line calls this side; ``reference`` alike.
        statistics: the sides that are files of statistics, without images.

    Raises:
        ValueError: an unknown measure, or one that needs what is not there.
    """
    known = (*_MEASURES, "inception-score")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--also knows {', '.join(known)}, but not {', '.join(unknown)}.")
    for name in names:
        if reference is None:
            raise ValueError(f"--also {name} needs a REFERENCE to measure from.")
        for side in (generated,) if name in _OF_GENERATED else (generated, reference):
            if side in statistics:
                raise ValueError(f"--also {name} needs the images of {side}, which holds statistics alone.")


def check_classes(names: Sequence[str], with_classes: Sequence[bool]) -> None:
    """Refuses an Inception score where no network tells classes; one of several is enough.

    Args:
        with_classes: whether each network does.

    Raises:
        ValueError: none of them does.
    """
    if "inception-score" in names and not any(with_classes):
        raise ValueError("--also inception-score needs a network with classes: --features inception.")


def other_scores(
    names: Sequence[str], generated: "Side", reference: "Side", features: "Features", seed: int
) -> dict[str, Estimate]:
    """Each measure with its error, by what it is printed as; a network without classes has no Inception score.

    Args:
        names: as `check_others` took them.
        features: what the sides were measured with.
        seed: of the subsets of ``fd-infinity``.

    Raises:
        ValueError: a side holds too few images.
    """
    found: dict[str, Estimate] = {}
    for name in names:
        found |= (
            _inception_score(generated, features)
            if name == "inception-score"
            else _MEASURES[name](generated, reference, seed)
        )
    return found


def _rows(side: "Side") -> "Tensor":
    import torch

    assert side.extracted is not None  # as `check_others` made sure
    return torch.from_numpy(side.extracted.features)


def _kid(generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    from diptych.frechet.kid import kid

    return {"KID": kid(_rows(generated), _rows(reference))}


def _cmmd(generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    from diptych.frechet.cmmd import cmmd

    return {"CMMD": cmmd(_rows(generated), _rows(reference))}


def _fd_infinity(generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    import torch

    from diptych.frechet.fd_infinity import fd_infinity
    from diptych.frechet.ratio import merged

    rows = _rows(generated)
    least = min(5000, len(rows) // 2)  # the paper's subsets start at 5,000 of 50,000
    if least < 2:
        raise ValueError(f"--also fd-infinity needs at least 4 images, got {len(rows)} in {generated.name}.")
    generator = torch.Generator().manual_seed(seed)
    return {"FD∞": fd_infinity(rows, merged(reference.groups), generator, min_size=least).estimate}


def _precision_recall(generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    from diptych.frechet.precision_recall import precision_recall

    found = precision_recall(_rows(generated), _rows(reference))
    return {"precision": found.precision, "recall": found.recall}


def _density_coverage(generated: "Side", reference: "Side", seed: int) -> dict[str, Estimate]:
    from diptych.frechet.density_coverage import density_coverage

    found = density_coverage(_rows(generated), _rows(reference))
    return {"density": found.density, "coverage": found.coverage}


def _inception_score(generated: "Side", features: "Features") -> dict[str, Estimate]:
    """Of all images, and as papers print it: the mean over ten splits, without the bias of the last layer."""
    import torch

    from diptych.frechet.inception_score import inception_score, inception_score_of_splits

    network: Any = features.network
    if not hasattr(network, "logits"):
        return {}
    with torch.no_grad():
        logits = network.cpu().logits(_rows(generated), use_bias=False)
    probabilities = logits.double().softmax(1)
    found = {"IS": inception_score(probabilities)}
    if len(probabilities) >= 2 * NUM_SPLITS:
        splits = inception_score_of_splits(probabilities, NUM_SPLITS)
        error = splits.std / (NUM_SPLITS - 1) ** 0.5  # std divides by the number of splits
        found[f"IS, {NUM_SPLITS} splits"] = Estimate(value=splits.mean, standard_error=error)
    return found


_OF_GENERATED = ("fd-infinity", "inception-score")
"""Measures that need no images of the reference."""
NUM_SPLITS = 10

_MEASURES: dict[str, Callable[["Side", "Side", int], dict[str, Estimate]]] = {
    "kid": _kid,
    "cmmd": _cmmd,
    "fd-infinity": _fd_infinity,
    "precision-recall": _precision_recall,
    "density-coverage": _density_coverage,
}
