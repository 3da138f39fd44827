"""What a model carries beside its parts: sizes that fit its networks, and settings that can be followed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diptych.data.example import Example, ImageIn, Text
from diptych.train.part_configs import VitConfig
from diptych.unified import DrawSettings, GridTable, ImagePolicy
from tests.tiny_models import TINY, tiny_model

NATIVE = ImagePolicy(size=(64, 64), resize="native", multiple=16)
COARSE_EYES = VitConfig(dim=32, num_layers=1, num_heads=2, patch_size=16)
FINE_EYES = VitConfig(dim=32, num_layers=1, num_heads=2, patch_size=8)


def noise(height, width):
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("encoder", "cell"), [(None, 16), (COARSE_EYES, 16), (FINE_EYES, 8)])
def test_positions_are_as_many_as_features_for_every_size(encoder, cell):
    """Wide, tall and small pictures in one batch; every one takes the positions that its own features need."""
    model = tiny_model(config=replace(TINY, encoder=encoder, images=NATIVE))
    assert GridTable.of(model) == GridTable(cell, (cell, 16))
    shapes = [(64, 64), (64, 16), (20, 80), (400, 100), (16, 16)]
    examples = [Example((ImageIn(noise(*shape)), Text("What?"))) for shape in shapes]
    batch = model.collator()(examples)
    assert {group.size for group in batch.inputs} == {(64, 64), (64, 16), (16, 64), (16, 16)}
    with torch.no_grad():
        hidden = model(batch).hidden_states
        for group in batch.inputs:
            features = model.group_features(group, is_output=False)
            assert features.shape[0] * features.shape[2] * features.shape[3] == group.slots.numel()
        alone = model(model.collator()(examples[2:3])).hidden_states
    length = int((batch.layout.example_ids[2] >= 0).sum())
    torch.testing.assert_close(hidden[2, :length], alone[0, :length], atol=1e-5, rtol=1e-5)


def test_sizes_that_the_networks_cannot_take_are_refused_when_data_is_prepared():
    config = replace(TINY, images=ImagePolicy(size=(72, 64)))
    with pytest.raises(ValueError, match=r"multiples of 16, got 72x64. Use 64x64 or 80x64."):
        config.build().collator()
    eyes = replace(COARSE_EYES, patch_size=48, image_size=(96, 96))
    model = tiny_model(config=replace(TINY, encoder=eyes))
    with pytest.raises(ValueError, match=r"multiples of 48"):
        model.generate_text([noise(64, 64), "What?"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number, got inf. 1 is off."),
        ({"time_shift": 0.5}, "time_shift must be at least 1, got 0.5"),
        ({"time_shift": float("nan")}, "time_shift must be at least 1, got nan"),
        ({"solver": "eular"}, "solver must be one of euler, heun, midpoint, multistep, got 'eular'"),
    ],
)
def test_settings_of_drawing_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        DrawSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (64, 60)}, "images.size must be multiples of images.multiple: got 64x60 and 8"),
        ({"size": (0, 64)}, "images.size must be multiples of images.multiple: got 0x64 and 8"),
        ({"multiple": 0}, "images.multiple must be at least 1, got 0"),
    ],
)
def test_image_policies_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ImagePolicy(**settings)
