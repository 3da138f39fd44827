"""``diptych.load``: a model by name or folder, ready to use."""

import logging
from collections.abc import Callable, Mapping
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.unified import UnifiedModel

logger = logging.getLogger(__name__)


def load(
    model: str | Path = "diptych-scenes",
    device: str | Mapping[str, str] = "auto",
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
        device: ``auto`` is a GPU where there is one, else the CPU. ``{"backbone": "cuda:0", "denoiser": "cuda:1"}``, or
            ``"backbone=cuda:0,denoiser=cuda:1"``, gives parts devices of their own (``encoder``, ``autoencoder`` too);
            all else is with the backbone. For inference alone.
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
            there, ``bits`` that the device has not, devices of parts that are not there or with ``memory="offload"``.
    """
    import torch

    from diptych.interop.released import load_released, released_kind
    from diptych.unified.folder import load_model

    if memory not in ("all", "offload"):
        raise ValueError(f"memory must be all or offload, got {memory!r}.")
    if bits is not None and memory == "offload":
        raise ValueError("bits and memory offload do not go together: take one of them.")
    devices = _part_devices(device)
    if devices is not None and memory == "offload":
        raise ValueError("devices for parts and memory offload do not go together: take one of them.")
    runs_on = str(device) if devices is None else devices.get("backbone", "cpu")
    if runs_on == "auto":
        runs_on = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        dtype = "bfloat16" if runs_on.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
    if dtype not in dtypes:
        raise ValueError(f"dtype must be auto, {' or '.join(dtypes)}, got {dtype!r}.")
    for one in [runs_on] if devices is None else devices.values():
        _check_device(one)
    if memory == "offload" and runs_on == "cpu":
        logger.warning("memory offload has no effect: the model runs on the CPU, where all of it is.")
    place: Callable[[UnifiedModel], None] | None = None
    if memory == "offload":
        place = methodcaller("offload_to", runs_on)
    elif devices is not None:
        place = methodcaller("place", devices)
    starts_on = runs_on if place is None else "cpu"
    kind = released_kind(model)
    if kind is not None:
        loaded = load_released(kind, model, starts_on, dtypes[dtype], place, released)
    elif released:
        raise TypeError(f"{', '.join(released)}: only folders of BLIP3-o's released models take this, {model} is none.")
    else:
        loaded = load_model(model, starts_on, dtypes[dtype])
        if place is not None:
            place(loaded)
    if adapters is not None:
        from diptych.unified.adapter_files import merge_adapters

        merge_adapters(loaded, adapters)
    if bits is not None:
        from diptych.unified.low_bits import use_low_bits

        use_low_bits(loaded, bits)
    return loaded


def _part_devices(device: str | Mapping[str, str]) -> Mapping[str, str] | None:
    """Devices by part; None where one is for all."""
    if not isinstance(device, str):
        return device
    if "=" not in device:
        return None
    pairs = [pair.partition("=") for pair in device.split(",")]
    if any(not name.strip() or not place.strip() for name, _, place in pairs):
        raise ValueError(f"device must be one, or PART=DEVICE,PART=DEVICE, got {device!r}.")
    return {name.strip(): place.strip() for name, _, place in pairs}


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises depends on the device
        reason = str(error).partition("\n")[0].rstrip(".")
        shown = f" ({reason})" if len(reason) < 60 else ""
        raise ValueError(f"device {device!r} cannot be used here{shown}. Use auto, cpu, or a GPU as cuda:0.") from error
