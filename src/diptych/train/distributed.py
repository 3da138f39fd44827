"""Several processes: who this one is, what they add up, and how the trained module is wrapped for them."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


@dataclass
class Processes:
    """This process among all of them.

    Attributes:
        max_micro_batches: micro-batches of a step, the same for all processes; a process may have fewer where records
            are broken.
    """

    rank: int
    count: int
    device: torch.device
    max_micro_batches: int = 1

    @classmethod
    def of(cls, accelerator: Accelerator, max_micro_batches: int = 1) -> "Processes":
        """The processes that accelerate has started."""
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.device, max_micro_batches)

    def sum(self, tensor: Tensor) -> None:
        """Adds up a tensor over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank; for small things that are rarely exchanged."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values


@contextmanager
def gradient_sync(module: nn.Module, is_last: bool) -> Iterator[None]:
    """Averages gradients over processes in the backward pass of the last micro-batch only."""
    if module.__class__.__name__.startswith("FSDP"):
        sharded: Any = module
        sharded.set_requires_gradient_sync(is_last)
        sharded.set_reshard_after_backward(is_last)  # processes may have different numbers of micro-batches
    no_sync = getattr(module, "no_sync", nullcontext)
    with nullcontext() if is_last else no_sync():
        yield


def wrap(module: nn.Module, processes: Processes) -> nn.Module:
    """The module as several processes train it: DDP averages gradients; one process needs nothing."""
    if processes.count == 1:
        return module
    ddp = nn.parallel.DistributedDataParallel
    # Buffers do not change in training, and processes may run different numbers of forward passes. Torch 2.13 renamed
    # the switch.
    renamed = "forward_sync_buffers" in inspect.signature(ddp.__init__).parameters
    no_buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return ddp(
        module,
        device_ids=[processes.device] if processes.device.type == "cuda" else None,
        **no_buffers,
        find_unused_parameters=True,  # a process whose examples hold no image does not reach the image head
        gradient_as_bucket_view=True,
    )
