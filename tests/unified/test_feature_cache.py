"""Features in files: what training reads is what it would encode, whatever was killed or shared in the making."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from diptych.cli.main import main
from diptych.data.feature_cache import FeatureCache
from diptych.data.feature_files import FeatureFiles, FeatureWriter
from diptych.data.sources.folder import FolderSource
from diptych.methods.training import build_task
from diptych.train.loop import train
from diptych.train.recipe import Recipe, Stage
from diptych.train.serialization import to_json
from diptych.unified import ImagePolicy
from diptych.unified.feature_cache import fill_files, maker_of
from tests.tiny_models import TINY, tiny_model

NUM = 24
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(NUM):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"picture {number}")
    return folder


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def silent(text):
    pass


def images_of(pictures):
    return list(FolderSource(path=str(pictures)).build().images())


def check_complete(model, pictures, folder, **tolerance):
    files = FeatureFiles(folder, maker_of(model))
    assert len(files) == NUM
    for image in images_of(pictures):
        with torch.no_grad():
            expected = model.encode_outputs(model.images.prepare(image.load(), True)[None])[0]
        torch.testing.assert_close(files.get(image.key), expected, **tolerance)
    assert not list((folder / "shards").glob(".*"))


class SlowSource:
    """A source that takes its time, so that a kill comes in the middle."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def example(self, index, epoch):
        time.sleep(0.05)
        return self.source.example(index, epoch)


def fill_slowly(model, pictures, folder, part):
    torch.set_num_threads(1)
    source = SlowSource(FolderSource(path=str(pictures)).build())
    fill_files(model, source, folder, "float32", part, batch_size=2, shard_size=4, tell=silent)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_features_are_those_of_the_encoder(model, pictures, tmp_path, dtype, tolerance):
    source = FolderSource(path=str(pictures)).build()
    report = fill_files(model, source, tmp_path, dtype, batch_size=5, shard_size=7, tell=silent)
    assert (report.encoded, report.present) == (NUM, 0)
    check_complete(model, pictures, tmp_path, rtol=tolerance, atol=tolerance)
    again = fill_files(model, source, tmp_path, dtype, tell=silent)
    assert (again.encoded, again.present) == (0, NUM)


def test_a_killed_process_loses_no_shard(model, pictures, tmp_path):
    process = FORK.Process(target=fill_slowly, args=(model, pictures, tmp_path, (0, 1)))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("shards/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = len(FeatureFiles(tmp_path))
    assert 8 <= kept < NUM
    half = tmp_path / "shards" / f".half.safetensors.{os.uname().nodename}.{process.pid}.part"
    half.write_bytes(b"half a file")
    unindexed = sorted(tmp_path.glob("shards/*.json"))[0]
    unindexed.unlink()  # as if killed between a shard and its index
    report = fill_files(model, FolderSource(path=str(pictures)).build(), tmp_path, "float32", tell=silent)
    assert (report.encoded, report.present) == (NUM - kept, kept)
    check_complete(model, pictures, tmp_path, rtol=1e-5, atol=1e-5)


def test_two_processes_share_the_work(model, pictures, tmp_path):
    processes = [FORK.Process(target=fill_slowly, args=(model, pictures, tmp_path, (i, 2))) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    check_complete(model, pictures, tmp_path, rtol=1e-5, atol=1e-5)
    assert len(list(tmp_path.glob("shards/*.json"))) == 6  # nobody made what the other had


def test_features_of_another_origin_are_refused(model, pictures, tmp_path):
    fill_files(model, FolderSource(path=str(pictures)).build(), tmp_path, "float32", tell=silent)
    other = tiny_model(seed=1)
    with pytest.raises(ValueError, match=r"made with another encoder: [0-9a-f]{12}, but this model has [0-9a-f]{12}"):
        FeatureFiles(tmp_path, maker_of(other))
    other = tiny_model(config=replace(TINY, images=ImagePolicy(resize="crop")))
    with pytest.raises(ValueError, match=r"another preprocessing: pad, .* this model has crop, .*`diptych cache"):
        FeatureFiles(tmp_path, maker_of(other))
    other = tiny_model(config=replace(TINY, images=ImagePolicy(size=(32, 32))))
    with pytest.raises(ValueError, match=r"another size: \[64, 64\], but this model has \[32, 32\]"):
        fill_files(other, FolderSource(path=str(pictures)).build(), tmp_path, "float32", tell=silent)
    with pytest.raises(ValueError, match=r"holds float32, not bfloat16"):
        FeatureWriter(tmp_path, maker_of(model), "bfloat16")
    with pytest.raises(FileNotFoundError, match=r"holds no feature cache: it has no cache.json. Make one with"):
        FeatureFiles(pictures)


def test_another_decoder_keeps_the_cache(model):
    before = maker_of(model)
    changed = tiny_model()
    with torch.no_grad():
        changed.autoencoder.decoder.norm.weight.add_(1)
    assert maker_of(changed) == before
    with torch.no_grad():
        changed.autoencoder.bottleneck.weight.add_(1)
    assert maker_of(changed).encoder != before.encoder


def test_a_damaged_shard_is_named(model, pictures, tmp_path):
    fill_files(model, FolderSource(path=str(pictures)).build(), tmp_path, "float32", tell=silent)
    shard = next(tmp_path.glob("shards/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"of the feature cache cannot be read.*Delete it with its .json"):
        FeatureFiles(tmp_path).get(images_of(pictures)[0].key)


def test_missing_images_are_counted_or_refused(model, pictures, tmp_path, caplog):
    fill_files(model, FolderSource(path=str(pictures)).build(), tmp_path, "float32", part=(0, 2), tell=silent)
    first, second = images_of(pictures)[:2]
    cache = FeatureCache()
    cache.attach(FeatureFiles(tmp_path), ("output",))
    assert cache.get("output", first.key) is not None and cache.num_missing == 0
    assert cache.get("output", second.key) is None and cache.num_missing == 1
    assert "encoded on the fly (1 so far)" in caplog.text
    assert cache.get("input", second.key) is None and cache.num_missing == 1
    cache.attach(FeatureFiles(tmp_path), ("output",), refuses_missing=True)
    with pytest.raises(ValueError, match=r"image bytes/\w+ is not in the feature cache .*feature_cache_missing encode"):
        cache.get("output", second.key)


def recipe_of(pictures, **changes):
    stage = Stage(trainable=("image_head",), mix={"draw": 1.0}, objectives={"flow": 1.0}, num_steps=3, batch_size=4)
    return Recipe(
        name="tests:cached",
        model=replace(TINY, **changes),
        data={"draw": FolderSource(path=str(pictures))},
        stages={"generation": stage},
    )


def test_training_reads_what_the_command_wrote(pictures, tmp_path, monkeypatch, capsys):
    file, folder = tmp_path / "recipe.json", tmp_path / "features"
    file.write_text(to_json(recipe_of(pictures)))
    command = ["cache", str(file), "--data", "draw", "--out", str(folder), "--device", "cpu", "--dtype", "float32"]
    assert main([*command, "--part", "1/2"]) == 0 and main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "encoded 12 images" in printed and "12 were there" in printed
    weights = []
    for cache in (None, str(folder)):
        recipe = recipe_of(pictures, feature_cache=cache, feature_cache_missing="refuse")
        task = build_task(recipe, tmp_path / str(bool(cache)))
        if cache:
            monkeypatch.setattr(task.model, "encode_outputs", None)
        train(task, recipe, tmp_path / str(bool(cache)), console=Console(quiet=True), device="cpu")
        weights.append(task.model.image_head.state_dict())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "2/2"], "--part must be I/N with 0 <= I < N, such as 0/2, got '2/2'"),
        (["--data", "nowhere"], "--data 'nowhere' is neither tars nor a folder. The recipe's sources are pictures"),
    ],
)
def test_bad_arguments_are_named(words, message, tmp_path, capsys):
    command = ["cache", "tests.cli.tiny_recipe:seconds", "--data", "pictures", "--out", str(tmp_path / "out")]
    assert main([*command, *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_files_are_read_lazily_and_travel(model, pictures, tmp_path):
    import pickle

    fill_files(model, FolderSource(path=str(pictures)).build(), tmp_path, "float32", shard_size=4, tell=silent)
    files = FeatureFiles(Path(tmp_path))
    key = images_of(pictures)[5].key
    expected = files.get(key)
    assert torch.equal(pickle.loads(pickle.dumps(files)).get(key), expected)
