"""BLIP3-o's denoiser, sampler and query path against the released code, recorded in tests/golden."""

from dataclasses import replace

import pytest
import torch

from diptych.flow.time import truncate_sigma
from diptych.interop.lumina import from_diffusers_lumina, lumina_config, to_diffusers_lumina
from diptych.methods.blip3o import QueryFlowHead
from diptych.models.backbones.transformers_lm import TransformersBackbone
from diptych.models.denoisers.lumina import LuminaDiT
from diptych.unified import DrawSettings
from tests.golden.fixtures import load_golden
from tests.interop.released_shapes import released_denoiser

transformers = pytest.importorskip("transformers")

DIT = "model."  # below NextDiTCrossAttn


def test_denoiser_and_its_gradients_equal_the_released_code():
    weights, recorded = load_golden("blip3o_dit")
    model = LuminaDiT(**lumina_config(weights, DIT))
    model.load_state_dict(from_diffusers_lumina(weights, DIT))
    x, condition = recorded["x"].requires_grad_(), recorded["z"].requires_grad_()
    output = model(x, 1 - recorded["timestep"] / 1000, condition)
    torch.testing.assert_close(-output, recorded["output"], rtol=1e-5, atol=1e-5)
    (-output * recorded["direction"]).sum().backward()
    torch.testing.assert_close(x.grad, recorded["grad/x"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(condition.grad, recorded["grad/z"], rtol=1e-4, atol=1e-5)
    theirs = from_diffusers_lumina({key: recorded[f"grad/{key}"] for key in weights if "pad_token" not in key}, DIT)
    ours = dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name].grad, gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("condition_dim", "total"), [(2048, 1_362_257_824), (3584, 1_365_010_336)])
def test_both_released_denoisers_by_keys_and_parameters(condition_dim, total):
    keys = {f"model.dit.model.{key}": shape for key, shape in released_denoiser(condition_dim).items()}
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in keys.items()}
        model = LuminaDiT(**lumina_config(weights, "model.dit.model."))
        ours = from_diffusers_lumina(weights, "model.dit.model.")
        assert to_diffusers_lumina(ours, "model.dit.model.").keys() == keys.keys()
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    assert (model.ffn_dim, model.num_heads, model.time_dim) == (4864, 28, 1024)


def stage1():
    weights, recorded = load_golden("blip3o_stage1")
    dim = weights["embed_tokens.weight"].shape[1]
    backbone = TransformersBackbone(
        config={
            "model_type": "qwen2_5_vl_text",
            "vocab_size": len(weights["embed_tokens.weight"]),
            "hidden_size": dim,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
            "tie_word_embeddings": True,
        }
    ).eval()
    generation = ("dit.", "latent_queries")
    language = {f"model.{key}": value for key, value in weights.items() if not key.startswith(generation)}
    backbone.load_state_dict(language)
    denoiser = LuminaDiT(**lumina_config(weights, "dit.model."))
    denoiser.load_state_dict(from_diffusers_lumina(weights, "dit.model."))
    head = QueryFlowHead(denoiser=denoiser, num_queries=weights["latent_queries"].shape[1], dim=dim)
    head.queries.data.copy_(weights["latent_queries"][0])
    return backbone, head.eval(), recorded


def test_the_condition_and_its_gradients_equal_the_released_query_path():
    """The hidden states at the queries, behind the prompt and ``[IMG]``; positions count on in one dimension."""
    backbone, head, recorded = stage1()
    ids = torch.cat([recorded["ids"], torch.tensor([[151_665]])], dim=1)
    embeddings = torch.cat([backbone.embed(ids), head.query_embeddings(1)], dim=1)
    positions = torch.arange(embeddings.shape[1])[None]
    condition = backbone(embeddings, positions).hidden_states[:, -head.num_queries :]
    torch.testing.assert_close(condition, recorded["condition"], rtol=1e-5, atol=1e-5)
    (condition * recorded["direction"]).sum().backward()
    theirs = {key.removeprefix("grad/"): value for key, value in recorded.items() if key.startswith("grad/")}
    queries = theirs.pop("latent_queries")
    assert queries.abs().max() > 0.1
    torch.testing.assert_close(head.queries.grad, queries[0], rtol=1e-5, atol=1e-5)
    ours = dict(backbone.model.named_parameters())
    assert theirs.keys() == ours.keys() - {"embed_tokens.weight"}
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name].grad, gradient, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [30, 7])
def test_the_sampler_equals_the_released_one_with_its_whole_timesteps(num_steps):
    _, head, recorded = stage1()
    condition, noise = recorded["condition"], recorded[f"noise_{num_steps}"]
    times = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)[:-1].float()
    told = 1000 * (1 - truncate_sigma(times))
    torch.testing.assert_close(told.round().long(), recorded[f"timesteps_{num_steps}"], rtol=0, atol=0)
    expected = recorded["output" if num_steps == 30 else "features_7"]
    null = head.null_condition(1)
    settings = DrawSettings(num_steps=num_steps, guidance_scale=3.0, whole_timesteps=True)
    torch.testing.assert_close(head.draw(condition, null, noise, settings), expected, rtol=1e-5, atol=1e-5)
    exact = head.draw(condition, null, noise, replace(settings, whole_timesteps=False))
    assert (exact - expected).abs().max() > 1e-4
