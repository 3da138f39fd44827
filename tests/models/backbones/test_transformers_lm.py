"""What is particular to backbones of transformers: equality with its own forward, M-RoPE, loading, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import COMMON, FOREIGN, foreign_model, positions, tokens

from diptych.models.backbones.transformers_lm import TransformersBackbone, load_backbone

transformers = pytest.importorskip("transformers")


TINY_OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def saved(name, folder):
    torch.manual_seed(0)
    model = foreign_model(name)
    model.save_pretrained(folder)
    return model


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FOREIGN)
def test_equal_to_the_models_own_forward(name, tmp_path):
    model = saved(name, tmp_path)
    backbone = load_backbone(tmp_path).eval()
    ids = tokens(2, 7)
    output = backbone(backbone.embed(ids), positions(2, 7), layers=(0, 1, 2))
    decoder = getattr(model.base_model, "language_model", model.base_model)
    theirs = decoder(input_ids=ids, output_hidden_states=True)
    close(output.hidden_states, theirs.last_hidden_state)
    for layer in (1, 2) if name == "gpt2" else (0, 1, 2):  # GPT-2 adds positions to what it calls layer 0
        close(output.layer_states[layer], theirs.hidden_states[layer])
    close(backbone.logits(output.hidden_states), model(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_three_equal_axes_are_one_axis(name, tmp_path):
    saved(name, tmp_path)
    backbone = load_backbone(tmp_path).eval()
    embeddings, where = backbone.embed(tokens(2, 7)), positions(2, 7)
    plain = backbone(embeddings, where).hidden_states
    close(backbone(embeddings, where.unsqueeze(-1).expand(-1, -1, 3)).hidden_states, plain)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_three_axes_are_time_row_and_column(name, tmp_path):
    """Two words, an image of 2 x 3 features, two words: the positions of Qwen2-VL, arXiv 2409.12191, section 2.1."""
    model = saved(name, tmp_path)
    backbone = load_backbone(tmp_path).eval()
    rows, cols = torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")
    image = torch.stack((torch.zeros(6, dtype=torch.long), rows.flatten(), cols.flatten()), -1) + 2
    text = torch.arange(2).unsqueeze(-1).expand(-1, 3)
    where = torch.cat((text, image, text + 5)).unsqueeze(0)
    embeddings = backbone.embed(tokens(1, 10))
    output = backbone(embeddings, where).hidden_states
    theirs = model.model.language_model(inputs_embeds=embeddings, position_ids=where.permute(2, 0, 1))
    close(output, theirs.last_hidden_state)
    assert (output - backbone(embeddings, positions(1, 10)).hidden_states).abs().max() > 1e-3
    prefix = backbone(embeddings[:, :8], where[:, :8], None, backbone.new_cache())
    late = backbone(embeddings[:, 8:], where[:, 8:], None, prefix.cache).hidden_states
    close(late, output[:, 8:])


def test_a_model_without_axes_refuses_them(tmp_path):
    saved("qwen3", tmp_path)
    backbone = load_backbone(tmp_path)
    with pytest.raises(ValueError, match=r"qwen3 takes positions of shape \(batch, seq\), got \(1, 4, 3\)"):
        backbone(backbone.embed(tokens(1, 4)), positions(1, 4).unsqueeze(-1).expand(-1, -1, 3))


def test_gradient_checkpointing_gives_the_same_gradients_and_refuses_a_cache(tmp_path):
    saved("qwen2", tmp_path)
    backbone = load_backbone(tmp_path).train()
    embeddings = backbone.embed(tokens(2, 6)).detach().requires_grad_()
    where = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)

    def gradient(mask):
        return torch.autograd.grad(backbone(embeddings, where, mask).hidden_states.square().sum(), embeddings)[0]

    packed = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool().tril().expand(2, -1, -1)
    plain = [gradient(mask) for mask in (None, packed)]
    backbone.model.gradient_checkpointing_enable()
    for mask, expected in zip((None, packed), plain, strict=True):
        found = gradient(mask)
        close(found / expected.abs().max(), expected / expected.abs().max())
    with pytest.raises(ValueError, match=r"drops the cache while it checkpoints.*gradient_checkpointing_disable\(\)"):
        backbone(embeddings, where, None, backbone.new_cache())


def test_the_dtype_is_the_callers_choice(tmp_path):
    foreign_model("qwen2").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_backbone(tmp_path).embed(tokens(1, 2)).dtype == torch.float32
    rounded = load_backbone(tmp_path, dtype=torch.bfloat16)
    assert rounded.embed(tokens(1, 2)).dtype == torch.bfloat16
    assert TransformersBackbone(**built_from(rounded)).embed(tokens(1, 2)).dtype == torch.float32


def built_from(backbone):
    return {name: value for name, value in backbone.config_dict().items() if name != "kind"}


def test_a_vision_language_config_is_cut_to_its_language_part(tmp_path):
    saved("qwen2_5_vl", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    backbone = TransformersBackbone(config=config)
    assert backbone.position_axes == 3
    assert not [name for name in backbone.state_dict() if "visual" in name]
    assert built_from(backbone)["config"]["model_type"] == "qwen2_5_vl_text"
    assert backbone.lm_head is None


def test_published_sizes_on_the_meta_device():
    """Language part of Qwen2.5-VL-3B: 3,085,938,688 parameters with tied embeddings, width 2048."""
    config = {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
    }
    with torch.device("meta"):
        backbone = TransformersBackbone(config=config)
    attention = 2048 * (2048 + 2 * 256) + 2048 + 2 * 256 + 2048 * 2048
    per_layer = attention + 3 * 2048 * 11_008 + 2 * 2048
    assert 151_936 * 2048 + 36 * per_layer + 2048 == 3_085_938_688
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 3_085_938_688
    assert backbone.dim == 2048


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba", "num_hidden_layers": 2}, "mamba has layers of type linear_attention; only models"),
        ({"model_type": "gemma2"}, r"gemma2 rescales its logits \(final_logit_softcapping\)"),
        ({**TINY_OPT, "model_type": "opt"}, r"OPTModel keeps its blocks neither in \.layers nor in \.h"),
    ],
)
def test_models_that_do_not_fit_are_refused(config, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TransformersBackbone(config=config)


def test_a_sliding_window_is_refused_only_where_it_would_matter():
    config = {**COMMON, "model_type": "mistral", "sliding_window": 4}
    backbone = TransformersBackbone(config=config).eval()
    backbone(backbone.embed(tokens(1, 4)), positions(1, 4))
    with pytest.raises(ValueError, match="5 positions are more than the sliding window of 4 of this mistral"):
        backbone(backbone.embed(tokens(1, 5)), positions(1, 5))


def test_broken_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing. Name a folder made by save_pretrained"):
        load_backbone(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_backbone(tmp_path / "empty")
    saved("qwen3", tmp_path / "partial")
    weights = load_file(tmp_path / "partial/model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "partial/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights .*layers\.1\.mlp\.up_proj\.weight.*fetch it again"):
        load_backbone(tmp_path / "partial")


def test_pickled_weights_are_refused(tmp_path):
    model = saved("qwen3", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no weights as safetensors.*Pickled \.bin weights are not read"):
        load_backbone(tmp_path)
