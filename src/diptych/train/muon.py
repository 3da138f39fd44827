"""Muon: momentum whose matrices are made orthogonal before they are applied, with AdamW for everything else.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). An update of a weight matrix has all
its singular values brought near 1 by five Newton-Schulz steps, so that rare directions (what binds a colour to a shape,
where most of the gradient is about which colours there are) are learnt at the rate of common ones.

torch's own `torch.optim.Muon` does the iteration in bfloat16, matrix by matrix, which CPUs without bfloat16 units do
13 times slower than float32. Here it runs over all matrices of one shape at once, and in bfloat16 (twice as fast as
float32 on a CPU that has it) only where the run computes in it. Of several processes each makes its share of the
updates: on a CPU the iteration takes as long as the gradients of a small batch.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of ``a x + b x^3 + c x^5``: steepest at 0, and singular values end within 0.7 to 1.2."""

NEWTON_SCHULZ_STEPS = 5


def orthogonalize(
    matrices: Float[Tensor, "count rows cols"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "count rows cols"]:
    """Each matrix with its singular values brought to about 1 (0.7 to 1.2), in float32; zeros stay zeros.

    Args:
        dtype: of the iteration. In bfloat16 an update is a hundredth off.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.float()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    x = x.to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(a * x, torch.baddbmm(square, square, square, beta=b, alpha=c), x)
    return (x.mT if is_tall else x).float()


def _orthogonal_updates(matrices: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """``orthogonalize`` of every matrix; of processes that have equal matrices, each does a part for all."""
    is_distributed = dist.is_available() and dist.is_initialized()
    world, rank = (dist.get_world_size(), dist.get_rank()) if is_distributed else (1, 0)
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, owner in enumerate(_owners(matrices, world)):
        if owner == rank:
            by_shape[tuple(sorted(matrices[index].shape))].append(index)
    updates = [torch.zeros_like(matrix, dtype=torch.float32) for matrix in matrices]
    for shape, indices in by_shape.items():
        is_wide = [tuple(matrices[index].shape) == shape for index in indices]
        wide = [matrices[i] if as_is else matrices[i].mT for i, as_is in zip(indices, is_wide, strict=True)]
        for index, as_is, update in zip(indices, is_wide, orthogonalize(torch.stack(wide), dtype), strict=True):
            updates[index] = update if as_is else update.mT
    if world == 1:
        return updates
    together = torch.cat([update.flatten() for update in updates])  # zeros where another process fills in
    dist.all_reduce(together)
    parts = together.split([matrix.numel() for matrix in matrices])
    return [part.view(matrix.shape) for part, matrix in zip(parts, matrices, strict=True)]


def _owners(matrices: Sequence[Tensor], num_processes: int) -> list[int]:
    """Which process makes the update of each matrix, so that all have about as many products to do."""
    work = [max(matrix.shape) * min(matrix.shape) ** 2 for matrix in matrices]
    loads, owners = [0] * num_processes, [0] * len(matrices)
    for index in sorted(range(len(matrices)), key=lambda index: -work[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += work[index]
    return owners


class Muon(torch.optim.AdamW):
    """AdamW, except for groups with ``is_matrix``: those take orthogonalised Nesterov momentum, computed in ``dtype``.

    The learning rate of such a group is the spectral norm of an update of a square or wide matrix; that of a tall one
    is larger by the root of its rows over its columns, as in the authors' code. Its ``betas[0]`` is not used:
    ``momentum`` is. The state of a matrix is ``momentum_buffer``.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("Muon.step takes no closure.")
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["is_matrix"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["is_matrix"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        members = [parameter for parameter in group["params"] if parameter.grad is not None]
        gradients = [parameter.grad for parameter in members]
        buffers = [self._momentum_buffer(parameter) for parameter in members]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov
        lr = group["lr"]
        for parameter, update in zip(members, _orthogonal_updates(ahead, group["dtype"]), strict=True):
            rows, cols = parameter.shape
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(update.to(parameter.dtype), alpha=-lr * max(1.0, rows / cols) ** 0.5)

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW's loader wants one for every parameter
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["step"] += 1
        buffer: Tensor = state["momentum_buffer"]
        return buffer


__all__ = ["Muon", "orthogonalize"]
