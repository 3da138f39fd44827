"""The presets of BLIP3-o: JSON round trip, and the tiny one trained, resumed, sampled and scored for real."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import diptych
from diptych.cli.main import INTERRUPTED, main
from diptych.methods import training
from diptych.methods.training import build_task
from diptych.recipes import blip3o
from diptych.train.loop import train
from diptych.train.presets import presets_of
from diptych.train.recipe import CheckpointConfig, EvaluationConfig
from diptych.train.serialization import from_json, to_json

PRESETS = presets_of(blip3o)
QUIET = Console(quiet=True)


def short(recipe, num_steps):
    """The recipe with few steps in every stage."""
    stages = {name: replace(stage, num_steps=num_steps, batch_size=4) for name, stage in recipe.stages.items()}
    return replace(recipe, stages=stages, checkpoints=CheckpointConfig(every_steps=3), evaluation=EvaluationConfig())


def test_presets_are_known():
    assert {"tiny", "tiny_sequential", "demo", "demo_sequential", "small", "features"} <= set(PRESETS)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_round_trips_through_json(name):
    recipe = PRESETS[name]()
    assert from_json(to_json(recipe)) == recipe
    assert json.loads(to_json(recipe))["name"] == f"blip3o:{name}"


@pytest.mark.parametrize("preset", [blip3o.tiny, blip3o.tiny_sequential])
def test_tiny_trains_samples_scores_and_loads(preset, tmp_path):
    recipe = replace(short(preset(), 4), evaluation=EvaluationConfig(scorers=("geneval",), num_prompts=1))
    run = tmp_path / "run"
    result = train(build_task(recipe, run), recipe, run, console=QUIET, device="cpu")
    assert result.finished and result.step == 4 * len(recipe.stages)
    assert sorted(path.suffix for path in (run / "samples").iterdir()) == [".png"] * len(recipe.stages)
    last = list(recipe.stages)[-1]
    assert set(result.scores[last]) == {"geneval-twin"}
    assert (run / "scores.json").is_file()
    model = diptych.load(run, device="cpu")
    assert len(model.generate_image("a red circle", num_steps=2)) == 1
    assert model.capabilities == ("text", "image_to_text", "text_to_image", "image_edit")


def test_a_score_that_does_not_exist_is_refused_before_training(tmp_path):
    recipe = replace(blip3o.tiny(), evaluation=EvaluationConfig(scorers=("genevil",)))
    with pytest.raises(ValueError, match=r"evaluation.scorers: there is no 'genevil'. Known: geneval, questions,"):
        build_task(recipe, tmp_path / "run")


def test_a_stage_trains_its_parts_alone(tmp_path):
    recipe = short(blip3o.tiny_sequential(), 2)
    task = build_task(recipe, tmp_path / "run")
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    only = replace(recipe, stages={"generation": recipe.stages["generation"]})
    train(task, only, tmp_path / "run", console=QUIET, device="cpu")
    changed = {name.split(".")[0] for name, value in task.model.state_dict().items()
               if not torch.equal(value, before[name])}  # fmt: skip
    assert changed == {"image_head"}


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    recipe = short(blip3o.tiny(), 4)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(build_task(recipe, whole), recipe, whole, console=QUIET, device="cpu")

    class Stop(Exception):
        pass

    task = build_task(recipe, cut)
    joint = task.objectives["flow"]
    calls = []

    def stop_after_two(model, batch, generator):
        calls.append(1)
        if len(calls) == 3:
            raise Stop
        return joint(model, batch, generator)

    stopped = replace(task, objectives={**task.objectives, "flow": stop_after_two, "text": stop_after_two})
    with pytest.raises(Stop):
        train(stopped, recipe, cut, console=QUIET, device="cpu")
    train(build_task(recipe, cut), recipe, cut, resume=True, console=QUIET, device="cpu")
    expected, found = (diptych.load(run, device="cpu").state_dict() for run in (whole, cut))
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def test_cached_features_train_as_freshly_encoded_ones(tmp_path):
    base = short(blip3o.tiny_sequential(), 3)
    base = replace(base, stages={"generation": base.stages["generation"]},
                   data={**base.data, "draw": replace(base.data["draw"], num_scenes=20),
                         "edit": replace(base.data["edit"], num_scenes=10)})  # fmt: skip
    weights = []
    for cached in (False, True):
        recipe = replace(base, model=replace(base.model, cache_features=cached))
        run = tmp_path / str(cached)
        train(build_task(recipe, run), recipe, run, console=QUIET, device="cpu")
        weights.append(diptych.load(run, device="cpu").state_dict())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_features_are_encoded_stops_at_once(tmp_path, monkeypatch, capsys, number):
    base = short(blip3o.tiny_sequential(), 1)
    recipe = replace(
        base,
        model=replace(base.model, cache_features=True),
        data={"draw": replace(base.data["draw"], num_scenes=200)},
        stages={"generation": replace(base.stages["generation"], mix={"draw": 1.0}, num_steps=13)},
    )
    file, run = tmp_path / "recipe.json", tmp_path / "run"
    file.write_text(to_json(recipe))
    encode, calls = training._encode_into, []

    def encode_with_signal(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        encode(*arguments)

    monkeypatch.setattr(training, "_encode_into", encode_with_signal)
    assert main(["train", str(file), "--out", str(run), "--device", "cpu"]) == INTERRUPTED
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Stopped by {number.name} before the first step. Continue with: diptych resume" in printed
    assert len(calls) == 2 and "images once in" not in printed  # 200 pictures are four batches
    assert (run / "report.html").is_file()
    monkeypatch.setattr(training, "_encode_into", encode)
    short_resume = ["--logging.sample-every", "-1", "--evaluation.scorers"]
    assert main(["resume", str(run), "--device", "cpu", *short_resume]) == 0
    assert "encoded 200 images once" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "width", "parameters", "stages"),
    [
        ("paper", 2048, 1_362_257_824, ["pretrain", "sft"]),
        ("paper_8b", 3584, 1_365_010_336, ["pretrain", "sft"]),
        ("sft_60k", 2048, 1_362_257_824, ["sft"]),
    ],
)
def test_published_trainings_have_the_published_numbers(name, width, parameters, stages):
    recipe = PRESETS[name]()
    with torch.device("meta"):
        denoiser = recipe.model.denoiser.build(1792, width)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == parameters
    assert (recipe.model.num_queries, recipe.model.condition_drop, recipe.precision) == (64, 0.1, "bfloat16")
    assert list(recipe.stages) == stages
    numbers = {"pretrain": (150_000, 512, 450, 0.1), "sft": (10_000, 128, 30, 0.0)}
    for stage_name, stage in recipe.stages.items():
        optimizer = stage.optimizer
        assert (stage.num_steps, stage.batch_size, optimizer.warmup_steps, optimizer.min_lr_ratio) == numbers[
            stage_name
        ]
        assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (1e-4, (0.9, 0.999), 0.0)
        assert stage.trainable == ("image_head",)
    assert all(source.urls[0].endswith("*.tar") for source in recipe.data.values())
    with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin is missing.*--model.features.encoder-file"):
        recipe.model.features.build()
