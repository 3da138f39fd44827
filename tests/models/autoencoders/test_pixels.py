import pytest
import torch

from diptych.models.autoencoders.pixels import PixelSpace


def test_round_trip_and_shape():
    images = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain, scaled = PixelSpace(), PixelSpace(shift=0.1, scale=0.5)
    assert plain.latent_shape(5, 7) == (3, 5, 7)
    torch.testing.assert_close(plain.encode(images), images, rtol=0, atol=0)
    torch.testing.assert_close(scaled.encode(images), (images - 0.1) / 0.5)
    torch.testing.assert_close(scaled.decode(scaled.encode(images)), images)
    bright = torch.full((1, 3, 2, 2), 9.0)
    assert scaled.decode(bright).max() == 1
    torch.testing.assert_close(scaled.decode_unclipped(bright), bright * 0.5 + 0.1)
    assert set(scaled.state_dict()) == {"shift", "scale"}


def test_message():
    with pytest.raises(ValueError, match=r"pixels.scale must be positive, got 0"):
        PixelSpace(scale=0)
