"""CMMD (arXiv 2401.09603, section 4): squared MMD of CLIP embeddings with a Gaussian kernel, times 1000.

As in the authors' code: sigma = 10, the biased estimator, embeddings of unit length. Ours is in float64: kernel values
are near 1, so the float32 of that code rounds at 6e-8 * 1000.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.interval import Estimate
from diptych.frechet.mmd import squared_mmd

SIGMA = 10.0
SCALE = 1000.0


def cmmd(
    generated: Float[Tensor, "num dim"], real: Float[Tensor, "num_real dim"], *, normalize: bool = True
) -> Estimate:
    """The distance of two sets of embeddings.

    Args:
        normalize: bring each embedding to length 1 first; False takes them as they are.
    """
    if normalize:
        generated, real = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (generated, real))
    found = squared_mmd(generated, real, gaussian_kernel, is_unbiased=False)
    return Estimate(value=SCALE * found.value, standard_error=SCALE * found.standard_error)


def gaussian_kernel(x: Float[Tensor, "chunk dim"], y: Float[Tensor, "num dim"]) -> Float[Tensor, "chunk num"]:
    """``exp(-|x - y|^2 / (2 sigma^2))``."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return (squares / (-2 * SIGMA**2)).exp()
