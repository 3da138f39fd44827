"""A generation space as a vision encoder: its latents in reading order, saved and built again."""

import numpy as np
import pytest
import torch

from diptych.models.autoencoders.features import FeatureAutoencoder
from diptych.models.encoders.protocol import VisionEncoder
from diptych.models.encoders.space_features import SpaceEncoder
from diptych.models.part import build_part
from diptych.train.part_configs import FeaturesConfig, SpaceEncoderConfig, VitConfig


def space() -> FeatureAutoencoder:
    torch.manual_seed(0)
    vit = VitConfig(dim=16, num_layers=1, num_heads=2)
    return FeaturesConfig(encoder=vit, channels=6, decoder_dim=16, decoder_layers=1, decoder_heads=2).build()


def test_its_tokens_are_the_latents_row_by_row():
    own = space()
    encoder = SpaceEncoder(space=own)
    assert isinstance(encoder, VisionEncoder) and (encoder.dim, encoder.patch_size) == (6, 16)
    images = torch.rand(2, 3, 64, 32) * 2 - 1
    output, latents = encoder(images), own.encode(images)
    assert output.grid == (4, 2) and output.tokens.shape == (2, 8, 6)
    torch.testing.assert_close(output.tokens[1, 2 * 3 + 1], latents[1, :, 3, 1])


def test_it_is_built_again_from_its_config():
    encoder = SpaceEncoder(space=space(), image_size=(32, 64))
    again = build_part(encoder.config_dict())
    again.load_state_dict(encoder.state_dict())
    image = encoder.preprocess(np.zeros((20, 20, 3), dtype=np.uint8))
    assert image.shape == (3, 32, 64)
    torch.testing.assert_close(again(image[None]).tokens, encoder(image[None]).tokens)


def test_it_has_no_layers_to_show():
    with pytest.raises(ValueError, match=r"shows its latents alone, but layers \[1\] were asked for"):
        SpaceEncoder(space=space())(torch.zeros(1, 3, 64, 64), layers=(1,))


def test_the_bundled_models_features_can_be_looked_through():
    encoder = SpaceEncoderConfig().build()
    assert encoder(torch.zeros(1, 3, 64, 64)).tokens.shape == (1, 16, 32)
