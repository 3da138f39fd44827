"""The README's Python example runs as it stands, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from diptych.cli.main import VERBS, main
from diptych.unified.folder import BUNDLED

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.skipif(not (BUNDLED / "diptych-scenes").is_dir(), reason="the bundled model is not in this checkout")
def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    assert len(example.strip().splitlines()) >= 15
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "mine" / "diptych.json").is_file()


def test_every_command_is_a_verb():
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("diptych ")]
    assert len(commands) >= 6
    assert {command[1] for command in commands} <= set(VERBS)


@pytest.mark.skipif(not (BUNDLED / "diptych-scenes").is_dir(), reason="the bundled model is not in this checkout")
def test_the_first_commands_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = next(block for block in blocks("sh") if "diptych ask" in block)
    lines = [shlex.split(line)[1:] for line in block.splitlines() if line.split()[1] in ("generate", "ask", "edit")]
    assert [words[0] for words in lines] == ["generate", "ask", "edit"]
    for words in lines:
        assert main(words) == 0
    drawn, answer, edited = capsys.readouterr().out.splitlines()
    assert Path(drawn).is_file() and Path(edited).is_file() and answer == "blue"


def test_linked_files_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) >= 6
    missing = [link for link in links if not (Path(__file__).parent.parent / link).exists()]
    assert missing == []
