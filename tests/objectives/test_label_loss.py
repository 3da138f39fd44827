import math

import jaxtyping
import pytest
import torch

from diptych.objectives.labels import label_loss


def test_values_in_closed_form():
    labels = torch.zeros(2, 3, 2, 2)
    labels[0, 1, 0, 0] = 1
    cells, image = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3)
    # every logit 0: log 2 for each label, once for the cells and once for the image
    torch.testing.assert_close(label_loss(cells, image, labels), torch.full((2,), 6 * math.log(2)))
    # a certain image head leaves the cells' part; the label of one cell is the image's too
    image = torch.full((2, 3), -50.0)
    image[0, 1] = 50
    torch.testing.assert_close(label_loss(cells, image, labels), torch.full((2,), 3 * math.log(2)))
    cells = torch.where(labels > 0, 50.0, -50.0)
    torch.testing.assert_close(label_loss(cells, image, labels), torch.zeros(2))
    # a gate that knows nothing: log 2 in each of four cells
    torch.testing.assert_close(
        label_loss(cells, image, labels, torch.zeros(2, 2, 2)), torch.full((2,), 4 * math.log(2))
    )


def test_another_grid_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own message, as users see it
    with pytest.raises(ValueError, match="as many label cells as the features have"):
        label_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3), torch.zeros(1, 3, 2, 2))
