"""Pictures of every kind of set, in order, with what they were before they became 8-bit RGB."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from diptych.data.pictures import PictureSet, open_pictures


def picture(seed, size=(6, 5)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def encoded(pixels, format="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def pixels_of(pictures):
    assert isinstance(pictures, PictureSet)
    return [item.pixels for item in pictures.read(0, len(pictures))]


def as_folder(folder, images):
    for index, image in enumerate(images):
        path = folder / f"class-{index % 2}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    return folder, sorted(range(len(images)), key=lambda index: (index % 2, index))


def as_tar(folder, images):
    with tarfile.open(folder / "shard-000.tar", "w") as tar:
        for index, image in enumerate(images):
            data = encoded(image)
            info = tarfile.TarInfo(f"{index:03d}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder / "shard-000.tar", range(len(images))


def as_parquet(folder, images):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"image": [{"bytes": encoded(image), "path": None} for image in images]})
    table.to_parquet(folder / "images.parquet")
    return folder / "images.parquet", range(len(images))


def as_array(folder, images):
    np.savez(folder / "images.npz", np.stack(images), np.arange(len(images)))
    return folder / "images.npz", range(len(images))


def as_blob(folder, images):
    data = [encoded(image) for image in images]
    offset = np.cumsum([0, *map(len, data)])
    np.savez(folder / "blob.npz", data=np.frombuffer(b"".join(data), dtype=np.uint8), offset=offset)
    return folder / "blob.npz", range(len(images))


@pytest.mark.parametrize("write", [as_folder, as_tar, as_parquet, as_array, as_blob])
def test_every_kind_of_set_gives_its_pictures_in_order(write, tmp_path):
    images = [picture(seed) for seed in range(5)]
    path, order = write(tmp_path, images)
    pictures = open_pictures(str(path))
    assert len(pictures) == 5
    for index, found in zip(order, pixels_of(pictures), strict=True):
        assert np.array_equal(found, images[index])
    assert [item.name for item in pictures.read(1, 3)] == [item.name for item in pictures.read(0, 5)][1:3]
    assert open_pictures(str(path)).identity == pictures.identity


def test_another_file_is_another_identity(tmp_path):
    as_folder(tmp_path, [picture(0), picture(1)])
    before = open_pictures(str(tmp_path)).identity
    (tmp_path / "class-0" / "000.png").write_bytes(encoded(picture(7, (7, 7))))
    changed = open_pictures(str(tmp_path)).identity
    (tmp_path / "class-0" / "002.png").write_bytes(encoded(picture(8)))
    assert len({before, changed, open_pictures(str(tmp_path)).identity}) == 3


def test_what_a_file_was_is_told(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(picture(0)).convert("CMYK").save(tmp_path / "b.jpg")
    frames = [Image.fromarray(picture(seed)) for seed in (1, 2)]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.dstack([picture(3), np.zeros((6, 5), dtype=np.uint8)])).save(tmp_path / "d.png")
    (tmp_path / "e.png").write_bytes(encoded(picture(4))[:60])
    (tmp_path / "f.png").write_bytes(b"")
    found = list(open_pictures(str(tmp_path)).read(0, 6))
    assert [(item.format, item.notes) for item in found[:4]] == [
        ("PNG", ("16-bit",)),
        ("JPEG", ("CMYK",)),
        ("GIF", ("animated",)),
        ("PNG", ("transparent",)),
    ]
    assert (found[0].pixels == 156).all() and (found[3].pixels == 255).all()
    assert [(item.pixels, item.fault) for item in found[4:]] == [(None, "truncated image"), (None, "empty image")]


def test_what_holds_no_pictures_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture in"):
        open_pictures(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_pictures(str(tmp_path / "none"))
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(ValueError, match="of no known format"):
        open_pictures(str(tmp_path / "note.txt"))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="must hold images as arr_0 or images or samples"):
        open_pictures(str(tmp_path / "other.npz"))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"is not a whole \.npz file"):
        open_pictures(str(tmp_path / "cut.npz"))
