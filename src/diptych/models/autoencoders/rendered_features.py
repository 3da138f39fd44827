"""Pooled features of an encoder as a generation space that a second diffusion model renders (BLIP3-o, 2505.09568).

``encode`` pools the features of a frozen encoder. ``decode`` is the visual decoder of Emu2 (arXiv 2312.13286): the
network of SDXL (arXiv 2307.01952) with the features where it had the text, drawing latents of an autoencoder:

    64 features x 1792 --cross-attention, and their mean as the pooled text--> latents 4 x 128 x 128 --> 1024 x 1024

Both are modules of ``diffusers``. The state of the sampler is kept in float32, and every image's noise follows from a
seed of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.part import build_part, part_kind

SOLVERS = ("euler", "multistep")

_NOISE_LEVELS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
"""What the schedulers of diffusers share: fields that say how noise grows, and what the network returns."""

_NOISE_STREAM = 0x9E3779B97F4A7C15
"""Keeps the decoder's noise apart from what else is drawn from an image's seed."""


class RenderedFeatures(nn.Module):
    """The space; its networks have random weights until they are loaded.

    Args:
        channels: of the features.
        grid: rows and columns of the pooled features.
        unet, vae, scheduler: their configurations in diffusers (``UNet2DConditionModel``, ``AutoencoderKL``,
            ``EulerDiscreteScheduler``).
        encoder: the encoder or its ``config_dict()``. None: images cannot be encoded, only drawn.
        input_size: side of the images that are encoded.
        image_size: side of the images that are rendered.
        num_steps: of the decoder.
        guidance_scale: of the decoder; 1 is off.
        solver: ``euler`` is the released one; ``multistep`` (DPM-Solver++ of second order, arXiv 2211.01095) is for few
            steps.

    Raises:
        ValueError: sizes that do not fit together.
    """

    shift: Tensor
    scale: Tensor
    null_features: Tensor
    takes_seeds = True
    """``decode`` draws noise, from one seed per image."""

    def __init__(
        self,
        *,
        channels: int,
        grid: Sequence[int],
        unet: Mapping[str, Any],
        vae: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        encoder: nn.Module | Mapping[str, Any] | None = None,
        input_size: int = 448,
        image_size: int = 1024,
        num_steps: int = 50,
        guidance_scale: float = 3.0,
        solver: str = "euler",
    ) -> None:
        super().__init__()
        import diffusers

        self.channels = channels
        self.grid = (int(grid[0]), int(grid[1]))
        self.input_size = input_size
        self.image_size = image_size
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.solver = solver
        self.stride = input_size // self.grid[0]
        self.unet: Any = diffusers.UNet2DConditionModel.from_config(_public(unet))
        self.vae: Any = diffusers.AutoencoderKL.from_config(_public(vae))
        self.scheduler_config = _public(scheduler)
        self.encoder: Any = build_part(encoder) if isinstance(encoder, Mapping) else encoder
        taken = self.unet.config.cross_attention_dim
        if taken != channels:
            raise ValueError(f"the decoder's unet takes features of {taken} channels, the space has {channels}.")
        if self.encoder is not None and self.encoder.dim != channels:
            raise ValueError(f"the encoder's features have {self.encoder.dim} channels, the space {channels}.")
        if solver not in SOLVERS:
            raise ValueError(f"the decoder's solver must be {' or '.join(SOLVERS)}, got {solver!r}.")
        self.register_buffer("shift", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.register_buffer("null_features", torch.zeros(channels, *self.grid))
        """What guidance leads away from: features drawn for a blank prompt."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, rows, cols) of the features, for the size that is encoded or the one that is rendered.

        Raises:
            ValueError: another size; the networks were trained for one grid.
        """
        if (height, width) not in ((self.input_size,) * 2, (self.image_size,) * 2):
            raise ValueError(
                f"this model draws images of {self.image_size}x{self.image_size} only, got {height}x{width}. Leave the "
                "size out, and resize the image."
            )
        return self.channels, *self.grid

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Features of the encoder, averaged over equal squares.

        Raises:
            ValueError: there is no encoder.
        """
        if self.encoder is None:
            raise ValueError(
                "this model was loaded without its EVA-CLIP tower, so it can draw but not encode images to be drawn. "
                "Load it with encoder_file=, the pytorch_model.bin of jiuhai/eva_clip_vision_tower."
            )
        output = self.encoder(images)
        features = output.tokens.transpose(1, 2).unflatten(2, output.grid)
        pooled = F.avg_pool2d(features, output.grid[0] // self.grid[0])
        return (pooled - self.shift) / self.scale

    def decode(
        self, latents: Float[Tensor, "batch channels rows cols"], seeds: Sequence[int] | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        """Images, clipped to [-1, 1]; image i has the noise of ``seeds[i]``, by default of i."""
        return self.decode_unclipped(latents, seeds).clamp(-1, 1)

    def decode_unclipped(
        self, latents: Float[Tensor, "batch channels rows cols"], seeds: Sequence[int] | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        """The same before clipping."""
        features = latents * self.scale + self.shift
        count = len(features)
        scheduler = self._scheduler()
        scheduler.set_timesteps(self.num_steps, device=features.device)
        condition = self._condition(features)
        x = self._noise(range(count) if seeds is None else seeds).to(features.device) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            given = scheduler.scale_model_input(x, timestep)
            given = torch.cat([given] * (len(condition["encoder_hidden_states"]) // count)).to(self.unet.dtype)
            predicted = self.unet(given, timestep, **condition).sample.float()
            if len(predicted) > count:
                conditional, null = predicted.chunk(2)
                predicted = null + self.guidance_scale * (conditional - null)
            x = scheduler.step(predicted, timestep, x).prev_sample
        images: Tensor = self.vae.decode((x / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return images

    def _scheduler(self) -> Any:
        import diffusers

        if self.solver == "euler":
            return diffusers.EulerDiscreteScheduler.from_config(self.scheduler_config)
        config = {name: self.scheduler_config[name] for name in _NOISE_LEVELS if name in self.scheduler_config}
        # Even steps in the logarithm of signal over noise, from the noisiest level on. Even timesteps are no better
        # here than Euler's method where the data is narrow.
        return diffusers.DPMSolverMultistepScheduler(**config, solver_order=2, use_lu_lambdas=True)

    def _condition(self, features: Tensor) -> dict[str, Any]:
        """What the decoder is told at every step: the features, and behind them the null features, as tokens."""
        if self.guidance_scale != 1:
            features = torch.cat([features, self.null_features.to(features).expand_as(features)])
        tokens = rearrange(features, "batch channels rows cols -> batch (rows cols) channels").to(self.unet.dtype)
        sides = [self.image_size, self.image_size, 0, 0, self.image_size, self.image_size]  # as made, crop, as wanted
        time_ids = torch.tensor([sides] * len(tokens), device=tokens.device)
        return {
            "encoder_hidden_states": tokens,
            "added_cond_kwargs": {"text_embeds": tokens.mean(1), "time_ids": time_ids},
        }

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        """Standard normal latents, drawn in float32 on the CPU, so that devices agree."""
        side = self.image_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.unet.config.in_channels, side, side)
        generators = [torch.Generator().manual_seed((seed + _NOISE_STREAM) % 2**63) for seed in seeds]
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    def config_dict(self) -> dict[str, Any]:
        return {
            "kind": part_kind(self),
            "channels": self.channels,
            "grid": list(self.grid),
            "unet": _public(self.unet.config),
            "vae": _public(self.vae.config),
            "scheduler": self.scheduler_config,
            "encoder": None if self.encoder is None else self.encoder.config_dict(),
            "input_size": self.input_size,
            "image_size": self.image_size,
            "num_steps": self.num_steps,
            "guidance_scale": self.guidance_scale,
            "solver": self.solver,
        }


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what diffusers notes about itself; JSON has no tuples."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config.items()
        if not name.startswith("_")
    }
