"""Reading a safetensors file into a network that must match it exactly."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, cut short, or another format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}.") from error


def load_exactly(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copies the tensors into the network, in the network's dtype.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape; names the first of each.
    """
    own = network.state_dict()
    problems = []
    # the counters of batch norm steer nothing, and many files leave them out
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    if missing:
        problems.append(f"{len(missing)} tensors are missing (first {missing[0]})")
    unknown = [name for name in tensors if name not in own]
    if unknown:
        problems.append(f"{len(unknown)} are not known (first {unknown[0]})")
    for name, value in own.items():
        if name in tensors and tensors[name].shape != value.shape:
            problems.append(f"{name} has the shape {tuple(tensors[name].shape)} and should have {tuple(value.shape)}")
            break
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}.")
    network.load_state_dict(dict(tensors))
