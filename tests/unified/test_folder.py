"""The model folder: comes back equal, is replaced whole or not at all, and says what is wrong with a damaged one."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import diptych
from diptych.data.tokenizer import train_tokenizer
from diptych.unified import folder as folder_module
from diptych.unified.folder import FORMAT_VERSION, load_model, load_part, read_manifest, resolve, save_model
from tests.file_size_limit import file_size_limit
from tests.tiny_models import TINY, tiny_model

PARTS = {"autoencoder", "backbone", "connector", "image_head"}


@pytest.fixture(scope="module")
def model():
    model = tiny_model()
    model.card = {"name": "tiny", "licence": "Apache-2.0", "scores": {"twin": 0.5}}
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    model.save(path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def drawn(model, **settings):
    return np.asarray(model.generate_image("a red circle above a blue square", seed=3, **settings)[0]).astype(int)


def assert_equal_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys() and len(first) > 50
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def edit_manifest(path, **changes):
    file = path / "diptych.json"
    manifest = json.loads(file.read_text())
    for name, value in changes.items():
        manifest[name] = value
        if value is None:
            del manifest[name]
    file.write_text(json.dumps(manifest))


def entries(path):
    return sorted(entry.name for entry in path.iterdir())


# -- there and back ----------------------------------------------------------------------------------------------------


def test_weights_pixels_and_words_come_back_equal(model, saved):
    loaded = diptych.load(saved, device="cpu")
    assert_equal_weights(model, loaded)
    assert not loaded.training and loaded.draw_settings == model.draw_settings and loaded.images == model.images
    assert loaded.prompt_format == model.prompt_format and loaded.card == model.card
    assert loaded.capabilities == model.capabilities and loaded.info() == model.info()
    np.testing.assert_array_equal(drawn(loaded), drawn(model))
    prompt = [drawn(model).astype(np.uint8), "What is it?"]
    answers = [m.generate_text(prompt, max_new_tokens=8, temperature=1.0, seed=1) for m in (model, loaded)]
    assert answers[0] == answers[1]


def test_the_folder_holds_what_the_format_says(saved):
    assert entries(saved) == sorted([*PARTS, "README.md", "diptych.json", "tokenizer"])
    assert all(entries(saved / part) == ["model.safetensors"] for part in PARTS)
    manifest = read_manifest(saved)
    assert manifest["format_version"] == FORMAT_VERSION and manifest["diptych_version"] == diptych.__version__
    assert manifest["kind"] == "unified" and "text_to_image" in manifest["capabilities"]
    page = (saved / "README.md").read_text()
    assert page.startswith("# tiny\n") and "Licence: Apache-2.0" in page and 'diptych.load("tiny")' in page
    assert not [file for file in saved.rglob("*") if file.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_the_folder_has_the_rights_that_new_folders_have(saved, tmp_path):
    (tmp_path / "usual").mkdir()
    assert saved.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_weights_kept_in_float16_load_as_float32_and_draw_nearly_the_same(model, tmp_path):
    save_model(model, tmp_path / "half", dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "backbone" / "model.safetensors").values()} == {
        torch.float16
    }
    loaded = load_model(tmp_path / "half")
    assert {value.dtype for value in loaded.state_dict().values() if value.is_floating_point()} == {torch.float32}
    difference = np.abs(drawn(loaded) - drawn(model))
    assert difference.max() > 0 and difference.mean() < 1


def test_a_model_can_be_loaded_in_bfloat16(saved):
    loaded = diptych.load(saved, device="cpu", dtype="bfloat16")
    assert next(loaded.parameters()).dtype == torch.bfloat16
    assert drawn(loaded, num_steps=1).shape == (64, 64, 3)


def test_large_parts_are_several_files_with_an_index(model, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 40_000)
    model.save(tmp_path / "m")
    files = read_manifest(tmp_path / "m")["parts"]["backbone"]["files"]
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "m" / "backbone" / file).stat().st_size < 60_000 for file in files)
    index = json.loads((tmp_path / "m" / "backbone" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == model.backbone.state_dict().keys() and set(index.values()) == set(files)
    for name, file in index.items():
        assert name in load_file(tmp_path / "m" / "backbone" / file)
    assert_equal_weights(load_model(tmp_path / "m"), model)
    (tmp_path / "m" / "backbone" / files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"backbone/{files[1]} is missing: the model folder is incomplete"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "backbone" / files[1]).write_bytes(b"\x08\x00")
    with pytest.raises(ValueError, match=rf"backbone/{files[1]} is damaged or cut off"):
        load_model(tmp_path / "m")


def test_one_part_loads_alone(model, saved):
    part = load_part(saved, "autoencoder")
    expected = model.autoencoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in part.state_dict().items())
    with pytest.raises(ValueError, match=r"has no part 'encoder'; it has autoencoder, connector, backbone, image_head"):
        load_part(saved, "encoder")


def test_a_recipe_can_start_from_a_part_of_a_saved_model(model, saved):
    torch.manual_seed(7)
    started = replace(TINY, start_from={"autoencoder": str(saved)}).build()
    for name, value in started.autoencoder.state_dict().items():
        assert torch.equal(value, model.autoencoder.state_dict()[name])
    assert not torch.equal(next(started.backbone.parameters()), next(model.backbone.parameters()))
    with pytest.raises(ValueError, match=r"model.start_from: there is no part 'decoder'; parts are autoencoder, "):
        replace(TINY, start_from={"decoder": str(saved)}).build()
    other = replace(TINY, features=replace(TINY.features, channels=12), start_from={"autoencoder": str(saved)})
    with pytest.raises(
        ValueError, match=r"the autoencoder of .* has channels 8, the recipe's has 12. Give the recipe's"
    ):
        other.build()


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_model_is_found_by_folder_checkpoint_run_and_bundled_name(saved, tmp_path, monkeypatch):
    run = tmp_path / "run"
    for step in ("000005", "999999", "1000000"):
        shutil.copytree(saved, run / "checkpoints" / f"step-{step}" / "model")
    shutil.copytree(saved, run / "checkpoints" / ".unfinished-step-2000000" / "model")
    latest = run / "checkpoints" / "step-1000000" / "model"
    assert resolve(saved) == resolve(str(saved)) == saved
    assert resolve(run / "checkpoints" / "step-000005") == run / "checkpoints" / "step-000005" / "model"
    assert resolve(run) == resolve(run / "checkpoints" / "step-1000000") == latest
    shutil.copytree(saved, tmp_path / "bundled" / "diptych-test")
    monkeypatch.setattr(folder_module, "BUNDLED", tmp_path / "bundled")
    assert resolve("diptych-test") == tmp_path / "bundled" / "diptych-test"
    with pytest.raises(
        FileNotFoundError, match=r"there is no model 'diptych-tset'. Give .*, or one of: diptych-test\.$"
    ):
        resolve("diptych-tset")


def test_what_is_no_model_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "BUNDLED", tmp_path / "none")
    cases = {
        "nothing": r"there is no model '.*nothing'. Give a model folder\.$",
        "empty": r"empty holds no diptych.json: it is no model folder, or its writing was cut off\.$",
        "notes.txt": r"notes.txt is a file, but a model is a folder with diptych.json\. Give that folder\.$",
        "fresh": r"the run .*fresh has no checkpoint yet, so there is no model in it. Continue it with",
        "weights.pt": r"weights.pt is a pickled checkpoint, which can run any code .*weights_only=True",
        "released": r"released/pytorch_model.bin is a pickled checkpoint, .*safetensors.torch.save_file\(torch.load\(",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "recipe.json").write_text("{}")
    (tmp_path / "released").mkdir()
    for file in ("weights.pt", "released/pytorch_model.bin"):
        torch.save({"weight": torch.zeros(2)}, tmp_path / file)
    for name, message in cases.items():
        with pytest.raises(FileNotFoundError, match=message):
            diptych.load(tmp_path / name)
    assert len(cases) == 6


# -- written whole or not at all ---------------------------------------------------------------------------------------


def test_a_model_is_saved_over_the_folder_it_came_from(model, copy):
    load_model(copy).save(copy)
    assert_equal_weights(load_model(copy), model)


def test_saving_again_replaces_the_folder(model, copy):
    other = tiny_model(seed=1)
    other.save(copy)
    assert_equal_weights(load_model(copy), other)
    assert entries(copy.parent) == ["copy"]


@pytest.mark.parametrize("failing", ["model_card", "save_file", "rename"])
def test_a_save_that_fails_leaves_the_earlier_folder_and_nothing_else(model, copy, monkeypatch, failing):
    calls = []

    def fail(name):
        original = folder_module.os.replace if name == "rename" else getattr(folder_module, name)

        def failing_later(*arguments):
            calls.append(arguments)
            if len(calls) == (1 if name == "model_card" else 2):  # the second: one part, or one rename, was done before
                raise KeyboardInterrupt if name == "save_file" else OSError(5, "Input/output error")
            return original(*arguments)

        return failing_later

    target = (folder_module.os, "replace") if failing == "rename" else (folder_module, failing)
    monkeypatch.setattr(*target, fail(failing))
    with pytest.raises((OSError, KeyboardInterrupt)) as caught:
        tiny_model(seed=1).save(copy)
    if failing != "save_file":
        assert "the model cannot be saved: input/output error. Save to a place you may write to" in str(caught.value)
    monkeypatch.undo()
    assert calls and entries(copy.parent) == ["copy"]
    assert_equal_weights(load_model(copy), model)


def test_a_save_cut_off_between_its_two_renames_is_found_again(copy, tmp_path):
    """What a kill in that moment leaves: both folders, under other names."""
    copy.rename(tmp_path / ".mine-x1y2")
    with pytest.raises(FileNotFoundError, match=r"saving it was cut off and left it in .*/\.mine-x1y2. Rename that"):
        load_model(tmp_path / "mine")


@pytest.mark.parametrize("limit", [30_000, 100])
def test_no_space_says_so_and_leaves_the_earlier_folder(model, copy, limit):
    with file_size_limit(limit), pytest.raises(OSError, match=r"cannot be saved: no space left on the disk. Free some"):
        tiny_model(seed=1).save(copy)
    assert entries(copy.parent) == ["copy"]
    assert_equal_weights(load_model(copy), model)


def test_a_place_that_cannot_be_written_is_named(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot be saved: something on the way there is a file, not a folder.*file/m'"):
        model.save(tmp_path / "file" / "m")
    with pytest.raises(OSError, match=r"the model cannot be saved: .*\. Save to a place you may write to: '/proc/m'"):
        model.save("/proc/m")  # refused to root as well
    assert entries(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_nothing_but_a_model_folder_is_replaced(model, copy, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes.txt is a file, and a model is saved as a folder. Choose another"):
        model.save(tmp_path / "notes.txt")
    with pytest.raises(FileExistsError, match=r"holds files that are not of a model \(copy, notes.txt\) and would be"):
        model.save(tmp_path)
    (copy / "samples").mkdir()
    with pytest.raises(FileExistsError, match=r"not of a model \(samples\) and would be lost. Save to a new folder."):
        model.save(copy)
    assert entries(tmp_path) == ["copy", "notes.txt"] and (copy / "samples").is_dir()
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty")
    assert resolve(tmp_path / "empty")


# -- damaged -----------------------------------------------------------------------------------------------------------

FILES = ("diptych.json", "tokenizer/tokenizer.json", *(f"{part}/model.safetensors" for part in sorted(PARTS)))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file_is_named(copy, name):
    file = copy / name
    content = file.read_bytes()
    for damage in (content[: len(content) // 2], content[:3], b""):
        file.write_bytes(damage)
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            load_model(copy)
    file.unlink()
    missing = r"holds no diptych.json" if name == "diptych.json" else rf"{name} is missing"
    with pytest.raises(FileNotFoundError, match=missing):
        load_model(copy)


def test_every_kind_of_file_is_covered(saved):
    files = {file.relative_to(saved).as_posix() for file in saved.rglob("*") if file.is_file()}
    assert files == {*FILES, "README.md"}  # the page is for people


@pytest.mark.parametrize("name", ["parts", "prompt_format", "tokenizer_fingerprint", "images", "draw", "card"])
def test_a_description_that_lacks_something_says_what(copy, name):
    edit_manifest(copy, **{name: None})
    with pytest.raises(ValueError, match=rf"diptych.json is damaged: it lacks '{name}'. Restore the file, or take"):
        load_model(copy)
    edit_manifest(copy, **{name: 3})
    with pytest.raises(
        ValueError, match=rf"diptych.json is damaged: '{name}' must be (an object|text), got 3. Restore"
    ):
        load_model(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draw": {}}, r"diptych.json describes no model: 'guidance_interval' is missing"),
        (
            {"images": {"size": [64, 60]}},
            r"describes no model: images.size must be multiples of .*: got 64x60 and 8\. ",
        ),
        ({"images": {"size": [64, 64], "colour": 1}}, r"describes no model: .*unexpected keyword argument 'colour'"),
        ({"prompt_format": {}}, r"describes no model: 'stop' is missing"),
        ({"parts": {}}, r"describes no model: .*'backbone'"),
        ({"parts": {"mind": {}}}, r"names a part 'mind', which a model does not have: parts are autoencoder, encoder"),
        ({"parts": {"backbone": {}}}, r"is damaged: the part 'backbone' needs 'config' and 'files'"),
    ],
)
def test_a_description_that_fits_no_model_says_why(copy, changes, message):
    edit_manifest(copy, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(copy)


def test_pictures_that_would_be_prepared_otherwise_are_refused(copy):
    images = read_manifest(copy)["images"]
    edit_manifest(copy, images={**images, "filter": "bilinear"})
    with pytest.raises(ValueError, match=r"diptych.json: pictures would not be prepared as in training \(fingerprint"):
        load_model(copy)
    edit_manifest(copy, preprocessing_fingerprint=None)  # of a folder from before there were any
    assert load_model(copy).images.filter == "bilinear"


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"format_version": "1"}'])
def test_another_json_file_is_recognised(copy, text):
    (copy / "diptych.json").write_text(text)
    with pytest.raises(ValueError, match=r"diptych.json has no format_version: it was not written by diptych."):
        load_model(copy)


def test_a_newer_format_is_refused_with_the_version_needed(copy):
    edit_manifest(copy, format_version=FORMAT_VERSION + 1, diptych_version="9.1", parts=None)
    expected = (
        rf"has format version {FORMAT_VERSION + 1}; diptych .* reads up to {FORMAT_VERSION}. It needs diptych 9.1"
    )
    with pytest.raises(ValueError, match=expected):
        load_model(copy)
    with pytest.raises(ValueError, match=expected):
        load_part(copy, "backbone")


def test_the_tokenizer_of_another_model_is_refused(copy, model):
    special = list(model.tokenizer.special)
    train_tokenizer(["other text"], 300, special).save(copy / "tokenizer")
    with pytest.raises(
        ValueError, match=r"is not the tokenizer this model was trained with \(fingerprint [0-9a-f]{12}"
    ):
        load_model(copy)


def test_a_tokenizer_that_does_not_fit_the_parts_is_refused(model):
    def compose(tokenizer):
        return type(model)(
            backbone=model.backbone,
            tokenizer=tokenizer,
            prompt_format=model.prompt_format,
            images=model.images,
        )

    with pytest.raises(ValueError, match=r"uses special tokens that the tokenizer lacks: <\|assistant\|>, <\|end\|>"):
        compose(train_tokenizer(["some text"], 300, ["<|system|>", "<|user|>", "<|image|>", "<|draw|>"]))
    many = [f"<|extra_{letter}|>" for letter in "abcdefghijklmnopqrstuvwxyz"] * 20
    names = [*model.prompt_format.special_tokens(), *(f"{name}{i}" for i, name in enumerate(many))]
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, but the backbone knows only \d+: they belong"):
        compose(train_tokenizer(["some text"], 2000, names))


def test_files_of_two_models_are_not_mixed(copy, model):
    file = copy / "backbone" / "model.safetensors"
    weights = load_file(file)
    first = next(iter(weights))
    save_file({**weights, first: torch.zeros(3, 5)}, file)
    with pytest.raises(
        ValueError, match=rf"backbone does not fit .* of another shape \['{first}'\] .*mixes files of two"
    ):
        load_model(copy)
    save_file({"strange": weights.pop(first), **weights}, file)
    with pytest.raises(ValueError, match=rf"missing \['{first}'\], unknown \['strange'\]"):
        load_model(copy)


def test_a_pickle_among_the_files_of_a_part_is_refused(copy):
    torch.save({"weight": torch.zeros(2)}, copy / "backbone" / "pytorch_model.bin")
    manifest = read_manifest(copy)
    manifest["parts"]["backbone"]["files"] = ["pytorch_model.bin"]
    edit_manifest(copy, parts=manifest["parts"])
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin is a pickle file, which can run any code .*weights_only=True"
    ):
        load_model(copy)


# -- strangers ---------------------------------------------------------------------------------------------------------


def test_a_part_of_an_unknown_class_is_refused_without_importing_anything(copy, tmp_path, monkeypatch):
    (tmp_path / "strange_parts.py").write_text(
        "import pathlib\n"
        f"pathlib.Path({str(tmp_path / 'was-imported')!r}).touch()\n"
        "from torch import nn\nclass Backbone(nn.Module): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    manifest = read_manifest(copy)

    def with_kind(kind, **config):
        parts = {**manifest["parts"], "backbone": {"config": {"kind": kind, **config}, "files": []}}
        edit_manifest(copy, parts=parts)

    with_kind("strange_parts:Backbone")
    with pytest.raises(
        ValueError, match=r"diptych.json, part 'backbone': kind 'strange_parts:Backbone' is not a part of"
    ):
        load_model(copy)
    assert "strange_parts" not in sys.modules and not (tmp_path / "was-imported").exists()
    for kind, message in {
        "os:system": r"'os:system' is no nn.Module class of os",
        "diptych.models.telepathy:Mind": r"part 'backbone': .*No module named .* newer version of diptych",
        "diptych.models.backbones.transformer:build": r"is no nn.Module class of diptych.models.backbones.transformer",
    }.items():
        with_kind(kind)
        with pytest.raises(ValueError, match=message):
            load_model(copy)
    with_kind("diptych.models.backbones.transformer:CausalTransformer", depth=3)
    with pytest.raises(
        ValueError, match=r"part 'backbone': .*CausalTransformer cannot be built from its configuration: "
    ):
        load_model(copy)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_without_rights_is_refused(copy):
    (copy / "diptych.json").chmod(0)
    with pytest.raises(PermissionError, match=r"diptych.json"):
        load_model(copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, r"device 'gpu' cannot be used here\. Use auto, cpu, or a GPU as cuda:0\."),
        ({"device": ""}, r"device '' cannot be used here \(Device string must not be empty\)"),
        ({"device": "cuda:99"}, r"device 'cuda:99' cannot be used here"),
        ({"dtype": "float16"}, r"dtype must be auto, float32 or bfloat16, got 'float16'"),
    ],
)
def test_devices_and_dtypes_that_are_not_there(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        diptych.load(saved, **arguments)
