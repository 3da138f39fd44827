"""The verbs on a real model with random weights, and on a recipe of seconds: every file they promise is there."""

import io
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli.demo import learnt_tasks
from diptych.cli.main import main
from diptych.cli.scene_scores import NEEDS, SPLITS, TASKS
from diptych.data.picture_files import read_contact_sheet, read_png_metadata, save_png
from diptych.evals import scenes
from diptych.evals.run_cost import read_cost
from diptych.evals.scores_file import read_scores
from diptych.scenes import split
from diptych.scenes.draw import draw
from diptych.scenes.scene import Scene, SceneObject
from diptych.train.presets import load_preset
from tests.tiny_models import tiny_model

RECIPE = "tests.cli.tiny_recipe:seconds"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_model()
    model.card = {
        "name": "tiny",
        "licence": "Apache-2.0",
        "scores": {"geneval-twin": {"value": 0.0}},
        "data": ["a", "b"],
    }
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scene = Scene((SceneObject("circle", "red", "large", 0.5, 0.5),))
    return save_png(draw(scene, 64), tmp_path_factory.mktemp("pictures") / "circle.png")


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """The lines a command prints."""
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out.splitlines()


def _fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_generate_writes_pictures_with_their_settings(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prompts = ["A red circle!", "עיגול 🎨 <b>"]
    options = ["--model", model_folder, "--num-images", 2, "--seed", 5, "--guidance", 1.5, "--out", tmp_path / "new"]
    lines = _run(capsys, "generate", prompts[0], *options, prompts[1], "--sheet")
    names = ["a-red-circle-5.png", "a-red-circle-6.png", "עיגול-b-7.png", "עיגול-b-8.png", "contact-sheet.png"]
    assert [Path(line).name for line in lines] == names
    record = read_png_metadata(lines[3])
    assert (record["prompt"], record["seed"], record["num_steps"], record["guidance_scale"]) == (prompts[1], 8, 3, 1.5)
    assert (
        record["size"] == [64, 64] and record["model"] == str(model_folder) and len(record["model_fingerprint"]) == 16
    )
    assert set(record["versions"]) == {"diptych", "torch"}
    cells = read_contact_sheet(lines[4])
    assert [cell.caption for cell in cells] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert np.array_equal(np.asarray(cells[3].image), np.asarray(Image.open(lines[3])))


def test_the_recorded_command_draws_the_picture_again(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = _run(capsys, "generate", "one", "two", "--model", model_folder, "--out", tmp_path, "--steps", 2)
    words = shlex.split(read_png_metadata(lines[1])["command"])
    assert words[:3] == ["diptych", "generate", "two"]
    (alone,) = _run(capsys, *words[1:], "--out", tmp_path / "alone")
    first, second = (np.asarray(Image.open(path)).astype(int) for path in (lines[1], alone))
    assert np.abs(first - second).max() <= 1
    assert read_png_metadata(alone) == read_png_metadata(lines[1])


def test_repeating_a_command_replaces_its_files_and_spares_others(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["generate", "x", "--model", model_folder, "--out", tmp_path, "--sheet"]
    first = _run(capsys, *command)
    before = [Path(line).read_bytes() for line in first]
    assert _run(capsys, *command) == first
    assert [Path(line).read_bytes() for line in first] == before
    other = _run(capsys, *command, "--steps", 1)
    assert [Path(line).name for line in other] == ["x-0-2.png", "contact-sheet-2.png"]
    assert [Path(line).read_bytes() for line in first] == before


def test_prompts_from_a_file_and_from_stdin(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "prompts.txt"
    file.write_text("from a file\n\n  with spaces  \n", encoding="utf-8-sig")
    options = ["--model", model_folder, "--out", tmp_path, "--steps", 1]
    lines = _run(capsys, "generate", "first", "--prompts-file", file, *options)
    assert [Path(line).name for line in lines] == ["first-0.png", "from-a-file-1.png", "with-spaces-2.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("piped in\n"))
    (line,) = _run(capsys, "generate", "-", *options)
    assert read_png_metadata(line)["prompt"] == "piped in"


def test_generate_takes_width_and_height(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    message = _fails(capsys, "generate", "x", "--model", model_folder, "--out", tmp_path, "--size", "65x64")
    assert "size must be" in message and "64x65" in message
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_is_too_long_is_refused(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    message = _fails(capsys, "generate", "red circle " * 9100, "--model", model_folder, "--out", tmp_path)
    assert "text tokens, more than the model's" in message and len(message) < 300


def test_ask_prints_the_answer(model_folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]):
    model = tiny_model()
    expected = model.generate_text([Image.open(picture), "What is it?"], max_new_tokens=5)
    lines = _run(capsys, "ask", picture, "What is it?", "--model", model_folder, "--max-new-tokens", 5)
    assert "\n".join(lines) == expected and expected
    two = _run(capsys, "ask", picture, picture, "Same?", "--model", model_folder, "--max-new-tokens", 2)
    assert "\n".join(two) == model.generate_text([Image.open(picture)] * 2 + ["Same?"], max_new_tokens=2)


def test_edit_writes_beside_the_original(
    model_folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = tmp_path / "mine.png"
    source.write_bytes(picture.read_bytes())
    options = ["--model", model_folder, "--steps", 2]
    (line,) = _run(capsys, "edit", source, "make it blue", *options)
    assert Path(line) == tmp_path / "mine-edited.png"
    record = read_png_metadata(line)
    assert (record["prompt"], record["source"], record["size"]) == ("make it blue", "mine.png", [64, 64])
    drawn = tiny_model().generate_image([Image.open(picture), "make it blue"], num_steps=2)[0]
    assert np.array_equal(np.asarray(Image.open(line)), np.asarray(drawn))
    (other,) = _run(capsys, "edit", source, "make it green", *options)
    assert Path(other).name == "mine-edited-2.png"
    (named,) = _run(capsys, "edit", source, "make it green", *options, "--out", tmp_path / "sub" / "green.png")
    assert Path(named) == tmp_path / "sub" / "green.png"
    assert "--out is the picture itself" in _fails(capsys, "edit", source, "x", *options, "--out", source)
    assert "--out must name a .png file or a folder" in _fails(capsys, "edit", source, "x", *options, "--out", "x.jpg")
    assert source.read_bytes() == picture.read_bytes()


def test_a_model_without_the_capability_says_so(tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]):
    model = tiny_model()
    model.image_head = None
    model.save(tmp_path / "reader")
    message = _fails(capsys, "generate", "x", "--model", tmp_path / "reader", "--out", tmp_path)
    assert "cannot do text_to_image; it can do text, image_to_text." in message


def test_info_shows_parts_and_card(model_folder: Path, capsys: pytest.CaptureFixture[str]):
    text = "\n".join(_run(capsys, "info", model_folder))
    total = sum(parameter.numel() for parameter in tiny_model().parameters())
    for words in ("tiny", "image_head", "QueryFlowHead", f"{total:,}", "licence  Apache-2.0", "geneval-twin", "a, b"):
        assert words in text
    info = json.loads("\n".join(_run(capsys, "info", model_folder, "--json")))
    assert info["parameters"] == total and info["licence"] == "Apache-2.0"


def test_evaluate_writes_scores_and_report(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["evaluate", model_folder, "--num-per-category", 1, "--out", tmp_path / "scores"]
    lines = _run(capsys, *command, "--on", "editing", "--splits", "test,novel")
    assert [Path(line).name for line in lines[-2:]] == ["scores.json", "report.html"]
    tables = read_scores(lines[-2])
    assert {table.benchmark for table in tables} == {"editing", "editing (novel)"}
    assert {table.contender for table in tables} == {"tiny", "oracle", "chance", "copy-input"}
    assert all(table.overall.value == 1 for table in tables if table.contender == "oracle")
    page = Path(lines[-1]).read_text()
    assert "Editing (novel)" in page and "<figcaption>target</figcaption>" in page
    assert "there is no 'question'. Did you mean questions" in _fails(capsys, *command, "--on", "question")
    assert "there is no 'tests'. Did you mean test" in _fails(capsys, *command, "--splits", "tests")


def test_the_tasks_that_evaluate_names_are_those_there_are():
    assert tuple(scenes.SCENE_TASKS) == TASKS
    assert scenes._NEEDS == NEEDS
    assert set(SPLITS) == set(split.SPLITS)


def test_data_check_and_pack(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(picture.read_bytes())
        (folder / f"{index}.txt").write_text(f"a red circle, number {index}")
    (folder / "broken.png").write_bytes(picture.read_bytes()[:60])
    (folder / "broken.txt").write_text("a broken picture")
    text = "\n".join(_run(capsys, "data", "check", folder))
    assert "usable 3" in text and "broken.png" in text.replace("broken     ", "")
    found = json.loads("\n".join(_run(capsys, "data", "check", folder, "--json", "--limit", 4)))
    assert (found["num_records"], found["num_usable"]) == (4, 3)
    (line, *_) = _run(capsys, "data", "pack", folder, "--out", tmp_path / "packed")
    assert line.startswith("3 records of text_to_image")
    assert [path.name for path in sorted((tmp_path / "packed").glob("*.tar"))] == ["shard-000000.tar"]
    assert "data pack needs --out" in _fails(capsys, "data", "pack", folder)
    assert "does not exist" in _fails(capsys, "data", "check", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty")]) == 2


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "seconds"
    assert main(["train", RECIPE, "--stages.joint.num-steps", "3", "--out", str(folder)]) == 0
    return folder


def test_train_leaves_a_run_folder_with_its_report(run_folder: Path):
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {
        "recipe.json",
        "environment.json",
        "manifest.json",
        "metrics.jsonl",
        "samples",
        "checkpoints",
        "report.html",
    }
    assert json.loads((run_folder / "recipe.json").read_text())["stages"]["joint"]["num_steps"] == 3
    page = (run_folder / "report.html").read_text()
    for words in (
        "tests:seconds",
        "joint: losses",
        "flow by noise level",
        "a red circle above a blue square",
        "QueryFlowHead",
    ):
        assert words in page


def test_a_checkpoint_is_a_model(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = max((run_folder / "checkpoints").iterdir())
    (line,) = _run(capsys, "generate", "x", "--model", checkpoint, "--out", tmp_path)
    assert read_png_metadata(line)["num_steps"] == 2


def test_train_refuses_what_cannot_work(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "diptych train needs a RECIPE. recipes: blip3o:" in _fails(capsys, "train")
    assert "unknown recipe 'blip3'. Did you mean blip3o" in _fails(capsys, "train", "blip3:tiny")
    assert "has no preset 'secnds'. Did you mean tests.cli.tiny_recipe:seconds" in _fails(
        capsys, "train", RECIPE.replace("seconds", "secnds")
    )
    assert "unknown field --stages.joint.num-step. Did you mean --stages.joint.num-steps" in _fails(
        capsys, "train", RECIPE, "--stages.joint.num-step", 3
    )
    assert "at least 1, got -1" in _fails(capsys, "train", RECIPE, "--stages.joint.num-steps", -1)
    assert "already holds a run. Continue it with" in _fails(capsys, "train", RECIPE, "--out", run_folder)
    (tmp_path / "file").write_text("")
    assert "cannot write to the folder" in _fails(capsys, "train", RECIPE, "--out", tmp_path / "file" / "run")


def test_resume(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert _run(capsys, "resume", run_folder, "--logging.every-steps", 2)[-1] == str(run_folder / "report.html")
    message = _fails(capsys, "resume", run_folder, "--seed", 3)
    assert "the recipe differs from the one that" in message and "seed: 0 -> 3" in message
    assert "There is no run to resume in" in _fails(capsys, "resume", tmp_path)
    assert "diptych resume needs a RUN" in _fails(capsys, "resume")


def test_train_help_lists_the_fields_of_the_recipe(capsys: pytest.CaptureFixture[str]):
    text = "\n".join(_run(capsys, "train", RECIPE, "--help"))
    assert "--out RUN" in text and "--stages.joint.num-steps" in text
    assert "blip3o:features" in "\n".join(_run(capsys, "train", "--help"))


def test_the_demo_scores_a_model_on_what_it_learns():
    recipe = load_preset(RECIPE)
    asked = ("geneval", "questions", "editing", "multi-reference")
    assert learnt_tasks(recipe, asked) == ("geneval", "questions")
    assert learnt_tasks(load_preset("blip3o:tiny"), asked) == ("geneval", "questions", "editing")
    assert learnt_tasks(load_preset("blip3o:small"), asked) == asked


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.process)])
def test_the_demo_runs_from_end_to_end(
    processes: int, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["demo", "--model", model_folder, "--recipe", RECIPE, "--num-per-category", 1, "--on", "questions"]
    command += ["--out", tmp_path / "demo", "--processes", processes]
    own_steps = load_preset(RECIPE).num_steps
    if processes > 1:
        command += ["--minutes", 0.02]
    lines = _run(capsys, *command)
    report = Path(lines[-1])
    assert report == tmp_path / "demo" / "report.html"
    page = report.read_text()
    for words in (
        "diptych demo",
        "trained here",
        "What color is the square?",
        "make the red circle green",
        "joint: losses",
    ):
        assert words in page
    handed_over = {"recipe.json"} if processes > 1 else set()
    trained = json.loads((report.parent / "run" / "recipe.json").read_text())["stages"].values()
    num_steps = sum(stage["num_steps"] for stage in trained)
    seconds = read_cost(report.parent / "run").seconds()
    if processes > 1:  # as many as fit, by a measurement of a few steps
        assert num_steps != own_steps and 0.02 * 60 / 3 < seconds < 3 * 0.02 * 60
    else:
        assert num_steps == own_steps
    assert {path.name for path in report.parent.iterdir()} == {"pictures", "run", "scores.json", "report.html"} | (
        handed_over
    )
    assert len(list((report.parent / "pictures").glob("*.png"))) == 10
