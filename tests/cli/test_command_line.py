"""The command line as a whole: light help, clear words for a user's mistakes, tracebacks for bugs only."""

import errno
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diptych.cli import main as main_module
from diptych.cli.main import VERBS, explain, main, overview

HEAVY = ("torch", "transformers", "diffusers", "datasets", "accelerate", "tyro")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS if verb != "train")])
def test_help_is_light(words: list[str]):
    started = time.perf_counter()
    result = _python(
        f"import sys; from diptych.cli.main import main; code = main({words!r}); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    print(f"diptych {' '.join(words)}: {time.perf_counter() - started:.2f} s")
    assert result.stdout.splitlines()[-1] == "[] 0", result.stderr
    assert "diptych" in result.stdout


def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str]):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert text == overview()
        assert all(f"\n  {verb}" in text for verb in VERBS)


@pytest.mark.parametrize("code", ["import diptych", "from diptych.cli.main import main; main(['--help'])"])
def test_import_and_help_take_less_than_seven_tenths_of_a_second(code: str):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert _python(code).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, the interpreter's start included: what others do on the machine is not ours.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: diptych {verb}" in text
    assert f"diptych {verb}" in text.split("examples:")[1]


def _fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed for a user's mistake; as one line, since it is wrapped to the terminal."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err and printed.err.startswith("diptych: ")
    return " ".join(printed.err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["genrate", "x"], "unknown verb 'genrate'. Did you mean generate"),
        (["zzz"], "unknown verb 'zzz'. Known: demo, train,"),
        (["generate", "x", "--guidence", "3"], "unrecognized arguments: --guidence 3. Did you mean --guidance?"),
        (["generate", "x", "--steps", "-3"], "argument --steps: must be at least 1, got -3"),
        (["generate", "x", "--steps", "three"], "argument --steps: expected a whole number, got 'three'"),
        (["generate", "x", "--seed", "-1"], "argument --seed: must be at least 0, got -1"),
        (["generate", "x", "--size", "0x4"], "expected pixels as SIDE or WIDTHxHEIGHT, such as 64 or 96x64, got '0x4'"),
        (["generate", "x", "--size"], "argument --size: expected one argument"),
        (["generate", "x", "--guidance", "nan"], "--guidance must be a finite number, got nan"),
        (["generate"], "No prompt was given. Write one, such as: diptych generate"),
        (["generate", "fine", "  "], "prompt 2 is empty. Say what to draw."),
        (["ask", "picture.png"], "the following arguments are required: QUESTION"),
        (["ask", "none.png", "What?"], "There is no picture none.png."),
        (["ask", "none.png", " "], "The question is empty."),
        (["edit", "none.png", "make it blue"], "There is no picture none.png."),
        (["edit", "none.png", ""], "The instruction is empty."),
    ],
)
def test_mistakes_are_answered_in_one_paragraph(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert message in _fails(words, capsys)
    assert list(tmp_path.iterdir()) == []


def test_debug_gives_the_traceback():
    with pytest.raises(ValueError, match="unknown verb"):
        main(["genrate", "--debug"])


def test_files_that_are_no_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    assert "is not a picture that can be read: expected PNG" in _fails(["ask", str(text), "What?"], capsys)
    assert "is a folder, not a picture" in _fails(["edit", str(tmp_path), "make it blue"], capsys)


def test_prompt_files(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = tmp_path / "prompts.txt"
    assert "There is no prompts file" in _fails(["generate", "--prompts-file", str(file)], capsys)
    file.write_text("\n  \n")
    assert "No prompt was given" in _fails(["generate", "--prompts-file", str(file)], capsys)
    file.write_bytes(b"caf\xe9 in Latin-1")
    assert "is not UTF-8 text" in _fails(["generate", "--prompts-file", str(file)], capsys)


def test_an_output_folder_that_cannot_be_written_is_named_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "file").write_text("")
    message = _fails(["generate", "x", "--out", str(tmp_path / "file" / "pictures")], capsys)
    assert "cannot write to the folder" in message and "Choose another one with --out." in message


@pytest.mark.parametrize("verb", ["generate", "info", "evaluate"])
def test_a_model_that_does_not_exist(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = {
        "generate": ["generate", "a red circle", "--model", "no-such-model"],
        "info": ["info", "no-such-model"],
        "evaluate": ["evaluate", "no-such-model"],
    }[verb]
    assert "there is no model 'no-such-model'" in _fails(words, capsys)


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupt(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "_dispatch", interrupt)
    assert main(["generate", "x"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m diptych --help | head -1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == "" and result.stdout.splitlines()[-1] == "0"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("stage.num_steps must be at least 1, got 0."), "stage.num_steps must be at least 1, got 0."),
        (KeyError("no benchmark 'x'. Known: scenes."), "no benchmark 'x'. Known: scenes."),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), "a.png: no space left on the disk. Free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/root"), "/root: permission denied. Choose a place"),
        (FileNotFoundError("There is no picture x."), "There is no picture x."),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "d"), "d: is a directory."),
        (ModuleNotFoundError("No module", name="transformers.models"), "pip install 'diptych[hf]'"),
        (ModuleNotFoundError("No module", name="webdataset"), "pip install 'diptych[data]'"),
    ],
)
def test_explanations(error: Exception, message: str):
    explanation = explain(error)
    assert explanation is not None and message in explanation


@pytest.mark.parametrize(
    "error",
    [
        TypeError("bug"),
        RuntimeError("bug"),
        KeyError("key"),
        KeyError(3),
        AssertionError(),
        ModuleNotFoundError("x", name="nn"),
    ],
)
def test_bugs_are_not_explained_away(error: Exception):
    assert explain(error) is None
