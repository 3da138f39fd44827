"""What every generation space offers, and what the spaces share: measured statistics and latent noise."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class GenerationSpace(Protocol):
    """Where images are generated; an ``nn.Module`` in every implementation.

    ``stride`` is the number of pixels to a latent cell: sides of images are multiples of it. The buffers ``shift`` and
    ``scale`` (``channels 1 1``) are saved with the weights; ``encode`` returns ``(raw - shift) / scale``.
    """

    channels: int
    stride: int
    shift: Tensor
    scale: Tensor

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, rows, cols) of the latents of an image."""
        ...

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]: ...

    def decode(self, latents: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch 3 height width"]:
        """Images in [-1, 1]."""
        ...

    def decode_unclipped(
        self, latents: Float[Tensor, "batch channels rows cols"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """The same with gradients where values leave [-1, 1]: for losses of images."""
        ...

    def config_dict(self) -> dict[str, Any]: ...


def grid_shape(height: int, width: int, stride: int, where: str) -> tuple[int, int]:
    """Rows and columns of latents for an image.

    Raises:
        ValueError: a side is no positive multiple of ``stride``; names the nearest sizes that are.
    """
    if height > 0 and width > 0 and height % stride == 0 and width % stride == 0:
        return height // stride, width // stride
    lower = [max(stride, side // stride * stride) for side in (height, width)]
    upper = [max(stride, -(-side // stride) * stride) for side in (height, width)]
    raise ValueError(
        f"{where} takes images whose height and width are multiples of {stride}, got {height}x{width}. "
        f"Use {lower[0]}x{lower[1]} or {upper[0]}x{upper[1]}."
    )


def measure_shift_scale(
    latents: Iterable[Float[Tensor, "_ channels _ _"]], eps: float = 1e-5
) -> tuple[Float[Tensor, "channels 1 1"], Float[Tensor, "channels 1 1"]]:
    """Mean and ``sqrt(variance + eps)`` of every channel over all batches, accumulated in float64.

    Raises:
        ValueError: there is no latent at all.
    """
    count = 0
    mean = squares = torch.zeros(())
    for batch in latents:
        values = batch.detach().double().movedim(1, 0).flatten(1)
        batch_count = values.shape[1]
        if batch_count == 0:
            continue
        batch_mean = values.mean(1)
        batch_squares = (values - batch_mean[:, None]).square().sum(1)
        if count == 0:
            count, mean, squares = batch_count, batch_mean, batch_squares
            continue
        total = count + batch_count
        difference = batch_mean - mean
        squares = squares + batch_squares + difference.square() * (count * batch_count / total)
        mean = mean + difference * (batch_count / total)
        count = total
    if count == 0:
        raise ValueError("cannot measure the latents of no images: give at least one batch.")
    std = (squares / count + eps).sqrt()
    return mean.float().reshape(-1, 1, 1), std.float().reshape(-1, 1, 1)


@torch.no_grad()
def set_measured_scale(space: GenerationSpace, latents: Iterable[Float[Tensor, "_ channels _ _"]]) -> None:
    """Sets a space's shift and scale such that latents like the given ones, made by its ``encode``, have mean 0 and
    std 1. The present shift and scale are taken into account, so it does not matter what they were."""
    mean, std = measure_shift_scale(latents)
    space.shift.add_(space.scale * mean.to(space.shift))
    space.scale.mul_(std.to(space.scale))


def add_latent_noise(
    latents: Float[Tensor, "batch channels rows cols"], tau: float, generator: torch.Generator
) -> Float[Tensor, "batch channels rows cols"]:
    """``z + sigma * noise`` with one ``sigma ~ U(0, tau)`` per image: what a decoder learns to undo.

    RAE (arXiv 2510.11690) writes ``sigma ~ |N(0, tau^2)|``; its released code, followed here, draws it uniformly.
    Sigma and noise are drawn on the generator's device in float32.
    """
    device = generator.device
    sigma = tau * torch.rand(latents.shape[0], 1, 1, 1, generator=generator, device=device)
    noise = torch.randn(latents.shape, generator=generator, device=device)
    return latents + (sigma * noise).to(latents)
