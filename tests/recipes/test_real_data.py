"""The presets on real pictures, changed by overrides alone."""

import json
from itertools import islice

import pytest
import torch
from rich.console import Console

import diptych
from diptych.data.example import ImageIn, load_pixels
from diptych.data.feature_cache import FeatureCache
from diptych.data.pack import write_shards
from diptych.data.picture_files import read_contact_sheet
from diptych.data.sources.blob_npz import emoji_edit_records, emoji_records, nlvr_records
from diptych.methods.training import build_task, fill_cache
from diptych.recipes import blip3o
from diptych.train.loop import train
from diptych.train.override import override
from diptych.train.serialization import from_json, to_json

TARS = "diptych.data.sources:WebDatasetSource"
TAEF2 = '{"kind": "diptych.interop.taef2:Taef2Config", "path": "taef2"}'


@pytest.fixture(scope="module")
def packed(test_data, tmp_path_factory):
    """Tars of a few records of each kind."""
    out = tmp_path_factory.mktemp("packed")
    images = test_data / "images"
    records = {
        "emoji": emoji_records(images / "emoji", "train"),
        "edits": emoji_edit_records(images / "emoji", "train"),
        "nlvr": nlvr_records(images / "nlvr", "train", 1),
    }
    for name, found in records.items():
        (out / name).mkdir()
        assert sum(count for _, count in write_shards(islice(found, 12), out / name)) == 12
    return out


def run(recipe, folder):
    train(build_task(recipe, folder), recipe, folder, console=Console(quiet=True), device="cpu")
    return diptych.load(folder, device="cpu")


def stage(trainable, mix, objectives):
    return {"trainable": trainable, "mix": mix, "objectives": objectives, "num_steps": 2, "batch_size": 4}


def source(packed, name, task, **fields):
    cache = str(packed / "index")
    return {"kind": TARS, "urls": [str(packed / name)], "task": task, "cache_dir": cache, **fields}


def emoji_flags(packed, stages):
    data = {
        "draw": source(packed, "emoji", "text_to_image"),
        "name": source(packed, "emoji", "image_to_text"),
        "edit": source(packed, "edits", "image_edit"),
    }
    return [
        *("--data", json.dumps(data), "--stages", json.dumps(stages), "--sampling.num-steps", "1"),
        *("--model.cache-features", "--evaluation.scorers"),
    ]


JOINT = stage(["connector", "backbone", "image_head"], {"draw": 2, "name": 1, "edit": 1}, {"text": 1, "flow": 1})


def check_emoji(model, folder, size):
    """The saved model draws, names and edits at the size it was trained at."""
    red = model.generate_image("a red heart", num_steps=1)[0]
    assert red.size == size
    assert model.generate_image([red, "make it green"], num_steps=1)[0].size == size
    assert isinstance(model.generate_text([red, "Describe the image."], max_new_tokens=2), str)
    captions = [cell.caption for cell in read_contact_sheet(sorted((folder / "samples").iterdir())[-1])]
    assert "keycap: #, flat emoji" in captions  # the data's own, not those of the built-in world


def test_emoji_in_latents_of_the_released_autoencoder(packed, test_data, tmp_path):
    space = {"kind": "diptych.interop.taef2:Taef2Config", "path": str(test_data / "models" / "taef2")}
    flags = ["--model.features", json.dumps(space), "--model.images.size", "32", "32"]
    recipe = override(blip3o.tiny(), [*emoji_flags(packed, {"joint": JOINT}), *flags])
    model = run(recipe, tmp_path / "run")
    check_emoji(model, tmp_path / "run", (32, 32))
    original = recipe.model.features.build().state_dict()
    assert all(torch.equal(value, original[name]) for name, value in model.autoencoder.state_dict().items())


def test_emoji_in_features_learnt_from_them(packed, tmp_path):
    stages = {"features": stage(["autoencoder"], {"draw": 1}, {"reconstruction": 1}), "joint": JOINT}
    recipe = override(blip3o.tiny(), emoji_flags(packed, stages))
    check_emoji(run(recipe, tmp_path / "run"), tmp_path / "run", (64, 64))


def test_nlvr_is_read_and_answered_at_its_own_shape(packed, tmp_path):
    ask = source(packed, "nlvr", "image_to_text", columns={"question": ["json.question"]})
    stages = {
        "understanding": stage(["autoencoder", "connector", "backbone"], {"ask": 1}, {"text": 1, "reconstruction": 1})
    }
    flags = ["--data", json.dumps({"ask": ask}), "--stages", json.dumps(stages), "--evaluation.scorers"]
    recipe = override(blip3o.tiny(), [*flags, "--model.images.size", "48", "192", "--model.images.multiple", "16"])
    model = run(recipe, tmp_path / "run")
    example = recipe.data["ask"].build().example(0, 0)
    assert isinstance(example.parts[0], ImageIn)
    assert load_pixels(example.parts[0].image).shape == (100, 400, 3)
    assert model.images.prepare(load_pixels(example.parts[0].image), False).shape == (3, 48, 192)
    prompt = list(example.parts[:2])
    values = model.log_likelihood(prompt, ["true", "false"])
    assert all(value < 0 for value in values)
    cells = read_contact_sheet(next((tmp_path / "run" / "samples").iterdir()))
    assert cells[0].image.size == (400, 100)
    assert model.generate_image("three boxes", num_steps=1)[0].size == (192, 48)


def test_the_feature_cache_takes_mixed_sizes_and_stops_at_its_bound(packed, tmp_path, capsys):
    flags = ["--model.images.resize", "native", "--model.images.size", "64", "192", "--model.images.multiple", "16"]
    ask = source(packed, "nlvr", "image_to_text", columns={"question": ["json.question"]})
    data = {"ask": ask, "draw": source(packed, "emoji", "text_to_image")}
    stages = {"joint": stage(["backbone"], {"ask": 1, "draw": 1}, {"text": 1})}
    recipe = override(blip3o.tiny(), ["--data", json.dumps(data), "--stages", json.dumps(stages), *flags])
    model = build_task(recipe, tmp_path / "run").model
    sources = {name: config.build() for name, config in recipe.data.items()}
    for bound, count in ((1e9, 24), (0.0, 0)):
        cache = FeatureCache()
        fill_cache(model, cache, sources, recipe.stages["joint"], False, bound)
        assert len(cache) == count
    assert "the other images are encoded in every step" in capsys.readouterr().out


def test_a_generation_space_from_elsewhere_is_a_flag():
    recipe = override(blip3o.tiny(), ["--model.features", TAEF2, "--model.features.path", "elsewhere"])
    assert type(recipe.model.features).__name__ == "Taef2Config"
    assert recipe.model.features.path == "elsewhere"
    assert from_json(to_json(recipe)) == recipe


def test_a_kind_that_builds_nothing_is_refused():
    stage = '{"kind": "diptych.unified.model:DrawSettings"}'
    with pytest.raises(
        ValueError, match=r"model\.features\.kind must be one of .*FeaturesConfig.* any config class with"
    ):
        override(blip3o.tiny(), ["--model.features", stage])


def test_what_is_on_can_be_turned_off():
    assert blip3o.demo().model.full_queries
    assert not override(blip3o.demo(), ["--model.no-full-queries"]).model.full_queries
