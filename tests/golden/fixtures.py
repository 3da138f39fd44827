"""Reading golden fixtures: arrays as tensors, and the weights they were made with."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.golden.drawn_weights import draw_weights


def load_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a released network by its own keys (`make_meanflow_jit`), and everything that was recorded."""
    with np.load(Path(__file__).parent / f"{name}.npz") as file:
        layout = json.loads(str(file["layout"]))
        recorded = {key: torch.from_numpy(file[key]) for key in file.files if key != "layout"}
    weights = {key: torch.from_numpy(value) for key, value in draw_weights(layout, seed=0).items()}
    return weights, recorded


def recorded_gradients(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the weights, by the keys of the weights."""
    return {
        key.removeprefix("grad/"): value
        for key, value in recorded.items()
        if key.startswith("grad/") and key != "grad/x"
    }
