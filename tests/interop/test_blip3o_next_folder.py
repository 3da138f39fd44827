"""Folders of BLIP3o-NEXT's layout: every key in its place, the numbers of the modules it was made of, bad input."""

import json
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import diptych
from diptych.cli.main import main
from diptych.interop.blip3o_next import DC_AE_F32C32, QWEN3, SANA_1_6B, SIGLIP2_SO400M
from diptych.interop.blip3o_next_folder import empty_next_parts, load_blip3o_next, load_ta_tok
from diptych.interop.blip3o_next_layout import TOWER, next_places
from diptych.interop.sharded_weights import StoredTensor
from diptych.interop.weight_places import check_keys
from diptych.unified.tokens import prompt_latents, sample_codes
from tests.interop.blip3o_folder import QWEN_TOKENS, write_tokenizer, write_weights
from tests.interop.blip3o_next_folder import NUM_CODES, WIDTH, tower_weights, write_blip3o_next

pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8))
PROMPT = (diptych.Text("a cat"),)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder, the modules it was made of, and the weights by released keys."""
    folder = tmp_path_factory.mktemp("released") / "BLIP3o-NEXT"
    return folder, *write_blip3o_next(folder)


@pytest.fixture(scope="module")
def edit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "BLIP3o-NEXT-edit"
    return folder, *write_blip3o_next(folder, tied=False, edit=True)


@pytest.fixture(scope="module")
def model(written):
    return diptych.load(written[0], device="cpu")


@pytest.fixture
def folder(written, tmp_path):
    """A copy to break."""
    return shutil.copytree(written[0], tmp_path / "copy")


def released_ids(model, folder, prompt):
    """The released inference's prompt, by the tokenizer of the folder."""
    from tokenizers import Tokenizer

    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"Please generate image based on the following caption: {prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    engine = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return engine.encode(text + "<im_start><S0>", add_special_tokens=False).ids


@torch.no_grad()
def hidden_rows(modules, ids, codes, first_code):
    """As in the released inference: the language model once more over everything, from behind ``<im_start>`` on."""
    whole = torch.tensor([[*ids, *(codes + first_code).tolist()]])
    states = modules["language"].model(input_ids=whole).last_hidden_state
    return states[:, len(ids) - 1 :]


@torch.no_grad()
def paint(modules, rows, noise, num_steps, scale=2.0, beside=None, latent_rows=None):
    """The released sampler: null condition first, SANA of diffusers, Euler steps over sigma."""
    condition = modules["diffusion_connector"](torch.cat([torch.zeros_like(rows), rows]))
    if latent_rows is not None:
        seen = modules["und_image_vae_connector"](latent_rows)
        condition = torch.cat([condition, torch.stack([torch.zeros_like(seen), seen])], dim=1)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(num_steps, sigmas=np.linspace(1.0, 1 / num_steps, num_steps))
    x = noise
    for t in scheduler.timesteps:
        given = x if beside is None else torch.cat([x, beside], dim=-1)
        both = modules["sana"](torch.cat([given] * 2), condition, t.expand(2)).sample[..., : x.shape[-1]]
        null, told = both.chunk(2)
        x = scheduler.step(null + scale * (told - null), t, x).prev_sample
    return x


@torch.no_grad()
def test_drawing_equals_the_released_inference(written, model):
    """Prompt ids, hidden states at the tokens, latents after 5 steps, and the picture."""
    folder, modules, _ = written
    ids = released_ids(model, folder, "a cat")
    batch = model.collator()([diptych.Example((*PROMPT, diptych.ImageOut(size=model.images.size)))])
    first = model.image_head.first_token
    assert batch.token_ids[0, : len(ids) - 1].tolist() == ids[:-1] and ids[-1] == first
    sampled = sample_codes(model, [PROMPT], model.images.size, [3])
    rows = hidden_rows(modules, ids, sampled.codes[0], model.image_head.first_code)
    torch.testing.assert_close(sampled.hidden_states, rows, rtol=1e-4, atol=1e-5)
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    expected = paint(modules, rows, noise, 5)
    settings = diptych.load(folder, device="cpu").draw_settings
    assert (settings.num_steps, settings.guidance_scale, settings.whole_timesteps) == (30, 2.0, False)
    head = model.image_head
    condition = head.condition(sampled.hidden_states)
    five = diptych.unified.DrawSettings(num_steps=5, guidance_scale=2.0)
    ours = head.draw(condition, head.null_condition(1), noise, five)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert (expected - noise).abs().max() > 0.1
    picture = modules["sana_vae"].decode(expected / 0.41407).sample
    torch.testing.assert_close(model.autoencoder.decode_unclipped(ours), picture, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_codes_of_pictures_equal_the_released_tokenizer(written, model):
    tower = written[1]["vision_tower"]
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = tower["encoder"](images, output_hidden_states=True).hidden_states[-2]
    vectors = F.normalize(tower["bottleneck"]["in_linear"](tower["encode_task_layer"](features)), dim=-1)
    quantizer = tower["bottleneck"]["regularizer"]
    codebook = F.normalize(quantizer["embedding_proj"](quantizer["embedding"].weight), dim=-1)
    expected = (vectors @ codebook.T).argmax(-1)
    assert torch.equal(model.encoder.codes(images), expected) and len(expected.unique()) > 1
    assert model.image_head.num_tokens == expected.shape[1] == 4
    with pytest.raises(ValueError, match=r"came without the decoder of its features"):
        model.encoder.quantise(images)


@torch.no_grad()
def test_an_edit_sees_the_latents_in_both_places(edit):
    """BLIP3o-NEXT-edit: rows of the condition, and beside the noise along the width."""
    folder, modules, weights = edit
    model = diptych.load(folder, device="cpu")
    head = model.image_head
    assert head.latent_channels == 4 and head.references_in_noise and head.reads_codes
    assert torch.equal(model.backbone.lm_head.weight, weights["lm_head.weight"])
    request = (diptych.ImageIn(PICTURE), diptych.Text("paint it"))  # stands in their order, whichever is given
    size = model.images.size
    sampled = sample_codes(model, [request], size, [1])
    (latents,) = prompt_latents(model, [request], size)
    pixels = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)[None] / 127.5 - 1
    theirs = modules["sana_vae"].encode(pixels).latent * 0.41407
    torch.testing.assert_close(latents[None], theirs, rtol=1e-4, atol=1e-5)
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    settings = diptych.unified.DrawSettings(num_steps=2, guidance_scale=2.0)
    condition = head.condition(sampled.hidden_states, latents[None])
    ours = head.draw(condition, head.null_condition(1), noise, settings, references=latents[None])
    rows = theirs[0].flatten(1).T
    expected = paint(modules, sampled.hidden_states, noise, 2, beside=theirs, latent_rows=rows)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    batch = model.collator()([diptych.Example((*request, diptych.ImageOut(size=size)))])
    ids = batch.token_ids[0].tolist()
    start, end = (ids.index(model.tokenizer.special[f"<|vision_{name}|>"]) for name in ("start", "end"))
    asked = "Please edit this image according to the following instruction: paint it.\n"
    encoded = model.tokenizer.encode(asked)
    assert end - start == 5 and ids[start - len(encoded) : start] == encoded


def test_the_model_draws_saves_is_loaded_and_converted(written, model, tmp_path, capsys):
    drawn = model.generate_image(["a cat", "a red circle on what?"], num_steps=2, seed=5)
    alone = model.generate_image("a red circle on what?", num_steps=2, seed=6)[0]
    assert drawn[0].size == (64, 64)
    assert np.abs(np.asarray(alone, int) - np.asarray(drawn[1], int)).max() <= 1
    question = [PICTURE, "What is it?"]
    answer = model.generate_text(question, max_new_tokens=4)
    target = tmp_path / "own"
    assert main(["convert", str(written[0]), str(target), "--device", "cpu", "--dtype", "float32"]) == 0
    assert "can do text, image_to_text, text_to_image, image_edit" in capsys.readouterr().out
    again = diptych.load(target, device="cpu")
    assert np.array_equal(again.generate_image("a cat", num_steps=2, seed=5)[0], drawn[0])
    assert again.generate_text(question, max_new_tokens=4) == answer
    half = diptych.load(written[0], device="cpu", dtype="bfloat16")
    assert {value.dtype for value in half.state_dict().values()} == {torch.bfloat16}
    assert half.generate_image("a cat", num_steps=1)[0].size == (64, 64)


def test_image_tokens_are_no_text(written, model):
    """The released tokenizer would turn the names of image tokens in a user's text into image tokens."""
    assert model.tokenizer.vocab_size == model.image_head.first_token < model.backbone.vocab_size
    ids = model.tokenizer.encode("<I3> <im_start> <S0>")
    assert max(ids) < model.tokenizer.special["<im_start>"]
    assert model.tokenizer.decode(ids) == "<I3> <im_start> <S0>"


def write_ta_tok(file, tensors, monkeypatch):
    """``ta_tok.pth`` as published: arguments in an EasyDict, tensors beside them."""
    module = ModuleType("easydict")
    module.EasyDict = type("EasyDict", (dict,), {"__module__": "easydict", "__qualname__": "EasyDict"})
    arguments = module.EasyDict(input_size=384)
    arguments.input_size = 384  # the class keeps every value as an attribute too
    monkeypatch.setitem(sys.modules, "easydict", module)
    torch.save({"model": {"args": arguments, "sd": tensors}}, file)
    monkeypatch.delitem(sys.modules, "easydict")


def test_the_image_tokenizer_may_come_from_its_own_file(tmp_path, written, model, monkeypatch):
    folder = tmp_path / "without"
    modules, _ = write_blip3o_next(folder, with_tower=False)
    blind = diptych.load(folder, device="cpu")
    assert blind.encoder is None and blind.generate_image("a cat", num_steps=1)[0].size == (64, 64)
    file = tmp_path / "ta_tok.pth"
    write_ta_tok(file, tower_weights(modules["vision_tower"]), monkeypatch)
    whole = load_blip3o_next(folder, encoder_file=file)
    assert torch.equal(whole.encoder.words, model.encoder.words)
    write_ta_tok(file, {"encoder.visual": torch.zeros(1)}, monkeypatch)
    with pytest.raises(ValueError, match=r"ta_tok\.pth lacks encoder\.embeddings\.patch_embedding\.weight: it is no"):
        load_ta_tok(file, NUM_CODES)
    file.write_bytes(pickle.dumps({"model": {"sd": print}}))
    with pytest.raises(ValueError, match=r"ta_tok\.pth is no ta_tok\.pth with model\.sd in it, or is damaged"):
        load_ta_tok(file, NUM_CODES)
    with pytest.raises(FileNotFoundError, match=r"none\.pth is missing"):
        load_ta_tok(tmp_path / "none.pth", NUM_CODES)


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rewrite(folder, weights, drop="", **added):
    write_weights(folder, {key: value for key, value in {**weights, **added}.items() if not drop or drop not in key})


SHARD = "model-00002-of-00003.safetensors"
BROKEN = {
    "another size": (
        lambda folder, weights: edit_json(folder / "config.json", hidden_size=1024),
        rf"weights are of a model of \d+ tokens and width {WIDTH}, config\.json is of one of \d+ tokens and width 1024",
    ),
    "fewer layers": (
        lambda folder, weights: edit_json(folder / "config.json", num_hidden_layers=1),
        r"holds 11 weights that config\.json leaves no place for, such as 'model\.layers\.1\.",
    ),
    "a missing shard": (lambda folder, weights: (folder / SHARD).unlink(), rf"{SHARD} is missing: model\.safetensors"),
    "a cut shard": (
        lambda folder, weights: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-100]),
        rf"{SHARD} is damaged or cut off .*Copy or download it again",
    ),
    "no SANA": (
        lambda folder, weights: rewrite(folder, weights, drop="model.sana."),
        r"lacks \d+ of the \d+ weights that config\.json asks for \(first image_head: denoiser\.",
    ),
    "no connector": (
        lambda folder, weights: rewrite(folder, weights, drop="diffusion_connector"),
        r"lacks the weight model\.diffusion_connector\.0\.weight: it is no BLIP3o-NEXT model, or not whole",
    ),
    "half an autoencoder": (
        lambda folder, weights: rewrite(folder, weights, drop="model.sana_vae.decoder"),
        r"lacks \d+ of the \d+ weights .*first autoencoder: model\.decoder\.",
    ),
    "keys of BLIP3-o": (
        lambda folder, weights: rewrite(folder, weights, **{"model.latent_queries": torch.zeros(1)}),
        r"holds 1 weights that BLIP3o-NEXT's released models do not have: model\.latent_queries\. .*allow_unknown=True",
    ),
    "Qwen's own tokenizer": (
        lambda folder, weights: write_tokenizer(folder, QWEN_TOKENS),
        r"has <im_start> at None, config\.json at \d+\. Take the tokenizer files of the released model, not those of",
    ),
    "no number of image tokens": (
        lambda folder, weights: edit_json(folder / "config.json", num_image_tokens=None),
        r"config\.json lacks num_image_tokens\. Copy the file",
    ),
    "the variant of SigLIP's features": (
        lambda folder, weights: edit_json(folder / "config.json", use_tar_siglip_features=True),
        r"use_tar_siglip_features is set\. Models that look at pictures through SigLIP's own features are not read",
    ),
    "the variant without condition rows": (
        lambda folder, weights: edit_json(folder / "config.json", only_use_und_image_vae_as_noise=True),
        r"only_use_und_image_vae_as_noise is set\.",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_input_names_file_expectation_and_way_out(name, folder, written):
    break_it, message = BROKEN[name]
    break_it(folder, written[2])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        diptych.load(folder, device="cpu")


def test_options_and_folders_of_the_other_kind_are_refused(folder, tmp_path):
    with pytest.raises(TypeError, match=r"strict_original: BLIP3o-NEXT's released models do not take this, only enc"):
        diptych.load(folder, device="cpu", strict_original=True)
    with pytest.raises(FileNotFoundError, match=r"transformer/config\.json is missing"):
        diptych.load(folder, device="cpu", diffusion_folder=tmp_path)
    edit_json(folder / "config.json", model_type="qwen3")
    with pytest.raises(ValueError, match=r"type 'qwen3' and has image_start_token_id: it is not of BLIP3o-NEXT"):
        load_blip3o_next(folder)


def test_unknown_keys_may_be_allowed_and_drawing_left_out(folder, written):
    rewrite(folder, written[2], **{"model.mm_projector.weight": torch.zeros(1)})
    reader = diptych.load(folder, device="cpu", allow_unknown=True, can_draw=False)
    assert reader.capabilities == ("text",) and reader.generate_text("What?", max_new_tokens=1) is not None


def published(size, tied):
    """``config.json`` and the shapes of all keys, from the published classes at their published sizes."""
    import transformers as hf

    base, count = 151_669, 65_536
    vocab_size = base + 2 + 3 + count
    text = {**QWEN3[size], "num_key_value_heads": 8, "head_dim": 128, "vocab_size": vocab_size}
    sana = {"in_channels": 32, "caption_channels": 2304, "num_layers": 20, "num_attention_heads": 70,
            "attention_head_dim": 32, "num_cross_attention_heads": 20, "cross_attention_head_dim": 112,
            "cross_attention_dim": 2240, "patch_size": 1, "qk_norm": "rms_norm_across_heads"}  # fmt: skip
    vision = {name: value for name, value in SIGLIP2_SO400M.items() if name != "model_type"}
    with torch.device("meta"):
        modules = {
            "": hf.Qwen3ForCausalLM(hf.Qwen3Config(**text, tie_word_embeddings=tied)),
            "model.sana.": diffusers.SanaTransformer2DModel(**sana),
            "model.sana_vae.": diffusers.AutoencoderDC.from_config(DC_AE_F32C32),
            TOWER + "encoder.": hf.SiglipVisionModel(hf.SiglipVisionConfig(**vision)),
            TOWER + "decoder.vision_model.": hf.Siglip2VisionModel(
                hf.Siglip2VisionConfig(patch_size=1, num_hidden_layers=3, num_channels=1536, hidden_size=1152)
            ),
        }
    keys = {
        prefix + name: tuple(value.shape)
        for prefix, module in modules.items()
        for name, value in module.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    linear = {
        "model.diffusion_connector.0": (2304, text["hidden_size"]), "model.diffusion_connector.2": (2304, 2304),
        TOWER + "encode_task_layer.0": (1152, 1152), TOWER + "decode_task_layer.0": (1152, 1152),
        TOWER + "decode_task_layer.2": (1152, 1152), TOWER + "bottleneck.in_linear": (1536, 1152),
        TOWER + "bottleneck.out_linear": (1536, 1536), TOWER + "bottleneck.regularizer.embedding_proj": (1536, 1536),
    }  # fmt: skip
    for name, shape in linear.items():
        keys |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    keys["model.diffusion_connector.3.weight"] = (2304,)
    keys[TOWER + "bottleneck.regularizer.embedding.weight"] = (count, 1536)
    keys |= {TOWER + f"scale_layer.{name}": (1, 3, 1, 1) for name in ("shift", "scale")}
    config = {
        "model_type": "blip3o_qwen", **text, "tie_word_embeddings": tied, "rope_theta": 1e6,
        "image_start_tag_id": base, "scale_start_token_id": base + 2, "image_start_token_id": base + 5,
        "num_image_tokens": count, "diffusion_name_or_path": "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
    }  # fmt: skip
    return config, keys


@pytest.mark.parametrize(("size", "tied", "language"), [("1.7B", True, 1_854_256_128), ("0.6B", False, 885_313_536)])
def test_every_key_at_the_published_sizes_has_its_place(size, tied, language):
    config, keys = published(size, tied)
    tensors = {key: StoredTensor(Path("shard"), shape) for key, shape in keys.items()}
    parts = empty_next_parts(Path("released"), config, tensors)
    assert parts["image_head"].denoiser.config_dict() | {"prediction": "velocity"} == {
        **parts["image_head"].denoiser.config_dict(), **SANA_1_6B
    }  # fmt: skip
    found, unknown = next_places(list(keys), 1)
    assert not unknown
    wanted = check_keys(Path("released"), parts, found, tensors)
    unused = ("decoder.", "decode_task_layer.", "bottleneck.out_linear.", "scale_layer.")
    assert keys.keys() - wanted.keys() == {
        key for key in keys if key.startswith(TOWER) and key.removeprefix(TOWER).startswith(unused)
    }
    counts = {name: sum(value.numel() for value in part.parameters()) for name, part in parts.items()}
    width = config["hidden_size"]
    connector = width * 2304 + 2304 + 2304 * 2304 + 2304 + 2304
    tower = 428_225_600 + 1152 * 1152 + 1152 + 1536 * 1152 + 1536 + 1536 * 1536 + 1536
    assert counts == {
        "backbone": language, "image_head": 1_604_641_952 + connector, "autoencoder": 312_250_275, "encoder": tower
    }  # fmt: skip
    assert parts["encoder"].words.shape == (65_536, 1536) and parts["encoder"].fixed_grid() == (27, 27)
    assert (parts["encoder"].layer, parts["encoder"].encoder.model.config.num_attention_heads) == (26, 16)
    fewer = {key: place for key, place in found.items() if key != "model.sana.proj_out.bias"}
    with pytest.raises(ValueError, match=r"lacks 1 of the \d+ weights"):
        check_keys(Path("released"), parts, fewer, tensors)
