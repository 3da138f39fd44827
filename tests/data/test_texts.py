"""Tokenizers of the words of a data set."""

import json

import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.data.prompt_format import compact_format
from diptych.data.texts import read_texts
from diptych.data.tokenizer import FastTokenizer


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, text in enumerate(["a grinning face", "a grinning cat face", "a sleeping face"]):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture
def conversations(tmp_path):
    turns = [{"from": "human", "value": "why sleeping?"}, {"from": "gpt", "value": "it is grinning"}]
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"conversations": turns}, {"conversations": "broken"}]))
    return path


def test_texts_of_every_kind_are_read(pictures, conversations):
    assert list(read_texts(str(pictures))) == ["a grinning face", "a grinning cat face", "a sleeping face"]
    assert list(read_texts(str(conversations))) == ["why sleeping?", "it is grinning"]


def test_the_command_trains_a_tokenizer_for_our_prompts(pictures, conversations, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    words = ["data", "tokenizer", str(pictures), str(conversations), "--out", str(out), "--vocab-size", "300"]
    assert main(words) == 0
    tokenizer = FastTokenizer.load(out)
    assert f"{tokenizer.vocab_size} tokens in {out}" in capsys.readouterr().out
    assert set(compact_format().special_tokens()) == set(tokenizer.special)
    assert len(tokenizer.encode("a grinning face")) == 3
    assert tokenizer.decode(tokenizer.encode("ein 😀")) == "ein 😀"


def test_one_path_too_many_is_refused(pictures, capsys):
    assert main(["data", "check", str(pictures), str(pictures)]) == 2
    assert "data check takes one PATH, got 2" in capsys.readouterr().err
