"""``diptych.load``: a model by name or folder, ready to use."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.unified import UnifiedModel

logger = logging.getLogger(__name__)


def load(
    model: str | Path = "diptych-scenes",
    device: str = "auto",
    dtype: str = "auto",
    *,
    memory: str = "all",
    adapters: str | Path | None = None,
    bits: int | None = None,
    **released: Any,
) -> "UnifiedModel":
    """Loads a model.

    Args:
        model: a bundled model's name, a model folder, a checkpoint of a run, or a folder of BLIP3o-Model-4B, -8B or
            BLIP3o-NEXT.
        device: ``auto`` is a GPU where there is one, else the CPU.
        dtype: ``float32``, ``bfloat16`` or ``auto`` (float32 on a CPU, bfloat16 on a GPU that has it).
        memory: ``offload`` keeps on the device only what the present stage runs (reading, drawing, rendering), the rest
            in main memory: the largest of them must fit instead of their sum. For inference alone.
        adapters: low-rank adapters that are added to the weights: their folder, or a run that trained them.
        bits: 8 or 4 for weights of backbone and denoiser as whole numbers of so many bits (the extra ``quant``), made
            after loading. For inference alone; 4 on a GPU in bfloat16 alone.
        released: for BLIP3-o's released folders, what `diptych.interop.blip3o.load_blip3o` takes: ``encoder_file``,
            ``can_draw``, ``allow_unknown``, ``strict_original``; for BLIP3o-NEXT's what
            `diptych.interop.blip3o_next_folder.load_blip3o_next` takes.

    Raises:
        FileNotFoundError: no such model, or a file of it is missing; no adapters there.
        ModuleNotFoundError: ``bits`` without torchao.
        ValueError: adapters of another model, a damaged file, a newer format, an unknown dtype, a device that is not
            there, ``bits`` that the device has not.
    """
    import torch

    from diptych.interop.released import load_released, released_kind
    from diptych.unified.folder import load_model

    if memory not in ("all", "offload"):
        raise ValueError(f"memory must be all or offload, got {memory!r}.")
    if bits is not None and memory == "offload":
        raise ValueError("bits and memory offload do not go together: take one of them.")
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
    place = "cpu" if memory == "offload" else device
    if memory == "offload" and device == "cpu":
        logger.warning("memory offload has no effect: the model runs on the CPU, where all of it is.")
    kind = released_kind(model)
    if kind is not None:
        offload_to = device if memory == "offload" else None
        loaded = load_released(kind, model, place, dtypes[dtype], offload_to, released)
    elif released:
        raise TypeError(f"{', '.join(released)}: only folders of BLIP3-o's released models take this, {model} is none.")
    else:
        loaded = load_model(model, place, dtypes[dtype])
        if memory == "offload":
            loaded.offload_to(device)
    if adapters is not None:
        from diptych.unified.adapter_files import merge_adapters

        merge_adapters(loaded, adapters)
    if bits is not None:
        from diptych.unified.low_bits import use_low_bits

        use_low_bits(loaded, bits)
    return loaded
