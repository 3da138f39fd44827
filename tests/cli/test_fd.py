"""``diptych fd`` on small sets: the numbers, what is written, what is refused, and that nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.frechet.cmmd import cmmd
from diptych.frechet.density_coverage import density_coverage
from diptych.frechet.distance import frechet_distance
from diptych.frechet.inception_score import inception_score, inception_score_of_splits
from diptych.frechet.kid import kid
from diptych.frechet.moments import Moments
from diptych.frechet.precision_recall import precision_recall
from diptych.frechet.ratio import distance_estimate
from tests.cli import fd_network
from tests.cli.fd_pictures import OTHER, TINY, fails, fd, images, moments_of, options, write_folder, written
from tests.tiny_models import tiny_model


@pytest.fixture
def sides(tmp_path):
    sets = {"generated": images(60, 0, low=40), "train": images(80, 1), "val": images(70, 2)}
    return {name: write_folder(tmp_path / name, arrays) for name, arrays in sets.items()}


def test_the_distance_the_ratio_and_what_is_written(sides, tmp_path, capsys):
    assert fd(tmp_path, sides["generated"], sides["train"], "--val", sides["val"], features=f"{TINY},{OTHER}") == 0
    printed = capsys.readouterr().out
    found = written(tmp_path)
    first, second = found["scores"]
    expected = frechet_distance(moments_of(images(60, 0, low=40)), moments_of(images(80, 1)))
    normaliser = frechet_distance(moments_of(images(70, 2)), moments_of(images(80, 1)))
    assert first["distance"]["value"] == pytest.approx(expected, rel=1e-5)
    assert first["normaliser"] == pytest.approx(normaliser, rel=1e-4)
    assert first["fdr"] == pytest.approx(expected / normaliser, rel=1e-4)
    assert found["fdr_k"] == pytest.approx((first["fdr"] + second["fdr"]) / 2)
    assert first["distance"]["low"] < first["distance"]["value"] < first["distance"]["high"]
    assert first["counts"] == [60, 80] and first["pixels"]["generated"] == {"uint8": 60}
    assert first["network"].startswith("tiny@") and first["network"] != second["network"]
    assert found["complete"] is True and found["missing"] == []
    assert "FDr^2 = " in printed and "95 % interval" in printed
    chart = (tmp_path / "out" / "fd.svg").read_text()
    assert chart.count("<rect") == 3 and "tiny" in chart and "FDr" in chart


def test_other_measures_of_the_same_features(sides, tmp_path, capsys):
    also = ("--also", "kid,cmmd,fd-infinity,precision-recall,density-coverage")
    assert fd(tmp_path, sides["generated"], sides["train"], *also) == 0
    printed = capsys.readouterr().out
    found = written(tmp_path)["scores"][0]["others"]
    generated, real = (
        fd_network.tiny()(torch.from_numpy(array).permute(0, 3, 1, 2)).double()
        for array in (images(60, 0, low=40), images(80, 1))
    )
    assert found["KID"]["value"] == pytest.approx(kid(generated, real).value, rel=1e-5)
    assert found["CMMD"]["value"] == pytest.approx(cmmd(generated, real).value, rel=1e-4)
    assert found["precision"]["value"] == pytest.approx(precision_recall(generated, real).precision.value, abs=0.02)
    assert found["coverage"]["value"] == pytest.approx(density_coverage(generated, real).coverage.value, abs=0.02)
    assert list(found) == ["KID", "CMMD", "FD∞", "precision", "recall", "density", "coverage"]
    for name, value in found.items():
        assert value["low"] <= value["value"] <= value["high"] and name in printed


def test_the_inception_score_is_of_the_network_with_classes(sides, tmp_path, capsys):
    also = ("--also", "inception-score")
    names = f"classifying=tests.cli.fd_network:classifying,{TINY}"
    assert fd(tmp_path, sides["generated"], sides["train"], *also, features=names) == 0
    with_classes, without = (score["others"] for score in written(tmp_path)["scores"])
    network = fd_network.classifying()
    rows = network(torch.from_numpy(images(60, 0, low=40)).permute(0, 3, 1, 2))
    probabilities = network.network.logits(rows, use_bias=False).double().softmax(1)
    assert list(with_classes) == ["IS", "IS, 10 splits"] and without == {}
    assert with_classes["IS"]["value"] == pytest.approx(inception_score(probabilities).value, rel=1e-6)
    splits = inception_score_of_splits(probabilities)
    assert with_classes["IS, 10 splits"]["value"] == pytest.approx(splits.mean, rel=1e-6)
    assert with_classes["IS, 10 splits"]["standard_error"] == pytest.approx(splits.std / 3, rel=1e-5)
    message = fails(capsys, tmp_path, sides["generated"], sides["train"], *also)
    assert "--also inception-score needs a network with classes: --features inception" in message


def test_other_measures_need_images_and_known_names(sides, tmp_path, capsys):
    assert "--also knows kid, cmmd, " in fails(capsys, tmp_path, sides["generated"], sides["train"], "--also", "fid")
    message = fails(capsys, tmp_path, sides["train"], "--stats", tmp_path / "train.npz", "--also", "kid")
    assert "--also kid needs a REFERENCE" in message
    assert fd(tmp_path, sides["train"], "--stats", tmp_path / "train.npz") == 0
    message = fails(capsys, tmp_path, sides["generated"], tmp_path / "train.npz", "--also", "kid")
    assert "--also kid needs the images of" in message and "which holds statistics alone" in message
    assert fd(tmp_path, sides["generated"], tmp_path / "train.npz", "--also", "fd-infinity") == 0


def test_sides_of_other_kinds_give_the_same(sides, tmp_path):
    np.savez(tmp_path / "generated.npz", images(60, 0, low=40))
    moments_of(images(80, 1)).save(tmp_path / "train.npz")
    assert fd(tmp_path, sides["generated"], sides["train"]) == 0
    first = written(tmp_path)["scores"][0]
    assert fd(tmp_path, tmp_path / "generated.npz", tmp_path / "train.npz") == 0
    second = written(tmp_path)["scores"][0]
    assert first["distance"]["value"] == pytest.approx(second["distance"]["value"], rel=1e-5)
    assert second["distance"]["standard_error"] < first["distance"]["standard_error"]
    assert first["fdr"] is None and second["counts"] == [60, 80]


def test_statistics_are_written_and_refused_by_another_network(sides, tmp_path, capsys):
    assert fd(tmp_path, sides["train"], "--stats", tmp_path / "train.npz") == 0
    saved = Moments.load(tmp_path / "train.npz")
    assert saved.count == 80 and saved.network == fd_network.tiny().network_id
    message = fails(capsys, tmp_path, sides["generated"], tmp_path / "train.npz", features=OTHER)
    assert "are of another kind of features: network is 'tiny@" in message
    assert fd(tmp_path, tmp_path / "train.npz", tmp_path / "train.npz") == 0
    distance = written(tmp_path)["scores"][0]["distance"]
    assert distance["value"] == pytest.approx(0, abs=1e-9) and distance["low"] is None


def test_features_and_normalisers_are_kept(sides, tmp_path, monkeypatch):
    assert fd(tmp_path, sides["generated"], sides["train"], "--val", sides["val"]) == 0
    first = (tmp_path / "out" / "fd.json").read_text()
    assert len(list((tmp_path / "cache" / "normalisers").iterdir())) == 1
    monkeypatch.setattr("diptych.frechet.features.Features.from_prepared", None)
    assert fd(tmp_path, sides["generated"], sides["train"], "--val", sides["val"]) == 0
    assert (tmp_path / "out" / "fd.json").read_text() == first


def test_a_stopped_command_says_what_is_missing_and_goes_on(sides, tmp_path, capsys, monkeypatch):
    """The second of three networks is stopped, then fails; the first one's distances are not computed again."""
    stopping = "stopping=tests.cli.fd_network:stopping"
    words = (sides["generated"], sides["train"], "--val", sides["val"], "--also", "kid")
    names = f"{TINY},{stopping},{OTHER}"
    monkeypatch.setenv("FD_TEST_STOP", "KeyboardInterrupt")
    assert fd(tmp_path, *words, features=names) == 130
    assert "1 of 3 networks are done; the same command goes on from there." in capsys.readouterr().err
    found = written(tmp_path)
    assert (found["complete"], found["missing"], found["fdr_k"]) == (False, [stopping, OTHER], None)
    assert [score["features"] for score in found["scores"]] == ["tiny"]
    assert not (tmp_path / "out" / "fd.svg").exists()
    monkeypatch.setenv("FD_TEST_STOP", "ValueError")
    assert "stopped here" in fails(capsys, tmp_path, *words, features=names)
    assert written(tmp_path) == {**found, "command": written(tmp_path)["command"]}

    monkeypatch.delenv("FD_TEST_STOP")
    computed = []
    monkeypatch.setattr(
        "diptych.frechet.ratio.distance_estimate",
        lambda a, b: computed.append(a[0].network.split("@")[0]) or distance_estimate(a, b),
    )
    assert fd(tmp_path, *words, features=names) == 0
    assert computed == ["stopping", "other"]
    resumed = written(tmp_path)
    assert resumed["complete"] and resumed["missing"] == [] and resumed["fdr_k"] > 0
    assert fd(tmp_path / "again", *words, features=names) == 0
    straight = written(tmp_path / "again")
    assert straight["scores"] == resumed["scores"] and straight["fdr_k"] == resumed["fdr_k"]

    Image.fromarray(images(1, 9)[0]).save(sides["generated"] / "new.png")  # another set: nothing is taken over
    computed.clear()
    assert fd(tmp_path, *words) == 0
    assert computed == ["tiny"]


def test_what_is_wrong_with_a_later_network_is_found_before_features_are_computed(sides, tmp_path, capsys, monkeypatch):
    moments_of(images(80, 1)).save(tmp_path / "train.npz")
    monkeypatch.setattr("diptych.frechet.features.Features.from_prepared", None)
    both = f"{TINY},{OTHER}"
    assert "there is no 'dinov'" in fails(capsys, tmp_path, sides["train"], sides["val"], features=f"{TINY},dinov")
    message = fails(capsys, tmp_path, sides["generated"], tmp_path / "train.npz", features=both)
    assert "are of another kind of features: network is 'tiny@" in message
    assert "has none for tiny" in fails(capsys, tmp_path, sides["train"], sides["val"], "--paper-normalisers")


def test_warnings_are_printed(sides, tmp_path, capsys):
    write_folder(tmp_path / "jpeg", images(30, 5, size=16), "jpg")
    Image.fromarray(images(1, 6, size=24)[0]).save(tmp_path / "jpeg" / "x.jpg")
    assert fd(tmp_path, tmp_path / "jpeg", sides["train"]) == 0
    printed = capsys.readouterr().out
    for words in ("31 pictures for 5 dimensions", "mixed resolutions", "JPEG against lossless"):
        assert words in printed


def test_sets_that_cannot_be_compared_are_refused(sides, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "no picture in" in fails(capsys, tmp_path, tmp_path / "empty", sides["train"])
    write_folder(tmp_path / "one", images(1, 0))
    assert "needs at least 2 pictures, got 1" in fails(capsys, tmp_path, tmp_path / "one", sides["train"])
    assert "does not exist" in fails(capsys, tmp_path, sides["train"], tmp_path / "none")
    assert "there is no 'dinov'" in fails(capsys, tmp_path, sides["train"], sides["val"], features="dinov")
    assert "give one" in fails(capsys, tmp_path, sides["train"], sides["val"], "--val", "x", "--paper-normalisers")
    assert "one side with --stats" in fails(capsys, tmp_path, sides["train"])
    assert "not finite" in fails(
        capsys, tmp_path, sides["train"], sides["val"], features="b=tests.cli.fd_network:broken"
    )


def test_identical_images_and_few_images_give_a_number_with_a_warning(sides, tmp_path, capsys):
    write_folder(tmp_path / "same", [images(1, 3)[0]] * 4)
    assert fd(tmp_path, tmp_path / "same", sides["train"]) == 0
    printed = capsys.readouterr().out
    assert "all 4 pictures are the same" in printed and "the covariance is singular" in printed
    value = written(tmp_path)["scores"][0]["distance"]["value"]
    expected = frechet_distance(moments_of([images(1, 3)[0]] * 4), moments_of(images(80, 1)))
    assert value == pytest.approx(expected, rel=1e-5)


def test_an_unreadable_file_in_the_middle(sides, tmp_path, capsys):
    (sides["generated"] / "0031.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    message = fails(capsys, tmp_path, sides["generated"], sides["train"])
    assert "1 of 60 pictures cannot be read, the first is 0031.png" in message and "--max-bad" in message
    assert fd(tmp_path, sides["generated"], sides["train"], "--max-bad", 0.05) == 0
    assert "1 pictures cannot be read and are left out" in capsys.readouterr().out
    value = written(tmp_path)["scores"][0]["distance"]["value"]
    without = moments_of(np.delete(images(60, 0, low=40), 31, 0))
    assert value == pytest.approx(frechet_distance(without, moments_of(images(80, 1))), rel=1e-5)


def test_floats_and_their_pngs_say_which_they_are(sides, tmp_path, capsys):
    floats = np.random.default_rng(0).random((40, 8, 8, 3), dtype=np.float32) * 2 - 1
    np.savez(tmp_path / "floats.npz", floats)
    assert "float images need a value_range" in fails(capsys, tmp_path, tmp_path / "floats.npz", sides["train"])
    values = {}
    for how in ((), ("--clamp",), ("--quantize",)):
        assert fd(tmp_path, tmp_path / "floats.npz", sides["train"], "--value-range", -1, 1, *how) == 0
        score = written(tmp_path)["scores"][0]
        (kind,) = score["pixels"]["generated"]
        values[kind] = score["distance"]["value"]
    assert set(values) == {"float", "float clamped", "float quantized to 8 bits"}
    assert "rounding to 8 bits moves small distances" in capsys.readouterr().out
    saved = write_folder(tmp_path / "saved", ((floats / 2 + 0.5) * 255).round().astype(np.uint8))
    assert fd(tmp_path, saved, sides["train"]) == 0
    png = written(tmp_path)["scores"][0]["distance"]["value"]
    assert png == pytest.approx(values["float quantized to 8 bits"], rel=1e-6)
    assert png != values["float"]


def test_a_model_and_prompts_are_a_side(sides, tmp_path):
    tiny_model().save(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\na green star\n")
    assert fd(tmp_path, f"{tmp_path / 'model'}@{tmp_path / 'prompts.txt'}", sides["train"], "--device", "cpu") == 0
    score = written(tmp_path)["scores"][0]
    assert score["counts"] == [3, 80]
    prompts = ["a red circle", "a blue square", "a green star"]
    drawn = tiny_model().generate_image(prompts, seed=[0, 1, 2])
    expected = frechet_distance(moments_of([np.asarray(image) for image in drawn]), moments_of(images(80, 1)))
    assert score["distance"]["value"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.process
def test_a_killed_command_goes_on(tmp_path):
    np.savez(tmp_path / "a.npz", images(1100, 0))
    moments_of(images(80, 1), fd_network.slow()).save(tmp_path / "b.npz")
    words = [sys.executable, "-m", "diptych", "fd", tmp_path / "a.npz", tmp_path / "b.npz", "--features",
             "s=tests.cli.fd_network:slow", *options(tmp_path)]  # fmt: skip
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    process = subprocess.Popen([*words, "--batch-size", "64"], env={**environment, "FD_TEST_SECONDS": "0.2"})
    deadline = time.monotonic() + 200
    while not list((tmp_path / "cache").rglob("chunk-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("chunk-*.npz")}
    assert 1 <= len(kept) < 3
    begun = written(tmp_path)
    assert not begun["complete"] and begun["missing"] == ["s=tests.cli.fd_network:slow"] and begun["scores"] == []
    subprocess.run([*words, "--processes", "2"], env=environment, check=True)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("chunk-*.npz")}
    assert len(after) == 3 and all(after[name] == stamp for name, stamp in kept.items())
    value = written(tmp_path)["scores"][0]["distance"]["value"]
    features = fd_network.slow()
    expected = frechet_distance(moments_of(images(1100, 0), features), moments_of(images(80, 1), features))
    assert value == pytest.approx(expected, rel=1e-4)
