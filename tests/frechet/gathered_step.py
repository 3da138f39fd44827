"""Two steps of FD-loss on a linear generator; as a program, one process of several. Prints what it ends with."""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn

from diptych.frechet import Moments
from diptych.frechet.estimators import MovingAverage, Queue
from diptych.frechet.gather import gather_features
from diptych.frechet.gradient import FrechetReference
from diptych.frechet.loss import FDLoss, Representation

SPLITS = {1: [8], 2: [5, 3]}
"""Rows of each process: not the same number."""


def train(rank: int, world: int, is_averaged: bool) -> dict[str, list[float]]:
    """Gradients of the second step as they are after the exchange, and the weights."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    moments = Moments(4)
    moments.update(real)
    reference = FrechetReference.of(moments)
    loss = FDLoss(
        {
            "a": Representation(reference=reference, estimator=MovingAverage(4, 0.5)),
            "b": Representation(reference=reference, estimator=Queue(4, 20, dtype=torch.float64)),
        },
        gather=lambda features: gather_features(features, is_averaged),
    )
    layer = nn.Linear(3, 4).double()
    nn.init.normal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    start = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    loss.warm_start({"a": start, "b": start})
    for _ in range(2):
        rows = torch.randn(8, 3, generator=generator, dtype=torch.float64).split(SPLITS[world])[rank]
        features = layer(rows)
        result = loss({"a": features, "b": features * 2})
        layer.zero_grad()
        result.loss.backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                if world > 1:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world if is_averaged else 1  # DDP's average, without its slow import
                parameter -= 0.1 * parameter.grad
        loss.commit()
    grads = torch.cat([parameter.grad.flatten() for parameter in layer.parameters()])
    weights = torch.cat([parameter.detach().flatten() for parameter in layer.parameters()])
    return {"gradients": grads.tolist(), "weights": weights.tolist(), "loss": [result.loss.item()]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    own_rank, num_processes, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=own_rank, world_size=num_processes)
    print(json.dumps([train(own_rank, num_processes, averaged) for averaged in (True, False)]))
    dist.barrier()
    dist.destroy_process_group()
