"""Moments on disk: the ``.npz`` files of the field, with what they leave out.

``mu`` and ``sigma`` are as pytorch-fid, clean-fid and FD-loss read and write them, and as ADM writes them (its reader
wants images and spatial statistics beside them); ``count``, ``network``, ``preprocessing`` and ``feature_dtype`` are
ours. No pickles are read.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

_TEXTS = ("network", "preprocessing", "feature_dtype")


def write_moments(
    path: Path,
    mean: Float[np.ndarray, " dim"],
    covariance: Float[np.ndarray, "dim dim"],
    values: Mapping[str, Any],
) -> None:
    """Writes a file of moments, whole or not at all: to a file beside it first, which then takes its name.

    Args:
        values: ``count`` and texts; None is left out.

    Raises:
        ValueError: the name does not end in ``.npz``, which the peers' readers tell the format by.
    """
    if path.suffix != ".npz":
        raise ValueError(f"a file of moments must end in .npz, got {path.name}.")
    known = {name: np.asarray(value) for name, value in values.items() if value is not None}
    temporary = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, mu=mean, sigma=covariance, **known)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_moments(
    path: Path, mean_key: str, covariance_key: str
) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, "dim dim"], dict[str, Any]]:
    """Mean and covariance in float64, and the count and texts that the file has.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no ``.npz`` file, or not one of moments.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of moments at {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in (mean_key, covariance_key) if key not in file]
            if missing:
                raise ValueError(f"{path} must hold {mean_key} and {covariance_key}; it holds {', '.join(file.files)}.")
            mean = np.array(file[mean_key], dtype=np.float64)
            covariance = np.array(file[covariance_key], dtype=np.float64)
            values: dict[str, Any] = {name: str(file[name]) for name in _TEXTS if name in file}
            values["count"] = int(file["count"]) if "count" in file else None
    except (zipfile.BadZipFile, EOFError, OSError, TypeError) as error:
        raise ValueError(f"{path} is not a whole .npz file ({error}). Write it again.") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path} must hold a vector and a square matrix of its length, got {mean.shape} and {covariance.shape}."
        )
    return mean, covariance, values
