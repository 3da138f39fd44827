"""Folders of BLIP3-o's released layout: every key in its place, the same numbers as transformers, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.cli.main import main
from diptych.interop.blip3o import empty_parts, load_blip3o
from diptych.interop.blip3o_layout import SPECIAL_TOKENS, is_blip3o_folder, places
from diptych.interop.sharded_weights import StoredTensor
from diptych.interop.weight_places import check_keys
from docs.examples.blip3o_released import draw_and_ask
from tests.interop.blip3o_folder import (
    CHANNELS,
    QWEN_TOKENS,
    WIDTH,
    released_config,
    write_blip3o,
    write_decoder,
    write_tokenizer,
    write_weights,
)
from tests.interop.released_shapes import released_denoiser, released_keys

pytest.importorskip("transformers")
pytest.importorskip("diffusers")
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (50, 90, 3)).astype(np.uint8))
LITERAL = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""What Qwen2.5-VL's chat template and BLIP3-o's ``qwen`` template both give."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder, transformers' model with the same weights, and the weights by released keys."""
    folder = tmp_path_factory.mktemp("released") / "BLIP3o-Model"
    return folder, *write_blip3o(folder, with_tower=True)


@pytest.fixture(scope="module")
def model(written):
    loaded = diptych.load(written[0], device="cpu")
    loaded.autoencoder.num_steps = 2
    return loaded


@pytest.fixture
def folder(written, tmp_path):
    """A copy to break."""
    return shutil.copytree(written[0], tmp_path / "copy")


def literal_ids(model, text):
    """Ids of a text in which the names of special tokens are special tokens."""
    ids, rest = [], text
    while rest:
        at, name = min(((rest.find(name), name) for name in model.tokenizer.special if name in rest), default=(-1, ""))
        head = rest if at < 0 else rest[:at]
        ids += model.tokenizer.encode(head) if head else []
        ids += [model.tokenizer.special[name]] if name else []
        rest = "" if at < 0 else rest[at + len(name) :]
    return ids


def qwen_inputs(model, question):
    """What transformers' processors make of a picture and a question, composed without AutoProcessor."""
    processor = Qwen2VLImageProcessorPil(min_pixels=4 * 784, max_pixels=16_384 * 784)
    pixels = processor(PICTURE, return_tensors="pt")
    count = int(pixels["image_grid_thw"].prod()) // 4
    picture = "<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"
    ids = torch.tensor([literal_ids(model, LITERAL.format(picture + question))])
    types = (ids == model.tokenizer.special["<|image_pad|>"]).int()
    return {"input_ids": ids, "mm_token_type_ids": types, **pixels}


@torch.no_grad()
def test_reading_a_picture_equals_transformers(written, model):
    """Ids, multimodal positions and logits: one number of Qwen2.5-VL after the other."""
    reference, inputs = written[1], qwen_inputs(model, "What is it?")
    batch = model.collator()([diptych.Example((diptych.ImageIn(PICTURE), diptych.Text("What is it?")))], open_turn=True)
    length = inputs["input_ids"].shape[1]
    is_text = inputs["mm_token_type_ids"][0] == 0
    assert torch.equal(batch.token_ids[0, :length][is_text], inputs["input_ids"][0][is_text])
    positions, _ = reference.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    assert torch.equal(batch.layout.positions[0, :length].T, positions[:, 0])
    ours = model.backbone.logits(model(batch).hidden_states[0, :length])
    theirs = reference(**inputs).logits[0]
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_prompt_of_an_image_is_the_released_one(model):
    prompt = "a cat <|im_end|>"
    batch = model.collator()([diptych.Example((diptych.Text(prompt), diptych.ImageOut(size=(16, 16))))])
    asked = "Please generate image based on the following caption: "
    head, tail = LITERAL.format("\0").split("\0")
    ids = [*literal_ids(model, head), *model.tokenizer.encode(asked + prompt), *literal_ids(model, tail + "[IMG]")]
    assert batch.token_ids[0, : len(ids)].tolist() == ids
    assert batch.outputs[0].slots.tolist() == [list(range(len(ids), len(ids) + 4))]
    places = batch.layout.positions[0, : len(ids) + 4]
    assert torch.equal(places, torch.arange(len(ids) + 4)[:, None].expand(-1, 3))


def test_the_model_draws_asks_saves_and_is_loaded_again(model, tmp_path):
    drawn = model.generate_image(["a cat", "a red circle on what?"], num_steps=3, seed=5)
    assert [image.size for image in drawn] == [(16, 16)] * 2
    alone = model.generate_image("a red circle on what?", num_steps=3, seed=6)[0]
    assert np.abs(np.asarray(alone, int) - np.asarray(drawn[1], int)).max() <= 1
    other = model.generate_image("a cat", num_steps=3, seed=9)[0]
    assert np.abs(np.asarray(other, int) - np.asarray(drawn[0], int)).max() > 5
    answer = model.generate_text([PICTURE, "What is it?"], max_new_tokens=4)
    model.save(tmp_path / "own")
    again = diptych.load(tmp_path / "own", device="cpu")
    again.autoencoder.num_steps = 2
    assert again.draw_settings == model.draw_settings and again.images == model.images
    assert again.generate_text([PICTURE, "What is it?"], max_new_tokens=4) == answer
    assert np.array_equal(again.generate_image("a cat", num_steps=3, seed=5)[0], drawn[0])
    assert model.draw_settings.whole_timesteps and model.draw_settings.num_steps == 30
    with pytest.raises(ValueError, match=r"draws images of 16x16 only, got 32x32\. Leave the size out"):
        model.generate_image("a cat", size=32)


@torch.no_grad()
def test_every_weight_is_in_its_place(written, model):
    """Queries, denoiser (its last layer turned round) and tower, by the released keys."""
    weights = written[2]
    assert torch.equal(model.image_head.queries, weights["model.latent_queries"][0])
    denoiser = model.image_head.denoiser
    assert torch.equal(denoiser.patch_out.weight, -weights["model.dit.model.norm_out.linear_2.weight"])
    up = weights["model.dit.model.layers.1.feed_forward.linear_3.weight"]
    assert torch.equal(denoiser.blocks[1].ffn.up.weight, up)
    tower = "model.gen_vision_tower.vision_tower.model."
    assert torch.equal(model.autoencoder.encoder.positions, weights[tower + "pos_embed"][0])
    features = model.encode_outputs(torch.zeros(1, 3, 56, 56))
    tokens = model.autoencoder.encoder(torch.zeros(1, 3, 56, 56)).tokens[0]
    torch.testing.assert_close(features[0, :, 0, 1], tokens[[2, 3, 6, 7]].mean(0))
    assert model.autoencoder.null_features.abs().max() > 0.1


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_tied_embeddings_and_both_kinds_of_shards(tmp_path, suffix, written):
    _, weights = write_blip3o(tmp_path / "tied", tied=True, suffix=suffix)
    assert "lm_head.weight" not in weights
    loaded = load_blip3o(tmp_path / "tied", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.autoencoder.encoder is None and loaded.backbone.lm_head is None
    embedded = loaded.backbone.embed(torch.tensor([[3]]))[0, 0].float()
    torch.testing.assert_close(embedded, weights["model.embed_tokens.weight"][3].bfloat16().float())
    with pytest.raises(ValueError, match=r"without its EVA-CLIP tower.*encoder_file="):
        loaded.encode_outputs(torch.zeros(1, 3, 56, 56))
    copied = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    write_weights(tmp_path / "tied", copied, suffix)  # a copy of the embedding, as some tools save it
    assert load_blip3o(tmp_path / "tied", can_draw=False).backbone.lm_head is None


def test_the_tower_comes_from_its_own_file(tmp_path, folder, written):
    prefix = "model.gen_vision_tower.vision_tower.model."
    tower = {key.removeprefix(prefix): value for key, value in written[2].items() if key.startswith(prefix)}
    torch.save(tower, tmp_path / "pytorch_model.bin")
    loaded = load_blip3o(folder, encoder_file=tmp_path / "pytorch_model.bin")
    assert torch.equal(loaded.autoencoder.encoder.class_token, tower["cls_token"][0, 0])
    torch.save({"visual.proj": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match=r"other\.bin does not hold the EVA-CLIP tower.*first key 'visual\.proj'"):
        load_blip3o(folder, encoder_file=tmp_path / "other.bin")


def test_a_model_that_only_reads_needs_no_decoder(folder, model):
    shutil.rmtree(folder / "diffusion-decoder")
    with pytest.raises(FileNotFoundError, match=r"diffusion-decoder is missing: nothing can render.*can_draw=False"):
        diptych.load(folder, device="cpu")
    reader = diptych.load(folder, device="cpu", can_draw=False)
    assert reader.capabilities == ("text", "image_to_text")
    question = [PICTURE, "What is it?"]
    assert reader.generate_text(question, max_new_tokens=3) == model.generate_text(question, max_new_tokens=3)


@torch.no_grad()
def test_strict_original_counts_pictures_in_one_dimension(folder, model):
    strict = diptych.load(folder, device="cpu", strict_original=True)
    plain = [(diptych.Text("a cat"),)]
    shown = [(diptych.ImageIn(PICTURE), diptych.Text("a cat"))]
    size = model.images.size
    assert torch.equal(strict.condition(plain, size)[0], model.condition(plain, size)[0])
    ours, theirs = model.condition(shown, size)[0], strict.condition(shown, size)[0]
    assert (ours - theirs).abs().max() > 1e-3
    batch = model.collator()([diptych.Example((*shown[0], diptych.ImageOut(size=size)))])
    flat = torch.arange(batch.token_ids.shape[1])[None]
    states = model.backbone(model.embed(batch), flat).hidden_states[0]
    torch.testing.assert_close(theirs, states[batch.outputs[0].slots[0]], rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="strict_original: only folders of BLIP3-o's released models take this"):
        diptych.load("diptych-scenes", strict_original=True)


def edit_json(file, **changes):
    values = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in {**values, **changes}.items() if value is not None}))


def rewrite(folder, weights, drop=(), **added):
    write_weights(folder, {key: value for key, value in {**weights, **added}.items() if key not in drop})


SHARD = "model-00002-of-00003.safetensors"


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def swap_shard(folder, weights):
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / SHARD)


BROKEN = {
    "the 8B model's config": (
        lambda folder, weights: edit_json(folder / "config.json", hidden_size=3584),
        rf"weights are of a model \(width {WIDTH}\), config\.json is of BLIP3o-Model-8B \(width 3584\)\.",
    ),
    "another depth": (
        lambda folder, weights: edit_json(folder / "config.json", num_hidden_layers=3),
        r"lacks 12 of the \d+ weights that config\.json asks for \(first backbone: model\.layers\.2\.",
    ),
    "fewer layers": (
        lambda folder, weights: edit_json(folder / "config.json", num_hidden_layers=1),
        r"holds 12 weights that config\.json leaves no place for, such as 'model\.layers\.1\..*belong to two models",
    ),
    "another width inside": (
        lambda folder, weights: edit_json(folder / "config.json", intermediate_size=40),
        r"safetensors: model\.layers\.0\.mlp\.\w+\.weight has the shape \(\d+, \d+\), config\.json asks for",
    ),
    "a missing shard": (
        lambda folder, weights: (folder / SHARD).unlink(),
        rf"{SHARD} is missing: model\.safetensors\.index\.json says that weights are in it\. Copy or download",
    ),
    "a cut shard": (
        lambda folder, weights: cut(folder / SHARD),
        rf"{SHARD} is damaged or cut off .*Copy or download it again",
    ),
    "a shard of another place": (swap_shard, rf"{SHARD} lacks \d+ weights that .*index\.json says are in it, such as"),
    "a missing key": (
        lambda folder, weights: rewrite(folder, weights, drop=["model.latent_queries"]),
        r"lacks 1 of the \d+ weights .*first image_head: queries",
    ),
    "no denoiser": (
        lambda folder, weights: rewrite(folder, weights, drop=[key for key in weights if ".dit." in key]),
        r"lacks the denoiser's weight model\.dit\.model\.patch_embedder\.proj\.weight: it is no BLIP3-o model",
    ),
    "unknown keys": (
        lambda folder, weights: rewrite(folder, weights, **{"model.sana.x": torch.zeros(1)}),
        r"holds 1 weights that BLIP3-o's released models do not have: model\.sana\.x\. .*allow_unknown=True",
    ),
    "no weights at all": (
        lambda folder, weights: [file.unlink() for file in folder.glob("model*")],
        r"holds no weights: it needs one of model\.safetensors\.index\.json",
    ),
    "Qwen's own tokenizer": (
        lambda folder, weights: write_tokenizer(folder, QWEN_TOKENS),
        r"lacks the special tokens \[IMG\], \[/IMG\], <image>.*Take the tokenizer files of the released model",
    ),
    "a larger tokenizer": (
        lambda folder, weights: write_tokenizer(
            folder, (*QWEN_TOKENS, *SPECIAL_TOKENS, *map("<|{}|>".format, range(9)))
        ),
        r"tokenizer in .* has \d+ tokens, the model \d+\.",
    ),
    "another pooling": (
        lambda folder, weights: edit_json(folder / "config.json", gen_pooling="none"),
        r"gen_pooling must be early_pool2d_N, as in the released models, got 'none'",
    ),
    "no number of queries": (
        lambda folder, weights: edit_json(folder / "config.json", n_query=None),
        r"config\.json lacks n_query\. Copy the file",
    ),
    "half a decoder": (
        lambda folder, weights: shutil.rmtree(folder / "diffusion-decoder" / "vae"),
        r"diffusion-decoder/vae is missing: the decoder is not whole\. Download it with the model",
    ),
    "a decoder without weights": (
        lambda folder, weights: next((folder / "diffusion-decoder" / "unet").glob("*.safetensors")).unlink(),
        r"unet/diffusion_pytorch_model\.bf16\.safetensors is missing",
    ),
    "a cut decoder": (
        lambda folder, weights: cut(next((folder / "diffusion-decoder" / "unet").glob("*.safetensors"))),
        r"unet/diffusion_pytorch_model\.bf16\.safetensors is damaged or cut off .*Copy or download it again",
    ),
    "a decoder of other features": (
        lambda folder, weights: (shutil.rmtree(folder / "diffusion-decoder"), write_decoder(folder, CHANNELS + 16)),
        rf"takes features of {CHANNELS + 16} channels, the denoiser draws {CHANNELS}\. SDXL's own unet is no such",
    ),
    "a damaged config": (
        lambda folder, weights: (folder / "diffusion-decoder" / "vae" / "config.json").write_text("{"),
        r"vae/config\.json is damaged: .*Copy the file of the released model again",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_input_names_file_expectation_and_way_out(name, folder, written):
    break_it, message = BROKEN[name]
    break_it(folder, written[2])
    assert is_blip3o_folder(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        diptych.load(folder, device="cpu")


def test_unknown_keys_may_be_allowed(folder, written, model):
    rewrite(folder, written[2], **{"model.mm_projector.weight": torch.zeros(1)})
    loaded = diptych.load(folder, device="cpu", allow_unknown=True)
    assert torch.equal(loaded.image_head.queries, model.image_head.queries)


def test_other_folders_are_not_taken_for_blip3o(tmp_path, written):
    assert not is_blip3o_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**released_config(written[1]), "model_type": "qwen2_5_vl"}))
    assert not is_blip3o_folder(tmp_path)
    with pytest.raises(ValueError, match=r"of type 'qwen2_5_vl', not of BLIP3-o .*have another layout and are not r"):
        load_blip3o(tmp_path)


def test_the_decoders_guidance_leads_away_from_the_null_features(model):
    """At scale 1 the null features do not count, beyond it they do; each image has its own noise."""
    space, features = model.autoencoder, torch.randn(2, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        guided = space.decode_unclipped(features, [7, 8])
        torch.testing.assert_close(space.decode_unclipped(features[1:], [8])[0], guided[1], rtol=1e-4, atol=1e-5)
        null, scale = space.null_features.clone(), space.guidance_scale
        try:
            space.null_features.zero_()
            assert (space.decode_unclipped(features, [7, 8]) - guided).abs().max() > 1e-4
            space.guidance_scale = 1.0
            unguided = space.decode_unclipped(features, [7, 8])
            space.null_features.copy_(null)
            assert torch.equal(space.decode_unclipped(features, [7, 8]), unguided)
        finally:
            space.null_features.copy_(null)
            space.guidance_scale = scale


def published(width, num_layers, ffn, num_heads, num_kv_heads, is_tied):
    """``config.json`` and the shapes of all keys of a released model, written down from its parts."""
    vocab, kv = 151_668, width // num_heads * num_kv_heads
    config = {
        "model_type": "blip3o_qwen",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": is_tied,
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
                          "out_hidden_size": width, "fullatt_block_indexes": [7, 15, 23, 31]},
        "gen_pooling": "early_pool2d_4",
        "n_query": 64,
    }  # fmt: skip
    keys = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    keys |= {} if is_tied else {"lm_head.weight": (vocab, width)}
    for i in range(num_layers):
        layer = {f"{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
        for name, size in (("q", width), ("k", kv), ("v", kv)):
            layer |= {f"self_attn.{name}_proj.weight": (size, width), f"self_attn.{name}_proj.bias": (size,)}
        layer |= {"self_attn.o_proj.weight": (width, width), "mlp.down_proj.weight": (width, ffn)}
        layer |= {f"mlp.{name}_proj.weight": (ffn, width) for name in ("gate", "up")}
        keys |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    keys["visual.patch_embed.proj.weight"] = (1280, 3, 2, 14, 14)
    keys |= {"visual.merger.ln_q.weight": (1280,)}
    linear = {"visual.merger.mlp.0": (5120, 5120), "visual.merger.mlp.2": (width, 5120)}
    for i in range(32):
        keys |= {f"visual.blocks.{i}.norm{n}.weight": (1280,) for n in (1, 2)}
        linear |= {f"visual.blocks.{i}.attn.qkv": (3840, 1280), f"visual.blocks.{i}.attn.proj": (1280, 1280)}
        linear |= {f"visual.blocks.{i}.mlp.{name}_proj": (3420, 1280) for name in ("gate", "up")}
        linear[f"visual.blocks.{i}.mlp.down_proj"] = (1280, 3420)
    for name, shape in linear.items():
        keys |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    keys["model.latent_queries"] = (1, 64, width)
    keys |= {f"model.dit.model.{key}": shape for key, shape in released_denoiser(width).items()}
    tower = "model.gen_vision_tower.vision_tower.model."
    return config, keys, {tower + key: shape for key, shape in released_keys().items()}


TOTALS = {
    "BLIP3o-Model-4B": ((2048, 36, 11_008, 16, 2, True), 3_085_938_688 - (151_936 - 151_668) * 2048, 668_684_288),
    "BLIP3o-Model-8B": ((3584, 28, 18_944, 28, 4, False), 7_615_616_512 - 2 * (152_064 - 151_668) * 3584, 676_550_144),
}
"""Sizes, and parameters of Qwen2.5's language models less the rows that BLIP3-o cut off, and of the vision towers."""


@pytest.mark.parametrize("name", TOTALS)
@pytest.mark.parametrize("with_tower", [False, True])
def test_every_key_of_the_released_models_has_its_place(name, with_tower):
    sizes, language, vision = TOTALS[name]
    config, keys, tower = published(*sizes)
    keys |= tower if with_tower else {}
    assert len(keys) == 2 + 12 * sizes[1] + (not sizes[-1]) + 390 + 1 + 642 + 772 * with_tower
    tensors = {key: StoredTensor(Path("shard"), shape) for key, shape in keys.items()}
    found, unknown = places(list(keys))
    assert not unknown and found.keys() == keys.keys()
    parts = empty_parts(Path(name), config, tensors)
    wanted = check_keys(Path(name), parts, found, tensors)
    assert wanted.keys() == keys.keys() - tower.keys()
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
    denoiser = {2048: 1_362_257_824, 3584: 1_365_010_336}[sizes[0]]
    assert counts == {"backbone": language, "encoder": vision, "image_head": denoiser + 64 * sizes[0]}
    for key in ("model.layers.7.mlp.up_proj.weight", "visual.blocks.3.attn.qkv.bias", "model.dit.model.layers.23.gate"):
        fewer = {other: place for other, place in found.items() if other != key}
        with pytest.raises(ValueError, match=r"lacks 1 of the \d+ weights"):
            check_keys(Path(name), parts, fewer, tensors)


@pytest.mark.parametrize("video", [{"type": "video", "video": "a.mp4"}, np.zeros((4, 28, 28, 3), np.uint8)])
def test_videos_are_refused(model, video):
    with pytest.raises(ValueError, match=r"videos are not read\. Give single frames as images"):
        model.generate_text([video, "What happens?"], max_new_tokens=1)


def test_convert_writes_a_model_folder(written, model, tmp_path, capsys):
    target = tmp_path / "converted"
    assert main(["convert", str(written[0]), str(target), "--device", "cpu", "--dtype", "bfloat16"]) == 0
    assert "can do text, image_to_text, text_to_image, image_edit" in capsys.readouterr().out
    again = diptych.load(target, device="cpu", dtype="bfloat16")
    released = diptych.load(written[0], device="cpu", dtype="bfloat16")
    assert again.info()["parameters"] == model.info()["parameters"]
    theirs = released.state_dict()
    for key, value in again.state_dict().items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, theirs[key].to(torch.bfloat16)), key
    frequencies = [loaded.backbone.model.rotary_emb.inv_freq for loaded in (again, released, model)]
    assert all(torch.equal(own, frequencies[2]) and own.dtype == torch.float32 for own in frequencies)
    assert main(["convert", str(written[0]), str(tmp_path / "reader"), "--device", "cpu", "--read-only"]) == 0
    assert diptych.load(tmp_path / "reader", device="cpu").capabilities == ("text", "image_to_text")
    (target / "backbone" / "model.safetensors").unlink()  # as where copying it was cut off
    with pytest.raises(
        FileNotFoundError, match=r"backbone/model\.safetensors is missing: the model folder is incomplete"
    ):
        diptych.load(target, device="cpu")
    capsys.readouterr()
    assert main(["convert", str(tmp_path), str(target)]) == 2
    assert "is not laid out as BLIP3o-Model-4B or -8B" in capsys.readouterr().err.replace("\n", " ")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert main(["convert", str(written[0]), str(tmp_path / "mine")]) == 2
    assert "would be lost" in capsys.readouterr().err.replace("\n", " ")
    assert main(["info", str(written[0])]) == 0


def test_the_documented_example_runs(written):
    image, answer = draw_and_ask(str(written[0]))
    assert image.size == (16, 16) and isinstance(answer, str)
