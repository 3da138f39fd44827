"""``diptych fd`` on every kind of side, and on pictures that are not plain 8-bit RGB: numbers, warnings, refusals."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diptych.frechet.distance import frechet_distance
from tests.cli import fd_network
from tests.cli.fd_pictures import TINY, fails, fd, images, moments_of, write_folder, written
from tests.data.test_pictures import as_array, as_blob, as_folder, as_parquet, as_tar

GENERATED, REAL = images(24, 0, low=40), images(30, 1)


def as_tars(folder, pictures):
    for place, part in enumerate((pictures[:10], pictures[10:])):
        (folder / f"part{place}").mkdir()
        as_tar(folder / f"part{place}", part)[0].rename(folder / f"{place:03d}.tar")
        (folder / f"part{place}").rmdir()
    return folder, None


def as_data_set(folder, pictures):
    """A folder of parquet files, named as a data set of the hub."""
    as_parquet(folder, pictures)
    return f"hf:{folder}", None


def as_statistics(folder, pictures):
    """As pytorch-fid writes them: no count, no network."""
    moments = moments_of(pictures)
    np.savez(folder / "fid.npz", mu=moments.mean.numpy(), sigma=moments.covariance.numpy())
    return folder / "fid.npz", None


@pytest.mark.parametrize(
    "write", [as_folder, as_tar, as_tars, as_parquet, as_data_set, as_array, as_blob, as_statistics]
)
def test_every_kind_of_side_gives_the_distance_of_its_pictures(write, tmp_path, capsys):
    for place in ("made", "real"):
        (tmp_path / place).mkdir()
    made, real = write(tmp_path / "made", GENERATED)[0], write(tmp_path / "real", REAL)[0]
    assert fd(tmp_path, made, real) == 0
    score = written(tmp_path)["scores"][0]
    expected = frechet_distance(moments_of(GENERATED), moments_of(REAL))
    assert score["distance"]["value"] == pytest.approx(expected, rel=1e-5)
    if write is as_statistics:
        assert score["counts"] == [None, None] and score["distance"]["low"] is None
        assert "the file of statistics does not say how many images it is of" in capsys.readouterr().out
    else:
        assert score["counts"] == [24, 30] and score["distance"]["low"] is not None


def test_pictures_of_statistics_that_peers_read(tmp_path):
    """--stats writes what pytorch-fid and ADM read; it stands in for the pictures."""
    folder = write_folder(tmp_path / "real", REAL)
    assert fd(tmp_path, folder, "--stats", tmp_path / "real.npz") == 0
    with np.load(tmp_path / "real.npz") as file:
        rows = fd_network.tiny()(moments_input(REAL)).double().numpy()
        np.testing.assert_allclose(file["mu"][:], rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(file["sigma"][:], np.cov(rows, rowvar=False), rtol=1e-3, atol=1e-6)
    made = write_folder(tmp_path / "made", GENERATED)
    assert fd(tmp_path, made, tmp_path / "real.npz") == 0
    expected = frechet_distance(moments_of(GENERATED), moments_of(REAL))
    assert written(tmp_path)["scores"][0]["distance"]["value"] == pytest.approx(expected, rel=1e-5)


def moments_input(arrays):
    import torch

    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def deep_rgb_png(pixels):
    """A PNG of 16 bits a channel, which Pillow cannot write: each level v as v * 257."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = (pixels.astype(np.uint16) * 257).astype(">u2")
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def write_unusual(folder):
    """One of each kind beside plain ones; what each should be read as."""
    folder.mkdir()
    special = images(8, 3)
    frames = [Image.fromarray(picture) for picture in special[:2]]
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(folder / "a.png")
    (folder / "b.png").write_bytes(deep_rgb_png(special[2]))
    Image.fromarray(special[3]).convert("CMYK").save(folder / "c.jpg", quality=100)
    frames[0].quantize(64).save(folder / "d.gif", save_all=True, append_images=[frames[1].quantize(64)])
    frames[0].save(folder / "e.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(folder / "f.png", save_all=True, append_images=frames[1:])
    Image.fromarray(np.dstack([special[4], np.full((8, 8), 0, dtype=np.uint8)])).save(folder / "g.png")
    Image.fromarray(special[5]).convert("L").save(folder / "h.png")
    plain = images(20, 4)
    for index, picture in enumerate(plain):
        Image.fromarray(picture).save(folder / f"z{index:02d}.png")
    grey = np.asarray(Image.fromarray(special[5]).convert("L"))
    read = [
        np.full((8, 8, 3), 156, dtype=np.uint8),  # 40,000 / 257
        special[2],
        np.asarray(Image.open(folder / "c.jpg").convert("RGB")),
        np.asarray(frames[0].quantize(64).convert("RGB")),
        special[0],
        special[0],
        np.full((8, 8, 3), 255, dtype=np.uint8),
        np.repeat(grey[:, :, None], 3, axis=2),
    ]
    return [*read, *plain]


def test_unusual_pictures_give_the_right_number_and_are_told(tmp_path, capsys):
    read = write_unusual(tmp_path / "made")
    real = write_folder(tmp_path / "real", REAL)
    assert fd(tmp_path, tmp_path / "made", real) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "2 16-bit pictures, scaled to 8 bits.",
        "1 CMYK pictures, converted to RGB without their colour profile.",
        "3 animated pictures, of which the first frame is taken.",
        "1 transparent pictures, laid on white.",
        "mixed formats, 25 PNG, 1 GIF, 1 JPEG and 1 other kinds",
    ):
        assert words in printed
    score = written(tmp_path)["scores"][0]
    assert score["counts"] == [28, 30]
    expected = frechet_distance(moments_of(read), moments_of(REAL))
    assert score["distance"]["value"] == pytest.approx(expected, rel=1e-5)


def test_fewer_pictures_than_dimensions(tmp_path, capsys):
    """The right number, which is far too high for what it is taken for: the warning says so."""
    made, real = write_folder(tmp_path / "made", GENERATED[:4]), write_folder(tmp_path / "real", REAL[:5])
    assert fd(tmp_path, made, real) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "4 pictures for 5 dimensions, so the covariance is singular" in printed
    assert "5 pictures for 5 dimensions, so the covariance is singular" in printed
    value = written(tmp_path)["scores"][0]["distance"]["value"]
    expected = frechet_distance(moments_of(GENERATED[:4]), moments_of(REAL[:5]), is_quiet=True)
    assert value == pytest.approx(expected, rel=1e-5)
    assert value > frechet_distance(moments_of(GENERATED), moments_of(REAL))


def test_pictures_that_are_all_broken(tmp_path, capsys):
    (tmp_path / "made").mkdir()
    for index in range(3):
        (tmp_path / "made" / f"{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    real = write_folder(tmp_path / "real", REAL)
    assert "none of the 3 pictures can be read; the first is 0.png" in fails(capsys, tmp_path, tmp_path / "made", real)
    message = fails(capsys, tmp_path, real, tmp_path / "made", "--max-bad", 0.9)
    assert "none of the 3 pictures can be read" in message


def test_damaged_sides_are_named(tmp_path, capsys):
    real = write_folder(tmp_path / "real", REAL)
    as_parquet(tmp_path, REAL)
    whole = (tmp_path / "images.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    shard = as_tar(tmp_path, REAL)[0].read_bytes()
    (tmp_path / "cut.tar").write_bytes(shard[: len(shard) // 2])
    np.savez(tmp_path / "nan.npz", mu=np.zeros(5), sigma=np.full((5, 5), np.nan))
    np.savez(tmp_path / "wide.npz", mu=np.zeros(7), sigma=np.eye(7))
    np.savez(tmp_path / "none.npz", np.zeros((0, 8, 8, 3), dtype=np.uint8))
    floats = REAL.astype(np.float32) / 255
    floats[7, 0, 0, 0] = np.nan
    np.savez(tmp_path / "floats.npz", floats)
    for name, words in {
        "cut.parquet": "cut.parquet is cut off",
        "cut.tar": "cannot be read, the first is cut.tar#",
        "nan.npz": "nan.npz: moments must be finite",
        "wide.npz": "dim is 7 there and 5 for tiny",
        "none.npz": "no picture in",
        "floats.npz": "floats.npz[7]: images must lie in [0, 1], got values from nan to nan",
    }.items():
        assert words in fails(capsys, tmp_path, tmp_path / name, real, "--value-range", 0, 1), name


def test_features_that_are_not_finite_keep_what_other_networks_found(tmp_path, capsys):
    made, real = write_folder(tmp_path / "made", GENERATED), write_folder(tmp_path / "real", REAL)
    message = fails(capsys, tmp_path, made, real, features=f"{TINY},bad=tests.cli.fd_network:broken")
    assert "1 of 2 networks are done" in message and "broken gives features that are not finite" in message
    found = written(tmp_path)
    assert found["missing"] == ["bad=tests.cli.fd_network:broken"] and len(found["scores"]) == 1
