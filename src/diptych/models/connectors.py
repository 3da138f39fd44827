"""Connectors: maps of features or hidden states from one width to another, token by token."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.encoders.vision_block import sincos_positions

POSITION_PERIOD = 100.0
"""Slowest wave of a connector's position codes, over 2 pi: grids of tens of features, not of thousands."""


class LinearConnector(nn.Module):
    """One linear map."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.proj = nn.Linear(in_dim, out_dim)

    def forward(self, features: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out_dim"]:
        return self.proj(features)

    def config_dict(self) -> dict[str, Any]:
        """Arguments that build the same connector again."""
        return {"in_dim": self.in_dim, "out_dim": self.out_dim}


class MLPConnector(nn.Module):
    """Linear, GELU, linear: with equal hidden and output widths LLaVA-1.5's ``mlp2x_gelu`` (arXiv 2310.03744)."""

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int | None = None, position_dim: int = 0) -> None:
        """
        Args:
            hidden_dim: ``out_dim`` where not given.
            position_dim: width of a sin-cos code of a feature's row and column, which a linear map adds to the output.
                A backbone whose own positions have one axis cannot tell otherwise where in an image a feature stands.
                0 adds none.
        """
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.hidden_dim = out_dim if hidden_dim is None else hidden_dim
        self.position_dim = position_dim
        self.fc1 = nn.Linear(in_dim, self.hidden_dim)
        self.fc2 = nn.Linear(self.hidden_dim, out_dim)
        self.position = nn.Linear(position_dim, out_dim, bias=False) if position_dim else None

    def forward(self, features: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out_dim"]:
        tokens = self.fc2(F.gelu(self.fc1(features)))
        return tokens if self.position is None else tokens + self.positions(features.shape[-3], features.shape[-2])

    def positions(self, rows: int, cols: int) -> Float[Tensor, "rows cols out_dim"]:
        """What is added to the features of a grid."""
        assert self.position is not None
        weight = self.position.weight
        code = sincos_positions(rows, cols, self.position_dim, weight.device, POSITION_PERIOD).to(weight.dtype)
        return self.position(code).unflatten(0, (rows, cols))

    def config_dict(self) -> dict[str, Any]:
        """Arguments that build the same connector again."""
        sizes = {"in_dim": self.in_dim, "out_dim": self.out_dim, "hidden_dim": self.hidden_dim}
        return {**sizes, "position_dim": self.position_dim}


class IdentityConnector(nn.Module):
    """No map, for parts whose widths agree."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_dim = self.out_dim = dim

    def forward(self, features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return features

    def config_dict(self) -> dict[str, Any]:
        """Arguments that build the same connector again."""
        return {"dim": self.out_dim}
