"""What decides a feature is stated, checked and fingerprinted; resizes are those of the originals."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from diptych.frechet.features import Features, ImageFeatures, encoder_features, module_features, weights_digest
from diptych.frechet.moments import Moments
from diptych.frechet.preprocessing import Preprocessing, unit_images
from diptych.frechet.resize import resize_antialiased, resize_bilinear_tf1
from diptych.models.encoders.huggingface import FAMILIES, HuggingFaceEncoder
from diptych.models.encoders.vit import VisionTransformer

SIZES = [((64, 64), (299, 299)), ((33, 47), (16, 20)), ((128, 96), (96, 128)), ((10, 10), (10, 31))]


def noise_images(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)


def tiny_features(**changes):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, 2), nn.BatchNorm2d(5), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return module_features(network, name="tiny", dim=5, size=(16, 16), **changes)


def tf1_by_loops(image, size):
    """The definition, pixel by pixel: no half-pixel shift, the last row and column repeated."""
    height, width = image.shape
    out = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i * height / size[0], j * width / size[1]
            top, left = int(y), int(x)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[below, left] + (image[below, right] - image[below, left]) * (x - left)
            out[i, j] = upper + (lower - upper) * (y - top)
    return out


@pytest.mark.parametrize(("before", "after"), [((7, 5), (11, 13)), ((20, 16), (9, 9)), ((6, 6), (12, 3))])
def test_the_tf1_resize_is_the_definition(before, after):
    image = torch.rand(1, 1, *before, generator=torch.Generator().manual_seed(1))
    expected = tf1_by_loops(image[0, 0].double().numpy(), after)
    np.testing.assert_allclose(resize_bilinear_tf1(image, after)[0, 0].numpy(), expected, atol=2e-6)


def test_the_tf1_resize_is_not_the_half_pixel_one():
    images = torch.rand(1, 3, 32, 32)
    assert (resize_bilinear_tf1(images, (64, 64)) - F.interpolate(images, (64, 64), mode="bilinear")).abs().max() > 0.1


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_uint8_is_resized_as_pillow_does(before, after, filter):
    images = noise_images(*before)
    ours = resize_antialiased(images, after, filter)
    assert ours.dtype == torch.uint8
    for image, resized in zip(images, ours, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(after[::-1], Image.Resampling[filter.upper()])
        assert np.array_equal(resized.permute(1, 2, 0).numpy(), np.asarray(pillow))


def test_on_8_bits_and_on_floats_the_resize_is_the_same_up_to_rounding():
    noise = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(noise, (60, 80), mode="bicubic").mul(120).add(60).clamp(0, 255)
    levels = smooth.round().to(torch.uint8)
    floats = resize_antialiased(levels.float() / 255, (32, 100))
    assert (resize_antialiased(levels, (32, 100)).float() / 255 - floats).abs().max() < 1.5 / 255  # rounded twice


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_floats_are_resized_as_torch_does_and_stay_unclipped(before, after):
    images = noise_images(*before).float() / 255
    expected = F.interpolate(images, after, mode="bicubic", antialias=True)
    torch.testing.assert_close(resize_antialiased(images, after), expected, rtol=0, atol=0)
    assert before == (33, 47) or expected.min() < 0


def test_8_bit_images_and_the_same_floats_give_the_same_features():
    features, images = tiny_features(), noise_images(24, 40)
    torch.testing.assert_close(features(images), features(images.float() / 255, (0, 1)))
    signed = images.float() / 127.5 - 1
    torch.testing.assert_close(features(signed, (-1, 1)), features(images.float(), (0, 255)), atol=1e-5, rtol=1e-4)


def test_pillow_s_resize_takes_8_bits_only():
    features, images = tiny_features(resize="pillow-bicubic"), noise_images(24, 40)
    resized = resize_antialiased(images, (16, 16))
    assert torch.equal(features(images), features(resized))
    assert not torch.equal(features(images), tiny_features()(images))
    with pytest.raises(ValueError, match="pillow-bicubic is of 8-bit images: say quantize=True"):
        features(images.float() / 255, (0, 1))
    assert torch.equal(features(images.float() / 255, (0, 1), quantize=True), features(images))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.rand(1, 3, 8, 8), {}, "need a value_range"),
        (torch.rand(1, 3, 8, 8) * 255, {"value_range": (0, 1)}, r"must lie in \[0, 1\], got values from"),
        (torch.full((1, 3, 8, 8), torch.nan), {"value_range": (0, 1)}, "got values from nan"),
        (torch.rand(1, 3, 8, 8), {"value_range": (1, 0)}, "low < high"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {"value_range": (0, 1)}, r"uint8 images have the value range"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), {}, "must be uint8 or float, got int64"),
    ],
)
def test_images_whose_values_are_unclear_are_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_features()(images, **options)


def test_the_range_has_a_small_tolerance_and_clamping_is_said():
    just = torch.full((1, 3, 4, 4), 1.0009)
    assert unit_images(just, (0, 1))[1] == "float"
    with pytest.raises(ValueError, match="outside='clamp'"):
        unit_images(just + 0.0002, (0, 1))
    clamped, word = unit_images(just * 3, (0, 1), outside="clamp")
    assert clamped.max() == 1 and word == "float clamped"
    kept, word = unit_images(just * 3, (0, 1), outside="keep")
    assert kept.max() > 3 and word == "float"


def test_quantising_is_saving_as_png():
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    levels, word = unit_images(images, (0, 1), quantize=True)
    saved = (images * 255).round().to(torch.uint8)
    assert torch.equal(levels, saved) and word == "float quantized to 8 bits"
    features = tiny_features(resize="none")
    assert torch.equal(features(images, (0, 1), quantize=True), features(saved))
    assert not torch.equal(features(images, (0, 1)), features(saved))


@pytest.mark.parametrize("resize", ["bicubic", "bilinear", "tf1-bilinear"])
def test_features_are_differentiable_in_float_images(resize):
    torch.manual_seed(0)
    features = tiny_features(resize=resize)
    images = torch.rand(2, 3, 12, 12, requires_grad=True)
    features(images, (-1, 1)).square().sum().backward()
    assert images.grad.abs().min() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in features.parameters())


def test_features_stay_in_evaluation_mode():
    features, images = tiny_features(), noise_images(16, 16)
    alone = features(images[:1])
    features.train()
    assert torch.equal(features(images[:1]), alone)
    assert isinstance(features, ImageFeatures)


def test_every_field_of_the_preprocessing_is_in_the_fingerprint():
    base = Preprocessing(size=(16, 16))
    changes = {
        "size": (16, 17),
        "resize": "bilinear",
        "mean": (0.1, 0.0, 0.0),
        "std": (1.0, 1.0, 0.9),
        "pad_multiple": 2,
        "pooling": "mean",
        "dtype": "bfloat16",
    }
    assert set(changes) == {field.name for field in fields(Preprocessing)}
    prints = {replace(base, **{name: value}).fingerprint() for name, value in changes.items()}
    assert len(prints | {base.fingerprint()}) == len(changes) + 1
    assert base.fingerprint() == Preprocessing(size=(16, 16)).fingerprint()


def test_statistics_of_other_weights_or_sizes_do_not_mix():
    first, other = tiny_features(), tiny_features()
    images = noise_images(16, 16)
    assert first.network_id == tiny_features().network_id
    with torch.no_grad():
        other.network[0].bias[0] += 1
    mine, yours, smaller = first.new_moments(), other.new_moments(), tiny_features(mean=(0.5, 0.5, 0.5)).new_moments()
    for moments in (mine, yours, smaller):
        moments.update(first(images))
    with pytest.raises(ValueError, match="moments must agree in network"):
        mine.merge(yours)
    with pytest.raises(ValueError, match="moments must agree in preprocessing"):
        mine.merge(smaller)
    assert isinstance(mine, Moments) and mine.count == 2


def test_the_digest_sees_buffers_and_names():
    network = nn.BatchNorm2d(3)
    before = weights_digest(network)
    network.running_mean[0] = 1
    assert weights_digest(network) != before
    assert weights_digest(nn.Sequential(nn.BatchNorm2d(3))) != before


def test_bfloat16_is_computed_in_and_float32_comes_out():
    full, half, images = tiny_features(), tiny_features(dtype="bfloat16"), noise_images(16, 16)
    assert half(images).dtype == torch.float32
    assert not torch.equal(half(images), full(images))
    torch.testing.assert_close(half(images), full(images), atol=2e-2, rtol=2e-2)


def test_another_width_than_promised_is_named():
    features = Features(nn.Flatten(), name="flat", dim=7, preprocessing=Preprocessing(size=(4, 4)))
    with pytest.raises(ValueError, match=r"flat must return 2 x 7 numbers, got \(2, 48\)"):
        features(noise_images(4, 4))


def test_an_encoder_sees_what_its_own_preprocessing_makes():
    torch.manual_seed(0)
    encoder = VisionTransformer(image_size=16, patch_size=8, dim=16, num_layers=1, num_heads=2, resize_policy="stretch")
    resize = {"size": (16, 16), "resize": "pillow-bicubic"}
    features = encoder_features(encoder, name="ours", pooling="attention", **resize)
    pixels = noise_images(40, 24)
    prepared = torch.stack([encoder.preprocess(image.permute(1, 2, 0).numpy()) for image in pixels])
    torch.testing.assert_close(features(pixels), encoder(prepared).pooled, atol=1e-5, rtol=1e-4)
    mean = encoder_features(encoder, name="ours", pooling="mean", **resize)
    torch.testing.assert_close(mean(pixels), encoder(prepared).tokens.mean(1), atol=1e-5, rtol=1e-4)
    assert mean.fingerprint != features.fingerprint and mean.network_id == features.network_id
    with pytest.raises(ValueError, match="must be 'mean' or the encoder's own 'attention', got 'class-token'"):
        encoder_features(encoder, name="ours", pooling="class-token", size=(16, 16))


VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWERS = {
    "clip_vision_model": (VIT | {"image_size": 28, "patch_size": 14, "projection_dim": 8}, "class-token"),
    "siglip_vision_model": (VIT | {"image_size": 28, "patch_size": 14}, "attention"),
    "siglip2_vision_model": (VIT | {"num_patches": 16, "patch_size": 14}, "attention"),
    "dinov2": (VIT | {"image_size": 28, "patch_size": 14, "mlp_ratio": 2}, "class-token"),
    "dinov3_vit": (VIT | {"image_size": 28, "patch_size": 14, "num_register_tokens": 1}, "class-token"),
    "vit_mae": (VIT | {"image_size": 28, "patch_size": 14}, "class-token"),
    "ijepa": (VIT | {"image_size": 28, "patch_size": 14}, "mean"),
    "convnextv2": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}, "network"),
}


@pytest.mark.parametrize("family", list(TOWERS))
def test_released_towers_give_features_with_gradients(family):
    config, pooling = TOWERS[family]
    torch.manual_seed(0)
    encoder = HuggingFaceEncoder(model_config=config | {"model_type": family})
    features = encoder_features(encoder, name=family, pooling=pooling, size=(32, 32))
    images = torch.rand(2, 3, 40, 40, requires_grad=True)
    out = features(images, (0, 1))
    assert out.shape == (2, 16) and out.dtype == torch.float32
    out.square().sum().backward()
    assert images.grad.abs().sum() > 0
    mean, std = encoder.rule.mean, encoder.rule.std
    assert features.preprocessing.mean == mean and features.preprocessing.std == std


def test_the_families_are_all_tried():
    assert set(FAMILIES) - set(TOWERS) == {"dinov2_with_registers"}


def test_padding_is_the_mean_colour_after_normalisation():
    preprocessing = Preprocessing(size=(4, 4), pad_multiple=6, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    inputs = preprocessing.apply(noise_images(4, 4))
    assert inputs.shape == (2, 3, 6, 6)
    assert inputs[:, :, 4:].eq(0).all() and inputs[:, :, :, 4:].eq(0).all() and inputs[:, :, :4, :4].ne(0).any()


@pytest.mark.parametrize("changes", [{"size": (0, 4)}, {"pad_multiple": 0}, {"std": (1.0, 0.0, 1.0)}])
def test_preprocessing_refuses_what_cannot_be(changes):
    with pytest.raises(ValueError, match=r"preprocessing.size, pad_multiple and std must be positive"):
        Preprocessing(**({"size": (4, 4)} | changes))


def test_without_a_resize_other_sizes_are_refused():
    with pytest.raises(ValueError, match="takes 16x16 pixels only, got 8x8"):
        tiny_features(resize="none")(noise_images(8, 8))
