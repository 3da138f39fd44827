"""Every family against its own class and its own image processor in transformers, on images of odd sizes."""

import json

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from diptych.models.encoders.huggingface import FAMILIES, HuggingFaceEncoder, load_huggingface_encoder
from diptych.models.encoders.processor_rule import ProcessorRule, size_within_patch_budget
from diptych.models.part import build_part

VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
TWO_TOWERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

CONFIGS = {
    "clip_vision_model": VIT | {"image_size": 32, "patch_size": 8},
    "siglip_vision_model": VIT | {"image_size": 36, "patch_size": 8},  # 4 x 4 patches, the rest of 4 pixels is unseen
    "siglip2_vision_model": VIT | {"num_patches": 16, "patch_size": 8},
    "dinov2": VIT | {"image_size": 32, "patch_size": 8},
    "dinov2_with_registers": VIT | {"image_size": 32, "patch_size": 8, "num_register_tokens": 3},
    "dinov3_vit": VIT | {"image_size": 32, "patch_size": 8, "num_register_tokens": 3},
    "vit_mae": VIT | {"image_size": 32, "patch_size": 8, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1},
    "convnextv2": {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "patch_size": 4},
}


def pictures():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((37, 53), (91, 40))]


def processor_of(model_type, config):
    """The processor class of transformers with settings that are not its defaults."""
    size = config.get("image_size", 32)
    square, edge = {"height": size, "width": size}, {"shortest_edge": size + 5}
    if model_type == "clip_vision_model":
        return transformers.CLIPImageProcessorPil(size=edge, crop_size=square)
    if model_type in ("dinov2", "dinov2_with_registers"):
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        return transformers.BitImageProcessorPil(size=edge, crop_size=square, image_mean=mean, image_std=std)
    if model_type == "siglip_vision_model":
        return transformers.SiglipImageProcessorPil(size=square, resample=2)
    if model_type == "siglip2_vision_model":
        return transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=20)
    if model_type == "vit_mae":
        return transformers.ViTImageProcessorPil(size=square, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    if model_type == "convnextv2":
        return transformers.ConvNextImageProcessorPil(size={"shortest_edge": size}, crop_pct=0.9)
    raise AssertionError(model_type)


def save_reference(model_type, folder):
    """A checkpoint folder as released ones look, and the values of transformers' own processor and forward."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **CONFIGS[model_type])
    if model_type == "vit_mae":
        config.mask_ratio = 0.0
    model = getattr(transformers, FAMILIES[model_type].model_class)(config).eval()
    for name, value in model.named_parameters():  # ConvNeXt V2 starts with zeros where the norm of responses acts
        if "grn" in name:
            torch.nn.init.normal_(value, std=0.5)
    model.save_pretrained(folder)
    inputs = []
    if model_type == "dinov3_vit":  # its processor needs torchvision: rescaled, resized as floats, then normalised
        settings = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 32, "width": 32}}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        for pixels in pictures():
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
            image = F.interpolate(image, (32, 32), mode="bilinear", antialias=True)
            mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 1, 3, 1, 1)
            inputs.append({"pixel_values": (image - mean) / std})
    else:
        processor = processor_of(model_type, CONFIGS[model_type])
        processor.save_pretrained(folder)
        inputs = [dict(processor(images=pixels, return_tensors="pt")) for pixels in pictures()]
    return model, inputs


@pytest.mark.parametrize("model_type", list(CONFIGS))
def test_tokens_layers_and_pooled_equal_transformers_on_its_processors_output(model_type, tmp_path):
    model, inputs = save_reference(model_type, tmp_path)
    encoder = load_huggingface_encoder(tmp_path)
    again = build_part(encoder.config_dict())
    again.load_state_dict(encoder.state_dict())
    assert again.config_dict() == encoder.config_dict() == json.loads(json.dumps(encoder.config_dict()))
    layers = range(encoder.num_layers + 1)
    for pixels, reference_inputs in zip(pictures(), inputs, strict=True):
        image = encoder.preprocess(pixels)
        assert image.min() >= -1 and image.max() <= 1
        if model_type == "vit_mae":
            reference_inputs["noise"] = torch.arange(16.0)[None]
        with torch.no_grad():
            output = encoder(image[None], layers)
            expected = model(**reference_inputs, output_hidden_states=True)
            copy = again.eval()(image[None])
        rows, cols = output.grid
        assert output.tokens.shape == (1, rows * cols, encoder.dim)
        reference = expected.last_hidden_state
        reference = reference.flatten(2).transpose(1, 2) if model_type == "convnextv2" else reference
        first = encoder.num_prefix_tokens
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(output.tokens, reference[:, first : first + rows * cols], **close)
        pooled = reference[:, 0] if model_type == "vit_mae" else expected.pooler_output
        torch.testing.assert_close(output.pooled, pooled, **close)
        torch.testing.assert_close(copy.tokens, output.tokens, rtol=0, atol=0)
        hidden_states = expected.hidden_states
        if model_type == "convnextv2":  # stage i halves the grid; transformers lists the stages' inputs and the last
            for index in layers:
                states = hidden_states[min(index, len(hidden_states) - 1)].flatten(2).transpose(1, 2)
                torch.testing.assert_close(output.layer_tokens[index], states, **close)
        else:
            for index in layers[:-1]:
                states = hidden_states[index][:, first : first + rows * cols]
                torch.testing.assert_close(output.layer_tokens[index], states, **close)
            assert output.layer_tokens[encoder.num_layers].shape == output.tokens.shape


@pytest.mark.parametrize("model_type", [name for name in CONFIGS if name not in ("siglip2_vision_model", "dinov3_vit")])
def test_pixels_equal_the_processors(model_type):
    """Images of many shapes, larger and smaller than the size, against the processor itself."""
    processor = processor_of(model_type, CONFIGS[model_type])
    rule = ProcessorRule.from_processor_config(processor.to_dict())
    assert ProcessorRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    generator = np.random.default_rng(1)
    for height, width in [(37, 53), (20, 21), (300, 31), (32, 32), (64, 64), (7, 90), (401, 399)]:
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = processor(images=pixels, return_tensors="pt", input_data_format="channels_last").pixel_values[0]
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (rule.mean, rule.std))
        ours = ((rule.apply(pixels) + 1) / 2 - mean) / std
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def test_siglip2_sizes_equal_the_processors():
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    generator = np.random.default_rng(0)
    for _ in range(200):
        height, width = (int(side) for side in generator.integers(1, 3000, 2))
        budget = int(generator.choice([16, 256, 729]))
        expected = get_image_size_for_max_num_patches(height, width, 16, budget)
        assert size_within_patch_budget(height, width, 16, budget) == expected


@pytest.mark.parametrize("size", [383, 384, 400])
def test_convnext_stretches_from_384_pixels_on(size):
    processor = transformers.ConvNextImageProcessorPil(size={"shortest_edge": size})
    rule = ProcessorRule.from_processor_config(processor.to_dict())
    pixels = pictures()[0]
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (rule.mean, rule.std))
    ours = ((rule.apply(pixels) + 1) / 2 - mean) / std
    torch.testing.assert_close(ours, processor(images=pixels, return_tensors="pt").pixel_values[0], rtol=0, atol=2e-6)


def test_old_spellings_of_processor_configs():
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 40, "crop_size": 32, "resample": 3}
    new = {"image_processor_type": "CLIPImageProcessorFast", "resample": 3}
    sizes = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    assert ProcessorRule.from_processor_config(old) == ProcessorRule.from_processor_config(new | sizes)


@pytest.mark.parametrize("model_type", [name for name in CONFIGS if name != "siglip_vision_model"])
def test_other_sizes_than_trained(model_type):
    torch.manual_seed(0)
    encoder = HuggingFaceEncoder(model_config={"model_type": model_type} | CONFIGS[model_type]).eval()
    side = encoder.patch_size
    image = encoder.preprocess(pictures()[0], (2 * side, 5 * side))
    assert image.shape == (3, 2 * side, 5 * side)
    with torch.no_grad():
        output = encoder(torch.stack([image, image]), layers=(1,))
    assert output.grid == (2, 5) and output.tokens.shape == (2, 10, encoder.dim)
    torch.testing.assert_close(output.tokens[0], output.tokens[1])


@pytest.mark.parametrize(
    ("name", "vision", "config_class"),
    [("clip", "CLIPModel", "CLIPConfig"), ("siglip", "SiglipModel", "SiglipConfig"), ("siglip2", "Siglip2Model", None)],
)
def test_the_vision_tower_of_a_two_tower_checkpoint(name, vision, config_class, tmp_path):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        name,
        vision_config=CONFIGS[f"{name}_vision_model"],
        text_config=TWO_TOWERS | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
    )
    both = getattr(transformers, vision)(config).eval()
    both.save_pretrained(tmp_path)
    encoder = load_huggingface_encoder(tmp_path)
    # without a processor file the rule is the family's own, at the model's size
    image = encoder.preprocess(pictures()[0])[None]
    with torch.no_grad():
        expected = both.vision_model(**encoder._inputs(_normalized(encoder, image), *encoder(image).grid))
        torch.testing.assert_close(encoder(image).pooled, expected.pooler_output)
    assert not any("text" in key for key in encoder.state_dict())


def _normalized(encoder, image):
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (encoder.rule.mean, encoder.rule.std))
    return ((image + 1) / 2 - mean) / std


def test_mae_sees_every_patch_every_time(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(**CONFIGS["vit_mae"])  # mask_ratio 0.75, as released
    transformers.ViTMAEForPreTraining(config).save_pretrained(tmp_path)
    encoder = load_huggingface_encoder(tmp_path)
    image = encoder.preprocess(pictures()[0])[None]
    with torch.no_grad():
        first, second = encoder(image), encoder(image)
    assert first.tokens.shape == (1, 16, 32)
    torch.testing.assert_close(first.tokens, second.tokens, rtol=0, atol=0)


def test_gradients_reach_the_image():
    encoder = HuggingFaceEncoder(model_config={"model_type": "dinov2"} | CONFIGS["dinov2"]).eval()
    image = torch.zeros(1, 3, 32, 32, requires_grad=True)
    (encoder(image).pooled ** 3).sum().backward()
    assert image.grad.abs().sum() > 0


def test_messages(tmp_path):
    with pytest.raises(ValueError, match=r"vision model type 'bert' is not known; known are clip_vision_model, "):
        HuggingFaceEncoder(model_config={"model_type": "bert"})
    with pytest.raises(ValueError, match=r"the image processor 'DPTImageProcessor' is not known; known are CLIP"):
        ProcessorRule.from_processor_config({"image_processor_type": "DPTImageProcessor"})
    with pytest.raises(ValueError, match=r"pixels must be rescaled by 1/255, its config says 1"):
        ProcessorRule.from_processor_config({"image_processor_type": "ViTImageProcessor", "do_rescale": False})
    encoder = HuggingFaceEncoder(model_config={"model_type": "dinov2"} | CONFIGS["dinov2"])
    with pytest.raises(ValueError, match=r"the dinov2 encoder takes .* multiples of 8, got 30x32"):
        encoder(torch.zeros(1, 3, 30, 32))
    save_reference("dinov2", tmp_path)
    _drop_weight(tmp_path, "encoder.layer.1.mlp.fc1.weight")
    with pytest.raises(ValueError, match=r"1 weights of the vision model are not in .*; the first is .*fc1.weight"):
        load_huggingface_encoder(tmp_path)


def _drop_weight(folder, name):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (key,) = [key for key in tensors if key.endswith(name)]
    del tensors[key]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
