"""Ratios in units of a validation set, the paper's constants, and the jack-knife against repeated draws."""

import math

import pytest
import torch

from diptych.frechet.distance import frechet_distance
from diptych.frechet.moments import Moments
from diptych.frechet.ratio import NUM_GROUPS, PAPER_NORMALISERS, distance_estimate, fdr, fdr_k, merged, random_groups


def gaussian_groups(num, shift, generator, dim=3):
    rows = torch.randn(num, dim, generator=generator, dtype=torch.float64) + shift
    groups = []
    for index in range(NUM_GROUPS):
        moments = Moments(dim)
        moments.update(rows[index::NUM_GROUPS])
        groups.append(moments)
    return groups


def exact(dim=3, shift=0.0):
    return [Moments.from_statistics(torch.full((dim,), shift), torch.eye(dim))]


def test_validation_has_the_ratio_one_and_the_mean_is_arithmetic():
    assert fdr(14.19, 14.19) == 1
    assert fdr_k({"a": 1.0, "b": 2.0, "c": 6.0}) == 3
    with pytest.raises(ValueError, match="must be positive, got 0"):
        fdr(1.0, 0.0)
    with pytest.raises(ValueError, match="got none"):
        fdr_k({})


def test_the_paper_s_constants_say_how_exact_they_are():
    values = {name: known.value for name, known in PAPER_NORMALISERS.items()}
    assert values == {
        "inception": 1.68, "convnextv2": 56.87, "dinov2": 14.19, "mae": 0.04, "siglip2": 0.60, "clip": 5.60,
    }  # fmt: skip
    assert all("2604.28190" in known.source for known in PAPER_NORMALISERS.values())
    assert PAPER_NORMALISERS["mae"].relative_error == pytest.approx(0.005 / 0.035)
    assert PAPER_NORMALISERS["convnextv2"].relative_error < 1e-4


def test_groups_merge_to_the_whole():
    groups = gaussian_groups(200, 0.5, torch.Generator().manual_seed(0))
    assert merged(groups).count == 200 and merged(groups, without=3).count == 180


@pytest.mark.parametrize("order", ["class by class", "classes in turn", "mixed"])
def test_no_order_of_the_images_moves_an_interval(order):
    """Ten classes far apart, a hundred rows of each: the error is that of the draw, not of the classes."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(10, 100, 4, generator=generator) + 5 * torch.randn(10, 1, 4, generator=generator)
    exact_side = Moments(4)
    exact_side.update(rows.flatten(0, 1) + 0.1)
    rows = {"class by class": rows, "classes in turn": rows.transpose(0, 1)}.get(order, rows).flatten(0, 1)
    if order == "mixed":
        rows = rows[torch.randperm(1000, generator=generator)]
    groups = []
    for numbers in random_groups(len(rows)):
        groups.append(Moments(4))
        groups[-1].update(rows[numbers])
    assert sorted(torch.cat(random_groups(1003)).tolist()) == list(range(1003))
    error = distance_estimate(groups, [exact_side]).standard_error
    assert 0.03 < error < 0.3  # with classes in turn and every tenth row to a group it would be 6.6


def test_the_error_of_a_distance_is_that_of_repeated_draws():
    generator = torch.Generator().manual_seed(1)
    estimates = [distance_estimate(gaussian_groups(400, 1.0, generator), exact()) for _ in range(60)]
    values = torch.tensor([estimate.value for estimate in estimates])
    errors = torch.tensor([estimate.standard_error for estimate in estimates])
    # of 60 draws the spread itself is known to a tenth; ten groups are as rough as that
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.25)
    covered = [estimate.low <= 3.0 <= estimate.high for estimate in estimates]
    assert sum(covered) >= 50


def test_a_side_of_statistics_counts_as_known():
    generator = torch.Generator().manual_seed(2)
    one_sided = distance_estimate(gaussian_groups(300, 1.0, generator), exact())
    both = distance_estimate(gaussian_groups(300, 1.0, generator), gaussian_groups(300, 0.0, generator))
    assert both.standard_error > one_sided.standard_error > 0
    neither = distance_estimate(exact(shift=1.0), exact())
    assert neither.value == pytest.approx(3.0) and math.isnan(neither.low)
    assert neither.value == frechet_distance(exact(shift=1.0)[0], exact()[0])
