"""Speed of a stage: examples, tokens, and the share of the device's peak (model FLOPs utilisation, MFU)."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PEAK_BFLOAT16_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Dense bfloat16 tensor-core peaks of the makers' data sheets, by a part of the device name; the first match counts."""


def peak_flops(device: torch.device, precision: torch.dtype) -> float | None:
    """FLOP/s the device could do at best; None where that is not known (CPUs, other GPUs, float32)."""
    if device.type != "cuda" or precision != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BFLOAT16_FLOPS.items() if part in name), None)


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products and attention that ``run`` does, forward and backward, as it really does them."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass
class SpeedMeter:
    """Rates since the last reading; time spent on checkpoints, samples and scores does not count.

    Attributes:
        num_processes: for the share of the peak of all devices together.
    """

    num_processes: int = 1
    peak: float | None = None
    flops_per_step: int = 0
    _examples: int = 0
    _tokens: int = 0
    _steps: int = 0
    _seconds: float = 0.0
    _started: float | None = None

    def start(self) -> None:
        """The clock runs from here on."""
        self._started = time.perf_counter()

    def pause(self) -> None:
        """The clock stands still until ``start``."""
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def add(self, num_examples: int, num_tokens: int) -> None:
        """Counts one step; the numbers are of all processes."""
        self._examples += num_examples
        self._tokens += num_tokens
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Rates since the last reading; starts anew."""
        self.pause()
        seconds = max(self._seconds, 1e-9)
        rates = {"examples_per_second": self._examples / seconds, "seconds_per_step": seconds / max(1, self._steps)}
        if self._tokens:
            rates["tokens_per_second"] = self._tokens / seconds
        if self.peak and self.flops_per_step:
            # Every process counts its own FLOPs and has a device of its own, so the share is that of one of them.
            rates["mfu"] = self.flops_per_step * self._steps / seconds / self.peak
        self._examples, self._tokens, self._steps, self._seconds = 0, 0, 0, 0.0
        self.start()
        return rates
