"""Inception-v3 (arXiv 1512.00567) as in the frozen TensorFlow graph of 2015, which defines FID and Inception score.

Differs from the network that was published later in three places: average pools leave the padding out of the mean, the
last block pools by maximum, and there are 1008 classes. Modules have the names of the PyTorch ports of that graph.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.part import part_kind

IMAGE_SIZE = (299, 299)
NUM_CLASSES = 1008
ORIGINAL_MEAN = (128 / 255,) * 3
"""Of images in [0, 1], mean and std both: the graph computes ``(x - 128) / 128`` of levels in [0, 255]."""

Conv: TypeAlias = tuple[str, int, int | tuple[int, int]]
"""Name, channels out, kernel; padded to keep the size."""

_POOLS = {
    "average": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "maximum": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "shrink": lambda x: F.max_pool2d(x, 3, stride=2),
}


class FidInception(nn.Module):
    """From images at 299 x 299, normalised by `ORIGINAL_MEAN`, to the 2048 features of the last average pool."""

    dim = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _ConvNorm(3, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = _ConvNorm(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = _ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = _ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = _ConvNorm(80, 192, 3, padding=0)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = MixedBlock(
            288,
            [
                [("branch3x3", 384, 3)],
                [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
            ],
            "shrink",
        )
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        self.Mixed_7a = MixedBlock(
            768,
            [
                [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
                [
                    ("branch7x7x3_1", 192, 1),
                    ("branch7x7x3_2", 192, (1, 7)),
                    ("branch7x7x3_3", 192, (7, 1)),
                    ("branch7x7x3_4", 192, 3),
                ],
            ],
            "shrink",
        )
        self.Mixed_7b = _block_e(1280, "average")
        self.Mixed_7c = _block_e(2048, "maximum")
        self.fc = nn.Linear(self.dim, NUM_CLASSES)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Features of normalised images."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name, module in self.named_children():
            if name.startswith("Mixed"):
                x = module(x)
        return x.mean((2, 3))

    def logits(self, features: Float[Tensor, "batch dim"], *, use_bias: bool = True) -> Float[Tensor, "batch classes"]:
        """Scores of the 1008 classes; Inception scores are usually reported without the bias."""
        return F.linear(features, self.fc.weight, self.fc.bias if use_bias else None)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": part_kind(self)}


class _ConvNorm(nn.Module):
    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (sides[0] // 2, sides[1] // 2)
        self.conv = nn.Conv2d(
            channels_in, channels_out, sides, stride, same if padding is None else padding, bias=False
        )
        self.bn = nn.BatchNorm2d(channels_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class MixedBlock(nn.Module):
    """Branches of convolutions side by side, then the pooled input.

    Args:
        forks: names of convolutions that read the branch's last output side by side, by the index of the branch.
        pool_channels: of the convolution after the pool; without one (``shrink``) the last convolution of each branch
            halves the image too.
    """

    def __init__(
        self,
        channels_in: int,
        branches: Sequence[Sequence[Conv]],
        pool: str,
        pool_channels: int = 0,
        forks: dict[int, Sequence[Conv]] | None = None,
    ) -> None:
        super().__init__()
        self._pool = pool
        self.branches = [[name for name, _, _ in branch] for branch in branches]
        self.fork_names = [[name for name, _, _ in (forks or {}).get(index, ())] for index in range(len(branches))]
        for index, branch in enumerate(branches):
            channels = channels_in
            for name, channels_out, kernel in branch:
                shrinks = pool == "shrink" and name == branch[-1][0]
                conv = _ConvNorm(channels, channels_out, kernel, 2, 0) if shrinks else None
                self.add_module(name, conv or _ConvNorm(channels, channels_out, kernel))
                channels = channels_out
            for name, channels_out, kernel in (forks or {}).get(index, ()):
                self.add_module(name, _ConvNorm(channels, channels_out, kernel))
        if pool_channels:
            self.add_module("branch_pool", _ConvNorm(channels_in, pool_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for branch, forks in zip(self.branches, self.fork_names, strict=True):
            y = x
            for name in branch:
                y = self.get_submodule(name)(y)
            parts += [self.get_submodule(name)(y) for name in forks] if forks else [y]
        pooled = _POOLS[self._pool](x)
        parts.append(pooled if self._pool == "shrink" else self.get_submodule("branch_pool")(pooled))
        return torch.cat(parts, 1)


def _block_a(channels_in: int, pool_channels: int) -> MixedBlock:
    return MixedBlock(
        channels_in,
        [
            [("branch1x1", 64, 1)],
            [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ],
        "average",
        pool_channels,
    )


def _block_c(width: int) -> MixedBlock:
    return MixedBlock(
        768,
        [
            [("branch1x1", 192, 1)],
            [("branch7x7_1", width, 1), ("branch7x7_2", width, (1, 7)), ("branch7x7_3", 192, (7, 1))],
            [
                ("branch7x7dbl_1", width, 1),
                ("branch7x7dbl_2", width, (7, 1)),
                ("branch7x7dbl_3", width, (1, 7)),
                ("branch7x7dbl_4", width, (7, 1)),
                ("branch7x7dbl_5", 192, (1, 7)),
            ],
        ],
        "average",
        192,
    )


def _block_e(channels_in: int, pool: str) -> MixedBlock:
    return MixedBlock(
        channels_in,
        [
            [("branch1x1", 320, 1)],
            [("branch3x3_1", 384, 1)],
            [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)],
        ],
        pool,
        192,
        forks={
            1: [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))],
            2: [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))],
        },
    )
