"""The features that peers were given for ``frechet_peers.json``: two correlated sets, and logits of one."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PeerFeatures:
    """float64; numpy keeps the stream of ``RandomState`` for ever."""

    generated: np.ndarray
    real: np.ndarray
    logits: np.ndarray
    """Of the generated ones, 7 classes."""


def peer_features() -> PeerFeatures:
    """300 and 400 rows of 12 features."""
    random = np.random.RandomState(0)
    mixing = random.standard_normal((12, 12)) / 12**0.5
    generated = random.standard_normal((300, 12)) @ (mixing + 0.2 * random.standard_normal((12, 12))) + 0.3
    real = random.standard_normal((400, 12)) @ mixing
    return PeerFeatures(generated, real, 2 * random.standard_normal((300, 7)))
