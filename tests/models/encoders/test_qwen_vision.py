"""Qwen2.5-VL's vision tower and image rule against transformers' own."""

import numpy as np
import pytest
import torch

from diptych.models.encoders.eva_clip import CLIP_MEAN, CLIP_STD
from diptych.models.encoders.processor_rule import normalize
from diptych.models.encoders.protocol import VisionEncoder
from diptych.models.encoders.qwen_vision import PIXEL_BUDGET, QwenVisionEncoder
from diptych.models.part import build_part
from diptych.unified import ImagePolicy

pytest.importorskip("transformers")
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TINY = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_heads": 2,
    "out_hidden_size": 12,
    "fullatt_block_indexes": [1],
}


def tiny(budget=PIXEL_BUDGET):
    torch.manual_seed(0)
    encoder = QwenVisionEncoder(config=TINY, pixel_budget=budget)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return encoder.eval()


def picture(height, width):
    return np.random.RandomState(height).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "budget"),
    [((60, 100), PIXEL_BUDGET), ((28, 31), PIXEL_BUDGET), ((30, 900), (3136, 20_000)), ((300, 211), (3136, 50_176))],
)
@torch.no_grad()
def test_image_rule_and_tokens_equal_transformers(size, budget):
    encoder, pixels = tiny(budget), picture(*size)
    processor = Qwen2VLImageProcessorPil(min_pixels=budget[0], max_pixels=budget[1])
    theirs = processor(pixels, return_tensors="pt")
    image = encoder.preprocess(pixels)
    _, rows, cols = theirs["image_grid_thw"][0].tolist()
    assert image.shape == (3, 14 * rows, 14 * cols)
    ours = ImagePolicy(size=(448, 448), input_pixels=budget).prepare(pixels, False)
    assert torch.equal(ours, image)

    seen = theirs["pixel_values"].reshape(rows // 2, cols // 2, 2, 2, 3, 2, 14, 14)[..., 0, :, :]
    seen = seen.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, 14 * rows, 14 * cols)
    torch.testing.assert_close(normalize(image[None], CLIP_MEAN, CLIP_STD)[0], seen, rtol=1e-5, atol=1e-6)

    expected = encoder.model(theirs["pixel_values"], grid_thw=theirs["image_grid_thw"]).pooler_output
    output = encoder(image[None])
    assert output.grid == (rows // 2, cols // 2) and output.tokens.shape[2] == encoder.dim == 12
    torch.testing.assert_close(output.tokens[0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other():
    encoder = tiny()
    images = torch.rand(3, 3, 84, 140) * 2 - 1
    together = encoder(images).tokens
    for index in range(3):
        torch.testing.assert_close(encoder(images[index : index + 1]).tokens[0], together[index], rtol=1e-4, atol=1e-5)


def test_protocol_and_messages():
    encoder = tiny()
    assert isinstance(encoder, VisionEncoder)
    again = build_part(encoder.config_dict())
    assert again.config_dict() == encoder.config_dict()
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    with pytest.raises(ValueError, match="multiples of 28, got 30x56"):
        encoder(torch.zeros(1, 3, 30, 56))
    with pytest.raises(ValueError, match=r"last tokens only, but layers \[1\] were asked"):
        encoder(torch.zeros(1, 3, 56, 56), layers=(1,))
    with pytest.raises(ValueError, match="one side may be at most 200 times the other"):
        encoder.preprocess(picture(2, 500))
    with pytest.raises(ValueError, match=r"input_pixels must be \(least, most\)"):
        ImagePolicy(input_pixels=(100, 50))


@pytest.mark.parametrize(("width", "total"), [(2048, 668_684_288), (3584, 676_550_144)])
def test_published_sizes_on_the_meta_device(width, total):
    """Qwen2.5-VL-3B and -7B: one tower, of which only the last layer knows the language model's width."""
    config = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": width,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    with torch.device("meta"):
        encoder = QwenVisionEncoder(config=config)
    block = 2 * 1280 + 1281 * 3 * 1280 + 1281 * 1280 + 2 * 1281 * 3420 + 3421 * 1280
    merger = 1280 + 5121 * 5120 + 5121 * width
    assert sum(p.numel() for p in encoder.parameters()) == 3 * 2 * 14 * 14 * 1280 + 32 * block + merger == total
