"""Multi-label cross-entropy of a grid of features: what is in every cell, and what is anywhere in the image."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def label_loss(
    cell_logits: Float[Tensor, "batch labels rows cols"],
    image_logits: Float[Tensor, "batch labels"],
    labels: Float[Tensor, "batch labels rows cols"],
    gate_logits: Float[Tensor, "batch rows cols"] | None = None,
) -> Float[Tensor, " batch"]:
    """Binary cross-entropy in nats, summed over the labels: the mean over the cells, plus that of the whole image.

    A label holds for the image where it holds in any of its cells. The cross-entropy of a gate with the first label is
    added where it is given, summed over the cells.

    Raises:
        ValueError: the grids differ.
    """
    if cell_logits.shape != labels.shape:
        raise ValueError(
            f"label logits and labels must have equal shapes, got {tuple(cell_logits.shape)} and "
            f"{tuple(labels.shape)}: give the data source as many label cells as the features have."
        )
    cells = F.binary_cross_entropy_with_logits(cell_logits.float(), labels.float(), reduction="none")
    image = F.binary_cross_entropy_with_logits(image_logits.float(), labels.float().amax((2, 3)), reduction="none")
    loss = cells.sum(1).mean((1, 2)) + image.sum(1)
    if gate_logits is None:
        return loss
    gate = F.binary_cross_entropy_with_logits(gate_logits.float(), labels[:, 0].float(), reduction="none")
    return loss + gate.sum((1, 2))
