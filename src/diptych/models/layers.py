"""Layers that more than one network uses: RMSNorm, SwiGLU, rotary positions, sinusoidal time embedding.

Rotary tables hold one cosine and one sine per *pair* of channels (``head_dim / 2`` columns). Which channels make a pair
is the convention of the model: ``apply_rotary`` pairs channel i with i + head_dim / 2 (LLaMA, Qwen, "rotate half"),
``apply_rotary_interleaved`` pairs 2i with 2i + 1 (RoFormer, Lumina).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467, equation 4), in float32, returned in the input's dtype.

    ``scale`` multiplies the learned weight before it meets the input: an adaptive scale of shape ``batch 1 dim`` then
    costs no second pass over the tokens.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(
        self, x: Float[Tensor, "*batch dim"], scale: Float[Tensor, "*#batch dim"] | None = None
    ) -> Float[Tensor, "*batch dim"]:
        x32 = x.float()
        weight = self.weight.float() if scale is None else self.weight.float() * scale.float()
        if (
            x.is_cuda
        ):  # one fused kernel there; on the CPU its backward falls apart into twice the passes of the formula
            return (F.rms_norm(x32, (self.dim,), None, self.eps) * weight).to(x.dtype)
        mean_square = torch.linalg.vecdot(x32, x32).unsqueeze(-1) / self.dim
        return (x32 * torch.rsqrt(mean_square + self.eps) * weight).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"


class SwiGLU(nn.Module):
    """Gated feed-forward layer ``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202, equation 6), there without biases."""

    def __init__(self, dim: int, hidden_dim: int, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=bias)
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.down = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def swiglu_hidden_dim(dim: int, multiple_of: int = 256) -> int:
    """``2/3 * 4 * dim``, cut to an integer and rounded up to a multiple (LLaMA's rule): 4864 for 1792 and 256."""
    return multiple_of * math.ceil(int(8 * dim / 3) / multiple_of)


def rotary_table(
    positions: Float[Tensor, "*batch seq"] | Int[Tensor, "*batch seq"], head_dim: int, theta: float = 10_000.0
) -> tuple[Float[Tensor, "*batch seq half"], Float[Tensor, "*batch seq half"]]:
    """Cosine and sine of ``position * theta ** (-2 i / head_dim)``, i = 0 .. head_dim / 2 - 1, in float32.

    RoFormer, arXiv 2104.09864, equation 15.

    Raises:
        ValueError: ``head_dim`` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head_dim, got {head_dim}.")
    angles = positions.float().unsqueeze(-1) * _frequencies(head_dim, theta, positions.device)
    return angles.cos(), angles.sin()


def rotary_table_2d(
    rows: int,
    cols: int,
    head_dim: int,
    theta: float = 10_000.0,
    device: torch.device | None = None,
    alternate: bool = True,
) -> tuple[Float[Tensor, "patches half"], Float[Tensor, "patches half"]]:
    """Rotary table of a row-major grid; pairs alternate between the axes: row w_0, column w_0, row w_1, column w_1, ...

    Each axis has ``head_dim / 4`` frequencies ``w_i = theta ** (-4 i / head_dim)`` (Lumina-Next, arXiv 2406.18583).
    Without ``alternate`` all pairs of the row stand before those of the column (JiT, arXiv 2511.13720).

    Raises:
        ValueError: ``head_dim`` is no multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"2-D rotary positions need a head_dim that is a multiple of 4, got {head_dim}.")
    frequencies = _frequencies(head_dim // 2, theta, device)
    row, col = torch.meshgrid(
        torch.arange(rows, device=device).float(), torch.arange(cols, device=device).float(), indexing="ij"
    )
    places = torch.stack((row, col), dim=-1).reshape(rows * cols, 2)
    angles = (places[:, None] * frequencies[:, None] if alternate else places[:, :, None] * frequencies).flatten(1)
    return angles.cos(), angles.sin()


def apply_rotary(
    x: Float[Tensor, "batch heads seq head_dim"],
    cos: Float[Tensor, "*rows seq half"],
    sin: Float[Tensor, "*rows seq half"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Rotate channel pairs (i, i + head_dim / 2), in float32, returned in the input's dtype.

    Tables have shape ``seq half`` (one for all rows of the batch) or ``batch seq half``.
    """
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)
    full_cos, full_sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    x32 = x.float()
    return (x32 * full_cos + x32.roll(x.shape[-1] // 2, dims=-1) * full_sin).to(x.dtype)


def apply_rotary_interleaved(
    x: Float[Tensor, "batch heads seq head_dim"],
    cos: Float[Tensor, "*rows seq half"],
    sin: Float[Tensor, "*rows seq half"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Rotate channel pairs (2 i, 2 i + 1), in float32, returned in the input's dtype.

    Tables have shape ``seq half`` (one for all rows of the batch) or ``batch seq half``.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    rotation = torch.complex(cos, sin).unsqueeze(-3)
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def sinusoidal_embedding(
    t: Float[Tensor, " batch"], dim: int, max_period: float = 10_000.0
) -> Float[Tensor, "batch dim"]:
    """``[cos(t w_i), sin(t w_i)]`` with ``w_i = max_period ** (-i / (dim / 2))``, in float32.

    The scale of ``t`` is the caller's: a released architecture may want ``1000 * sigma``.

    Raises:
        ValueError: ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"a sinusoidal embedding needs an even dim, got {dim}.")
    # Rounded as in DDPM's code and its heirs: at t = 1000 another way to write it moves the fast angles by 1e-4.
    steps = torch.arange(dim // 2, device=t.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(max_period) * steps / (dim // 2))
    angles = t.float().unsqueeze(-1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _frequencies(dim: int, theta: float, device: torch.device | None) -> Float[Tensor, " half"]:
    exponents = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    return 1.0 / theta**exponents
