"""FD-loss as post-training: one step is one Euler step, populations survive a resume, distances fall, inputs are
checked."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import diptych
from diptych.data.sources.scenes import ScenesSource
from diptych.flow.solvers import SOLVERS
from diptych.flow.time import time_grid
from diptych.frechet.distance import frechet_distance
from diptych.interop.feature_networks import FeatureNetwork
from diptych.methods.fd_loss import (
    BatchOnlyConfig,
    FDLossConfig,
    MovingAverageConfig,
    QueueConfig,
    one_step_images,
)
from diptych.methods.training import build_task
from diptych.objectives.randomness import normal_from_seeds
from diptych.recipes import blip3o, fd_loss
from diptych.train.loop import train
from diptych.train.recipe import CheckpointConfig, EvaluationConfig
from diptych.unified.prompt_vectors import PromptVectors, prompt_batch

SCENES = ScenesSource(task="text_to_image", caption_style="short", num_scenes=400, max_objects=2)
PIXELS = {"pixels": FeatureNetwork("pixels@4")}


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A model of random weights with few numbers; its folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "random"
    blip3o.tiny().model.build().eval().save(folder)
    return folder


def recipe(start_from, **fields):
    """Four steps, saved after two."""
    base = fd_loss.tiny()
    config = replace(
        base.model,
        start_from=str(start_from),
        representations=PIXELS,
        held_out={},
        reference=SCENES,
        num_reference=96,
        num_warm_start=64,
        **fields,
    )
    return replace(
        base,
        model=config,
        data={"draw": replace(SCENES, seed=2)},
        stages={"one_step": replace(base.stages["one_step"], num_steps=4, batch_size=8)},
        evaluation=EvaluationConfig(scorers=()),
        checkpoints=CheckpointConfig(every_steps=2, keep=5),
    )


def run(plan, folder, resume=False):
    return train(build_task(plan, folder), plan, folder, resume=resume)


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("prediction", ["data", "velocity", "noise"])
def test_one_step_is_one_euler_step_from_noise(prediction):
    torch.manual_seed(0)
    config = blip3o.tiny().model
    model = replace(config, denoiser=replace(config.denoiser, prediction=prediction)).build().eval()
    batch = prompt_batch(model, SCENES.build(), range(3))
    drawn = torch.cat(one_step_images(model, batch))
    assert drawn.shape == (3, 3, 64, 64) and drawn.requires_grad
    again = torch.cat(one_step_images(model, batch, checkpoint_activations=True))
    torch.testing.assert_close(again, drawn)

    group = batch.outputs[0]
    condition, _ = model.condition_rows(model.forward_for_drawing(batch), group)
    noise = normal_from_seeds(batch.example_seeds, model.autoencoder.latent_shape(64, 64), "noise")
    euler = SOLVERS["euler"](lambda x, t: model.image_head.velocity(x, t, condition), noise, time_grid(1, 3.0))
    expected = model.autoencoder.decode(euler)
    torch.testing.assert_close(drawn.clamp(-1, 1), expected)


@pytest.mark.parametrize(
    "population",
    [MovingAverageConfig(decay=0.5, final_decay=0.8), QueueConfig(size=48, final_size=96), BatchOnlyConfig()],
)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(small_model, tmp_path, population):
    plan = recipe(small_model, population=population)
    run(plan, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-000004")
    run(plan, tmp_path / "resumed", resume=True)
    for name in ("weights", "companion"):
        files = [tmp_path / which / "checkpoints" / "step-000004" / "state" / f"{name}.safetensors"
                 for which in ("run", "resumed")]  # fmt: skip
        if not files[0].exists():
            assert isinstance(population, BatchOnlyConfig) and name == "companion"
            continue
        tensors = [load_file(file) for file in files]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_windows_grow_geometrically():
    decay = MovingAverageConfig(decay=0.9, final_decay=0.99).build(4, 101).decay
    assert [round(1 - decay(step), 4) for step in (0, 50, 100, 200)] == [0.1, 0.0316, 0.01, 0.01]
    size = QueueConfig(size=100, final_size=10_000).build(4, 101).size
    assert [size(step) for step in (0, 50, 100)] == [100, 1000, 10_000]
    assert MovingAverageConfig(decay=0.9).build(4, 10).decay == 0.9
    assert QueueConfig(size=100).build(4, 10).size == 100


def test_distances_fall_and_the_loss_stays_at_the_number_of_representations(tmp_path):
    """The bundled model, one step, batches smaller than the width; and a space that the loss does not see."""
    base = fd_loss.tiny()
    plan = replace(
        base,
        model=replace(base.model, num_reference=1000, num_warm_start=256),
        stages={"one_step": replace(base.stages["one_step"], num_steps=60, batch_size=24)},
        evaluation=EvaluationConfig(scorers=("fdr",), num_prompts=256),
    )
    run(plan, tmp_path / "run")
    lines = [line for line in logged(tmp_path / "run") if line["event"] == "train"]
    assert all(0.9 < line["loss"] < 1.01 for line in lines)
    assert lines[-1]["fd/scenes"] < lines[0]["fd/scenes"] / 4
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    rows = {table["contender"]: table["categories"] for table in scores["tables"]}
    after, before, many = (rows[name] for name in ("model", "before, 1 step", "before, 20 steps"))
    assert after["scenes"]["value"] < before["scenes"]["value"] / 10  # the paper's property, section 5
    assert before["scenes"]["value"] > 5 * many["scenes"]["value"]
    assert after["pixels"]["value"] < before["pixels"]["value"]
    saved = diptych.load(tmp_path / "run")
    assert (saved.draw_settings.num_steps, saved.draw_settings.guidance_scale) == (1, 1.0)


def test_real_moments_are_computed_once(small_model, tmp_path):
    plan = recipe(small_model)
    task = build_task(plan, tmp_path)
    assert tuple(task.companion.scorers()) == plan.model.companion_scorers
    first = task.companion.reference("pixels")
    read = build_task(plan, tmp_path).companion
    read.real_features = None  # would fail if it were asked for again
    again = read.reference("pixels")
    torch.testing.assert_close(again.covariance, first.covariance)
    other = build_task(replace(plan, model=replace(plan.model, num_reference=80)), tmp_path).companion
    assert other.reference("pixels").count == 80


def test_a_term_may_be_divided_by_the_distance_of_fresh_real_images(small_model, tmp_path):
    plan = recipe(small_model)
    stage = plan.stages["one_step"]
    plan = replace(
        plan,
        stages={"one_step": replace(stage, num_steps=2, optimizer=replace(stage.optimizer, clip_norm=None))},
        logging=replace(plan.logging, every_steps=1),
        checkpoints=CheckpointConfig(every_steps=1),
    )
    plans = {"own": plan, "fresh": replace(plan, model=replace(plan.model, num_validation=80, weights={"pixels": 3.0}))}
    lines, gradients = {}, {}
    for name, one in plans.items():
        run(one, tmp_path / name)
        lines[name] = [line for line in logged(tmp_path / name) if line["event"] == "train"]
        state = load_file(tmp_path / name / "checkpoints" / "step-000001" / "state" / "optimizer.safetensors")
        gradients[name] = torch.cat([value.flatten() for key, value in state.items() if key.startswith("exp_avg/")])
    companion = build_task(plan, tmp_path / "own").companion
    fresh, real = companion.networks["pixels"].new_moments(), companion.reference("pixels")
    fresh.update(companion.real_features(range(96, 176), ["pixels"])["pixels"])
    unit = frechet_distance(fresh, real)
    assert len(lines["fresh"]) == 2 and unit > 0
    for line in lines["fresh"]:
        assert line["loss"] == pytest.approx(3 * line["fd/pixels"] / unit, rel=1e-5)
    distance = lines["own"][0]["fd/pixels"]
    assert lines["own"][0]["loss"] == pytest.approx(distance / (distance + 0.01), rel=1e-5)
    expected = gradients["own"] * 3 * (distance + 0.01) / unit
    torch.testing.assert_close(gradients["fresh"], expected, rtol=0, atol=1e-5 * expected.abs().max().item())

    shutil.copytree(tmp_path / "fresh", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-000002")
    run(plans["fresh"], tmp_path / "resumed", resume=True)
    assert [line["loss"] for line in logged(tmp_path / "resumed") if line["event"] == "train"] == [
        line["loss"] for line in lines["fresh"]
    ]


def test_joint_distances_have_a_vector_of_the_prompt_that_training_does_not_move(small_model, tmp_path):
    plan = recipe(small_model, joint_width=6)
    task = build_task(plan, tmp_path / "run")
    model, companion = task.model, task.companion
    vectors = PromptVectors(model, 6, companion.source, 96)
    batch = prompt_batch(model, companion.source, range(12))
    before = vectors(batch)
    with torch.no_grad():
        model.image_head.queries.add_(1.0)
    torch.testing.assert_close(vectors(batch), before)
    assert before.shape == (12, 6) and before.std(0).min() > 0
    with torch.no_grad():
        model.image_head.queries.sub_(1.0)
    assert companion.reference("pixels", companion.prompt_vectors).dim == 48 + 6
    images = companion.real_features(range(96), ["pixels"])["pixels"].double()
    both = companion.real_features(range(96), ["pixels"], companion.prompt_vectors)["pixels"].double()
    torch.testing.assert_close(both[:, :48], images)
    spread = both[:, 48:].var(0).sum() / images.var(0).sum()
    torch.testing.assert_close(spread.item(), 1.0, rtol=1e-4, atol=0)  # measured on these
    run(plan, tmp_path / "run")


def test_what_cannot_be_trained_is_refused(small_model, tmp_path):
    fields = {"representations": PIXELS}
    for changes, message in (
        ({"representations": {}}, "representations is empty"),
        ({"held_out": PIXELS}, "held_out names pixels, which is trained"),
        ({"weights": {"dino": 2.0}}, "weights names dino; the representations are pixels"),
        ({"num_reference": 1}, "num_reference must be at least 2, got 1"),
        ({"num_validation": 1}, "num_validation must be 0 or at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            FDLossConfig(**{**fields, **changes})
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        FDLossConfig(start_from="no-such-model", **fields).build()
    plan = recipe(small_model)
    short = replace(plan, model=replace(plan.model, reference=replace(SCENES, num_scenes=50)))
    with pytest.raises(ValueError, match=r"model\.reference has 50 examples, but 64 are needed"):
        run(short, tmp_path / "short")
    cut = replace(plan, stages={"one_step": replace(plan.stages["one_step"], gradient_accumulation=2)})
    with pytest.raises(ValueError, match=r"stages\.one_step\.gradient_accumulation must be 1, got 2"):
        run(cut, tmp_path / "cut")
    asked = replace(plan, data={"draw": replace(SCENES, task="question_answering")})
    with pytest.raises(ValueError, match="fd: the batch draws no image"):
        run(asked, tmp_path / "asked")
    unknown = replace(plan, evaluation=EvaluationConfig(scorers=("fid",)))
    with pytest.raises(ValueError, match=r"there is no 'fid'\. Known: .*fdr"):
        build_task(unknown, tmp_path)
