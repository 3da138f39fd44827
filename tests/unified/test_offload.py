"""Offloading of idle stages: the same bits, each part on its device when it runs, and each moved once a batch.
And parts on devices of their own.

Without a GPU both places are the CPU: what is tested is what moves when, not the copying itself.
"""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.unified.drawing import draw_features
from diptych.unified.offload import StagedPlacement
from diptych.unified.prompts import split_batch
from tests.interop.blip3o_folder import write_blip3o
from tests.tiny_models import tiny_model

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
PROMPTS = ["a red circle", "a much longer prompt about a blue square", "two green stars"]


def watched(model):
    """The model offloaded, and the names of its movable parts in the order they run, each checked to be present."""
    model.offload_to("cpu")
    ran = []

    def check(name):
        def hook(*_):
            assert name in model.placement.present, f"{name} runs while it is away"
            assert len(model.placement.present) <= 2
            if not ran or ran[-1] != name:
                ran.append(name)

        return hook

    model.backbone.register_forward_pre_hook(check("backbone"))
    model.image_head.denoiser.register_forward_pre_hook(check("denoiser"))
    for name, module in model.autoencoder.named_children():
        if isinstance(module, torch.nn.Module) and name != "encoder":
            module.register_forward_pre_hook(check("autoencoder"))
    return model, ran


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def test_pictures_and_answers_are_the_same_to_the_bit():
    model, plain = watched(tiny_model())[0], tiny_model()
    drawn = [own.generate_image(PROMPTS, seed=3, batch_size=2) for own in (model, plain)]
    np.testing.assert_array_equal(pixels(drawn[0]), pixels(drawn[1]))
    edits = [own.generate_image([PICTURE, "make it blue"]) for own in (model, plain)]
    np.testing.assert_array_equal(pixels(edits[0]), pixels(edits[1]))
    answers = [own.generate_text([PICTURE, "what is it?"], max_new_tokens=4) for own in (model, plain)]
    assert answers[0] == answers[1]
    assert model.log_likelihood([PICTURE, "what?"], "red") == plain.log_likelihood([PICTURE, "what?"], "red")


def test_each_stage_comes_in_once_for_all_batches():
    model, ran = watched(tiny_model())
    assert model.placement.moves == [] and model.placement.present == set()
    model.generate_image(PROMPTS, batch_size=1)  # three batches of the denoiser and of the decoder
    assert ran == ["backbone", "denoiser", "autoencoder"]
    assert model.placement.moves == [
        ("backbone", "in"),
        ("backbone", "out"),
        ("denoiser", "in"),
        ("denoiser", "out"),
        ("autoencoder", "in"),
    ]
    model.generate_image([PICTURE, "make it blue"])  # the pictures of a prompt are read through the same space
    assert model.placement.moves[5:] == [
        ("backbone", "in"),
        ("autoencoder", "out"),
        ("backbone", "out"),
        ("denoiser", "in"),
        ("denoiser", "out"),
        ("autoencoder", "in"),
    ]
    assert model.placement.present == {"autoencoder"}


def test_an_answer_goes_on_after_a_picture_was_drawn():
    model, plain = watched(tiny_model())[0], tiny_model()
    pieces = model.stream_text([PICTURE, "what is it?"], max_new_tokens=6)
    first = next(pieces, "")
    model.generate_image("a red circle")
    assert first + "".join(pieces) == plain.generate_text([PICTURE, "what is it?"], max_new_tokens=6)


def test_small_parts_go_to_the_device_and_the_model_says_where_it_runs():
    model = tiny_model()
    placement = StagedPlacement(model, "meta")  # a device that is there everywhere, and keeps no values
    assert model.image_head.queries.device.type == "meta"
    assert all(p.device.type == "meta" for p in model.connector.parameters())
    parts = (model.backbone, model.autoencoder, model.image_head.denoiser)
    assert {p.device.type for part in parts for p in part.parameters()} == {"cpu"}
    placement.enter("draw")
    assert {p.device.type for p in model.image_head.denoiser.parameters()} == {"meta"}
    assert {t.device.type for t in (*model.backbone.parameters(), *model.autoencoder.buffers())} == {"cpu"}
    model.placement = placement
    assert model.device.type == "meta"


def test_parts_with_devices_of_their_own_draw_and_answer_alike():
    model, plain = tiny_model(), tiny_model()
    model.place({"backbone": "cpu", "denoiser": "cpu", "autoencoder": "cpu"})
    drawn = [own.generate_image([PICTURE, "make it blue"], seed=3) for own in (model, plain)]
    np.testing.assert_array_equal(pixels(drawn[0]), pixels(drawn[1]))
    answers = [own.generate_text([PICTURE, "what is it?"], max_new_tokens=4) for own in (model, plain)]
    assert answers[0] == answers[1]


def test_what_a_part_is_given_is_brought_to_its_device(monkeypatch):
    """On a device that is there everywhere and keeps no values, but does not mix with another."""
    model = tiny_model()
    model.place({"backbone": "cpu", "denoiser": "meta"})
    assert model.device.type == "cpu" and model.device_of("autoencoder").type == "cpu"
    assert {p.device.type for p in model.image_head.denoiser.parameters()} == {"meta"}
    small = (*model.connector.parameters(), model.image_head.queries, *model.backbone.parameters())
    assert {p.device.type for p in small} == {"cpu"}
    conditions = torch.stack(model.condition(split_batch(["a red circle", "a blue star"], True), (64, 64)))
    noise = torch.zeros(2, *model.autoencoder.latent_shape(64, 64))
    mask = torch.ones(conditions.shape[:2], dtype=torch.bool)
    assert conditions.device.type == "cpu"
    assert draw_features(model, conditions, mask, None, noise, model.draw_settings).device.type == "meta"

    model = tiny_model()
    model.place({"backbone": "cpu", "autoencoder": "meta"})
    rendered = []
    monkeypatch.setattr("diptych.unified.drawing._to_images", lambda images: rendered.append(images) or [PICTURE] * 3)
    assert model.generate_image(PROMPTS) == [PICTURE] * 3
    assert rendered[0].device.type == "meta"
    with pytest.raises(NotImplementedError, match="meta"):  # what it sees comes back to the backbone, which meta can't
        model.generate_text([PICTURE, "what is it?"], max_new_tokens=1)


def test_devices_of_parts_are_asked_for_in_words(tmp_path):
    tiny_model().save(tmp_path / "model")
    model = diptych.load(tmp_path / "model", device="backbone=cpu, denoiser=meta")
    assert model.device_of("denoiser").type == "meta" and model.device.type == "cpu"
    assert diptych.load(tmp_path / "model", device={"backbone": "cpu"}).device_of("denoiser").type == "cpu"
    for device, message in (
        ("backbone=cpu,denoiser", "device must be one, or PART=DEVICE,PART=DEVICE, got 'backbone=cpu,denoiser'"),
        ("denoiser=cpu", "places parts, but not the backbone"),
        (
            "backbone=cpu,head=cpu",
            "device names head, which can't be placed; this model's parts are backbone, denoiser",
        ),
        ("backbone=cpu,denoiser=cuda:99", "device 'cuda:99' cannot be used here"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            diptych.load(tmp_path / "model", device=device)
    with pytest.raises(ValueError, match="devices for parts and memory offload do not go together"):
        diptych.load(tmp_path / "model", device="backbone=cpu", memory="offload")


def test_a_released_model_with_devices_for_its_parts_has_the_same_null_features(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    write_blip3o(tmp_path / "model")
    plain = diptych.load(tmp_path / "model", device="cpu")
    placed = diptych.load(tmp_path / "model", device="backbone=cpu,encoder=cpu,denoiser=cpu,autoencoder=cpu")
    assert torch.equal(placed.autoencoder.null_features, plain.autoencoder.null_features)


def test_a_released_model_is_offloaded_and_its_null_features_are_the_same(tmp_path, caplog):
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    write_blip3o(tmp_path / "model")
    plain = diptych.load(tmp_path / "model", device="cpu")
    with caplog.at_level(logging.WARNING):
        model = diptych.load(tmp_path / "model", device="cpu", memory="offload")
    assert "memory offload has no effect: the model runs on the CPU" in caplog.text
    assert torch.equal(model.autoencoder.null_features, plain.autoencoder.null_features)
    for own in (model, plain):
        own.autoencoder.num_steps = 2
        own.draw_settings = replace(own.draw_settings, num_steps=2)
    drawn = [own.generate_image(PROMPTS[:2]) for own in (model, plain)]
    np.testing.assert_array_equal(pixels(drawn[0]), pixels(drawn[1]))
    assert [name for name, way in model.placement.moves if way == "in"][-3:] == ["backbone", "denoiser", "autoencoder"]
    with pytest.raises(ValueError, match="memory must be all or offload, got 'half'"):
        diptych.load(tmp_path / "model", memory="half")
