"""The SANA denoiser against the class in diffusers, and linear attention against its definition."""

import pytest
import torch

from diptych.interop.sana import from_diffusers_sana, sana_config
from diptych.models.denoisers.sana import SanaTransformer, linear_attention

diffusers = pytest.importorskip("diffusers")

SMALL = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 3,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 12,
    "mlp_ratio": 2.5,
    "sample_size": 8,
}
SANA_1_6B = {
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "qk_norm": "rms_norm_across_heads",
}


def pair(seed=0, **changes):
    torch.manual_seed(seed)
    theirs = diffusers.SanaTransformer2DModel(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = SanaTransformer(**sana_config(theirs.config)).eval()
    ours.load_state_dict(from_diffusers_sana(theirs.state_dict(), patch_size=theirs.config.patch_size))
    return ours, theirs


@pytest.mark.parametrize("qk_norm", [None, "rms_norm_across_heads"])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_output_and_gradients_equal_those_of_diffusers(qk_norm, patch_size):
    ours, theirs = pair(qk_norm=qk_norm, patch_size=patch_size)
    x, condition = torch.randn(3, 4, 6, 10), torch.randn(3, 5, 12)
    t = torch.tensor([0.0, 0.3, 1.0])
    first, second = (condition.clone().requires_grad_() for _ in range(2))
    velocity = ours(x, t, first)
    expected = -theirs(x, second, 1000 * (1 - t), return_dict=False)[0]
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-5)
    velocity.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.modulation.weight.grad, theirs.time_embed.linear.weight.grad, rtol=1e-3, atol=1e-3)


def test_a_masked_row_counts_as_little_as_in_diffusers():
    ours, theirs = pair()
    x, condition = torch.randn(2, 4, 4, 4), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    t = torch.tensor([0.2, 0.7])
    expected = -theirs(x, condition, 1000 * (1 - t), encoder_attention_mask=mask.float(), return_dict=False)[0]
    torch.testing.assert_close(ours(x, t, condition, mask), expected, rtol=1e-4, atol=1e-5)


def test_an_encoded_condition_and_an_index_change_nothing():
    ours, _ = pair(qk_norm="rms_norm_across_heads")
    x, condition, t = torch.randn(3, 4, 4, 4), torch.randn(2, 5, 12), torch.tensor([0.1, 0.5, 0.9])
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    index = torch.tensor([1, 0, 1])
    plain = ours(x, t, condition[index], mask[index])
    torch.testing.assert_close(ours(x, t, condition, mask, index), plain)
    torch.testing.assert_close(ours(x, t, ours.encode_condition(condition, mask).select(index)), plain)


def test_linear_attention_is_its_definition():
    query, key, value = torch.randn(3, 2, 2, 5, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    weights = query.relu() @ key.relu().transpose(-1, -2)
    expected = weights / weights.sum(-1, keepdim=True) @ value
    torch.testing.assert_close(linear_attention(query, key, value), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [None, "rms_norm_across_heads"])
def test_the_released_sizes_have_as_many_parameters_as_in_diffusers(qk_norm):
    with torch.device("meta"):
        theirs = diffusers.SanaTransformer2DModel(**{**SANA_1_6B, "qk_norm": qk_norm})
        ours = SanaTransformer(**sana_config(theirs.config))
    counts = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    assert counts == [{None: 1_604_462_752, "rms_norm_across_heads": 1_604_641_952}[qk_norm]] * 2
    shapes = {key: value.shape for key, value in from_diffusers_sana(theirs.state_dict()).items()}
    assert shapes == {key: value.shape for key, value in ours.state_dict().items()}


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="a SANA denoiser with guidance_embeds True is not known, only False"):
        sana_config({**diffusers.SanaTransformer2DModel(**SMALL).config, "guidance_embeds": True})
    with pytest.raises(ValueError, match=r"1 keys belong to no layer of the SANA denoiser, such as 'pos_embed'"):
        from_diffusers_sana({"transformer_blocks.0.scale_shift_table": torch.zeros(6, 4), "pos_embed": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"denoiser.dim must be a multiple of num_cross_heads: got 32 and 5"):
        SanaTransformer(channels=4, condition_dim=8, dim=32, num_layers=1, num_heads=4, num_cross_heads=5)
