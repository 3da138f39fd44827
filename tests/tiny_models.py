"""A real model at the smallest size, with random weights: what tests of the public face run on."""

import torch

from diptych.methods.blip3o import Blip3oConfig
from diptych.train.part_configs import BackboneConfig, FeaturesConfig, LuminaConfig, VitConfig
from diptych.unified import DrawSettings, UnifiedModel

TINY = Blip3oConfig(
    features=FeaturesConfig(
        encoder=VitConfig(dim=32, num_layers=1, num_heads=2),
        channels=8,
        pool=2,
        decoder_dim=32,
        decoder_layers=1,
        decoder_heads=2,
    ),
    backbone=BackboneConfig(dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=64),
    denoiser=LuminaConfig(dim=32, num_layers=2, num_heads=2),
    num_queries=4,
)


def tiny_model(seed: int = 0, config: Blip3oConfig = TINY) -> UnifiedModel:
    """Random weights; gates that start closed are opened, so that every part has an effect."""
    torch.manual_seed(seed)
    model = config.build()
    model.draw_settings = DrawSettings(num_steps=3, guidance_scale=2.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("image_head") and parameter.abs().max() == 0:
                parameter.normal_(std=0.5)
    return model.eval()
