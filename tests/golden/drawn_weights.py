"""Weights that a golden fixture need not store: drawn anew from their names' order by numpy's frozen legacy generator.

``numpy.random.RandomState`` gives the same numbers in every version (NEP 19).
"""

from collections.abc import Mapping, Sequence

import numpy as np


def draw_weights(layout: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """float32 weights, far from where networks start: gains about one, gates open, matrices keep the scale.

    Args:
        layout: shape by name, in the order of drawing.
    """
    random = np.random.RandomState(seed)
    weights = {}
    for name, shape in layout.items():
        values = random.standard_normal(tuple(shape))
        if len(shape) == 1:
            is_gain = "norm" in name and name.endswith("weight")
            values = 0.3 * values + is_gain
        elif name.endswith("weight"):
            values = 0.7 * values / np.prod(shape[1:]) ** 0.5
        weights[name] = values.astype(np.float32)
    return weights
