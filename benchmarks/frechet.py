"""Speed of Fréchet distances: the distance against the peers' matrix root, moments against the matmul peak, FD-loss.

Prints figures and asserts nothing. Processor seconds of one process, so that other work on the machine counts less, or
with ``--clock wall`` what a user waits, on an idle machine. The matmul peak is measured right before and after what is
compared with it. The peers are called in the form of their own code: pytorch-fid 0.3.0, clean-fid 0.1.35 and ADM take
scipy's ``sqrtm`` of the product, torch-fidelity 0.4.0 and torchmetrics 1.9.0 its ``eigvals``.

    OMP_NUM_THREADS=1 python benchmarks/frechet.py --dim 2048 --only distance
    OMP_NUM_THREADS=1 python benchmarks/frechet.py --dim 2048 --num-features 50000 --only moments
    OMP_NUM_THREADS=1 python benchmarks/frechet.py --dim 2048 --only loss
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
import torch
from scipy.linalg import sqrtm

from diptych.frechet import Moments, frechet_distance
from diptych.frechet.estimators import MovingAverage
from diptych.frechet.gradient import FrechetReference, frechet_to_reference
from diptych.frechet.warm_route import WarmRoute

WARM_STEPS = 4


_CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}
_clock = _CLOCKS["processor"]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the chosen clock, and what came out."""
    started = _clock()
    result = run()
    return _clock() - started, result


def matmul_peak(dtype: torch.dtype, dim: int) -> float:
    """Operations a second of the best of three square matmuls."""
    a = torch.randn(dim, dim, dtype=dtype)
    return 2 * dim**3 / min(timed(lambda: a @ a)[0] for _ in range(3))


def decaying(dim: int, digits: float, seed: int) -> Moments:
    """Moments whose eigenvalues fall evenly from 1 to ``10 ** -digits``."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    covariance = (vectors * torch.logspace(0, -digits, dim, dtype=torch.float64)) @ vectors.T
    mean = torch.randn(dim, generator=generator, dtype=torch.float64) / dim
    return Moments.from_statistics(mean, (covariance + covariance.T) / 2)


def of_few_rows(dim: int, seed: int) -> Moments:
    """Moments of half as many rows as dimensions."""
    moments = Moments(dim)
    moments.update(torch.randn(dim // 2, dim, generator=torch.Generator().manual_seed(seed)))
    return moments


def by_sqrtm(a: Moments, b: Moments) -> float:
    """``calculate_frechet_distance`` of pytorch-fid; clean-fid, ADM and FD-loss's evaluation have the same lines."""
    difference = (a.mean - b.mean).numpy()
    sigma_a, sigma_b = a.covariance.numpy(), b.covariance.numpy()
    root = sqrtm(sigma_a @ sigma_b)
    return float(difference @ difference + np.trace(sigma_a) + np.trace(sigma_b) - 2 * np.trace(root.real))


def by_eigvals(a: Moments, b: Moments) -> float:
    """``_compute_fid`` of torchmetrics; torch-fidelity does the same in numpy."""
    roots = torch.linalg.eigvals(a.covariance @ b.covariance).sqrt().real.sum()
    between = (a.mean - b.mean).square().sum()
    return float(between + a.covariance.trace() + b.covariance.trace() - 2 * roots)


PEERS = {"scipy sqrtm": by_sqrtm, "torch eigvals": by_eigvals}


def distances(dim: int, with_peer: bool) -> None:
    print(f"\ndistance from moments, dim {dim}: seconds")
    cases: dict[str, Callable[[int], Moments]] = {
        "condition 1e6 (eigenvalues)": lambda seed: decaying(dim, 6, seed),
        "condition 1e4 (eigenvalues)": lambda seed: decaying(dim, 4, seed),
        "condition 1e8 (singular values)": lambda seed: decaying(dim, 8, seed),
        "dim / 2 rows (rank deficient)": lambda seed: of_few_rows(dim, seed),
    }
    for place, (name, make) in enumerate(cases.items()):
        a, b = make(0), make(1)
        (ours, value), (again, _) = (timed(lambda a=a, b=b: frechet_distance(a, b, is_quiet=True)) for _ in range(2))
        ours = min(ours, again)
        print(f"  {name:34s} ours {ours:7.2f} s", flush=True)
        for peer, run in PEERS.items() if with_peer and place == 0 else ():
            seconds, theirs = timed(lambda run=run, a=a, b=b: run(a, b))
            print(f"  {'':28s}{peer:>14s} {seconds:7.2f} s   ratio {seconds / ours:5.1f}", end="")
            print(f"   difference {abs(value - theirs):.1e}", flush=True)


def moments(dim: int, num_features: int, batch: int) -> None:
    print(f"\nmoments of {num_features} x {dim} float32 features in batches of {batch}")
    features = torch.randn(num_features, dim, generator=torch.Generator().manual_seed(0)) + 3
    before = matmul_peak(torch.float64, dim)
    ours = Moments(dim)

    def update() -> None:
        for rows in features.split(batch):
            ours.update(rows)

    seconds, _ = timed(update)
    peak = max(before, matmul_peak(torch.float64, dim))
    rate = 2 * num_features * dim**2 / seconds
    print(f"  float64 matmul peak {peak / 1e9:6.1f} GFLOP/s   float32 {matmul_peak(torch.float32, dim) / 1e9:6.1f}")
    print(f"  ours                {rate / 1e9:6.1f} GFLOP/s of a full x^T x = {rate / peak:.0%} of the float64 peak")
    print(
        f"                      {seconds:6.2f} s, {num_features / seconds:.0f} features/s (half the products are made)"
    )

    def raw_sums() -> None:
        sums, products = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
        for rows in features.split(batch):
            rows = rows.double()
            sums += rows.sum(0)
            products.addmm_(rows.T, rows)

    plain, _ = timed(raw_sums)
    print(f"  sums of x and x x^T {plain:6.2f} s   ratio {plain / seconds:.2f}")


def autograd_step(features: torch.Tensor, old: dict[str, Any], real: Moments, root: torch.Tensor) -> torch.Tensor:
    """FD-loss as published: raw moments, autograd through eigvalsh."""
    decay, mean, covariance = 0.999, old["mean"], old["covariance"]
    rows = features.double()
    new_mean = decay * mean + (1 - decay) * rows.mean(0)
    second = decay * (covariance + mean.outer(mean)) + (1 - decay) * rows.T @ rows / len(rows)
    new = second - new_mean.outer(new_mean)
    inner = root @ new @ root
    roots = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt()
    distance = (new_mean - real.mean).square().sum() + new.trace() + real.covariance.trace() - 2 * roots.sum()
    (gradient,) = torch.autograd.grad(distance, features)
    return gradient


def loss_step(dim: int, batch: int) -> None:
    print(f"\nFD-loss, forward and backward to the features, moving average, dim {dim}, batch {batch}: seconds")
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1.5, dim)
    real = Moments(dim)
    start = torch.randn(4 * dim, dim, generator=generator) * scales + 0.1
    real.update(torch.randn(4 * dim, dim, generator=generator) * scales)
    features = (torch.randn(batch, dim, generator=generator) * scales + 0.1).requires_grad_()
    reference, estimator = FrechetReference.of(real), MovingAverage(dim, 0.999)
    estimator.warm_start(start)
    values, vectors = torch.linalg.eigh(real.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def step(route: WarmRoute | None = None) -> torch.Tensor:
        distance = frechet_to_reference(*estimator.population(features), reference, route=route)
        (gradient,) = torch.autograd.grad(distance, features)
        return gradient

    ours, gradient = timed(step)
    plain, expected = timed(lambda: autograd_step(features, estimator.state_dict(), real, root))
    apart = ((gradient - expected).norm() / expected.norm()).item()
    print(f"  autograd through eigvalsh {plain:6.2f} s")
    print(f"  ours, exact               {ours:6.2f} s   ratio {plain / ours:5.2f}   gradients apart {apart:.1e}")
    route = WarmRoute()
    step(route)
    for _ in range(WARM_STEPS):
        estimator.commit()
        features = (torch.randn(batch, dim, generator=generator) * scales + 0.1).requires_grad_()
        warm, gradient = timed(lambda: step(route))
    expected = step()
    apart = ((gradient - expected).norm() / expected.norm()).item()
    print(f"  ours, followed {WARM_STEPS:2} steps   {warm:6.2f} s   ratio {plain / warm:5.2f}   ", end="")
    print(f"gradients apart {apart:.1e}, measured {route.last_error:.1e}; exact steps {route.num_exact}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=1024, help="width of the features; 2048 is Inception's")
    parser.add_argument("--num-features", type=int, default=10_000, help="for the moments")
    parser.add_argument("--batch", type=int, default=256, help="features at a time")
    parser.add_argument("--only", choices=("distance", "moments", "loss"), help="one part")
    parser.add_argument("--no-peer", action="store_true", help="leave out the peers' forms, the slowest lines")
    parser.add_argument("--clock", choices=tuple(_CLOCKS), default="processor", help="of all threads, or as one waits")
    options = parser.parse_args()
    global _clock
    _clock = _CLOCKS[options.clock]
    print(f"torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}; ", end="")
    print(f"{torch.get_num_threads()} threads (OMP_NUM_THREADS for torch and for numpy and scipy); ", end="")
    print(f"{options.clock} seconds")
    if options.only in (None, "distance"):
        distances(options.dim, with_peer=not options.no_peer)
    if options.only in (None, "moments"):
        moments(options.dim, options.num_features, options.batch)
    if options.only in (None, "loss"):
        loss_step(options.dim, batch=options.dim // 2)


if __name__ == "__main__":
    main()
