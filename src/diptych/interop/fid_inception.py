"""The Inception weights of FID, from the file that users of pytorch-fid and torch-fidelity have already.

``pt_inception-2015-12-05-6726825d.pth`` of pytorch-fid and ``weights-inception-2015-12-05-6726825d.pth`` of
torch-fidelity are state dicts with the same names, which are ours. It is looked for where those packages put it.
``classify_image_graph_def.pb`` is the original graph, which ADM's evaluator downloads.
"""

import os
from pathlib import Path

import torch

from diptych.interop.tensorflow_graph import read_float_constants
from diptych.interop.weight_files import load_exactly, read_torch_file, read_weights
from diptych.models.encoders.fid_inception import FidInception, MixedBlock

FILE_NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")


def load_fid_inception(path: str | Path | None = None) -> FidInception:
    """The network in evaluation mode.

    Args:
        path: the ``.pth`` file, the same tensors as ``.safetensors``, or the ``.pb`` graph; None looks into torch's
            cache of checkpoints.

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
    if file.suffix == ".pb":
        return _from_graph(file)
    tensors = read_torch_file(file)
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError(f"{file} must hold tensors by name, and nothing else.")
    return tensors


def graph_names(network: FidInception) -> dict[str, str]:
    """The convolutions of the original graph, ours by theirs: ``mixed_9/tower/mixed/conv_1`` is a fork of a branch."""
    names = {}
    stem = [name for name, _ in network.named_children() if name.startswith("Conv2d")]
    for index, name in enumerate(stem):
        names[_numbered("conv", index)] = name
    mixed = [(name, block) for name, block in network.named_children() if isinstance(block, MixedBlock)]
    for index, (name, block) in enumerate(mixed):
        room, num_towers = _numbered("mixed", index), 0
        for branch, forks in zip(block.branches, block.fork_names, strict=True):
            place = room
            if len(branch) + len(forks) > 1:
                place, num_towers = f"{room}/{_numbered('tower', num_towers)}", num_towers + 1
            names |= {f"{place}/{_numbered('conv', i)}": f"{name}.{conv}" for i, conv in enumerate(branch)}
            names |= {f"{place}/mixed/{_numbered('conv', i)}": f"{name}.{conv}" for i, conv in enumerate(forks)}
        if hasattr(block, "branch_pool"):
            names[f"{room}/{_numbered('tower', num_towers)}/conv"] = f"{name}.branch_pool"
    return names


def _from_graph(file: Path) -> dict[str, torch.Tensor]:
    constants = read_float_constants(file)
    norm = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    places = {"softmax/weights": "fc.weight", "softmax/biases": "fc.bias"}
    for theirs, ours in graph_names(FidInception()).items():
        places[f"{theirs}/conv2d_params"] = f"{ours}.conv.weight"
        places |= {f"{theirs}/batchnorm/{name}": f"{ours}.bn.{part}" for name, part in norm.items()}
    tensors = {places[name]: torch.from_numpy(value.T.copy()) for name, value in constants.items() if name in places}
    # transposed as a whole: [height, width, in, out] became [out, in, width, height]
    return {name: value.transpose(2, 3).contiguous() if value.ndim == 4 else value for name, value in tensors.items()}


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name


def _find() -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"the Inception weights of FID are not in {folder}{os.sep}: looked for {' and '.join(FILE_NAMES)}. Run "
        "pytorch-fid or torch-fidelity once, or give the file: --features inception=FILE."
    )
