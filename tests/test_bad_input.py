"""Bad input, from the outside: whatever a user can give wrongly is answered in one clear paragraph, before any work.

Through the command line in this process, and through the Python face. The rooms' own tests go deeper: ``test_folder``
(every file of a model folder), ``test_checkpoint`` (every file of a checkpoint, full disks), ``test_recipe`` (fields).
"""

import json
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych import load
from diptych.cli.main import explain, main
from diptych.data.picture_files import read_png_metadata
from diptych.data.tokenizer import train_tokenizer
from diptych.recipes import clip
from diptych.train.part_configs import TokenizerConfig
from tests.file_size_limit import file_size_limit
from tests.tiny_models import TINY, tiny_model

RECIPE = "tests.cli.tiny_recipe:seconds"
FOLDER_SOURCE = "diptych.data.sources.folder:FolderSource"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with two checkpoints."""
    path = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", RECIPE, "--stages.features.num-steps", "1", "--stages.joint.num-steps", "2"]
    words += ["--logging.sample-every", "-1", "--checkpoints.every-steps", "1", "--out", str(path)]
    assert main(words) == 0
    assert [folder.name for folder in sorted((path / "checkpoints").iterdir())] == ["step-000002", "step-000003"]
    return path


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def fails(capsys):
    """What a command that must fail prints, as one line; nothing else, unless training has begun."""

    def run_command(*words, has_begun=False):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("diptych:") and bool(printed.out) == has_begun
        assert "Traceback" not in printed.err and "----" not in printed.err and "│" not in printed.err
        assert len(printed.err) < 4000
        return " ".join(printed.err.split())

    return run_command


def entries(path):
    return sorted(entry.name for entry in path.iterdir())


# -- unknown names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "blip3:tiny"], "unknown recipe 'blip3'. Did you mean blip3o"),
        (["train", "blip3o:tinny"], "the recipe 'blip3o' has no preset 'tinny'. Did you mean blip3o:tiny"),
        (["train", "blip3o"], "the recipe 'blip3o' needs a preset."),
        (["train", "no such recipe"], "unknown recipe 'no such recipe'."),
        (["train", "nothing.json"], "no recipe file at nothing.json"),
        (
            ["train", RECIPE, "--stages.joint.num-stepz", "3"],
            "unknown field --stages.joint.num-stepz. Did you mean --st",
        ),
        (
            ["train", RECIPE, "--stages.jiont.num-steps", "3"],
            "unknown field --stages.jiont.num-steps. Did you mean --st",
        ),
        (["train", RECIPE, "--num-steps", "3"], "unknown field --num-steps. Did you mean --stages.features.num-steps"),
        (["train", RECIPE, "--model.backbone.dim", "wide"], "parsing --model.backbone.dim: invalid literal for int()"),
        (
            ["train", RECIPE, "--stages.joint.num-steps", "-5"],
            "stages.joint: stage.num_steps must be a finite number of",
        ),
        (
            ["train", RECIPE, "--model.images.resize", "squash"],
            "invalid choice 'squash' for argument '--model.images.re",
        ),
        (["train", RECIPE, "--model.tokenizer.path", "builtin:x"], "there is no 'builtin:x'. Known: builtin:scenes"),
        (
            ["train", RECIPE, "--model.tokenizer.path", "./nope"],
            "'./nope' is neither a folder with a tokenizer nor a hub",
        ),
        (["train", RECIPE, "--model.start-from", '{"autoencoder": "nope"}'], "there is no model 'nope'."),
        (
            ["train", RECIPE, "--stages.joint.trainable", "bakbone"],
            "names the part 'bakbone', which the model does not",
        ),
        (["train", RECIPE, "--device", "gpu"], "argument --device: invalid choice: 'gpu'"),
        (["generate", "x", "--model", "diptych-scene"], "there is no model 'diptych-scene'. Give a model folder"),
        (["ask", "picture.png", "What?", "--model", "nope"], "there is no model 'nope'."),
        (["edit", "picture.png", "turn it", "--model", "nope"], "there is no model 'nope'."),
        (["info", "nope"], "there is no model 'nope'."),
        (["evaluate", "nope", "--on", "geneva"], "--on: there is no 'geneva'. Did you mean geneval?"),
        (["evaluate", "nope"], "there is no model 'nope'."),
        (["resume", "nope"], "There is no run to resume in nope: it has no recipe.json."),
        (["data", "check", "nope"], "'nope' does not exist"),
    ],
)
def test_unknown_names(fails, tmp_path, picture, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(*words)
    assert not list(tmp_path.rglob("recipe.json")) and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "gpu"], "device 'gpu' cannot be used here. Use auto, cpu, or a GPU as cuda:0."),
        (["--dtype", "int8"], "dtype must be auto, float32 or bfloat16, got 'int8'."),
        (["--seed", str(2**70)], "seed must lie between 0 and 2**63"),
        (["--size", "50"], "size must be positive multiples of 8, got 50x50."),
        (["--size", "40"], "images whose height and width are multiples of 16, got 40x40. Use 32x32 or 48x48."),
        (["--guidance", "inf"], "--guidance must be a finite number, got inf."),
        (["--negative-prompt", " "], "negative_prompt is empty. Leave it out"),
    ],
)
def test_settings_that_the_model_cannot_follow(fails, saved, tmp_path, options, message):
    assert message in fails("generate", "x", "--model", saved, "--out", tmp_path, *options)
    assert entries(tmp_path) == []


# -- prompts and numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", " ", "\t\n"])
def test_empty_prompts(fails, saved, picture, model, prompt):
    assert "prompt 1 is empty. Say what to draw." in fails("generate", prompt, "--model", saved)
    assert "The question is empty." in fails("ask", picture, prompt, "--model", saved)
    assert "The instruction is empty." in fails("edit", picture, prompt, "--model", saved)
    for face in (model.generate_image, model.generate_text, model.stream_text, model.chat().ask, model.chat().draw):
        with pytest.raises(ValueError, match=r"the prompt is empty. Say what to draw or what to answer."):
            face(prompt)
    with pytest.raises(ValueError, match=r"the prompt is empty"):
        model.log_likelihood(prompt, "yes")


def test_prompts_of_100_000_characters(fails, saved, picture, tmp_path, model):
    long = ("a red circle above a blue square, " * 3000)[:100_000]
    message = r"has \d{5} text tokens, more than the model's 1024. Shorten the text."
    printed = fails("generate", long, "--model", saved, "--out", tmp_path / "new")
    assert "text tokens, more than the model's 1024. Shorten the text." in printed and len(printed) < 300
    assert "more than the model's 1024" in fails("ask", picture, long, "--model", saved)
    chat = model.chat()
    for face in (model.generate_image, model.generate_text, chat.ask, chat.draw):
        with pytest.raises(ValueError, match=message) as error:
            face(long)
        assert len(str(error.value)) < 300
    assert chat.parts == ()


@pytest.mark.parametrize("prompt", ["🍕🏳️‍🌈 on a 🏖️", "دائرة حمراء فوق مربع أزرق", "עיגול אדום", "e\u0301 a\x00b \ufeff"])
def test_emoji_and_right_to_left_prompts_are_drawn_and_recorded(capsys, saved, model, picture, tmp_path, prompt):
    words = ["generate", prompt, "--model", str(saved), "--out", str(tmp_path / "new"), "--steps", "1", "--sheet"]
    assert main(words) == 0
    first, sheet = capsys.readouterr().out.splitlines()
    assert read_png_metadata(first)["prompt"] == prompt and read_png_metadata(sheet)["prompts"] == [prompt]
    drawn = np.asarray(Image.open(first)).astype(int)
    alone = np.asarray(model.generate_image(prompt, num_steps=1)[0]).astype(int)
    other = np.asarray(model.generate_image("a red circle", num_steps=1)[0]).astype(int)
    assert np.abs(drawn - alone).max() <= 1 and np.abs(drawn - other).max() > 1
    assert main(["ask", str(picture), prompt, "--model", str(saved), "--max-new-tokens", "3"]) == 0


def test_half_a_character_is_refused(fails, saved, tmp_path):
    """What Python makes of an argument that is not UTF-8."""
    message = fails("generate", "caf\udce9", "--model", saved, "--out", tmp_path)
    assert "character 3 ('\\udce9') is half of a character. Give the text as valid UTF-8." in message


@pytest.mark.parametrize("steps", [-5, -1, 0])
def test_negative_steps(fails, saved, picture, model, steps):
    expected = f"must be at least 1, got {steps}"
    assert expected in fails("generate", "x", "--model", saved, f"--steps={steps}")
    assert expected in fails("edit", picture, "turn it", "--model", saved, f"--steps={steps}")
    assert f"at least 1, got {steps}" in fails("train", RECIPE, f"--stages.joint.num-steps={steps}")
    assert f"at least 1, got {steps}" in fails("train", RECIPE, f"--sampling.num-steps={steps}")
    for face in (model.generate_image, model.chat().draw):
        with pytest.raises(ValueError, match=rf"num_steps {expected}"):
            face("x", num_steps=steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan. 1 is off."),
        ({"seed": -1}, r"seed must lie between 0 and 2\*\*63, got -1"),
        ({"seed": 2**64}, r"seed must lie between 0 and 2\*\*63"),
        ({"seed": [1, 2, 3]}, "seed must be one number or one per prompt: got 3 seeds for 1 prompts"),
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"batch_size": 0}, 'batch_size must be "auto" or at least 1, got 0'),
        ({"size": (0, 64)}, "size must be positive multiples of 8, got 0x64"),
        ({"size": 8}, "multiples of 16, got 8x8"),
        ({"negative_prompt": ""}, "negative_prompt is empty. Leave it out"),
    ],
)
def test_settings_of_drawing(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate_image("x", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"temperature": -0.5},
            r"temperature must be 0 \(which takes the likeliest token\) or a positive number, got -0.5",
        ),
        ({"temperature": float("nan")}, "temperature must be 0 .* got nan"),
        ({"temperature": float("inf")}, "temperature must be 0 .* got inf"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": float("nan")}, r"top_p must lie in \(0, 1\], got nan"),
        ({"max_new_tokens": -3}, "max_new_tokens must be at least 1, got -3"),
        ({"seed": -1}, r"seed must lie between 0 and 2\*\*63"),
    ],
)
def test_settings_of_writing(model, settings, message):
    for face in (model.generate_text, model.chat().ask, lambda *a, **k: list(model.stream_text(*a, **k))):
        with pytest.raises(ValueError, match=message):
            face("x", **settings)


def test_a_stop_string_may_stand_alone(model):
    """Not its letters, which would end the answer anywhere."""
    whole = model.generate_text("hello", max_new_tokens=10)
    stop = whole[2:4]
    expected = model.generate_text("hello", max_new_tokens=10, stop=[stop])
    assert model.generate_text("hello", max_new_tokens=10, stop=stop) == expected == whole[: whole.index(stop)]
    assert "".join(model.stream_text("hello", max_new_tokens=10, stop=stop)) == expected


def test_other_questions_to_a_model(model):
    with pytest.raises(ValueError, match="log_likelihood needs at least one answer"):
        model.log_likelihood("x", [])
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.2, got \[-1, 7\]"):
        model.hidden_states("x", [-1, 0, 7])


WRONG_TYPES = {
    "generate_image(None)": "a prompt is a str or a list of str, images and parts, got NoneType. Write",
    "generate_text({'role': 'user'})": "a prompt is a str or a list of str, images and parts, got dict. Write",
    "generate_text(picture)": 'got Image. Write "What is it?" or [image, "What is it?"].',
    "generate_text(Path('a.png'))": "got PosixPath. Write",
    "generate_text([Path('a.png'), 'What?'])": "example 'prompt 0': an image must be a PIL image, a uint8 array",
    "generate_text([torch.zeros(3, 64, 64), 'What?'])": "got Tensor. Open a file with PIL.Image.open.",
    "generate_image([np.zeros((64, 64)), 'x'])": "an image array must be uint8 of shape (height, width, 3), got float",
    "generate_image([np.zeros((64, 64, 4), np.uint8), 'x'])": "got uint8 of (64, 64, 4). Convert it, or pass a PIL",
    "generate_image(['a', 3])": "a prompt is a str or a list of str, images and parts, but holds int.",
    "generate_image([['a'], 'b'])": "the prompts mix lists with other elements. One prompt is a str or a list of parts",
    "generate_image('x', seed='5')": "seed must be one whole number or one per prompt, got '5'.",
    "generate_image('x', seed=None)": "seed must be one whole number or one per prompt, got None.",
    "generate_image('x', seed=[1.5])": "seed must be one whole number or one per prompt, got [1.5].",
    "generate_image('x', size=(64,))": "size must be one number or (height, width) in pixels, got (64,).",
    "generate_image('x', batch_size='many')": "batch_size must be \"auto\" or at least 1, got 'many'.",
}


@pytest.mark.process
def test_values_of_wrong_types():
    """In a process of its own: in this one every public function checks its arguments' types before its own words."""
    code = f"""
import json
from pathlib import Path
import numpy as np, torch
from PIL import Image
from tests.tiny_models import tiny_model
model, picture = tiny_model(), Image.new("RGB", (64, 64))
messages = {{}}
for call in {list(WRONG_TYPES)!r}:
    try:
        eval("model." + call)
    except (TypeError, ValueError) as error:
        messages[call] = str(error)
model.generate_image("x", num_steps=1, seed=np.int64(3))
print(json.dumps(messages))
"""
    root = Path(__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    messages = json.loads(result.stdout)
    assert messages.keys() == WRONG_TYPES.keys()
    for call, expected in WRONG_TYPES.items():
        assert expected in messages[call], call


# -- pictures ----------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """The head of a PNG of 100,000 x 100,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (head, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_images_that_are_none(fails, saved, picture, tmp_path):
    whole = picture.read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "whole.jpg")
    files = {
        "empty.png": (b"", "is not a picture that can be read: expected PNG, JPEG,"),
        "notes.png": (b"dear diary", "is not a picture that can be read: expected PNG, JPEG,"),
        "cut.png": (whole[:60], "begins like a picture but cannot be decoded"),
        "cut.jpg": ((tmp_path / "whole.jpg").read_bytes()[:900], "begins like a picture but cannot be decoded"),
        "bomb.png": (bomb(), "is too large to be read safely"),
    }
    for name, (data, message) in files.items():
        file = tmp_path / name
        file.write_bytes(data)
        for words in (["ask", file, "What?"], ["ask", picture, file, "Same?"], ["edit", file, "turn it"]):
            printed = fails(*words, "--model", saved)
            assert message in printed and name in printed
    assert "is a folder, not a picture. Name one file in it." in fails("ask", tmp_path, "What?", "--model", saved)
    assert "There is no picture" in fails("edit", tmp_path / "none.png", "turn it", "--model", saved)
    assert len(files) == 5 and not list(tmp_path.glob("*edited*"))


# -- models and checkpoints --------------------------------------------------------------------------------------------


def test_a_model_that_neither_writes_nor_draws(fails, picture, tmp_path):
    clip.tiny().model.build().save(tmp_path / "clip")
    for words in (["generate", "a red circle", "--model"], ["ask", picture, "What?", "--model"], ["evaluate"]):
        message = fails(*words, tmp_path / "clip", *(["--on", "geneval"] if words[0] == "evaluate" else []))
        assert "clip holds a dual_encoder, which neither writes nor draws. Its parts (encoder, text_encoder," in message
        assert "can be used in another model: name the folder in --model.start-from." in message


def test_data_that_holds_no_pairs(fails, tmp_path):
    words = ["train", "clip:tiny", "--data.pairs.task", "image_edit", "--out", tmp_path / "run"]
    message = fails(*words, "--device", "cpu", has_begun=True)
    assert "has 2 pictures and 1 texts, but contrastive training needs one picture with a caption" in message


@pytest.mark.parametrize("name", ["diptych.json", "tokenizer/tokenizer.json", "backbone/model.safetensors"])
def test_a_model_with_a_truncated_or_missing_file(fails, saved, picture, tmp_path, name):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    file = copy / name
    file.write_bytes(file.read_bytes()[:-30])
    commands = (["generate", "x", "--model", copy], ["info", copy], ["ask", picture, "What?", "--model", copy])
    for words in commands:
        assert f"{file} is damaged" in fails(*words)
    file.unlink()
    for words in commands:
        printed = fails(*words)
        assert f"{copy} holds no diptych.json" in printed if name == "diptych.json" else f"{file} is missing" in printed


def test_pickled_checkpoints_are_refused_with_the_safe_way_out(fails, saved, trained, run, tmp_path):
    evil = tmp_path / "released" / "pytorch_model.bin"
    evil.parent.mkdir()
    torch.save({"weight": torch.zeros(2)}, evil)
    for path in (evil, evil.parent):
        for words in (["generate", "x", "--model", path], ["info", path], ["evaluate", path, "--out", tmp_path / "s"]):
            printed = fails(*words)
            assert "pytorch_model.bin is a pickled checkpoint, which can run any code when it is loaded" in printed
            assert "safetensors.torch.save_file(torch.load(file, weights_only=True), ...)" in printed
    state = run / "checkpoints" / "step-000003" / "state"
    torch.save({}, state / "optimizer.pt")
    printed = fails("resume", run)
    assert "optimizer.pt is a pickle file, which can run code" in printed and "weights_only=True" in printed
    assert "diptych convert" not in printed  # there is no such verb


def test_the_tokenizer_of_another_model(fails, saved, model, tmp_path):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    train_tokenizer(["other text"], 300, list(model.tokenizer.special)).save(copy / "tokenizer")
    printed = fails("generate", "x", "--model", copy, "--out", tmp_path)
    assert f"{copy / 'tokenizer'} is not the tokenizer this model was trained with (fingerprint" in printed
    assert "Restore the model's own." in printed


def test_special_tokens_that_a_tokenizer_lacks_are_added_for_a_new_model(tmp_path):
    train_tokenizer(["some text"], 300, ["<|user|>", "<|im_end|>"]).save(tmp_path)
    config = replace(TINY, tokenizer=TokenizerConfig(path=str(tmp_path)), prompt_format="chatml")
    model = config.build()
    names = ["<|user|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "[IMG]"]
    assert list(model.tokenizer.special) == names and model.backbone.vocab_size == model.tokenizer.vocab_size
    model.save(tmp_path / "m")
    assert load(tmp_path / "m", device="cpu").tokenizer.special == model.tokenizer.special


def test_newer_formats(fails, saved, run, tmp_path):
    files = {
        "model": (shutil.copytree(saved, tmp_path / "copy") / "diptych.json", ["info", tmp_path / "copy"]),
        "checkpoint": (run / "checkpoints" / "step-000003" / "state" / "trainer.json", ["resume", run]),
    }
    for file, words in files.values():
        content = file.read_text()
        file.write_text(content.replace('"format_version": 1', '"format_version": 2', 1))
        printed = fails(*words)
        assert "has format version 2" in printed and "reads up to 1" in printed and "pip install -U diptych" in printed
        file.write_text(content)
    recipe = run / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"format_version": 1', '"format_version": 2', 1))
    for words in (["resume", run], ["train", recipe, "--out", tmp_path / "other"]):
        printed = fails(*words)
        assert "recipe.format_version is 2, but this diptych reads up to 1" in printed and "pip install -U" in printed


@pytest.mark.parametrize(
    "name",
    ["state/weights.safetensors", "state/trainer.json", "model/diptych.json", "model/backbone/model.safetensors"],
)
def test_a_checkpoint_with_a_truncated_or_missing_file(fails, run, name):
    checkpoint = run / "checkpoints" / "step-000003"
    file = checkpoint / name
    file.write_bytes(file.read_bytes()[:-20])
    before = (run / "metrics.jsonl").read_text()
    printed = fails("resume", run)
    assert f"{name} is damaged" in printed and "Delete step-000003 to resume from step-000002." in printed
    file.unlink()
    if name != "state/trainer.json":  # without it the folder counts as one that was never finished
        assert f"lacks {name}. Delete step-000003 to resume from step-000002." in fails("resume", run)
    assert (run / "metrics.jsonl").read_text() == before


def test_the_way_out_of_a_damaged_checkpoint_is_one(fails, run, trained, capsys):
    checkpoint = run / "checkpoints" / "step-000003"
    (checkpoint / "state" / "weights.safetensors").unlink()
    assert "Delete step-000003 to resume from step-000002." in fails("resume", run)
    shutil.rmtree(checkpoint)
    assert main(["resume", str(run)]) == 0
    weights = [path / "checkpoints/step-000003/state/weights.safetensors" for path in (run, trained)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_that_came_to_no_checkpoint_is_no_model(fails, trained, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(trained / "recipe.json", tmp_path / "run")
    assert "has no checkpoint yet, so there is no model in it. Continue it with `diptych resume`" in fails(
        "info", tmp_path / "run"
    )


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_is_not_resumed_with_a_changed_recipe(fails, run, capsys):
    recipe = run / "recipe.json"
    original = recipe.read_text()
    changed = fails("resume", run, "--seed", "3", "--stages.joint.optimizer.lr", "0.5")
    assert "the recipe differs from the one that" in changed and "seed: 0 -> 3" in changed
    assert (
        "stages.joint.optimizer.lr: " in changed
        and "Only name, checkpoints, logging, evaluation may change." in changed
    )
    assert recipe.read_text() == original
    recipe.write_text(
        original.replace('"num_steps": 2,\n      "batch_size": 4', '"num_steps": 9,\n      "batch_size": 4')
    )
    assert recipe.read_text() != original
    edited = fails("resume", run)
    assert "stages.joint.num_steps: 2 -> 9" in edited and f"or in {recipe}" in edited
    recipe.write_text(original)
    assert main(["resume", str(run), "--logging.every-steps", "5"]) == 0


def test_a_recipe_file_that_is_damaged(fails, run, tmp_path):
    recipe = run / "recipe.json"
    content = recipe.read_text()
    recipe.write_text(content[: len(content) // 2])
    for words in (["resume", run], ["train", recipe, "--out", tmp_path / "other"]):
        assert f"{recipe}: the recipe is not valid JSON" in fails(*words)
    recipe.write_text(content.replace('"num_queries"', '"num_querys"'))
    assert "recipe.model.num_querys is no field of Blip3oConfig. Did you mean num_queries" in fails("resume", run)
    assert not (tmp_path / "other").exists()


def broken_pictures(folder):
    folder.mkdir()
    for index in range(20):
        (folder / f"{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        (folder / f"{index}.txt").write_text("a picture")
    return folder


def test_training_data_without_a_usable_record(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    broken_pictures(tmp_path / "broken")
    messages = {
        "nowhere": f"FolderSource.path must be a folder, got '{tmp_path / 'nowhere'}'.",
        "empty": f"no record in '{tmp_path / 'empty'}': it needs images (.jpg,",
        "broken": "data source 'pictures' has no usable record so far: 20 of the 20 read are broken (20 truncated ",
    }
    for name, message in messages.items():
        source = json.dumps({"kind": FOLDER_SOURCE, "path": str(tmp_path / name)})
        words = ["train", RECIPE, "--data.pictures", source, "--stages.features.num-steps", "50"]
        printed = fails(*words, "--out", tmp_path / f"run-{name}", has_begun=name == "broken")
        assert message in printed, name
    assert "13.png" in printed and "Look at the data with `diptych data check PATH`" in printed


# -- disks -------------------------------------------------------------------------------------------------------------


def test_output_folders_that_cannot_be_written(fails, saved, picture, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "new", Path("/proc/new")):  # refused to root as well
        for words in (
            ["generate", "x", "--model", saved, "--out", place],
            ["edit", picture, "turn it", "--model", saved, "--out", place / "a.png"],
            ["evaluate", saved, "--on", "questions", "--num-per-category", "1", "--out", place],
            ["train", RECIPE, "--out", place],
        ):
            printed = fails(*words)
            assert f"cannot write to the folder {place} (" in printed and "Choose another one with --out." in printed
    assert entries(tmp_path) == ["file", "picture.png"] and (tmp_path / "file").read_text() == "mine"


def test_no_space_for_a_picture(fails, saved, tmp_path):
    with file_size_limit(200):
        printed = fails("generate", "x", "--model", saved, "--out", tmp_path)
    assert "no space left on the disk. Free some, or write elsewhere." in printed
    assert entries(tmp_path) == []


def test_no_space_for_a_checkpoint_tells_how_to_go_on(fails, run, tmp_path):
    shutil.rmtree(run / "checkpoints" / "step-000003")
    with file_size_limit(50_000):
        printed = fails("resume", run, has_begun=True)
    assert "no space left to write step-000003" in printed and "step-000002. Continue with `diptych resume" in printed
    assert entries(run / "checkpoints") == ["step-000002"]
    assert main(["resume", str(run)]) == 0


def test_words_of_our_own_are_not_replaced_by_those_of_the_system(model, tmp_path):
    with file_size_limit(100), pytest.raises(OSError) as caught:
        model.save(tmp_path / "m")
    assert explain(caught.value) == (
        f"{tmp_path / 'm'}: the model cannot be saved: no space left on the disk. Free some, or save elsewhere."
    )
