"""The presets of BLIP3o-NEXT: JSON round trip, the tiny ones run for real, the published sizes counted."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import diptych
from diptych.interop.blip3o_next import DeepCompression, Qwen3, Sana15, SigLip2
from diptych.methods.blip3o_next import TokenFlowHead
from diptych.methods.training import build_task
from diptych.recipes import blip3o_next
from diptych.train.loop import train
from diptych.train.presets import presets_of
from diptych.train.recipe import CheckpointConfig, EvaluationConfig, validate
from diptych.train.serialization import from_json, to_json

PRESETS = presets_of(blip3o_next)
QUIET = Console(quiet=True)


def short(recipe, num_steps, batch_size=4):
    stages = {name: replace(stage, num_steps=num_steps, batch_size=batch_size) for name, stage in recipe.stages.items()}
    quiet = replace(recipe.logging, sample_every=-1)
    kept = CheckpointConfig(every_steps=2)
    return replace(recipe, stages=stages, checkpoints=kept, logging=quiet, evaluation=EvaluationConfig())


def test_presets_are_known():
    assert set(PRESETS) == {"tiny", "grpo", "paper", "paper_edit", "paper_grpo"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid_and_round_trips_through_json(name):
    recipe = PRESETS[name]()
    validate(recipe)
    assert from_json(to_json(recipe)) == recipe
    assert json.loads(to_json(recipe))["name"] == f"blip3o_next:{name}"


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    recipe, run = short(blip3o_next.tiny(), 2), tmp_path_factory.mktemp("next") / "tiny"
    task = build_task(recipe, run)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    result = train(task, recipe, run, console=QUIET, device="cpu")
    return recipe, run, result, before


def test_tiny_trains_draws_answers_and_edits(tiny_run):
    recipe, run, result, before = tiny_run
    assert result.finished and result.step == 2 * len(recipe.stages)
    model = diptych.load(run, device="cpu")
    assert model.capabilities == ("text", "image_to_text", "text_to_image", "image_edit")
    drawn = model.generate_image("a red circle", num_steps=2)[0]
    edited = model.generate_image([drawn, "make it blue"], num_steps=2)[0]
    assert edited.size == drawn.size == (64, 64)
    assert isinstance(model.generate_text([drawn, "Is there a star?"], max_new_tokens=3), str)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"encoder", "connector", "backbone", "image_head"}
    assert not any(name.startswith("encoder.encoder.") for name in changed)  # its features stay as they are


def test_grpo_trains_the_backbone_alone_and_scores_what_it_did_not_see(tiny_run, tmp_path):
    base = blip3o_next.grpo()
    recipe = short(replace(base, model=replace(base.model, start_from=str(tiny_run[1]), group_size=4)), 2, 2)
    recipe = replace(recipe, evaluation=EvaluationConfig(scorers=("held_out",), num_prompts=4))
    task = build_task(recipe, tmp_path / "run")
    task.companion.reward = lambda examples, pictures: [float(i % 2) for i in range(len(pictures))]
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    result = train(task, recipe, tmp_path / "run", console=QUIET, device="cpu")
    changed = {name.split(".")[0] for name, value in task.model.state_dict().items()
               if not torch.equal(value, before[name])}  # fmt: skip
    assert changed == {"backbone"}
    assert result.scores["grpo"] == {"held-out reward": 0.5}
    saved = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert [table["contender"] for table in saved["tables"]] == ["model", "before"]
    distances = [table["details"]["frechet_distance"] for table in saved["tables"]]
    assert distances[0] != distances[1] and min(distances) > 0  # the trained one's, and that of where it began
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("reward" in json.dumps(line) for line in lines)


def parameters(part):
    return sum(p.numel() for p in part.parameters())


def test_published_parts_have_their_published_numbers_of_parameters():
    """Qwen3: 440,467,456 and 1,409,410,048 without the table of tokens; DC-AE 312 M; SigLIP 2 so400m 428 M."""
    with torch.device("meta"):
        for size, dim, body in (("0.6B", 1024, 440_467_456), ("1.7B", 2048, 1_409_410_048)):
            assert parameters(Qwen3(size=size, weights=None).build(217_210)) == body + 217_210 * dim
        assert parameters(DeepCompression(weights=None).build()) == 312_250_275
        assert parameters(SigLip2(weights=None).build()) == 428_225_600
        assert parameters(Sana15(weights=None).build(32)) == 1_604_641_952
    with pytest.raises(ValueError, match=r"SANA paints latents of 32 channels, got 16. Use its DC-AE"):
        Sana15(weights=None).build(16)


@pytest.mark.parametrize("preset", ["paper", "paper_edit"])
def test_the_published_model_fits_together(preset):
    recipe = PRESETS[preset]()
    model = recipe.model
    offline = replace(
        model,
        tokenizer=blip3o_next.tiny().model.tokenizer,
        image_tokenizer=replace(model.image_tokenizer, encoder=SigLip2(weights=None)),
        features=DeepCompression(weights=None),
        backbone=Qwen3(weights=None),
        denoiser=Sana15(weights=None),
    )
    with torch.device("meta"):
        built = offline.build()
    head = built.image_head
    assert isinstance(head, TokenFlowHead) and head.num_queries == 730
    # Linear 2048 -> 2304, Linear 2304 -> 2304, norm
    connector = 2048 * 2304 + 2304 + 2304 * 2304 + 2304 + 2304
    latents = 32 * 2304 + 2304 + 2304 * 2304 + 2304 + 2304
    assert parameters(head) == 1_604_641_952 + connector + (latents if preset == "paper_edit" else 0)
    assert built.backbone.vocab_size == built.tokenizer.vocab_size + 1 + 65_536
    assert built.encoder.fixed_grid() == (27, 27)
    head.requires_grad_(True)
    learning = {name.split(".")[0] for name, p in head.denoiser.named_parameters() if p.requires_grad}
    beside = {"patch_in", "patch_out"} if preset == "paper_edit" else set()
    assert learning == {"condition_in", "condition_norm"} | beside
