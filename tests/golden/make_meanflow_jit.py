"""Makes ``jit.npz``, ``pmf.npz`` and ``imf.npz``: outputs and gradients of the released networks at small size.

Run as ``PYTHONPATH=CODE python -m tests.golden.make_meanflow_jit`` from the root of this repository, where CODE is
Jiawei-Yang/FD-loss at 5c03b81 reduced to ``models/{jit,mit,commons}.py`` and an empty ``models/__init__.py`` (MIT
licence). The stored files were made with torch 2.13.0 on a CPU, one thread, float32. Each holds

- ``layout``: JSON, shape by key of the released network; its weights are `drawn_weights.draw_weights(layout, seed=0)`;
- the inputs, in the released code's own convention;
- ``output`` of the network (an average velocity for pMF and iMF), and ``grad/*`` of ``sum(output * direction)`` by the
  input and by every weight.
"""

import json
from pathlib import Path

import numpy as np
import torch
from models.jit import JiT
from models.mit import MiT

from tests.golden.drawn_weights import draw_weights

FOLDER = Path(__file__).parent
NUM_CLASSES, BATCH = 5, 3


def record(name, network, shape, inputs, run):
    """Draws weights and images, runs the network once forward and backward, and writes the file."""
    layout = {key: list(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(value) for key, value in draw_weights(layout, seed=0).items()})
    random = np.random.RandomState(1)
    x, direction = (torch.from_numpy(random.standard_normal((BATCH, *shape)).astype(np.float32)) for _ in range(2))
    x.requires_grad_()
    output = run(x, **{key: torch.from_numpy(value) for key, value in inputs.items()})
    (output * direction).sum().backward()
    gradients = {f"grad/{key}": weight.grad.numpy() for key, weight in network.named_parameters()}
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        layout=np.array(json.dumps(layout)),
        x=x.detach().numpy(),
        direction=direction.numpy(),
        output=output.detach().numpy(),
        **{"grad/x": x.grad.numpy()},
        **inputs,
        **gradients,
    )


def main():
    torch.set_num_threads(1)
    labels = np.array([3, 0, NUM_CLASSES])
    jit = JiT(
        input_size=12, patch_size=4, hidden_size=16, depth=3, num_heads=2, num_classes=NUM_CLASSES, bottleneck_dim=6,
        in_context_len=3, in_context_start=1, learned_pe=True,
    )  # fmt: skip
    record("jit", jit, (3, 12, 12), {"t": np.float32([0, 0.3, 0.8]), "y": labels}, jit)

    times = {
        "t": np.float32([1, 0.8, 0.3]),
        "h": np.float32([1, 0.5, 0.3]),
        "omega": np.float32([8.5, 1, 2.5]),
        "t_min": np.float32([0.1, 0, 0.2]),
        "t_max": np.float32([0.7, 1, 0.6]),
    }
    small = {"hidden_size": 16, "num_heads": 2, "depth": 3, "aux_head_depth": 1, "num_classes": NUM_CLASSES,
             "num_class_tokens": 3, "num_time_tokens": 2, "num_cfg_tokens": 2, "num_interval_tokens": 1,
             "disable_v_head": True}  # fmt: skip
    pmf = MiT(
        input_size=12, patch_size=4, in_channels=3, bottleneck_dim=6, output_type="x", rope_2d=True, learned_pe=True,
        **small,
    )  # fmt: skip
    record("pmf", pmf, (3, 12, 12), {**times, "y": labels}, lambda x, **given: pmf(x, **given)[0])
    imf = MiT(input_size=6, patch_size=2, in_channels=4, output_type="v", **small)
    record("imf", imf, (4, 6, 6), {**times, "y": labels}, lambda x, **given: imf(x, **given)[0])


if __name__ == "__main__":
    main()
