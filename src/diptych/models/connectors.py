"""Connectors: maps of features or hidden states from one width to another, token by token."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


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

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int | None = None) -> None:
        """``hidden_dim`` is ``out_dim`` where not given."""
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.hidden_dim = out_dim if hidden_dim is None else hidden_dim
        self.fc1 = nn.Linear(in_dim, self.hidden_dim)
        self.fc2 = nn.Linear(self.hidden_dim, out_dim)

    def forward(self, features: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out_dim"]:
        return self.fc2(F.gelu(self.fc1(features)))

    def config_dict(self) -> dict[str, Any]:
        """Arguments that build the same connector again."""
        return {"in_dim": self.in_dim, "out_dim": self.out_dim, "hidden_dim": self.hidden_dim}


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
