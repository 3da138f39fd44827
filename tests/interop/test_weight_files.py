import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diptych.interop.weight_files import load_exactly, read_weights


def test_half_precision_weights_are_taken_in_the_networks_dtype(tmp_path):
    source = nn.Linear(3, 2)
    save_file({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "linear.safetensors")
    target = nn.Linear(3, 2)
    load_exactly(target, read_weights(tmp_path / "linear.safetensors"), "linear")
    assert target.weight.dtype == torch.float32
    torch.testing.assert_close(target.weight, source.weight.half().float(), rtol=0, atol=0)


def test_messages(tmp_path):
    network = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"here: 1 tensors are missing \(first bias\); 1 are not known \(first gain\)"):
        load_exactly(network, {"weight": torch.zeros(2, 3), "gain": torch.zeros(1)}, "here")
    with pytest.raises(ValueError, match=r"weight has the shape \(3, 2\) and should have \(2, 3\)"):
        load_exactly(network, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "here")
    with pytest.raises(FileNotFoundError, match=r"none.safetensors is missing"):
        read_weights(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(100)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cut.safetensors is no safetensors file, or a damaged one"):
        read_weights(tmp_path / "cut.safetensors")
