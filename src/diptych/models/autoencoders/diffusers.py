"""Released autoencoders through ``diffusers``: AutoencoderKL (SD, SDXL, SD3, FLUX), AutoencoderTiny and AutoencoderDC.

``scaling_factor``, ``shift_factor`` and the per-channel ``latents_mean`` and ``latents_std`` of a config become our
``shift`` and ``scale``: ``(z - shift_factor) * scaling_factor`` is ``(z - shift) / scale``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.models.autoencoders.protocol import grid_shape
from diptych.models.part import part_kind

ModelClass: TypeAlias = Literal["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"]


class DiffusersAutoencoder(nn.Module):
    """An autoencoder of diffusers as a generation space.

    Made by ``load_diffusers_autoencoder`` from a released checkpoint; the constructor makes it with random weights.

    Args:
        model_class: name of the class in diffusers.
        model_config: its config as a dict.

    Raises:
        ValueError: a class that is not known.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, *, model_class: ModelClass, model_config: Mapping[str, Any]) -> None:
        super().__init__()
        import diffusers

        _check_class(model_class, "diffusers autoencoder")
        values = {name: value for name, value in model_config.items() if not name.startswith("_")}
        self.model_class: ModelClass = model_class
        self.model = getattr(diffusers, model_class).from_config(values)
        config = self.model.config
        self.channels = int(config.latent_channels)
        blocks = config.block_out_channels if model_class == "AutoencoderKL" else config.encoder_block_out_channels
        self.stride = 2 ** (len(blocks) - 1)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        shift = torch.tensor(mean if mean is not None else config.get("shift_factor") or 0.0, dtype=torch.float32)
        spread = torch.tensor(std if std is not None else 1.0, dtype=torch.float32)
        scale = spread / config.scaling_factor
        self.register_buffer("shift", shift.flatten().expand(self.channels).reshape(-1, 1, 1).clone())
        self.register_buffer("scale", scale.flatten().expand(self.channels).reshape(-1, 1, 1).clone())

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, rows, cols) of the latents of an image.

        Raises:
            ValueError: a side is no multiple of ``stride``.
        """
        return self.channels, *grid_shape(height, width, self.stride, f"the {self.model_class}")

    def encode(
        self, images: Float[Tensor, "batch 3 height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch channels rows cols"]:
        """Latents: the most likely ones, or drawn from the posterior of an AutoencoderKL if there is a generator.

        The noise is drawn in float32 on the generator's device. The other two classes have no posterior.

        Raises:
            ValueError: a side is no multiple of ``stride``, or a generator is given where nothing is random.
        """
        self.latent_shape(images.shape[-2], images.shape[-1])
        encoded = self.model.encode(images)
        if self.model_class == "AutoencoderKL":
            posterior = encoded.latent_dist
            latents = posterior.mode()
            if generator is not None:
                noise = torch.randn(latents.shape, generator=generator, device=generator.device)
                latents = latents + posterior.std * noise.to(latents)
        else:
            if generator is not None:
                raise ValueError(f"the {self.model_class} has no posterior to draw from: leave the generator out.")
            latents = encoded.latents if self.model_class == "AutoencoderTiny" else encoded.latent
        return (latents - self.shift) / self.scale

    def decode(self, latents: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch 3 height width"]:
        """Images, clipped to [-1, 1]."""
        return self.decode_unclipped(latents).clamp(-1, 1)

    def decode_unclipped(
        self, latents: Float[Tensor, "batch channels rows cols"]
    ) -> Float[Tensor, "batch 3 height width"]:
        images: Tensor = self.model.decode(latents * self.scale + self.shift).sample
        return images

    def config_dict(self) -> dict[str, Any]:
        config = {name: value for name, value in self.model.config.items() if not name.startswith("_")}
        return {"kind": part_kind(self), "model_class": self.model_class, "model_config": _lists(config)}


def load_diffusers_autoencoder(
    source: str | Path,
    subfolder: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> DiffusersAutoencoder:
    """Loads a released autoencoder from a local folder or a hub id, in evaluation mode.

    Args:
        subfolder: ``vae`` in the folder of a whole pipeline.

    Raises:
        ValueError: a class that is not known, or a checkpoint without some weight.
        OSError: nothing there (the message of diffusers).
    """
    import diffusers

    place = {"subfolder": subfolder, "revision": revision}
    config: Any = diffusers.AutoencoderKL.load_config(str(source), **place)  # reads the file, whatever its class
    model_class = config.get("_class_name")
    _check_class(model_class, str(source))
    space = DiffusersAutoencoder(model_class=model_class, model_config=config)
    model, info = getattr(diffusers, model_class).from_pretrained(
        str(source), torch_dtype=dtype, output_loading_info=True, low_cpu_mem_usage=False, **place
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{source}: {len(missing)} weights are not in the checkpoint; the first is {missing[0]}.")
    space.model = model
    return space.eval()


def _check_class(model_class: Any, where: str) -> None:
    if model_class not in get_args(ModelClass):
        raise ValueError(f"{where}: the class must be one of {', '.join(get_args(ModelClass))}, got {model_class!r}.")


def _lists(value: Any) -> Any:
    """JSON has no tuples."""
    if isinstance(value, Mapping):
        return {name: _lists(item) for name, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
