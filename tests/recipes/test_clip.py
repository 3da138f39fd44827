"""The presets of contrastive training: JSON round trip, and the tiny one trained, resumed and scored for real."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from diptych.methods.clip import load_dual_encoder, pair_of
from diptych.methods.training import build_task
from diptych.recipes import clip
from diptych.train.loop import train
from diptych.train.presets import load_preset, presets_of
from diptych.train.recipe import CheckpointConfig, EvaluationConfig
from diptych.train.serialization import from_json, to_json

PRESETS = presets_of(clip)
QUIET = Console(quiet=True)


def short(num_steps):
    base = clip.tiny()
    stages = {"contrastive": replace(base.stages["contrastive"], num_steps=num_steps, batch_size=8)}
    return replace(base, stages=stages, checkpoints=CheckpointConfig(every_steps=3))


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_every_preset_round_trips_through_json(name):
    assert set(PRESETS) == {"tiny", "small"}
    recipe = load_preset(f"clip:{name}")
    assert from_json(to_json(recipe)) == recipe
    recipe.model.build()


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_every_caption_fits(name):
    recipe = PRESETS[name]()
    source = recipe.data["pairs"]
    style = "long" if source.caption_style == "mixed" else source.caption_style
    examples = replace(source, caption_style=style).build()
    captions = [pair_of(examples.example(index))[1] for index in range(300)]
    tokenizer = recipe.model.tokenizer.build()
    assert 1.5 * max(len(tokenizer.encode(caption)) for caption in captions) < recipe.model.max_text_tokens


def test_tiny_trains_scores_and_loads(tmp_path):
    recipe = replace(short(3), evaluation=EvaluationConfig(scorers=("retrieval",), num_prompts=8))
    result = train(build_task(recipe, tmp_path / "run"), recipe, tmp_path / "run", console=QUIET, device="cpu")
    assert result.finished and set(result.scores["contrastive"]) == {"retrieval"}
    assert (tmp_path / "run" / "scores.json").is_file()
    model = load_dual_encoder(tmp_path / "run")
    assert model.card["name"] == "clip:tiny"


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path):
    recipe = replace(short(5), evaluation=EvaluationConfig())
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(build_task(recipe, whole), recipe, whole, console=QUIET, device="cpu")
    task = build_task(recipe, cut)
    calls = []

    def stop_in_the_fifth_step(model, batch, generator):
        calls.append(1)
        if len(calls) == 5:
            raise InterruptedError
        return recipe.model.objectives()["contrastive"](model, batch, generator)

    stopped = replace(task, objectives={"contrastive": stop_in_the_fifth_step})
    with pytest.raises(InterruptedError):
        train(stopped, recipe, cut, console=QUIET, device="cpu")
    train(build_task(recipe, cut), recipe, cut, resume=True, console=QUIET, device="cpu")
    expected, found = (load_dual_encoder(run).state_dict() for run in (whole, cut))
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def test_its_scores_are_its_own(tmp_path):
    recipe = replace(clip.tiny(), evaluation=EvaluationConfig(scorers=("geneval",)))
    with pytest.raises(ValueError, match=r"evaluation.scorers: there is no 'geneval'. Known: retrieval."):
        build_task(recipe, tmp_path / "run")


@pytest.mark.slow
def test_tiny_finds_captions_of_held_out_scenes(tmp_path):
    recipe = clip.tiny()
    run = tmp_path / "run"
    result = train(build_task(recipe, run), recipe, run, console=QUIET, device="cpu")
    assert result.scores["contrastive"]["retrieval"] > 10 / 100  # chance is one in a hundred
