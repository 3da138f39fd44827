import json

import diffusers
import jaxtyping
import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.models.autoencoders.diffusers import DiffusersAutoencoder, load_diffusers_autoencoder
from diptych.models.part import build_part

CONFIGS = {
    "AutoencoderKL": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "latent_channels": 6,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "sample_size": 32,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 1, 1),
        "num_decoder_blocks": (1, 1, 1),
        "latent_channels": 5,
    },
    "AutoencoderDC": {
        "latent_channels": 7,
        "attention_head_dim": 4,
        "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8, 16),
        "decoder_block_out_channels": (8, 8, 16),
        "encoder_layers_per_block": (1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1),
        "encoder_qkv_multiscales": ((), (), (5,)),
        "decoder_qkv_multiscales": ((), (), (5,)),
        "encoder_out_shortcut": False,
        "decoder_in_shortcut": False,
        "scaling_factor": 0.41407,
    },
}


def images(height=16, width=24):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def reference(model_class):
    torch.manual_seed(0)
    return getattr(diffusers, model_class)(**CONFIGS[model_class]).eval()


def in_pipelines_words(model, pictures):
    """Latents as the pipelines of diffusers compute them."""
    encoded = model.encode(pictures)
    if isinstance(model, diffusers.AutoencoderKL):
        return (encoded.latent_dist.mode() - model.config.shift_factor) * model.config.scaling_factor
    if isinstance(model, diffusers.AutoencoderDC):
        return encoded.latent * model.config.scaling_factor
    return encoded.latents * model.config.scaling_factor


@pytest.mark.parametrize("model_class", list(CONFIGS))
def test_latents_and_images_equal_diffusers(model_class, tmp_path):
    model = reference(model_class)
    model.save_pretrained(tmp_path / "vae")
    space = load_diffusers_autoencoder(tmp_path, subfolder="vae")
    with torch.no_grad():
        latents = space.encode(images())
        expected = in_pipelines_words(model, images())
        torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)
        assert latents.shape == (2, *space.latent_shape(16, 24)) == (2, CONFIGS[model_class]["latent_channels"], 4, 6)
        shift = model.config.get("shift_factor") or 0.0
        decoded = model.decode(expected / model.config.scaling_factor + shift).sample.clamp(-1, 1)
        torch.testing.assert_close(space.decode(latents), decoded, rtol=1e-4, atol=1e-5)
        assert decoded.shape == images().shape
        again = build_part(json.loads(json.dumps(space.config_dict())))
        assert again.config_dict() == space.config_dict()
        again.load_state_dict(space.state_dict())
        torch.testing.assert_close(again.eval().encode(images()), latents)


def test_per_channel_statistics_of_a_config():
    mean, std = [0.1 * i for i in range(6)], [1.0 + 0.1 * i for i in range(6)]
    config = CONFIGS["AutoencoderKL"] | {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}
    space = DiffusersAutoencoder(model_class="AutoencoderKL", model_config=config).eval()
    with torch.no_grad():
        raw = space.model.encode(images()).latent_dist.mode()
        expected = (raw - torch.tensor(mean).reshape(-1, 1, 1)) * 0.5 / torch.tensor(std).reshape(-1, 1, 1)
        torch.testing.assert_close(space.encode(images()), expected)


def test_encoding_is_deterministic_unless_a_generator_draws():
    space = DiffusersAutoencoder(model_class="AutoencoderKL", model_config=CONFIGS["AutoencoderKL"]).eval()
    with torch.no_grad():
        mode = space.encode(images())
        torch.testing.assert_close(space.encode(images()), mode, rtol=0, atol=0)
        drawn = [space.encode(images(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        std = space.model.encode(images()).latent_dist.std / space.scale
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert not torch.equal(drawn[0], drawn[2])
    noise = (drawn[0] - mode) / std
    expected = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise, expected, atol=1e-3, rtol=1e-3)  # the division by a small std costs digits


def test_messages(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own messages, not the type checker's
    with pytest.raises(ValueError, match=r"must be one of AutoencoderKL, .* got 'VQModel'"):
        DiffusersAutoencoder(model_class="VQModel", model_config={})
    space = DiffusersAutoencoder(model_class="AutoencoderTiny", model_config=CONFIGS["AutoencoderTiny"])
    with pytest.raises(ValueError, match=r"the AutoencoderTiny takes .* multiples of 4, got 15x24. Use 12x24 or 16x24"):
        space.encode(images(15, 24))
    with pytest.raises(ValueError, match=r"the AutoencoderTiny has no posterior to draw from"):
        space.encode(images(), torch.Generator())
    reference("AutoencoderTiny").save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("encoder.layers.0.bias")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are not in the checkpoint; the first is encoder.layers.0.bias"):
        load_diffusers_autoencoder(tmp_path)
