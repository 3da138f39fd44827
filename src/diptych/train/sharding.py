"""Parameters, gradients and optimizer state cut up over processes (FSDP2, ``torch.distributed.fsdp.fully_shard``).

Between steps every process holds its shard only; at the start of a step's first forward pass all parameters are
gathered at once, and in its last backward pass gradients are averaged and cut up again. There is one group for the
whole model, not one for each block: which blocks a process runs depends on its examples (a process without images does
not reach the image head), and processes that gather different blocks would wait for each other for ever. So a whole
copy of the parameters must fit on a device during a step; what is spared is the rest, which is most: gradients,
moments, averages.

What others see (samples, scores, the saved model) is ``task.model``, a plain copy that the shards are gathered into.
"""

import copy
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diptych.train.distributed import Processes


def sharded_copy(model: nn.Module) -> nn.Module:
    """A copy of the model to be cut up; parameters keep their names and ``requires_grad``."""
    return copy.deepcopy(model)


def shard(module: nn.Module, processes: Processes) -> nn.Module:
    """Cuts the module up over all processes, in place.

    Raises:
        ValueError: a parameter has no axis to be cut along.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    scalars = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ValueError(
            f"FSDP2 cannot shard parameters without an axis, such as {scalars[0]!r}: give it shape (1,), or train "
            "without --use_fsdp."
        )
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    return module


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is cut up over processes."""
    # Importing DTensor takes a second; where nobody has, no tensor is one.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's shard, or the tensor itself; shares its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full(tensor: Tensor) -> Tensor:
    """The whole tensor; of a sharded one a copy, for which all processes must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def collected(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The whole tensors, those that were sharded on the CPU; nothing in processes that do not ``keep`` them.

    All processes must call this together. One tensor at a time is whole on the device.
    """
    whole = {}
    for name, tensor in tensors.items():
        value = full(tensor)
        if keep:
            whole[name] = value.cpu() if is_sharded(tensor) else value
    return whole


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, known to every process, cut up as ``like`` is; the tensor itself if ``like`` is whole."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Every process has all of it, so each takes its part and nothing is sent.
    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def from_local(shard_of_process: Tensor, like: Tensor) -> Tensor:
    """The sharded tensor whose part on each process is given; cut up as ``like`` is."""
    if not is_sharded(like):
        return shard_of_process
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard_of_process,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        shape=like.shape,
        stride=like.stride(),
    )


@torch.no_grad()
def gather_into(target: nn.Module, source: Mapping[str, nn.Parameter]) -> None:
    """Copies sharded parameters into those of a whole model, by name."""
    own = dict(target.named_parameters())
    for name, parameter in source.items():
        own[name].copy_(full(parameter.detach()))
