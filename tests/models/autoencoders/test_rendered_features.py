"""BLIP3-o's pixel decoder against the released pipeline (recorded in tests/golden), and its published size."""

import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
from diptych.models.autoencoders.protocol import GenerationSpace
from diptych.models.autoencoders.rendered_features import RenderedFeatures
from diptych.models.part import build_part
from tests.golden.fixtures import load_golden


def golden():
    weights, recorded = load_golden("blip3o_decoder")
    config = json.loads(bytes(recorded["config"].tolist()))
    space = RenderedFeatures(channels=12, grid=(2, 2), input_size=56, image_size=16, num_steps=5, **config).eval()
    space.load_state_dict({**weights, **{key: value for key, value in space.state_dict().items() if "." not in key}})
    return space, recorded


@torch.no_grad()
def test_the_image_equals_the_released_pipelines(monkeypatch):
    space, recorded = golden()
    space.null_features.copy_(recorded["null"][0].T.reshape(12, 2, 2))
    monkeypatch.setattr(space, "_noise", lambda seeds: recorded["noise"])
    features = recorded["features"].transpose(1, 2).reshape(1, 12, 2, 2)
    image = space.decode(features, [0])
    assert recorded["output"].std() > 0.1
    torch.testing.assert_close((image / 2 + 0.5).permute(0, 2, 3, 1), recorded["output"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_each_image_has_its_own_noise():
    space, recorded = golden()
    assert isinstance(space, GenerationSpace) and space.latent_shape(56, 56) == (12, 2, 2)
    features = recorded["features"].transpose(1, 2).reshape(1, 12, 2, 2).expand(2, -1, -1, -1)
    images = space.decode_unclipped(features, [4, 9])
    torch.testing.assert_close(space.decode_unclipped(features[:1], [9])[0], images[1], rtol=1e-4, atol=1e-5)
    assert (images[0] - images[1]).abs().max() > 0.01
    assert build_part(space.config_dict()).config_dict() == space.config_dict()


class GaussianNoise(torch.nn.Module):
    """The exact noise in x_t where the data is normal: what the decoder's network would return."""

    mean, std = 0.5, 0.3
    dtype, config = torch.float32, SimpleNamespace(in_channels=4)

    def __init__(self, levels):
        super().__init__()
        self.levels = levels
        self.asked = []

    def forward(self, x, timestep, **condition):
        self.asked.append(float(timestep))
        level = self.levels[int(timestep)]
        noise = (1 - level).sqrt() * (x - level.sqrt() * self.mean) / (level * self.std**2 + 1 - level)
        return SimpleNamespace(sample=noise)


@torch.no_grad()
def test_the_multistep_solver_needs_fewer_steps(monkeypatch):
    """On data whose flow is known: x_0 = mean + std * (x_T - sqrt(a) mean) / sqrt(a std^2 + 1 - a)."""
    space, _ = golden()
    space.guidance_scale = 1.0
    levels, factor = space._scheduler().alphas_cumprod, space.vae.config.scaling_factor
    monkeypatch.setattr(space.vae, "decode", lambda x: SimpleNamespace(sample=x[:, :3] * factor))
    space.unet = unet = GaussianNoise(levels)
    last, noise = levels[-1], space._noise([0, 1])
    exact = unet.mean + unet.std * (noise - last.sqrt() * unet.mean) / (last * unet.std**2 + 1 - last).sqrt()

    def error(solver, num_steps):
        space.solver, space.num_steps = solver, num_steps
        unet.asked.clear()
        drawn = space.decode_unclipped(torch.zeros(2, 12, 2, 2), [0, 1])
        assert len(unet.asked) == num_steps
        return (drawn - exact[:, :3]).abs().max().item()

    euler = error("euler", 8)
    assert unet.asked[0] == 876  # the released grid leaves the noisiest levels out
    assert error("multistep", 8) < euler / 3
    assert unet.asked[0] >= 998
    assert error("multistep", 40) < 0.02
    assert build_part(space_config(solver="multistep")).solver == "multistep"


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="the decoder's solver must be euler or multistep, got 'heun'"):
        build_part(space_config(solver="heun"))


def space_config(**changes):
    return {**golden()[0].config_dict(), **changes}


def test_published_size_on_the_meta_device():
    """SDXL's network (2,567,463,684) with 1792 channels of condition instead of 2048, and 512 more pooled ones."""
    unet = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "cross_attention_dim": 1792,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 3328,
    }
    vae = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
    }
    with torch.device("meta"):
        space = RenderedFeatures(channels=1792, grid=(8, 8), unet=unet, vae=vae, scheduler={})
    blocks_640, blocks_1280 = 4 + 6, 20 + 10 + 30
    keys_values = 2 * (2048 - 1792) * (640 * blocks_640 + 1280 * blocks_1280)
    own = sum(parameter.numel() for parameter in space.unet.parameters())
    assert own == 2_567_463_684 - keys_values + (3328 - 2816) * 1280 == 2_525_520_644
    assert sum(parameter.numel() for parameter in space.vae.parameters()) == 83_653_863
    assert space.latent_shape(448, 448) == space.latent_shape(1024, 1024) == (1792, 8, 8) and space.stride == 56
    with pytest.raises(ValueError, match=r"draws images of 1024x1024 only, got 512x512"):
        space.latent_shape(512, 512)


def test_networks_that_do_not_fit_are_refused():
    space, _ = golden()
    config = {name: value for name, value in space.config_dict().items() if name != "kind"}
    with pytest.raises(ValueError, match="unet takes features of 12 channels, the space has 8"):
        RenderedFeatures(**{**config, "channels": 8})
