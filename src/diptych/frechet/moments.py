"""Mean and covariance of a stream of features, in one pass and O(dim^2) memory.

Batches are merged as Chan, Golub and LeVeque do (Updating formulae and a pairwise algorithm for computing sample
variances, 1979, equation 2.1): each is centred by its own mean before its products are formed. The peers' ``E[x x^T]
- mean mean^T`` cancels instead, and loses every eigenvalue below about 1e-16 of the squared mean.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from diptych.frechet.moments_file import read_moments, write_moments

CHUNK_ROWS = 2048
"""Rows that are converted to float64 at a time."""
_BLOCK = 256
"""Columns of a block of the scatter matrix."""
_NAMED_ROWS = 5


class Moments:
    """Count, mean and covariance of features, accumulated in float64.

    Attributes:
        dim: width of the features.
        count: rows taken in; None where a foreign file does not tell.
        network: name of the feature network, None where unknown.
        preprocessing: hash of what was done to the images before the network, None where unknown.
        feature_dtype: type the features came in, as ``"float32"``; None where unknown.
    """

    def __init__(
        self,
        dim: int,
        *,
        network: str | None = None,
        preprocessing: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if dim < 1:
            raise ValueError(f"moments.dim must be at least 1, got {dim}.")
        self.dim = dim
        self.count: int | None = 0
        self.network = network
        self.preprocessing = preprocessing
        self.feature_dtype: str | None = None
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)  # upper blocks; see add_scatter_
        self._covariance: Tensor | None = None  # instead of the scatter, where the count is unknown

    @classmethod
    def from_statistics(
        cls,
        mean: Float[Tensor, " dim"],
        covariance: Float[Tensor, "dim dim"],
        *,
        count: int | None = None,
        network: str | None = None,
        preprocessing: str | None = None,
        feature_dtype: str | None = None,
    ) -> "Moments":
        """Moments whose mean and Bessel-corrected covariance are known already.

        Raises:
            ValueError: the statistics are not finite, or the covariance is not symmetric.
        """
        moments = cls(mean.shape[0], network=network, preprocessing=preprocessing, device=mean.device)
        moments.feature_dtype = feature_dtype
        mean, covariance = mean.detach().double(), covariance.detach().double()
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError("moments must be finite, but the given mean or covariance holds NaN or infinity.")
        asymmetry, scale = (covariance - covariance.T).abs().max().item(), covariance.abs().max().item()
        if asymmetry > 1e-5 * scale:
            raise ValueError(
                f"moments.covariance must be symmetric, but differs from its transpose by up to {asymmetry:.3g} "
                f"(largest entry {scale:.3g})."
            )
        moments._mean = mean.clone()
        covariance = (covariance + covariance.T) / 2
        moments.count = count
        if count is None:
            moments._covariance = covariance
        else:
            moments._scatter = covariance * max(count - 1, 0)
        return moments

    @torch.no_grad()
    def update(self, features: Float[Tensor, "batch dim"]) -> None:
        """Takes in a batch, of any float type and on any device.

        Raises:
            ValueError: another width or type than before, rows that are not finite (named), or an unknown count.
        """
        count = self._known_count("update")
        if features.shape[1] != self.dim:
            raise ValueError(f"features must have the moments' width {self.dim}, got {features.shape[1]}.")
        dtype = str(features.dtype).removeprefix("torch.")
        if self.feature_dtype not in (None, dtype):
            raise ValueError(
                f"features must be {self.feature_dtype} like those before, got {dtype}: rounding changes distances. "
                "Convert them, or keep moments apart."
            )
        check_finite_rows(features, "features")
        self.feature_dtype = dtype
        for start in range(0, len(features), CHUNK_ROWS):
            rows = features[start : start + CHUNK_ROWS]
            rows = rows.to(device=self._mean.device, dtype=torch.float64)
            mean = rows.mean(0)
            self._absorb(count, len(rows), mean, rows - mean)
            count += len(rows)
        self.count = count

    @torch.no_grad()
    def merge(self, other: "Moments") -> None:
        """Takes in all that ``other`` has seen; ``other`` stays as it is.

        Raises:
            ValueError: other features (named), or an unknown count.
        """
        count, added = self._known_count("merge"), other._known_count("merge")
        check_same_features(self, other)
        if self.feature_dtype is not None and other.feature_dtype not in (None, self.feature_dtype):
            raise ValueError(
                f"moments of {self.feature_dtype} and {other.feature_dtype} features are not merged: rounding changes "
                "distances. Recompute one of them."
            )
        if added == 0:
            return
        self._scatter += other._scatter.to(self._mean.device)
        no_rows = torch.empty(0, self.dim, dtype=torch.float64, device=self._mean.device)
        self._absorb(count, added, other._mean.to(self._mean.device), no_rows)
        self.count = count + added
        self.feature_dtype = self.feature_dtype or other.feature_dtype
        self.network = self.network or other.network
        self.preprocessing = self.preprocessing or other.preprocessing

    @property
    def mean(self) -> Float[Tensor, " dim"]:
        """Of the rows, float64."""
        return self._mean.clone()

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """Bessel-corrected (divided by count - 1), float64, symmetric to the bit.

        Raises:
            ValueError: fewer than two rows.
        """
        if self._covariance is not None:
            return self._covariance.clone()
        count = self._known_count("covariance")
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, the moments have {count}. Update them first.")
        return mirror_(self._scatter / (count - 1))

    def save(self, path: Path | str) -> None:
        """Writes ``mu`` and ``sigma`` as the peers do, and what only we record, to an ``.npz`` file; whole or not."""
        values: dict[str, Any] = {"count": self.count, "network": self.network}
        values |= {"preprocessing": self.preprocessing, "feature_dtype": self.feature_dtype}
        write_moments(Path(path), self._mean.cpu().numpy(), self.covariance.cpu().numpy(), values)

    @classmethod
    def load(cls, path: Path | str, *, mean_key: str = "mu", covariance_key: str = "sigma") -> "Moments":
        """Reads moments of ours, or of pytorch-fid, clean-fid, ADM or FD-loss, whose count stays unknown.

        Args:
            mean_key: ``"mu_s"`` for the spatial features of ADM's files, ``"avg_mu"`` for the patch means of FD-loss's.
            covariance_key: ``"sigma_s"`` and ``"avg_sigma"`` there.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no such file of moments; the message says what is wrong with it.
        """
        mean, covariance, values = read_moments(Path(path), mean_key, covariance_key)
        return cls.from_statistics(torch.from_numpy(mean), torch.from_numpy(covariance), **values)

    def _absorb(self, count: int, added: int, mean: Tensor, centred: Tensor) -> None:
        """Adds rows of this mean, centred by it, to ``count`` rows; the step between the means is one row more."""
        delta = mean - self._mean
        total = count + added
        between = delta * (count * added / total) ** 0.5
        add_scatter_(self._scatter, torch.cat((centred, between[None])))
        self._mean += delta * (added / total)

    def _known_count(self, action: str) -> int:
        if self.count is None:
            raise ValueError(
                f"{action} needs moments whose count is known, but it was not in their file. "
                "Use Moments.from_statistics(mean, covariance, count=...)."
            )
        return self.count


def add_scatter_(scatter: Float[Tensor, "dim dim"], rows: Float[Tensor, "batch dim"], factor: float = 1.0) -> None:
    """Adds ``factor rows^T rows`` to the upper block triangle of ``scatter``: half the products of a matmul."""
    for start in range(0, rows.shape[1], _BLOCK):
        left, right = rows[:, start : start + _BLOCK], rows[:, start:]
        scatter[start : start + _BLOCK, start:].addmm_(left.T, right, alpha=factor)


def mirror_(upper: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """Writes the upper triangle below the diagonal, in place, and returns the matrix.

    Block by block, which fit the processor's cache; a transposed pass over a whole wide matrix is ten times slower.
    """
    for start in range(0, len(upper), _BLOCK):
        rows = slice(start, start + _BLOCK)
        diagonal = upper[rows, rows]
        diagonal.copy_(diagonal.triu() + diagonal.triu(1).T)
        for left in range(0, start, _BLOCK):
            columns = slice(left, left + _BLOCK)
            upper[rows, columns] = upper[columns, rows].T
    return upper


def check_finite_rows(features: Shaped[Tensor, "batch dim"], name: str) -> None:
    """Raises ``ValueError``, which names the rows, if some hold NaN or infinity."""
    finite = features.isfinite().all(1)
    if finite.all():
        return
    rows = (~finite).nonzero().flatten().tolist()
    more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
    raise ValueError(
        f"{name} must be finite, but rows {', '.join(map(str, rows[:_NAMED_ROWS]))}{more} of {len(finite)} hold NaN or "
        "infinity. Drop them, or find what made them."
    )


def check_same_features(a: Moments, b: Moments) -> None:
    """Raises ``ValueError`` if two moments are not of the same feature space; what is unknown agrees with anything."""
    for field in ("dim", "network", "preprocessing"):
        first, second = getattr(a, field), getattr(b, field)
        if first is not None and second is not None and first != second:
            raise ValueError(
                f"moments must agree in {field}, got {first!r} and {second!r}. Compute both with the same features."
            )
