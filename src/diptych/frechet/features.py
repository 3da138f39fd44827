"""Features of images for Fréchet distances: a frozen network with everything that decides what it returns.

``Features`` takes uint8 images, or floats with their value range, and returns one vector each, with gradients to the
images. Encoders are imported by those who pass them; this file needs torch alone.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from diptych.frechet.moments import Moments
from diptych.frechet.preprocessing import FeatureDtype, Outside, Pooling, Preprocessing, Resize, unit_images

ReadOutput: TypeAlias = Callable[[Any], Tensor]
"""From what a network returns to ``[batch, dim]``."""


@runtime_checkable
class ImageFeatures(Protocol):
    """What scoring and FD-loss need of a feature network."""

    dim: int

    @property
    def network_id(self) -> str:
        """Name and weights: ``Moments.network``."""

    @property
    def fingerprint(self) -> str:
        """Everything else that decides the features: ``Moments.preprocessing``."""

    def __call__(
        self,
        images: Shaped[Tensor, "batch 3 height width"],
        value_range: tuple[float | int, float | int] | None = None,
        *,
        outside: Outside = "refuse",
        quantize: bool = False,
    ) -> Float[Tensor, "batch dim"]: ...


class Features(nn.Module):
    """A frozen network behind `ImageFeatures`; its weights get no gradient, its images do.

    Args:
        network: takes what ``preprocessing.apply`` returns.
        read: picks the feature out of the network's output.
    """

    def __init__(
        self, network: nn.Module, *, name: str, dim: int, preprocessing: Preprocessing, read: ReadOutput | None = None
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.dim = dim
        self.preprocessing = preprocessing
        self._read = read
        self._network_id: str | None = None

    @property
    def network_id(self) -> str:
        """``name@`` and 12 hexadecimal digits of the weights; computed once, so weights must not change after it."""
        if self._network_id is None:
            self._network_id = f"{self.name}@{weights_digest(self.network)}"
        return self._network_id

    @property
    def fingerprint(self) -> str:
        """See `Preprocessing.fingerprint`."""
        return self.preprocessing.fingerprint()

    def forward(
        self,
        images: Shaped[Tensor, "batch 3 height width"],
        value_range: tuple[float | int, float | int] | None = None,
        *,
        outside: Outside = "refuse",
        quantize: bool = False,
    ) -> Float[Tensor, "batch dim"]:
        """One float32 vector an image. The arguments are those of `unit_images`.

        Raises:
            ValueError: see `unit_images`; or the network returns another shape than ``[batch, dim]``.
        """
        prepared, _ = unit_images(images, value_range, outside=outside, quantize=quantize)
        return self.from_prepared(self.preprocessing.apply(prepared))

    def from_prepared(self, inputs: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Features of what `Preprocessing.apply` returned: for images of several sizes, which it makes equal."""
        is_half = self.preprocessing.dtype == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=is_half):
            output = self.network(inputs)
        features = output if self._read is None else self._read(output)
        if features.shape != (len(inputs), self.dim):
            raise ValueError(
                f"feature network {self.name} must return {len(inputs)} x {self.dim} numbers, got "
                f"{tuple(features.shape)}. Give the right dim, or a read function that pools."
            )
        return features.float()

    def train(self, mode: bool = True) -> "Features":
        """Stays in evaluation mode: batch norm and dropout would make features depend on the batch."""
        return super().train(False)

    def new_moments(self, device: torch.device | str = "cpu") -> Moments:
        """Empty moments that know where their rows come from."""
        return Moments(self.dim, network=self.network_id, preprocessing=self.fingerprint, device=device)


def module_features(
    network: nn.Module,
    *,
    name: str,
    dim: int,
    size: tuple[int, int],
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    resize: Resize = "bicubic",
    dtype: FeatureDtype = "float32",
    read: ReadOutput | None = None,
) -> Features:
    """Any module that takes normalised images and returns vectors, or something that ``read`` makes vectors of."""
    preprocessing = Preprocessing(size=size, resize=resize, mean=mean, std=std, dtype=dtype)
    return Features(network, name=name, dim=dim, preprocessing=preprocessing, read=read)


def encoder_features(
    encoder: nn.Module,
    *,
    name: str,
    pooling: Pooling,
    size: tuple[int, int],
    resize: Resize = "bicubic",
    dtype: FeatureDtype = "float32",
) -> Features:
    """A vision encoder of ``diptych.models.encoders``, which takes images in [-1, 1] and applies its own mean and std.

    Args:
        pooling: ``mean`` of the patch tokens; every other word takes the encoder's pooled vector and must be how the
            encoder pools (``own_pooling`` of the encoder, where it says).
        size: where it is neither the size the encoder was trained at nor a multiple of its patch size, the image is
            padded with the encoder's mean colour.

    Raises:
        ValueError: the encoder pools in another way, or not at all.
    """
    parts: Any = encoder
    own = getattr(encoder, "own_pooling", "network")
    if pooling not in ("mean", own):
        raise ValueError(f"features {name}: pooling must be 'mean' or the encoder's own {own!r}, got {pooling!r}.")
    rule = getattr(encoder, "rule", None)
    mean, std = (rule.mean, rule.std) if rule is not None else ((0.5,) * 3, (0.5,) * 3)
    trained = getattr(encoder, "trained_size", None)
    multiple = 1 if size in (trained, (trained, trained)) else parts.patch_size
    preprocessing = Preprocessing(
        size=size, resize=resize, mean=mean, std=std, pad_multiple=multiple, pooling=pooling, dtype=dtype
    )
    dim = parts.dim if pooling == "mean" else getattr(encoder, "pooled_dim", parts.dim)
    return Features(
        _SignedInput(encoder, mean, std), name=name, dim=dim, preprocessing=preprocessing, read=_PICK[pooling]
    )


def weights_digest(network: nn.Module) -> str:
    """12 hexadecimal digits over names, types and values of all parameters and buffers, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()[:12]


class _SignedInput(nn.Module):
    """Undoes mean and std, which the encoder applies itself to images in [-1, 1]."""

    def __init__(self, encoder: nn.Module, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.encoder = encoder
        self._mean, self._std = mean, std

    def forward(self, normalized: Tensor) -> Any:
        shape = (1, 3, 1, 1)
        mean, std = (torch.tensor(value, device=normalized.device).reshape(shape) for value in (self._mean, self._std))
        return self.encoder((normalized * std + mean) * 2 - 1)


def _pooled(output: Any) -> Tensor:
    if output.pooled is None:
        raise ValueError("this encoder has no pooled vector: use pooling 'mean'.")
    return output.pooled


def _mean_token(output: Any) -> Tensor:
    return output.tokens.mean(1)


_PICK: dict[str, ReadOutput] = {
    "mean": _mean_token,
    "class-token": _pooled,
    "attention": _pooled,
    "network": _pooled,
}
