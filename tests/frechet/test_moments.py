"""Moments: one pass, merged, saved, and what they refuse."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from diptych.frechet import Moments
from diptych.frechet.moments import CHUNK_ROWS


def normal(num: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(features: torch.Tensor, **fields: str) -> Moments:
    moments = Moments(features.shape[1], **fields)
    moments.update(features)
    return moments


def assert_close(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 5, 300])  # 300 is more than one block of the scatter matrix
def test_batches_give_the_moments_of_all_rows(dim):
    features = normal(700, dim) @ normal(dim, dim, seed=1) + 3
    moments = Moments(dim)
    for batch in features.split([1, 0, 300, 7, 392]):
        moments.update(batch)
    assert moments.count == 700
    torch.testing.assert_close(moments.mean, features.mean(0), rtol=1e-12, atol=1e-12)
    expected = torch.cov(features.T).reshape(dim, dim)
    torch.testing.assert_close(moments.covariance, expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(moments.covariance, moments.covariance.T)


def test_a_batch_longer_than_a_chunk():
    features = normal(CHUNK_ROWS + 5, 3)
    torch.testing.assert_close(moments_of(features).covariance, torch.cov(features.T), rtol=1e-12, atol=1e-12)


def test_memory_does_not_grow_with_the_number_of_rows():
    """400,000 rows of 128 numbers are 195 MiB; what is kept of them are a few matrices of 128 x 128."""
    program = """
import resource, torch
from diptych.frechet import Moments
torch.set_num_threads(1)
moments, generator = Moments(128), torch.Generator().manual_seed(0)
def feed(num):
    for _ in range(num):
        moments.update(torch.randn(1000, 128, generator=generator))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
first = feed(20)
print(feed(380) - first)
"""
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 20 * 1024  # KiB


def test_merging_is_as_seeing_all_rows():
    features = normal(90, 6) * 10 + torch.arange(6)
    whole = moments_of(features)
    parts = [moments_of(rows) for rows in features.split([20, 69, 1])]
    left, right = Moments(6), moments_of(features[20:])
    left.merge(parts[0])
    left.merge(parts[1])
    left.merge(parts[2])
    left.merge(Moments(6))
    assert_close(left, whole)
    right.merge(parts[0])
    assert_close(right, whole)
    assert parts[0].count == 20  # what is merged stays as it is
    assert_close(parts[0], moments_of(features[:20]))


def test_small_eigenvalues_survive_a_large_mean():
    """The sums of x and x x^T, as the peers keep them, lose here what centred updates keep."""
    features = normal(400, 4) * torch.tensor([1.0, 1e-1, 1e-2, 1e-3]) + 1e4
    centred = (features - features.mean(0)).numpy().astype(np.longdouble)
    centred -= centred.mean(0)
    expected = torch.from_numpy((centred.T @ centred / 399).astype(np.float64))
    smallest = torch.linalg.eigvalsh(expected)[0]

    moments = Moments(4)
    for batch in features.split(16):
        moments.update(batch)
    error = (moments.covariance - expected).abs().max()
    assert error < 1e-6 * smallest

    raw = (features.T @ features - features.sum(0).outer(features.sum(0)) / 400) / 399
    assert (raw - expected).abs().max() > 1e-2 * smallest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_of_any_float_type(dtype):
    features = normal(50, 3).to(dtype)
    moments = moments_of(features)
    torch.testing.assert_close(moments.covariance, torch.cov(features.double().T), rtol=1e-12, atol=1e-12)
    assert moments.feature_dtype == str(dtype).removeprefix("torch.")


def test_a_file_keeps_everything(tmp_path):
    moments = moments_of(normal(40, 5).float(), network="inception", preprocessing="ab12")
    moments.save(tmp_path / "moments.npz")
    loaded = Moments.load(tmp_path / "moments.npz")
    assert (loaded.count, loaded.network, loaded.preprocessing) == (40, "inception", "ab12")
    assert loaded.feature_dtype == "float32"
    assert torch.equal(loaded.mean, moments.mean)
    torch.testing.assert_close(loaded.covariance, moments.covariance, rtol=1e-15, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["moments.npz"]
    more = normal(9, 5, seed=1).float()
    loaded.update(more)
    moments.update(more)
    assert_close(loaded, moments)


def test_our_file_is_read_as_the_peers_read_theirs(tmp_path):
    moments = moments_of(normal(40, 5))
    moments.save(tmp_path / "moments.npz")
    with np.load(tmp_path / "moments.npz") as file:  # pytorch-fid: f["mu"][:], f["sigma"][:]; FD-loss alike
        np.testing.assert_array_equal(file["mu"][:], moments.mean.numpy())
        np.testing.assert_array_equal(file["sigma"][:], moments.covariance.numpy())


def test_foreign_files_have_an_unknown_count(tmp_path):
    features = normal(40, 5).numpy()
    mean, covariance = features.mean(0), np.cov(features, rowvar=False)
    np.savez(tmp_path / "fid.npz", mu=mean, sigma=covariance)
    np.savez(
        tmp_path / "adm.npz", arr_0=np.zeros(3), mu=mean, sigma=covariance, mu_s=mean[:2], sigma_s=covariance[:2, :2]
    )
    np.savez(tmp_path / "half.npz", mu=mean.astype(np.float32), sigma=covariance.astype(np.float32))
    for name in ("fid", "adm", "half"):
        moments = Moments.load(tmp_path / f"{name}.npz")
        assert moments.count is None and moments.network is None
        np.testing.assert_allclose(moments.covariance.numpy(), covariance, rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match=r"update needs moments whose count is known.*from_statistics"):
            moments.update(torch.zeros(1, 5))
        with pytest.raises(ValueError, match="merge needs moments whose count is known"):
            Moments(5).merge(moments)
    assert Moments.load(tmp_path / "adm.npz", mean_key="mu_s", covariance_key="sigma_s").dim == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "moments.npz"
    old = moments_of(normal(40, 5))
    old.save(path)
    before = path.read_bytes()

    def fails(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(OSError, match="No space left"):
        moments_of(normal(40, 5, seed=1)).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["moments.npz"]


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of moments at .*nowhere\.npz"):
        Moments.load(tmp_path / "nowhere.npz")
    moments_of(normal(9, 2)).save(tmp_path / "cut.npz")
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.npz is not a whole \.npz file"):
        Moments.load(tmp_path / "cut.npz")
    np.savez(tmp_path / "other.npz", mean=np.zeros(2))
    with pytest.raises(ValueError, match=r"other\.npz must hold mu and sigma; it holds mean\."):
        Moments.load(tmp_path / "other.npz")
    np.savez(tmp_path / "shape.npz", mu=np.zeros(2), sigma=np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"square matrix of its length, got \(2,\) and \(3, 3\)"):
        Moments.load(tmp_path / "shape.npz")
    np.savez(tmp_path / "nan.npz", mu=np.zeros(2), sigma=np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="moments must be finite"):
        Moments.load(tmp_path / "nan.npz")
    np.savez(tmp_path / "skew.npz", mu=np.zeros(2), sigma=np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"must be symmetric, but differs from its transpose by up to 0\.5"):
        Moments.load(tmp_path / "skew.npz")
    with pytest.raises(ValueError, match=r"must end in \.npz, got moments\.pt"):
        moments_of(normal(9, 2)).save(tmp_path / "moments.pt")


def test_bad_features_are_refused_before_anything_is_taken_in():
    moments = moments_of(normal(9, 3).float(), network="clip")
    before = moments.covariance
    bad = normal(20, 3).float()
    bad[[2, 3, 5, 7, 11, 13], 1] = torch.nan
    bad[17] = torch.inf
    with pytest.raises(ValueError, match=r"rows 2, 3, 5, 7, 11 and 2 more of 20 hold NaN or infinity"):
        moments.update(bad)
    with pytest.raises(ValueError, match="features must have the moments' width 3, got 4"):
        moments.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="features must be float32 like those before, got float64"):
        moments.update(normal(2, 3))
    with pytest.raises(ValueError, match="moments must agree in network, got 'clip' and 'dinov2'"):
        moments.merge(moments_of(normal(9, 3).float(), network="dinov2"))
    with pytest.raises(ValueError, match="moments of float32 and float64 features are not merged"):
        moments.merge(moments_of(normal(9, 3)))
    assert moments.count == 9
    assert torch.equal(moments.covariance, before)


def test_too_few_rows_have_no_covariance():
    with pytest.raises(ValueError, match="a covariance needs at least 2 rows, the moments have 1"):
        _ = moments_of(normal(1, 3)).covariance
    with pytest.raises(ValueError, match=r"moments\.dim must be at least 1, got 0"):
        Moments(0)
