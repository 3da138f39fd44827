"""Features of a set are computed once, survive a kill, and are those of one pass in one process."""

import numpy as np
import pytest
import torch
from torch import nn

from diptych.data.pictures import ArrayPictures, Picture
from diptych.frechet import extraction
from diptych.frechet.distance import frechet_distance
from diptych.frechet.extraction import PixelRule, extract, extraction_folder, missing_chunks, read_extracted
from diptych.frechet.features import module_features
from diptych.frechet.ratio import merged
from diptych.frechet.sample_checks import count_warnings, pair_warnings, set_warnings

NUM = 37


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(extraction, "CHUNK_SIZE", 8)


def tiny_features():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return module_features(network, name="tiny", dim=6, size=(8, 8))


def noise(num=NUM, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)


class Listed:
    """Pictures given one by one."""

    identity = "listed"

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def read(self, start, stop):
        yield from self.pictures[start:stop]


def extracted_of(pictures, folder, features=None, **options):
    features = features or tiny_features()
    place = extraction_folder(folder, pictures, features, options.get("rule") or PixelRule())
    extract(pictures, features, place, **options)
    return read_extracted(place, len(pictures))


def test_features_are_those_of_one_pass(tmp_path):
    features, images = tiny_features(), noise()
    told = []
    found = extracted_of(ArrayPictures(images, "x", "x"), tmp_path, batch_size=5, progress=told.append)
    whole = features(torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(torch.from_numpy(found.features), whole)
    assert told[-1] == NUM and told == sorted(told)
    groups = found.grouped_moments(features, 10)
    assert [group.count for group in groups] == [4] * 7 + [3] * 3
    one = features.new_moments()
    one.update(whole)
    torch.testing.assert_close(merged(groups).covariance, one.covariance, rtol=1e-5, atol=1e-9)
    assert frechet_distance(merged(groups), one) == pytest.approx(0, abs=1e-9)


def test_a_second_run_computes_nothing_and_one_that_failed_goes_on(tmp_path):
    pictures, features = ArrayPictures(noise(), "x", "x"), tiny_features()
    calls = []
    plain = features.from_prepared

    def counted(inputs):
        calls.append(len(inputs))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(inputs)

    features.from_prepared = counted
    place = extraction_folder(tmp_path, pictures, features, PixelRule())
    with pytest.raises(KeyboardInterrupt):
        extract(pictures, features, place, batch_size=8)
    assert missing_chunks(place, NUM) == [3, 4]
    with pytest.raises(ValueError, match=r"lacks 2 chunks \(first 3\)"):
        read_extracted(place, NUM)
    extract(pictures, features, place, batch_size=8)
    assert calls == [8, 8, 8, 8, 8, 5]
    extract(pictures, features, place, batch_size=8)
    assert len(calls) == 6 and not list(place.glob(".unfinished*"))
    fresh = extracted_of(pictures, tmp_path / "other")
    np.testing.assert_allclose(read_extracted(place, NUM).features, fresh.features, atol=1e-6)


def test_processes_share_the_chunks(tmp_path):
    pictures, features = ArrayPictures(noise(), "x", "x"), tiny_features()
    place = extraction_folder(tmp_path, pictures, features, PixelRule())
    extract(pictures, features, place, numbers=[1, 3])
    assert missing_chunks(place, NUM) == [0, 2, 4]
    extract(pictures, features, place, numbers=[0, 1, 2, 4])
    np.testing.assert_allclose(
        read_extracted(place, NUM).features, extracted_of(pictures, tmp_path / "other").features, atol=1e-6
    )


def test_everything_that_changes_features_has_its_own_folder(tmp_path):
    features, pictures = tiny_features(), ArrayPictures(noise(), "x", "x")
    other = module_features(features.network, name="tiny", dim=6, size=(9, 9))
    places = {
        extraction_folder(tmp_path, pictures, features, PixelRule()),
        extraction_folder(tmp_path, ArrayPictures(noise(), "x", "y"), features, PixelRule()),
        extraction_folder(tmp_path, pictures, other, PixelRule()),
        extraction_folder(tmp_path, pictures, features, PixelRule(value_range=(0, 1), outside="clamp")),
        extraction_folder(tmp_path, pictures, features, PixelRule(value_range=(0, 1), quantize=True)),
    }
    assert len(places) == 5


def test_features_that_are_not_finite_name_the_picture_and_keep_what_was_done(tmp_path):
    images = noise().astype(np.float32) / 255
    features = module_features(Divides(), name="divides", dim=3, size=(8, 8))
    images[20] = 0.5
    pictures = ArrayPictures(images, "set", "x")
    place = extraction_folder(tmp_path, pictures, features, PixelRule(value_range=(0, 1)))
    with pytest.raises(ValueError, match=r"divides gives features that are not finite for 1 pictures \(set\[20\]\)"):
        extract(pictures, features, place, rule=PixelRule(value_range=(0, 1)))
    assert missing_chunks(place, NUM) == [2, 3, 4]


class Divides(nn.Module):
    def forward(self, x):
        return 1 / (x.mean((2, 3)) - 0.5)


def test_float_pictures_need_a_range_and_say_what_was_done(tmp_path):
    images = noise().astype(np.float32) / 255
    with pytest.raises(ValueError, match=r"x\[0\]: float images need a value_range"):
        extracted_of(ArrayPictures(images, "x", "a"), tmp_path)
    images[3] += 1
    with pytest.raises(ValueError, match=r"x\[3\]: images must lie in \[0, 1\]"):
        extracted_of(ArrayPictures(images, "x", "b"), tmp_path, rule=PixelRule(value_range=(0, 1)))
    clamped = extracted_of(
        ArrayPictures(images, "x", "c"), tmp_path, rule=PixelRule(value_range=(0, 1), outside="clamp")
    )
    assert clamped.pixel_kinds == {"float clamped": NUM}


def test_unreadable_pictures_are_left_out_and_named(tmp_path):
    pictures = [Picture(f"{i}.png", image, "PNG") for i, image in enumerate(noise())]
    pictures[11] = Picture("11.png", None, fault="truncated image")
    found = extracted_of(Listed(pictures), tmp_path)
    assert len(found.features) == NUM - 1 and found.faults == (("11.png", "truncated image"),)
    whole = tiny_features()(torch.from_numpy(np.delete(noise(), 11, 0)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found.features, whole.numpy(), atol=1e-6)
    nothing = [Picture("a.png", None, fault="empty image")] * 3
    with pytest.raises(ValueError, match=r"none of the 3 pictures can be read; the first is a\.png: empty image"):
        extracted_of(Listed(nothing), tmp_path / "none")


def test_pictures_of_several_sizes_go_together(tmp_path):
    generator = np.random.default_rng(0)
    sizes = [(8, 8), (20, 12), (5, 9)] * 3
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    found = extracted_of(Listed([Picture(str(i), image) for i, image in enumerate(images)]), tmp_path)
    features = tiny_features()
    each = torch.cat([features(torch.from_numpy(image).permute(2, 0, 1)[None]) for image in images])
    np.testing.assert_allclose(found.features, each.numpy(), atol=1e-6)
    assert found.sizes == {(5, 9): 3, (8, 8): 3, (20, 12): 3}
    assert any("mixed resolutions, 3 9x5, 3 8x8, 3 12x20" in line for line in set_warnings("x", found))


def test_what_weakens_a_distance_is_said(tmp_path):
    images = noise()
    images[5] = images[4]
    jpeg = [Picture(f"{i}", image, "JPEG") for i, image in enumerate(images)]
    a = extracted_of(Listed(jpeg), tmp_path / "a")
    assert set_warnings("a", a) == ["a: 1 of 37 pictures are duplicates of others."]
    png = [Picture(f"{i}", image[:4], "PNG", ("16-bit",)) for i, image in enumerate(noise(seed=1))]
    png[0] = Picture("0", images[0], "PNG")
    b = extracted_of(Listed(png), tmp_path / "b")
    assert any(line == "b: 36 16-bit pictures, scaled to 8 bits." for line in set_warnings("b", b))
    lines = pair_warnings(("a", "b"), (a, b))
    assert "1 pictures are in both a and b." in lines
    assert any("a is JPEG and b PNG: JPEG against lossless" in line for line in lines)
    same = extracted_of(Listed([Picture("0", images[0], "PNG")] * 9), tmp_path / "c")
    assert set_warnings("c", same) == ["c: all 9 pictures are the same, so the covariance is zero."]
    floats = extracted_of(
        ArrayPictures(noise() / np.float32(255), "f", "f"), tmp_path / "d", rule=PixelRule(value_range=(0, 1))
    )
    assert any("rounding to 8 bits moves small distances" in line for line in pair_warnings(("a", "f"), (a, floats)))
    assert "singular" in count_warnings("x", 6, 6)[0] and "biased upwards" in count_warnings("x", 59, 6)[0]
    assert count_warnings("x", 60, 6) == [] and "does not say how many" in count_warnings("x", None, 6)[0]
