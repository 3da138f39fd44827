"""Feature networks for the tests of ``diptych fd``, named on its command line as functions."""

import builtins
import os
import time

import torch
from torch import nn

from diptych.frechet.features import Features, module_features


class Slow(nn.Module):
    """Waits, so that a test can end the process in the middle."""

    def forward(self, x):
        time.sleep(float(os.environ.get("FD_TEST_SECONDS", "0")))
        return x


def _network(seed: int, *before: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(3, 5, 3, 2)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return nn.Sequential(*before, conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def tiny() -> Features:
    return module_features(_network(0), name="tiny", dim=5, size=(8, 8))


def other() -> Features:
    return module_features(_network(1), name="other", dim=5, size=(8, 8))


def slow() -> Features:
    return module_features(_network(0, Slow()), name="slow", dim=5, size=(8, 8))


class Stopping(nn.Module):
    """Stops, if told to."""

    def forward(self, x):
        kind = os.environ.get("FD_TEST_STOP")
        if kind:
            raise getattr(builtins, kind)("stopped here")
        return x


def stopping() -> Features:
    return module_features(_network(2, Stopping()), name="stopping", dim=5, size=(8, 8))


class Classifying(nn.Module):
    """Features, and classes of them, as FID's Inception has them."""

    def __init__(self):
        super().__init__()
        self.body = _network(0)
        self.register_buffer("weight", torch.randn(4, 5, generator=torch.Generator().manual_seed(7)) * 3)

    def forward(self, x):
        return self.body(x)

    def logits(self, features, *, use_bias=True):
        assert not use_bias
        return features @ self.weight.T


def classifying() -> Features:
    return module_features(Classifying(), name="classifying", dim=5, size=(8, 8))


def broken() -> Features:
    return module_features(nn.Sequential(nn.Flatten(), Divide()), name="broken", dim=192, size=(8, 8))


class Divide(nn.Module):
    def forward(self, x):
        return x / 0
