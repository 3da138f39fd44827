"""JiT against the released code: recorded outputs and gradients (tests/golden), and keys of released checkpoints."""

import argparse

import pytest
import torch

from diptych.interop.jit import JiTCheckpoint, from_official_jit, load_jit, official_jit_config
from diptych.models.denoisers.jit import JiT, jit_config
from tests.golden.fixtures import load_golden, recorded_gradients


def released_layout(depth, dim, num_heads, ffn_dim, bottleneck_dim, patch_size, num_patches, num_classes, in_context):
    """Shapes by key of a released checkpoint, written down from the released modules."""
    layout = {
        "pos_embed": (1, num_patches, dim),
        "in_context_posemb": (1, in_context, dim),
        "t_embedder.mlp.0.weight": (dim, 256),
        "t_embedder.mlp.0.bias": (dim,),
        "t_embedder.mlp.2.weight": (dim, dim),
        "t_embedder.mlp.2.bias": (dim,),
        "y_embedder.embedding_table.weight": (num_classes + 1, dim),
        "x_embedder.proj1.weight": (bottleneck_dim, 3, patch_size, patch_size),
        "x_embedder.proj2.weight": (dim, bottleneck_dim, 1, 1),
        "x_embedder.proj2.bias": (dim,),
        "final_layer.norm_final.weight": (dim,),
        "final_layer.linear.weight": (3 * patch_size**2, dim),
        "final_layer.linear.bias": (3 * patch_size**2,),
        "final_layer.adaLN_modulation.1.weight": (2 * dim, dim),
        "final_layer.adaLN_modulation.1.bias": (2 * dim,),
    }
    for block in range(depth):
        layout |= {
            f"blocks.{block}.{key}": shape
            for key, shape in {
                "norm1.weight": (dim,),
                "attn.q_norm.weight": (dim // num_heads,),
                "attn.k_norm.weight": (dim // num_heads,),
                "attn.qkv.weight": (3 * dim, dim),
                "attn.qkv.bias": (3 * dim,),
                "attn.proj.weight": (dim, dim),
                "attn.proj.bias": (dim,),
                "norm2.weight": (dim,),
                "mlp.w12.weight": (2 * ffn_dim, dim),
                "mlp.w12.bias": (2 * ffn_dim,),
                "mlp.w3.weight": (dim, ffn_dim),
                "mlp.w3.bias": (dim,),
                "adaLN_modulation.1.weight": (6 * dim, dim),
                "adaLN_modulation.1.bias": (6 * dim,),
            }.items()
        }
    return layout


def golden():
    weights, recorded = load_golden("jit")
    model = JiT(**official_jit_config(weights, prefix="", in_context_start=1), learned_positions=True)
    model.load_state_dict(from_official_jit(weights, prefix=""))
    return model, weights, recorded


def test_output_and_gradients_equal_the_recorded_ones():
    model, _, recorded = golden()
    x = recorded["x"].requires_grad_()
    output = model(x, recorded["t"], recorded["y"])
    torch.testing.assert_close(output, recorded["output"], rtol=1e-5, atol=1e-5)
    (output * recorded["direction"]).sum().backward()
    torch.testing.assert_close(x.grad, recorded["grad/x"], rtol=1e-5, atol=1e-5)
    expected = from_official_jit(recorded_gradients(recorded), prefix="")
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected.keys() and len(gradients) == 75
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * float(expected[name].abs().max()))


def test_the_written_layout_is_that_of_the_released_modules():
    weights, _ = load_golden("jit")
    layout = released_layout(3, 16, 2, 42, 6, patch_size=4, num_patches=9, num_classes=5, in_context=3)
    assert {key: tuple(value.shape) for key, value in weights.items()} == layout


@pytest.mark.parametrize("size", ["B", "L", "H"])
def test_every_key_of_a_released_checkpoint_is_mapped_and_none_is_left(size):
    config = jit_config(size)
    with torch.device("meta"):
        model = JiT(**config)
        layout = released_layout(config["num_layers"], model.dim, model.num_heads, model.ffn_dim, model.bottleneck_dim,
                                 16, 256, 1000, 32)  # fmt: skip
        state = {f"net.{key}": torch.empty(shape) for key, shape in layout.items()}
        converted = from_official_jit(state)
        again = JiT(**official_jit_config(state))
    assert again.config_dict() == model.config_dict()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in converted.items()} == shapes


@pytest.mark.parametrize("entry", ["model", "model_ema1"])
def test_files_of_both_codes_load(tmp_path, entry):
    layout = released_layout(12, 16, 2, 42, 6, patch_size=2, num_patches=4, num_classes=5, in_context=3)
    generator = torch.Generator().manual_seed(0)
    state = {f"net.{key}": torch.randn(shape, generator=generator) for key, shape in layout.items()}
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    entries = {"model": other, "model_ema1": other} | {entry: state}
    torch.save({**entries, "step": 7, "args": argparse.Namespace(lr=1e-5)}, tmp_path / "JiT-B.pth")
    model = JiTCheckpoint(path=str(tmp_path / "JiT-B.pth"), entry=entry).build()
    assert not model.training and model.positions.requires_grad and model.in_context_start == 4
    assert torch.equal(model.positions, state["net.pos_embed"][0])
    torch.testing.assert_close(model.blocks[3].attention.value.bias, state["net.blocks.3.attn.qkv.bias"][32:])


@pytest.mark.parametrize(("patch_size", "noise_scale"), [(16, 1.0), (32, 2.0)])
def test_noise_is_stronger_at_512_pixels(tmp_path, patch_size, noise_scale):
    layout = released_layout(12, 16, 2, 42, 6, patch_size, num_patches=256, num_classes=5, in_context=3)
    torch.save({f"net.{key}": torch.zeros(shape) for key, shape in layout.items()}, tmp_path / "JiT-B.pth")
    model = load_jit(tmp_path / "JiT-B.pth")
    assert (model.image_size, model.noise_scale) == (16 * patch_size, noise_scale)
    assert not model.positions.requires_grad and jit_config("B", patch_size)["noise_scale"] == noise_scale


def test_what_is_no_jit_is_refused(tmp_path):
    weights, _ = load_golden("jit")
    with pytest.raises(ValueError, match=r"no key starts with 'net.'; the first is 'pos_embed'"):
        from_official_jit(weights)
    with pytest.raises(ValueError, match=r"1 keys belong to no layer of JiT, such as 'feat_rope.freqs_cos'"):
        from_official_jit({**weights, "feat_rope.freqs_cos": torch.zeros(1)}, prefix="")
    with pytest.raises(ValueError, match=r"published with 12, 24 or 32 blocks, this one has 3: give in_context_start"):
        official_jit_config(weights, prefix="")
    layout = released_layout(12, 16, 2, 42, 6, patch_size=2, num_patches=4, num_classes=5, in_context=3)
    state = {f"net.{key}": torch.zeros(shape) for key, shape in layout.items()}
    del state["net.blocks.3.norm2.weight"]
    torch.save({"model": state}, tmp_path / "cut.pth")
    with pytest.raises(
        ValueError, match=r"cut.pth does not hold a JiT: 1 tensors are missing \(first blocks.3.ffn_norm"
    ):
        load_jit(tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"must hold tensors by name, alone or under 'ema'; it has 'model'"):
        load_jit(tmp_path / "cut.pth", entry="ema")
    with pytest.raises(FileNotFoundError, match=r"none.pth is missing"):
        load_jit(tmp_path / "none.pth")
