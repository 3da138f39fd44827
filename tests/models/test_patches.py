import pytest
import torch

from diptych.models.patches import patchify, unpatchify


def test_round_trip_and_order_on_a_non_square_image():
    images = torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    patches = patchify(images, 2)
    assert patches.shape == (2, 15, 12)
    # patch 7 is row 1, column 2; its values run over channels, rows, then columns
    torch.testing.assert_close(patches[1, 7], images[1, :, 2:4, 4:6].flatten(), rtol=0, atol=0)
    torch.testing.assert_close(unpatchify(patches, 2, (3, 5)), images, rtol=0, atol=0)


def test_message():
    with pytest.raises(ValueError, match=r"multiples of patch_size: got 6x8 and 4. Use 4x8"):
        patchify(torch.zeros(1, 3, 6, 8), 4)
