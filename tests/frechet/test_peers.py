"""Equal to what peers computed of the same features; ``tests/golden/make_frechet_peers.py`` has their versions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.frechet import Moments, frechet_distance
from diptych.frechet.cmmd import cmmd
from diptych.frechet.density_coverage import density_coverage
from diptych.frechet.fd_infinity import extrapolate, fd_infinity
from diptych.frechet.inception_score import inception_score, inception_score_of_splits
from diptych.frechet.kid import kid, kid_of_subsets
from diptych.frechet.precision_recall import precision_recall
from tests.golden.peer_features import peer_features

PEERS = json.loads((Path(__file__).parents[1] / "golden" / "frechet_peers.json").read_text())["peers"]
GIVEN = peer_features()
GENERATED, REAL = torch.from_numpy(GIVEN.generated), torch.from_numpy(GIVEN.real)
BLOCKS, BLOCK_SIZE, SEED = 5, 60, 2020  # as the maker has them
SMALLEST, POINTS = 60, 9


def moments(rows: torch.Tensor) -> Moments:
    found = Moments(rows.shape[1])
    for part in rows.split(100):
        found.update(part)
    return found


def peers_with(measure: str) -> dict[str, float]:
    return {name: values[measure] for name, values in PEERS.items() if measure in values}


def test_the_distance_is_that_of_every_peer():
    expected = peers_with("distance")
    embeddings = expected.pop("cmmd 4c42994")
    assert set(expected) == {"pytorch-fid 0.3.0", "clean-fid 0.1.35", "torch-fidelity 0.4.0", "torchmetrics 1.9.0",
                             "ADM 22e0df8"}  # fmt: skip
    found = frechet_distance(moments(GENERATED), moments(REAL))
    assert list(expected.values()) == pytest.approx([found] * 5, rel=1e-12)  # sqrtm three times, eigvals twice
    assert cmmd(GENERATED, REAL).value == pytest.approx(embeddings, rel=1e-10)


def test_kid_of_blocks_is_that_of_torch_fidelity_and_clean_fid():
    random = np.random.RandomState(SEED)
    blocks = [
        [random.choice(len(rows), BLOCK_SIZE, replace=False) for rows in (GENERATED, REAL)] for _ in range(BLOCKS)
    ]
    values = [kid(GENERATED[first], REAL[second]).value for first, second in blocks]
    peer = PEERS["torch-fidelity 0.4.0"]
    assert np.mean(values) == pytest.approx(peer["kid_of_blocks"], rel=1e-10)
    assert np.std(values) == pytest.approx(peer["kid_between_blocks"], rel=1e-10)

    random = np.random.RandomState(SEED)
    blocks = [
        [random.choice(len(rows), BLOCK_SIZE, replace=False) for rows in (REAL, GENERATED)] for _ in range(BLOCKS)
    ]
    values = [kid(GENERATED[second], REAL[first]).value for first, second in blocks]
    assert np.mean(values) == pytest.approx(PEERS["clean-fid 0.1.35"]["kid_of_blocks"], rel=1e-10)


def test_kid_of_subsets_is_that_of_torchmetrics_with_its_seed():
    """It draws from the first set first, so the real one stands there; the distance is symmetric."""
    generator = torch.Generator().manual_seed(SEED)
    found = kid_of_subsets(REAL, GENERATED, generator, num_subsets=BLOCKS, subset_size=BLOCK_SIZE)
    peer = PEERS["torchmetrics 1.9.0"]
    assert (found.mean, found.std) == pytest.approx((peer["kid_of_blocks"], peer["kid_between_blocks"]), rel=1e-10)


def test_precision_recall_density_and_coverage():
    for k in (3, 5):
        shares, balls = (measure(GENERATED, REAL, num_neighbours=k) for measure in (precision_recall, density_coverage))
        found = {"precision": shares.precision, "recall": shares.recall,
                 "density": balls.density, "coverage": balls.coverage}  # fmt: skip
        for name, estimate in found.items():
            expected = peers_with(f"{name}_{k}")
            assert len(expected) == (3 if k == 3 and name in ("precision", "recall") else 1)
            assert list(expected.values()) == pytest.approx([estimate.value] * len(expected), abs=1e-7)  # float32 means


def test_the_inception_score():
    probabilities = torch.from_numpy(GIVEN.logits).softmax(1)
    whole = peers_with("inception_score")
    assert set(whole) == {"torchmetrics 1.9.0", "FID_IS_infinity 2cbf52e"}
    assert list(whole.values()) == pytest.approx([inception_score(probabilities).value] * 2, rel=1e-12)
    splits = inception_score_of_splits(probabilities)
    of_splits = peers_with("inception_score_of_splits")
    assert set(of_splits) == {"torch-fidelity 0.4.0", "ADM 22e0df8"}
    assert list(of_splits.values()) == pytest.approx([splits.mean] * 2, rel=1e-12)
    between = PEERS["torch-fidelity 0.4.0"]["inception_score_between_splits"]
    assert splits.std == pytest.approx(between, rel=1e-10)


def test_fd_infinity_is_that_of_its_authors():
    """Their subsets, which numpy draws, and our sizes, distances and line."""
    random, rows = np.random.RandomState(SEED), GIVEN.generated.copy()
    sizes = fd_infinity(
        GENERATED, moments(REAL), torch.Generator().manual_seed(0), num_points=POINTS, min_size=SMALLEST
    ).sizes
    distances = []
    for size in sizes:
        random.shuffle(rows)
        distances.append(frechet_distance(moments(torch.from_numpy(rows[:size])), moments(REAL)))
    limit = PEERS["FID_IS_infinity 2cbf52e"]["limit"]
    assert extrapolate(sizes, distances).value == pytest.approx(limit, rel=1e-10)
    assert distances[-1] > limit
    with pytest.raises(ValueError, match="at least 3 sizes and a distance for each, got 9 and 8"):
        extrapolate(sizes, distances[1:])
