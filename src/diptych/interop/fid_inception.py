"""The Inception weights of FID, from the file that users of pytorch-fid and torch-fidelity have already.

``pt_inception-2015-12-05-6726825d.pth`` of pytorch-fid and ``weights-inception-2015-12-05-6726825d.pth`` of
torch-fidelity are state dicts with the same names, which are ours. It is looked for where those packages put it.
"""

import os
import pickle
from pathlib import Path

import torch

from diptych.interop.weight_files import load_exactly, read_weights
from diptych.models.encoders.fid_inception import FidInception

FILE_NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")


def load_fid_inception(path: str | Path | None = None) -> FidInception:
    """The network in evaluation mode.

    Args:
        path: the ``.pth`` file, or the same tensors as ``.safetensors``; None looks into torch's cache of checkpoints.

    Raises:
        FileNotFoundError: not there; the message says where it was looked for and what it is called.
        ValueError: damaged, another network, or a file that holds more than tensors.
    """
    file = _find() if path is None else Path(path).expanduser()
    network = FidInception()
    load_exactly(network, _read(file), f"{file} does not hold the Inception network of FID")
    return network.eval()


def _read(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        return read_weights(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing.")
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} is no file of tensors, or a damaged one: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError(f"{file} must hold tensors by name, and nothing else.")
    return tensors


def _find() -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"the Inception weights of FID are not in {folder}{os.sep}: looked for {' and '.join(FILE_NAMES)}. Run "
        "pytorch-fid or torch-fidelity once, or give the file: --features inception=FILE."
    )
