import math

import jaxtyping
import pytest
import torch

from diptych.objectives.reconstruction import psnr, reconstruction_loss, reconstruction_term


def pair():
    images = torch.zeros(2, 3, 4, 4)
    decoded = images.clone()
    decoded[0] = 0.5
    decoded[1, :, :, 2:] = 1.0  # an edge in every row
    return decoded, images


def test_values_in_closed_form():
    decoded, images = pair()
    torch.testing.assert_close(reconstruction_loss(decoded, images), torch.tensor([0.5, 0.5]))
    with_mse = reconstruction_loss(decoded, images, mse_weight=2.0)
    torch.testing.assert_close(with_mse, torch.tensor([0.5 + 2 * 0.25, 0.5 + 2 * 0.5]))
    # one of three horizontal differences is 1, all vertical ones are 0; a constant error has no edges
    with_edges = reconstruction_loss(decoded, images, gradient_weight=3.0)
    torch.testing.assert_close(with_edges, torch.tensor([0.5, 0.5 + 3 / 3]))


def test_the_term_counts_images_and_does_not_depend_on_the_split():
    decoded, images = pair()
    whole = reconstruction_term(decoded, images, mse_weight=1.0)
    halves = [reconstruction_term(decoded[i : i + 1], images[i : i + 1], mse_weight=1.0) for i in range(2)]
    torch.testing.assert_close(whole.sum, halves[0].sum + halves[1].sum)
    assert whole.count == 2 == halves[0].count + halves[1].count
    weighted = reconstruction_term(decoded, images, weights=torch.tensor([0.0, 2.0]))
    assert weighted.sum.item() == pytest.approx(1.0) and weighted.count == 2


def test_psnr_of_a_known_error():
    decoded, images = pair()
    torch.testing.assert_close(psnr(decoded, images)[0], torch.tensor(10 * math.log10(4 / 0.25)))


@pytest.fixture
def without_type_checks(monkeypatch):
    """As users run it: our own messages, not those of the type checker of the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_message(without_type_checks):
    with pytest.raises(ValueError, match=r"equal shapes, got \(1, 3, 4, 4\) and \(1, 3, 4, 5\)"):
        reconstruction_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
