"""Makes ``frechet_peers.json``: what peers compute of the features of ``peer_features``, with their versions.

Run as ``python -m tests.golden.make_frechet_peers SOURCES`` from the root of this repository, where prdc and
torchmetrics are installed (torch-fidelity not: torchmetrics would then import torchvision) and SOURCES holds

- ``pytorch_fid/fid_score.py`` of pytorch-fid 0.3.0, ``cleanfid/fid.py`` of clean-fid 0.1.35 and
  ``torch_fidelity/metric_{fid,kid,isc,prc}.py`` of torch-fidelity 0.4.0, whose packages import torchvision;
- ``evaluator.py`` of openai/guided-diffusion at 22e0df8 (ADM; imports TensorFlow);
- ``score_infinity.py`` of mchong6/FID_IS_infinity at 2cbf52e (arXiv 1911.07023);
- ``distance.py`` of google-research/google-research, folder cmmd, at 4c42994 (imports JAX).

Of those files only the functions named here are run, from their text. What stands in for the rest: a softmax for ADM's
session, squared distances in float64 for its float16 ones, numpy for JAX (which would be float32), and features that
are given for those of images.
"""

import ast
import json
import sys
import warnings
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import prdc
import scipy
import sklearn
import torch
import torchmetrics
from scipy import linalg
from sklearn.linear_model import LinearRegression
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from tests.golden.peer_features import peer_features

FOLDER = Path(__file__).parent
BLOCKS, BLOCK_SIZE, SEED = 5, 60, 2020
SMALLEST, POINTS = 60, 9


def parts(path, *names, **scope):
    """Functions and classes of a file by name, in a namespace of their own."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    chosen = [node for node in tree.body if getattr(node, "name", None) in names]
    assert {node.name for node in chosen} == set(names), names
    scope |= {"np": np, "linalg": linalg, "torch": torch, "warnings": warnings}
    exec(compile(ast.Module(chosen, []), str(path), "exec"), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})


def statistics(rows):
    return np.mean(rows, axis=0), np.cov(rows, rowvar=False)


def softmax(logits):
    return torch.from_numpy(logits).softmax(1).numpy()


def pytorch_fid(sources, given):
    peer = parts(sources / "pytorch_fid/fid_score.py", "calculate_frechet_distance")
    return {"distance": peer.calculate_frechet_distance(*statistics(given.generated), *statistics(given.real))}


def clean_fid(sources, given):
    peer = parts(sources / "cleanfid/fid.py", "frechet_distance", "kernel_distance")
    np.random.seed(SEED)
    blocks = peer.kernel_distance(given.generated, given.real, num_subsets=BLOCKS, max_subset_size=BLOCK_SIZE)
    return {
        "distance": peer.frechet_distance(*statistics(given.generated), *statistics(given.real)),
        "kid_of_blocks": blocks,
    }


def torch_fidelity(sources, given):
    options = {
        "kid_subsets": BLOCKS, "kid_subset_size": BLOCK_SIZE, "rng_seed": SEED, "kid_kernel": "poly", "verbose": False,
        "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1.0,
    }  # fmt: skip
    helpers = {
        "vassert": lambda condition, message: None, "vprint": lambda verbose, message: None,
        "get_kwarg": lambda name, values: values[name], "tqdm": lambda rows, **_: rows,
    }  # fmt: skip
    folder = sources / "torch_fidelity"
    generated, real = torch.from_numpy(given.generated), torch.from_numpy(given.real)
    fid = parts(folder / "metric_fid.py", "fid_features_to_statistics", "fid_statistics_to_metric",
                KEY_METRIC_FID="fid", **helpers)  # fmt: skip
    kid = parts(folder / "metric_kid.py", "mmd2", "kernel_poly", "kernel_rbf", "kernel_mmd", "kid_features_to_metric",
                KEY_METRIC_KID_MEAN="mean", KEY_METRIC_KID_STD="std", **helpers)  # fmt: skip
    isc = parts(folder / "metric_isc.py", "isc_features_to_metric",
                KEY_METRIC_ISC_MEAN="mean", KEY_METRIC_ISC_STD="std")  # fmt: skip
    prc = parts(folder / "metric_prc.py", "calc_cdist_full", "calculate_precision_recall_full")
    sides = [fid.fid_features_to_statistics(rows) for rows in (generated, real)]
    blocks = kid.kid_features_to_metric(generated, real, **options)
    splits = isc.isc_features_to_metric(torch.from_numpy(given.logits), splits=10, shuffle=False)
    precision, recall = prc.calculate_precision_recall_full(generated, real, neighborhood=3)
    return {
        "distance": fid.fid_statistics_to_metric(*sides, False)["fid"],
        "kid_of_blocks": blocks["mean"], "kid_between_blocks": blocks["std"],
        "inception_score_of_splits": splits["mean"], "inception_score_between_splits": splits["std"],
        "precision_3": precision, "recall_3": recall,
    }  # fmt: skip


class Given(torch.nn.Module):
    """Features in place of a network's."""

    num_features = 12

    def forward(self, rows):
        return rows


def torch_metrics(sources, given):
    found = {}
    for name, metric in (
        ("distance", FrechetInceptionDistance(feature=Given())),
        ("kid_of_blocks", KernelInceptionDistance(feature=Given(), subsets=BLOCKS, subset_size=BLOCK_SIZE)),
    ):
        for start in range(0, 400, 100):  # streamed: raw sums, as it keeps them
            metric.update(torch.from_numpy(given.real[start : start + 100]), real=True)
            if start < 300:
                metric.update(torch.from_numpy(given.generated[start : start + 100]), real=False)
        torch.manual_seed(SEED)
        found[name] = metric.compute()
    score = InceptionScore(feature=Given(), splits=1)
    score.update(torch.from_numpy(given.logits))
    mean, std = found["kid_of_blocks"]
    return {
        "distance": found["distance"].item(), "kid_of_blocks": mean.item(), "kid_between_blocks": std.item(),
        "inception_score": score.compute()[0].item(),
    }  # fmt: skip


class Distances:
    """ADM's ``DistanceBlock`` without its session, in float64."""

    def __init__(self, session):
        pass

    def pairwise_distances(self, first, second):
        return ((first[:, None] - second[None]) ** 2).sum(-1)

    def less_thans(self, first, radii_first, second, radii_second):
        squares = self.pairwise_distances(first, second)[..., None]
        return (squares <= radii_second).any(1), (squares <= radii_first[:, None]).any(0)


def adm(sources, given):
    from typing import Iterable, Optional, Tuple  # noqa: UP035  what the file's annotations name

    peer = parts(
        sources / "evaluator.py", "FIDStatistics", "Evaluator", "ManifoldEstimator", "_numpy_partition",
        Iterable=Iterable, Optional=Optional, Tuple=Tuple,  # noqa: UP006
        DistanceBlock=Distances, ThreadPool=ThreadPool,
        partial=partial, cpu_count=lambda: 2,
    )  # fmt: skip
    session = SimpleNamespace(run=lambda softmax_op, feed_dict: softmax(feed_dict["logits"]))
    self = SimpleNamespace(softmax_batch_size=64, sess=session, softmax=None, softmax_input="logits",
                           manifold_estimator=peer.ManifoldEstimator(None))  # fmt: skip
    generated, real = (peer.Evaluator.compute_statistics(self, rows) for rows in (given.generated, given.real))
    precision, recall = peer.Evaluator.compute_prec_recall(self, given.real, given.generated)
    return {
        "distance": generated.frechet_distance(real),
        "inception_score_of_splits": peer.Evaluator.compute_inception_score(self, given.logits, split_size=30),
        "precision_3": precision, "recall_3": recall,
    }  # fmt: skip


def prdc_package(sources, given):
    return {
        f"{name}_{k}": float(value)
        for k in (3, 5)
        for name, value in prdc.compute_prdc(given.real, given.generated, nearest_k=k).items()
    }


def fd_infinity(sources, given):
    rows = {"real": given.real, "generated": given.generated.copy()}
    peer = parts(
        sources / "score_infinity.py", "calculate_FID_infinity_path", "numpy_calculate_frechet_distance",
        "calculate_inception_score", LinearRegression=LinearRegression, load_inception_net=lambda: None,
        compute_path_statistics=lambda path, batch_size, model: (rows[path], None),
    )  # fmt: skip
    np.random.seed(SEED)
    limit = peer.calculate_FID_infinity_path("real", "generated", min_fake=SMALLEST, num_points=POINTS)
    return {"limit": limit, "inception_score": peer.calculate_inception_score(softmax(given.logits))[0]}


def cmmd(sources, given):
    numpy_for_jax = SimpleNamespace(jit=lambda function: function)
    peer = parts(sources / "distance.py", "mmd", jax=numpy_for_jax, jnp=np, _SIGMA=10, _SCALE=1000)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (given.generated, given.real)]
    return {"distance": peer.mmd(*unit)}


PEERS = {
    "pytorch-fid 0.3.0": pytorch_fid,
    "clean-fid 0.1.35": clean_fid,
    "torch-fidelity 0.4.0": torch_fidelity,
    f"torchmetrics {torchmetrics.__version__}": torch_metrics,
    "ADM 22e0df8": adm,
    "prdc 0.2": prdc_package,
    "FID_IS_infinity 2cbf52e": fd_infinity,
    "cmmd 4c42994": cmmd,
}


def main(sources):
    given = peer_features()
    values = {
        name: {key: float(value) for key, value in run(Path(sources), given).items()} for name, run in PEERS.items()
    }
    under = {"numpy": np, "scipy": scipy, "sklearn": sklearn, "torch": torch}
    content = {"made_with": {name: module.__version__ for name, module in under.items()}, "peers": values}
    (FOLDER / "frechet_peers.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
