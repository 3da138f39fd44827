"""Configs, data and parts of a package of one's own: trained, resumed and used from the command line."""

import json
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from diptych.cli.main import main
from diptych.train.presets import load_preset
from diptych.train.serialization import from_json, to_json

PARTS = """
    from dataclasses import dataclass
    from typing import Literal

    import numpy as np
    import torch
    from torch import nn

    from diptych.data.example import Example, ImageOut, Text
    from diptych.models.backbones.transformer import CausalTransformer
    from diptych.models.part import part_kind
    from diptych.train.part_configs import BackboneConfig


    class Squares(nn.Module):
        \"\"\"A generation space: the mean colours of squares.\"\"\"

        channels = 3

        def __init__(self, *, stride):
            super().__init__()
            self.stride = stride
            self.gain = nn.Parameter(torch.ones(3, 1, 1))

        def config_dict(self):
            return {"kind": part_kind(self), "stride": self.stride}

        def latent_shape(self, height, width):
            return 3, height // self.stride, width // self.stride

        def encode(self, images):
            return nn.functional.avg_pool2d(images, self.stride) * self.gain

        def decode(self, latents):
            return nn.functional.interpolate(latents, scale_factor=self.stride).clamp(-1, 1)


    @dataclass(frozen=True, kw_only=True)
    class SquaresConfig:
        stride: int = 16
        \"\"\"Side of the squares.\"\"\"

        def build(self):
            return Squares(stride=self.stride)


    class OwnTransformer(CausalTransformer):
        pass


    @dataclass(frozen=True, kw_only=True)
    class OwnBackbone(BackboneConfig):
        \"\"\"A kind of what there is, with a field more.\"\"\"

        theta_factor: float = 1.0

        def build(self, vocab_size):
            return OwnTransformer(
                vocab_size=vocab_size, dim=self.dim, num_layers=1, num_heads=2, num_kv_heads=2, ffn_dim=64,
                rope_theta=self.rope_theta * self.theta_factor,
            )


    @dataclass(frozen=True, kw_only=True)
    class Colours:
        num_examples: int = 50
        tone: Literal["dark", "light"] = "dark"
        names: tuple[str, ...] = ("red", "blue")

        def build(self):
            return ColourExamples(self)


    class ColourExamples:
        def __init__(self, config):
            self.config = config

        def __len__(self):
            return self.config.num_examples

        def example(self, index, epoch=0):
            pixels = np.zeros((64, 64, 3), np.uint8)
            pixels[:, :, index % len(self.config.names)] = 250 if self.config.tone == "light" else 120
            return Example((Text(self.config.names[index % 2]), ImageOut(pixels)), f"colours/{index}")
"""

RECIPES = """
    from __future__ import annotations

    from dataclasses import replace

    from diptych.recipes import blip3o
    from diptych.train.recipe import CheckpointConfig, EvaluationConfig, LoggingConfig, Recipe
    from ownpackage.parts import Colours, OwnBackbone, SquaresConfig


    def mine() -> Recipe:
        \"\"\"Of my own.\"\"\"
        base = blip3o.tiny()
        stage = replace(
            base.stages["joint"], mix={"colours": 1.0}, objectives={"flow": 1.0}, num_steps=4, batch_size=4
        )
        return replace(
            base,
            name="own:mine",
            model=replace(base.model, features=SquaresConfig(), backbone=OwnBackbone(dim=32, rope_theta=100.0)),
            data={"colours": Colours()},
            stages={"joint": stage},
            evaluation=EvaluationConfig(),
            checkpoints=CheckpointConfig(every_steps=2),
            logging=LoggingConfig(sample_every=-1),
        )
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package, importable, and out of memory again as in a new process when ``forget`` is called."""
    folder = tmp_path / "elsewhere" / "ownpackage"
    folder.mkdir(parents=True)
    for name, text in (("__init__", ""), ("parts", PARTS), ("recipes", RECIPES)):
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    forget()


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "ownpackage"]:
        del sys.modules[name]


def printed(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_a_recipe_of_another_package_trains_resumes_and_draws(package, tmp_path, capsys):
    run, pictures = tmp_path / "run", tmp_path / "pictures"
    train = ["train", "ownpackage.recipes:mine", "--out", str(run), "--device", "cpu"]
    fields = ["--data.colours.tone", "light", "--model.features.stride", "8", "--model.backbone.theta-factor", "2"]
    assert main([*train, *fields]) == 0
    written = json.loads((run / "recipe.json").read_text())
    assert written["model"]["features"] == {"kind": "ownpackage.parts:SquaresConfig", "stride": 8}
    assert written["model"]["backbone"]["kind"] == "ownpackage.parts:OwnBackbone"
    assert written["model"]["backbone"]["theta_factor"] == 2
    assert written["data"]["colours"] == {
        "kind": "ownpackage.parts:Colours", "num_examples": 50, "tone": "light", "names": ["red", "blue"],
    }  # fmt: skip

    weights = (run / "checkpoints/step-000004/state/weights.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints/step-000004")
    forget()
    assert main(["resume", str(run), "--device", "cpu"]) == 0
    assert (run / "checkpoints/step-000004/state/weights.safetensors").read_bytes() == weights

    forget()
    assert main(["train", str(run / "recipe.json"), "--out", str(tmp_path / "again"), "--device", "cpu"]) == 0
    assert (tmp_path / "again/checkpoints/step-000004/state/weights.safetensors").read_bytes() == weights

    draw = ["generate", "red", "--model", str(run), "--out", str(pictures), "--device", "cpu", "--steps", "2"]
    forget()
    capsys.readouterr()
    assert main(draw) == 2
    message = printed(capsys)
    assert "not a part of diptych. Import ownpackage.parts first if you trust it" in message
    assert "(on the command line: --import ownpackage.parts)" in message
    assert main([*draw, "--import", "ownpackage.parts"]) == 0
    assert (pictures / "red-0.png").is_file()
    forget()
    assert main(["info", str(run), "--import=ownpackage.parts"]) == 0


def test_a_recipe_of_another_package_round_trips(package):
    recipe = load_preset("ownpackage.recipes:mine")
    assert from_json(to_json(recipe)) == recipe


def test_a_node_is_replaced_by_a_config_of_another_package(package, tmp_path):
    node = '{"kind": "ownpackage.parts:SquaresConfig", "stride": 32}'
    run = tmp_path / "run"
    words = ["train", "ownpackage.recipes:mine", "--out", str(run), "--model.features", node, "--device", "cpu"]
    assert main([*words, "--stages.joint.num-steps", "1"]) == 0
    assert json.loads((run / "recipe.json").read_text())["model"]["features"]["stride"] == 32


def test_mistakes_in_names_of_another_package_are_explained(package, tmp_path, capsys):
    for words, message in (
        (["train", "ownpackage.recipes:mime"], "no preset 'mime'. Did you mean ownpackage.recipes:mine?"),
        (["train", "ownpackage.recipe:mine"], "unknown recipe 'ownpackage.recipe'"),
        (["train", "ownpackage.recipes:mine", "--data.colours.tona", "x"], "Did you mean --data.colours.tone"),
        (["train", "ownpackage.recipes:mine", "--data.colours.tone", "loud"], "invalid choice 'loud'"),
        (["info", "diptych-scenes", "--import", "ownpackage.part"], "--import: there is no module 'ownpackage.part'."),
        (["info", "diptych-scenes", "--import"], "--import needs a module, such as package.parts, got ''."),
    ):
        assert main(words) == 2, words
        assert message in printed(capsys)


def test_a_run_whose_package_is_gone_says_what_is_missing(package, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text(to_json(load_preset("ownpackage.recipes:mine")))
    forget()
    shutil.move(package, tmp_path / "gone")
    Path(package).mkdir()
    assert main(["resume", str(run)]) == 2
    assert (
        "recipe.model.features.kind is 'ownpackage.parts:SquaresConfig', but the module 'ownpackage.parts' cannot be "
        "imported (No module named 'ownpackage.parts'). Install the package that has it, or set PYTHONPATH."
    ) in printed(capsys)
