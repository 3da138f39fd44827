"""How far a decoded image is from the original: L1, optionally with squared error and with the error of edges."""

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.objectives.loss_term import LossTerm


def reconstruction_loss(
    decoded: Float[Tensor, "batch 3 height width"],
    images: Float[Tensor, "batch 3 height width"],
    mse_weight: float = 0.0,
    gradient_weight: float = 0.0,
) -> Float[Tensor, " batch"]:
    """Mean absolute error of each image, plus the weighted squared error and gradient error, in float32.

    The gradient error is the mean absolute difference of the horizontal and vertical differences of neighbouring pixels
    (arXiv 1511.05440, equation 6, with alpha = 1 and keeping the sign); it asks for sharp edges.

    Args:
        decoded: images before clipping.
        images: in [-1, 1].

    Raises:
        ValueError: the shapes differ.
    """
    if decoded.shape != images.shape:
        raise ValueError(
            f"decoded and original images must have equal shapes, got {tuple(decoded.shape)} and {tuple(images.shape)}."
        )
    error = decoded.float() - images.float()
    loss = error.abs().flatten(1).mean(1)
    if mse_weight:
        loss = loss + mse_weight * error.square().flatten(1).mean(1)
    if gradient_weight:
        horizontal = error.diff(dim=-1).abs().flatten(1).mean(1)
        vertical = error.diff(dim=-2).abs().flatten(1).mean(1)
        loss = loss + gradient_weight * (horizontal + vertical)
    return loss


def reconstruction_term(
    decoded: Float[Tensor, "batch 3 height width"],
    images: Float[Tensor, "batch 3 height width"],
    mse_weight: float = 0.0,
    gradient_weight: float = 0.0,
    weights: Float[Tensor, " batch"] | None = None,
) -> LossTerm:
    """``reconstruction_loss`` summed over the images, each times its weight; the count is the number of images."""
    loss = reconstruction_loss(decoded, images, mse_weight, gradient_weight)
    total = loss.sum() if weights is None else (loss * weights.float()).sum()
    return LossTerm(total, torch.tensor(float(len(loss)), device=loss.device), values=loss.detach())


def psnr(
    decoded: Float[Tensor, "batch 3 height width"], images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio of each image in decibels, for images in [-1, 1] (peak 2), in float32."""
    error = (decoded.float() - images.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error)
