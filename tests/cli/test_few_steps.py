"""``diptych generate`` with few steps: both diffusion stages are told, and a picture's record draws it again."""

import shlex
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from diptych.cli.generate import set_steps
from diptych.cli.main import main
from diptych.data.picture_files import read_png_metadata
from tests.tiny_models import tiny_model


def given(**values):
    return Namespace(**{"model": "tiny", "few_steps": None, "decoder_steps": None, **values})


def test_few_steps_are_drawn_by_the_multistep_solver_and_drawn_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model().save(tmp_path / "tiny")
    words = ["generate", "a red circle", "--model", "tiny", "--device", "cpu"]
    assert main([*words, "--few-steps", "4", "--out", "few"]) == 0
    assert main([*words, "--steps", "4", "--out", "many"]) == 0
    few, many = capsys.readouterr().out.split()
    assert not np.array_equal(Image.open(few), Image.open(many))
    record = read_png_metadata(few)
    assert (record["solver"], record["num_steps"], record["few_steps"]) == ("multistep", 4, 4)
    assert main([*shlex.split(record["command"])[1:], "--device", "cpu", "--out", "again"]) == 0
    np.testing.assert_array_equal(Image.open(capsys.readouterr().out.strip()), Image.open(few))


def test_a_second_stage_is_told_its_steps_and_one_that_is_not_there_is_refused():
    pytest.importorskip("diffusers")
    from tests.models.autoencoders.test_rendered_features import golden

    model = tiny_model()
    with pytest.raises(ValueError, match=r"--decoder-steps: tiny has no second diffusion stage"):
        set_steps(model, given(decoder_steps=5))
    model.autoencoder = space = golden()[0]
    set_steps(model, given(few_steps=6))
    assert (space.num_steps, space.solver, model.draw_settings.num_steps) == (6, "multistep", 6)
    set_steps(model, given(few_steps=6, decoder_steps=9))
    assert (space.num_steps, space.solver) == (9, "multistep")
    set_steps(model, given(decoder_steps=3))
    assert space.num_steps == 3
