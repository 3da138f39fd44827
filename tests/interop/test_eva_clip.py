"""EVA-CLIP's tower against the released code (recorded in tests/golden), its keys, and its size."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from diptych.interop.eva_clip import (
    eva_clip_config,
    eva_clip_key_map,
    from_official_eva_clip,
    load_eva_clip,
)
from diptych.models.encoders.eva_clip import CLIP_MEAN, CLIP_STD, EvaClipEncoder
from diptych.models.encoders.protocol import VisionEncoder
from diptych.models.part import build_part
from tests.golden.fixtures import load_golden
from tests.interop.released_shapes import released_keys


def golden():
    weights, recorded = load_golden("blip3o_eva")
    encoder = EvaClipEncoder(**eva_clip_config(weights, num_heads=2))
    encoder.load_state_dict(from_official_eva_clip(weights))
    return encoder, weights, recorded


def test_output_and_gradients_equal_the_released_code():
    """Output in float32; gradients, recorded in float64, in that."""
    encoder, weights, recorded = golden()
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    images = (2 * (recorded["pixels"] * std + mean) - 1).requires_grad_()  # recorded after mean and std
    output = encoder(images.float()).tokens
    torch.testing.assert_close(output, recorded["output"].float(), rtol=1e-5, atol=1e-5)
    (encoder.double()(images).tokens * recorded["direction"]).sum().backward()
    torch.testing.assert_close(images.grad * 2 * std, recorded["grad/pixels"], rtol=1e-4, atol=1e-5)
    theirs = from_official_eva_clip({key: recorded[f"grad/{key}"] for key in weights})
    ours = dict(encoder.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name].grad, gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_every_released_key_has_its_place():
    keys = released_keys()
    assert len(keys) == 4 + 64 * 12
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in keys.items()}
        encoder = EvaClipEncoder(**eva_clip_config(weights))
    assert eva_clip_key_map(64).keys() == keys.keys()
    ours = from_official_eva_clip(weights)
    own = {key: value.shape for key, value in encoder.state_dict().items()}
    assert {key: value.shape for key, value in ours.items()} == own
    assert encoder.config_dict() == {"kind": encoder.config_dict()["kind"], **eva_clip_config(weights)}
    block = 4 * 1792 + (1792 + 1) * (5376 + 1792) + (1792 + 1) * 15_360 + (15_360 + 1) * 1792
    assert sum(p.numel() for p in encoder.parameters()) == 64 * block + 1026 * 1792 + (588 + 1) * 1792 == 4_350_208_256
    assert (encoder.num_heads, encoder.image_size, encoder.ffn_dim) == (16, 448, 15_360)


def test_protocol_layers_and_preprocessing():
    encoder, _, _ = golden()
    assert isinstance(encoder, VisionEncoder)
    again = build_part(encoder.config_dict())
    assert again.config_dict() == encoder.config_dict()
    pixels = np.asarray(Image.linear_gradient("L").convert("RGB").resize((40, 20)))
    image = encoder.preprocess(pixels)
    cut = np.asarray(Image.fromarray(pixels).resize((24, 12), Image.Resampling.BICUBIC))[:, 6:18]
    torch.testing.assert_close(image, torch.from_numpy(cut.copy()).permute(2, 0, 1) / 127.5 - 1)
    output = encoder(image[None], layers=(0, 3))
    assert output.grid == (3, 3) and output.pooled.shape == (1, 16)
    assert torch.equal(output.layer_tokens[3], output.tokens) and not torch.equal(output.layer_tokens[0], output.tokens)
    pooled = F.avg_pool2d(output.tokens.transpose(1, 2).unflatten(2, output.grid), 3)
    assert pooled.shape == (1, 16, 1, 1)
    with pytest.raises(ValueError, match=r"takes images of 12x12 only, got 16x16\. Its preprocess\(\) makes them"):
        encoder(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_file_is_loaded_or_refused(tmp_path, suffix):
    weights = {key: torch.zeros(shape) for key, shape in released_small().items()}
    path = tmp_path / f"pytorch_model{suffix}"

    def write(tensors):
        torch.save(tensors, path) if suffix == ".bin" else save_file(tensors, path)

    write(weights)
    encoder = load_eva_clip(path)
    assert encoder.num_heads == 1 and encoder.dim == 112 and not encoder.training
    write({key: value for key, value in weights.items() if key != "blocks.1.mlp.fc1.bias"})
    with pytest.raises(ValueError, match=r"tower: 1 tensors are missing \(first blocks\.1\.feed_forward\.0\.bias\)"):
        load_eva_clip(path)
    write({**weights, "head.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 keys belong to no layer of EVA-CLIP's tower, such as 'head\.weight'"):
        load_eva_clip(path)
    write({f"visual.{key}": value for key, value in weights.items()})
    with pytest.raises(ValueError, match=r"as BLIP3-o publishes it.*first key is 'visual\..*jiuhai/eva_clip_vision_"):
        load_eva_clip(path)


def released_small():
    """Two blocks of one head."""
    small = {1792: 112, 5376: 336, 15360: 24, 1025: 5, 14: 2}
    shapes = released_keys().items()
    return {
        key: tuple(small.get(side, side) for side in shape)
        for key, shape in shapes
        if not key.startswith("blocks.") or key.split(".")[1] in "01"
    }
