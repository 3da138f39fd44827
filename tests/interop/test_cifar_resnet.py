import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diptych.interop.cifar_resnet import CLASSES, CifarResNet, load_cifar_resnet
from diptych.models.part import build_part
from diptych.models.preprocess import to_float


def test_shapes_and_files(tmp_path):
    torch.manual_seed(0)
    network = CifarResNet(depth=20).eval()
    save_file(network.state_dict(), tmp_path / "some.safetensors")
    loaded = load_cifar_resnet(tmp_path / "some.safetensors")
    assert loaded.config_dict() == build_part(loaded.config_dict()).config_dict() == network.config_dict()
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        output = loaded(images, (0, 1, 3))
        torch.testing.assert_close(output.pooled, network(images).pooled)
    assert output.grid == (8, 12) and output.tokens.shape == (2, 96, 64)
    assert [output.layer_tokens[i].shape[1:] for i in (0, 1, 3)] == [(1536, 16), (1536, 16), (96, 64)]
    torch.testing.assert_close(output.tokens.mean(1), output.pooled)
    assert loaded.logits(images).shape == (2, len(CLASSES))
    assert loaded.preprocess(np.zeros((50, 20, 3), dtype=np.uint8)).shape == (3, 32, 32)


def test_messages(tmp_path):
    with pytest.raises(ValueError, match=r"depth of a CIFAR ResNet is 6 n \+ 2 .*got 21"):
        CifarResNet(depth=21)
    with pytest.raises(ValueError, match=r"the CIFAR ResNet takes .* multiples of 4, got 30x32"):
        CifarResNet(depth=8)(torch.zeros(1, 3, 30, 32))
    with pytest.raises(FileNotFoundError, match=r"none.safetensors is missing"):
        load_cifar_resnet(tmp_path / "none.safetensors")
    save_file({"layer1.0.conv1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.* does not hold a CIFAR ResNet: .*conv1.weight has the shape"):
        load_cifar_resnet(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("name", "depth"), [("resnet20", 20), ("resnet56", 56)])
def test_real_weights_equal_the_stored_outputs(test_data, name, depth):
    expected = np.load(test_data / "models" / "expected.npz")
    network = load_cifar_resnet(test_data / "models" / "cifar_resnet" / f"{name}.safetensors")
    assert network.depth == depth
    images = torch.stack([to_float(image) for image in expected[f"{name}/input_u8"]])
    with torch.no_grad():
        features, logits = network(images).pooled, network.logits(images)
    torch.testing.assert_close(features, torch.from_numpy(expected[f"{name}/features"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, torch.from_numpy(expected[f"{name}/logits"]), rtol=1e-4, atol=1e-5)
