"""MiT against the released code: recorded outputs and gradients (tests/golden), and keys of released checkpoints."""

import pytest
import torch

from diptych.flow.path import to_velocity
from diptych.interop.pmf import (
    RELEASED,
    IMFLatents,
    MeanFlowCheckpoint,
    from_official_mit,
    load_meanflow,
    official_mit_config,
)
from diptych.models.denoisers.pmf import MeanFlowCondition, MiT, imf_config, pmf_config
from tests.golden.fixtures import load_golden, recorded_gradients

IMAGE_SIZE = {"pmf": 12, "imf": 6}


def released_layout(num_shared, num_head, model):
    """Shapes by key of a released checkpoint, written down from the released modules, for a network of our kind."""
    dim, patch_dim = model.dim, model.channels * model.patch_size**2
    patch = (model.channels, model.patch_size, model.patch_size)
    tokens = {
        "class_tokens": model.class_tokens,
        "omega_tokens": model.guidance_tokens,
        "t_min_tokens": model.sigma_min_tokens,
        "t_max_tokens": model.sigma_max_tokens,
        "time_tokens": model.duration_tokens,
    }
    layout = {key: (len(value), dim) for key, value in tokens.items()}
    if model.learned_positions:
        layout["pos_embed"] = (1, model.num_tokens, dim)
    if model.bottleneck_dim is None:
        layout |= {"x_embedder.proj.weight": (dim, *patch), "x_embedder.proj.bias": (dim,)}
    else:
        layout |= {
            "x_embedder.proj1.weight": (model.bottleneck_dim, *patch),
            "x_embedder.proj1.bias": (model.bottleneck_dim,),
            "x_embedder.proj2.weight": (dim, model.bottleneck_dim, 1, 1),
            "x_embedder.proj2.bias": (dim,),
        }
    for name in ("h", "omega", "cfg_t_start", "cfg_t_end"):
        for layer, width in ((0, 256), (2, dim)):
            layout[f"{name}_embedder.mlp.{layer}.linear.weight"] = (dim, width)
            layout[f"{name}_embedder.mlp.{layer}.linear.bias"] = (dim,)
    layout |= {
        "y_embedder.embedding_table.embedding.weight": (model.num_classes + 1, dim),
        "u_final_layer.norm.weight": (dim,),
        "u_final_layer.linear.linear.weight": (patch_dim, dim),
        "u_final_layer.linear.linear.bias": (patch_dim,),
    }
    for name, count in (("shared_blocks", num_shared), ("u_heads", num_head)):
        for block in range(count):
            layout |= {f"{name}.{block}.{part}_scale": (dim,) for part in ("attn", "mlp")}
            layout |= {f"{name}.{block}.norm{number}.weight": (dim,) for number in (1, 2)}
            layout |= {f"{name}.{block}.attn.{part}_proj.linear.weight": (dim, dim) for part in ("q", "k", "v", "out")}
            layout |= {f"{name}.{block}.attn.{part}_norm.weight": (dim // model.num_heads,) for part in ("q", "k")}
            layout |= {f"{name}.{block}.mlp.w{number}.linear.weight": (model.ffn_dim, dim) for number in (1, 3)}
            layout[f"{name}.{block}.mlp.w2.linear.weight"] = (dim, model.ffn_dim)
    return layout


def as_upstream(state):
    """The names of the torch files that FD-loss starts from, with the training head and the rotary table."""
    tokens = ("class_tokens", "omega_tokens", "t_min_tokens", "t_max_tokens", "time_tokens")
    named = {}
    for key, value in state.items():
        key = key.replace(".linear.weight", "._flax_linear.weight").replace(".linear.bias", "._flax_linear.bias")
        named[key.replace(".embedding.", "._flax_embedding.")] = value[None] if key.endswith(tokens) else value
    head = {key.replace("u_heads", "v_heads"): torch.zeros(1) for key in named if "u_heads" in key}
    return named | head | {"net.v_final_layer.norm.weight": torch.zeros(1), "net.rope_freqs": torch.zeros(1)}


def golden(name):
    weights, recorded = load_golden(name)
    model = MiT(**official_mit_config(weights, IMAGE_SIZE[name], prefix=""))
    model.load_state_dict(from_official_mit(weights, prefix=""))
    return model, weights, recorded


@pytest.mark.parametrize("name", ["pmf", "imf"])
def test_output_and_gradients_equal_the_recorded_ones(name):
    model, _, recorded = golden(name)
    x, t = recorded["x"].requires_grad_(), 1 - recorded["t"]
    condition = MeanFlowCondition(recorded["y"], recorded["omega"], 1 - recorded["t_max"], 1 - recorded["t_min"])
    output = model(x, t, condition, t + recorded["h"])
    velocity = -to_velocity(output, model.prediction, x, t)  # theirs points to noise
    torch.testing.assert_close(velocity, recorded["output"], rtol=1e-5, atol=1e-5)
    (velocity * recorded["direction"]).sum().backward()
    torch.testing.assert_close(x.grad, recorded["grad/x"], rtol=1e-5, atol=1e-5)
    expected = from_official_mit(recorded_gradients(recorded), prefix="")
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected.keys() and len(gradients) == {"pmf": 69, "imf": 66}[name]
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-5, atol=1e-5 * float(expected[key].abs().max()))


@pytest.mark.parametrize("name", ["pmf", "imf"])
def test_the_written_layout_is_that_of_the_released_modules(name):
    model, weights, _ = golden(name)
    assert {key: tuple(value.shape) for key, value in weights.items()} == released_layout(2, 1, model)


@pytest.mark.parametrize(
    ("config", "num_layers"),
    [(pmf_config("B"), 16), (pmf_config("L", 32), 32), (pmf_config("H"), 48), (imf_config("B"), 12),
     (imf_config("L"), 32), (imf_config("XL"), 48)],
)  # fmt: skip
def test_every_key_of_a_released_checkpoint_is_mapped_and_none_is_left(config, num_layers):
    with torch.device("meta"):
        model = MiT(**config)
        layout = released_layout(num_layers - 8, 8, model)
        state = {f"net.{key}": torch.empty(shape) for key, shape in layout.items()}
        for given in (state, as_upstream(state)):
            converted = from_official_mit(given)
            assert official_mit_config(given, model.image_size) == {
                key: value for key, value in model.config_dict().items() if key != "noise_scale"
            }
            shapes = {name: value.shape for name, value in model.state_dict().items()}
            assert {name: value.shape for name, value in converted.items()} == shapes


def test_a_released_file_loads_and_draws(tmp_path):
    released = RELEASED["pMF-H_256"]
    config = pmf_config("B") | {"dim": 16, "num_heads": 2, "ffn_dim": 24, "num_layers": 9, "num_classes": 5}
    layout = released_layout(1, 8, MiT(**config))
    generator = torch.Generator().manual_seed(0)
    state = {f"net.{key}": 0.1 * torch.randn(shape, generator=generator) for key, shape in layout.items()}
    files = {"fd_loss": {"model": state, "model_ema": {"step_count": 3}, "step": 5}, "upstream": as_upstream(state)}
    images = []
    for name, saved in files.items():
        torch.save(saved, tmp_path / f"{name}.pth")
        model = MeanFlowCheckpoint(path=str(tmp_path / f"{name}.pth"), released="pMF-H_256").build()
        assert not model.training and model.noise_scale == 2.0
        condition = MeanFlowCondition.of(torch.tensor([1]), released.guidance_scale, released.guidance_interval)
        noise = model.noise_scale * torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
        images.append(model(noise, torch.zeros(1), condition).detach())
    assert images[0].std() > 0.01 and torch.equal(*images)


def test_latents_of_imf_have_the_released_mean_and_spread(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(32, 32), layers_per_block=1, latent_channels=4,
                                  down_block_types=("DownEncoderBlock2D",) * 2,
                                  up_block_types=("UpDecoderBlock2D",) * 2).eval()  # fmt: skip
    vae.save_pretrained(tmp_path)
    space = IMFLatents(path=str(tmp_path)).build()
    latents = torch.randn(2, 4, 4, 4)
    mean = torch.tensor([0.86488, -0.27787343, 0.21616915, 0.3738409]).reshape(4, 1, 1)
    std = torch.tensor([4.85503674, 5.31922414, 3.93725398, 3.9870003]).reshape(4, 1, 1)
    with torch.no_grad():
        expected = vae.decode(latents * std + mean).sample
        torch.testing.assert_close(space.decode_unclipped(latents), expected, rtol=1e-4, atol=1e-5)


def test_released_intervals_are_turned_to_our_time():
    """As published in sigma: pMF-B/L/H at 256, then at 512, and iMF-B/L/XL (the FD-loss card, section 4)."""
    published = [(0.1, 0.7), (0.2, 0.7), (0.2, 0.6), (0.1, 0.7), (0.2, 0.6), (0.1, 0.6),
                 (0.4, 0.65), (0.4, 0.6), (0.42, 0.62)]  # fmt: skip
    assert len(RELEASED) == len(published)
    for (name, settings), (t_min, t_max) in zip(RELEASED.items(), published, strict=True):
        assert settings.guidance_interval == pytest.approx((1 - t_max, 1 - t_min)), name
    scales = {name: (one.guidance_scale, one.noise_scale) for name, one in RELEASED.items()}
    assert scales["pMF-H_512"] == (5.5, 4.0) and scales["iMF-L"] == (10.5, 1.0) and scales["pMF-B_256"] == (8.5, 1.0)


def test_what_is_no_meanflow_network_is_refused(tmp_path):
    weights, _ = load_golden("pmf")
    with pytest.raises(ValueError, match=r"1 keys belong to no layer of the MeanFlow network, such as 'w_heads.0'"):
        from_official_mit({**weights, "w_heads.0": torch.zeros(1)}, prefix="")
    torch.save({"model": {f"net.{key}": value for key, value in weights.items()}}, tmp_path / "small.pth")
    with pytest.raises(ValueError, match=r"small.pth does not hold pMF-B_256: positions has the shape \(18, 16\)"):
        load_meanflow(tmp_path / "small.pth", "pMF-B_256")
    with pytest.raises(KeyError, match=r"no released checkpoint 'pMF-XXL'. Known: pMF-B_256"):
        load_meanflow(tmp_path / "small.pth", "pMF-XXL")
