"""MMDiT-X, the denoiser of Stable Diffusion 3 and 3.5 (arXiv 2403.03206), through ``diffusers``.

Text and image tokens have weights of their own and attend to each other. Released: time runs from data to noise in
thousandths and the network returns ``noise - data``; here ``t = 0`` is noise and the output is ``data - noise``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from diptych.flow.path import Prediction
from diptych.models.part import part_kind

TIMESTEPS = 1000
"""What the network is told of pure noise."""


@dataclass(frozen=True)
class SD3Condition:
    """What a prompt is to the denoiser."""

    tokens: Float[Tensor, "batch tokens dim"]
    """Of the text encoders, one behind the other."""
    pooled: Float[Tensor, "batch pooled_dim"]
    """Of the CLIP text encoders, side by side."""


class SD3Denoiser(nn.Module):
    """A ``SD3Transformer2DModel``.

    Made by ``interop.sd3`` from a released pipeline; the constructor makes it with random weights.

    Args:
        model_config: its config as a dict.
    """

    prediction: Prediction = "velocity"

    def __init__(self, *, model_config: Mapping[str, Any]) -> None:
        super().__init__()
        from diffusers import SD3Transformer2DModel

        values = {name: value for name, value in model_config.items() if not name.startswith("_")}
        self.model: Any = SD3Transformer2DModel.from_config(values)
        self.channels = int(self.model.config.in_channels)
        self.patch_size = int(self.model.config.patch_size)

    def forward(
        self, x_t: Float[Tensor, "batch channels rows cols"], t: Float[Tensor, " batch"], condition: SD3Condition
    ) -> Float[Tensor, "batch channels rows cols"]:
        """The velocity ``data - noise``."""
        output: Tensor = self.model(
            hidden_states=x_t,
            timestep=TIMESTEPS * (1 - t),
            encoder_hidden_states=condition.tokens,
            pooled_projections=condition.pooled,
            return_dict=False,
        )[0]
        return -output

    def checkpoint_activations(self) -> None:
        """Computes the blocks anew in the backward pass, from now on."""
        self.model.enable_gradient_checkpointing()

    def config_dict(self) -> dict[str, Any]:
        config = {name: value for name, value in self.model.config.items() if not name.startswith("_")}
        return {
            "kind": part_kind(self),
            "model_config": {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
        }
