import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diptych.interop.taef2 import Taef2, load_taef2
from diptych.models.autoencoders.protocol import set_measured_scale
from diptych.models.part import build_part
from diptych.models.preprocess import to_float
from diptych.objectives.reconstruction import psnr


def write_random(folder):
    torch.manual_seed(0)
    space = Taef2()
    save_file(space.encoder.state_dict(), folder / "taef2_encoder.safetensors")
    save_file(space.decoder.state_dict(), folder / "taef2_decoder.safetensors")
    return space.eval()


def test_shapes_files_and_measured_scale(tmp_path):
    written = write_random(tmp_path)
    space = load_taef2(tmp_path)
    assert not space.training and space.latent_shape(32, 48) == (32, 4, 6)
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latents = space.encode(images)
        torch.testing.assert_close(latents, written.encode(images))
        decoded = space.decode(latents)
        assert decoded.shape == images.shape and decoded.abs().max() <= 1
        set_measured_scale(space, [latents])
        scaled = space.encode(images)
        torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(32), rtol=0, atol=1e-4)
        torch.testing.assert_close(space.decode(scaled), decoded, rtol=1e-4, atol=1e-5)
        again = build_part(space.config_dict())
        again.load_state_dict(space.state_dict())
        torch.testing.assert_close(again.encode(images), scaled)


def test_messages(tmp_path):
    space = write_random(tmp_path)
    with pytest.raises(ValueError, match=r"tiny autoencoder takes .* got 100x400. Use 96x400 or 104x400"):
        space.encode(torch.zeros(1, 3, 100, 400))
    save_file({"0.weight": torch.zeros(1)}, tmp_path / "taef2_encoder.safetensors")
    with pytest.raises(ValueError, match=r"does not hold the encoder of taef2: 78 tensors are missing"):
        load_taef2(tmp_path)
    (tmp_path / "taef2_encoder.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"taef2_encoder.safetensors is missing"):
        load_taef2(tmp_path)


def test_real_weights_equal_the_stored_outputs(test_data):
    expected = np.load(test_data / "models" / "expected.npz")
    space = load_taef2(test_data / "models" / "taef2")
    latent, recon = (torch.from_numpy(expected[f"taef2/{name}"]) for name in ("latent", "recon"))
    with torch.no_grad():
        images = torch.stack([to_float(image) for image in expected["taef2/input_u8"]])
        ours = space.encode(images)
        decoded = space.decode(ours)
    assert ((ours - latent).abs().max() / latent.abs().max()) < 1e-5
    assert ((decoded + 1) / 2 - recon.clamp(0, 1)).abs().max() < 1e-5  # the stored one is not clipped


def kodak(test_data, rows):
    stored = np.load(test_data / "images" / "kodak" / "kodak24.npz")
    data, offset = stored["data"], stored["offset"]
    for row in rows:
        file = io.BytesIO(data[offset[row] : offset[row + 1]].tobytes())
        yield np.asarray(Image.open(file).convert("RGB"))


def reconstruction_psnr(space, pixels):
    images = to_float(pixels)[None]
    with torch.no_grad():
        return psnr(space.decode(space.encode(images)), images).item()


def test_photographs_survive(test_data):
    """The middle 128 pixels of three photographs; they score 30.8, 31.7 and 34.4 dB."""
    space = load_taef2(test_data / "models" / "taef2")
    middles = [
        pixels[y - 64 : y + 64, x - 64 : x + 64]
        for pixels in kodak(test_data, (1, 2, 3))
        for y, x in [(pixels.shape[0] // 2, pixels.shape[1] // 2)]
    ]
    scores = [reconstruction_psnr(space, pixels) for pixels in middles]
    assert len(scores) == 3 and min(scores) > 30


@pytest.mark.slow
def test_all_photographs_at_full_size(test_data):
    space = load_taef2(test_data / "models" / "taef2")
    scores = [reconstruction_psnr(space, pixels) for pixels in kodak(test_data, range(24))]
    print(f"taef2 on Kodak: PSNR mean {np.mean(scores):.2f} dB, least {min(scores):.2f} dB")
    assert len(scores) == 24 and np.mean(scores) > 30
