"""ResNets for CIFAR-10 (arXiv 1512.03385, section 4.2) from akamaster/pytorch_resnet_cifar10, as vision encoders.

Depth is 6 n + 2: a convolution, three stages of n basic blocks with 16, 32 and 64 channels, a linear layer. Where a
stage halves the image, the shortcut takes every second pixel and pads the channels with zeros (option A).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.interop.weight_files import load_exactly, read_weights
from diptych.models.encoders.processor_rule import normalize
from diptych.models.encoders.protocol import EncoderOutput, check_image_size, check_layers
from diptych.models.part import part_kind
from diptych.models.preprocess import resize_pixels, to_float

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (channels_out - channels_in) // 2
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """A CIFAR-10 ResNet; tokens are the last feature map, pooled output is its mean, layer i is stage i.

    Args:
        depth: 20, 32, 44, 56 or 110.
    """

    dim = 64
    patch_size = 4
    num_layers = 3

    def __init__(self, *, depth: int) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"the depth of a CIFAR ResNet is 6 n + 2 (20, 32, 44, 56, 110), got {depth}.")
        self.depth = depth
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, num_blocks)
        self.layer2 = _stage(16, 32, num_blocks)
        self.layer3 = _stage(32, 64, num_blocks)
        self.linear = nn.Linear(64, len(CLASSES))

    def preprocess(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """Stretched to 32 x 32 (bilinear), in [-1, 1]."""
        return to_float(resize_pixels(pixels, size or (32, 32), "bilinear", "stretch"))

    def forward(self, images: Float[Tensor, "batch 3 height width"], layers: Sequence[int] = ()) -> EncoderOutput:
        """Features of images in [-1, 1].

        Raises:
            ValueError: sides that are no multiples of 4, or no such layer.
        """
        check_image_size(images, self.patch_size, "the CIFAR ResNet")
        check_layers(layers, self.num_layers, "the CIFAR ResNet")
        x = F.relu(self.bn1(self.conv1(normalize(images, _MEAN, _STD))))
        states = {0: x}
        for index, stage in enumerate((self.layer1, self.layer2, self.layer3), start=1):
            x = stage(x)
            states[index] = x
        return EncoderOutput(
            _tokens(x), (x.shape[2], x.shape[3]), x.mean((2, 3)), {index: _tokens(states[index]) for index in layers}
        )

    def logits(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Scores of ``CLASSES``."""
        return self.linear(self(images).pooled)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": part_kind(self), "depth": self.depth}


def load_cifar_resnet(path: str | Path) -> CifarResNet:
    """Reads ``resnet20.safetensors`` and its like in evaluation mode; the depth is counted from the tensors.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, or another network.
    """
    tensors = read_weights(path)
    num_blocks = len({key.split(".")[1] for key in tensors if key.startswith("layer1.")})
    network = CifarResNet(depth=6 * max(1, num_blocks) + 2)
    load_exactly(network, tensors, f"{path} does not hold a CIFAR ResNet")
    return network.eval()


def _stage(channels_in: int, channels_out: int, num_blocks: int) -> nn.Sequential:
    first = _BasicBlock(channels_in, channels_out, stride=1 if channels_in == channels_out else 2)
    return nn.Sequential(first, *(_BasicBlock(channels_out, channels_out, 1) for _ in range(num_blocks - 1)))


def _tokens(x: Tensor) -> Float[Tensor, "batch patches dim"]:
    return x.flatten(2).transpose(1, 2)
