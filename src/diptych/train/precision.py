"""Which number format a recipe's ``precision`` means on a device."""

import torch

from diptych.train.recipe import Precision


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of autocast; float32 is none.

    ``auto`` is bfloat16 where the device multiplies it at least as fast as float32: a GPU that has it, and a CPU with
    AMX or AVX512_BF16. A CPU without emulates it, several times slower than float32.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = device.type == "cpu" and cpu_has_bfloat16()
    return torch.bfloat16 if is_fast else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
