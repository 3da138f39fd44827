"""``diptych.load``: a model by name or folder, ready to use."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.unified import UnifiedModel


def load(model: str | Path = "diptych-scenes", device: str = "auto", dtype: str = "auto") -> "UnifiedModel":
    """Loads a model.

    Args:
        model: a bundled model's name, a model folder, or a checkpoint of a run.
        device: ``auto`` is a GPU where there is one, else the CPU.
        dtype: ``float32``, ``bfloat16`` or ``auto`` (float32 on a CPU, bfloat16 on a GPU that has it).

    Raises:
        FileNotFoundError: no such model, or a file of it is missing.
        ValueError: a damaged file, a newer format, an unknown dtype, a device that is not there.
    """
    import torch

    from diptych.unified.folder import load_model

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
    if dtype not in dtypes:
        raise ValueError(f"dtype must be auto, {' or '.join(dtypes)}, got {dtype!r}.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises depends on the device
        reason = str(error).partition("\n")[0].rstrip(".")
        shown = f" ({reason})" if len(reason) < 60 else ""
        raise ValueError(f"device {device!r} cannot be used here{shown}. Use auto, cpu, or a GPU as cuda:0.") from error
    return load_model(model, device, dtypes[dtype])
