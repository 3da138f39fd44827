"""Properties of MiT; its numbers are held against the released code in tests/interop/test_pmf_checkpoints.py."""

import pytest
import torch

from diptych.flow.path import interpolate, to_data
from diptych.models.denoisers.pmf import MeanFlowCondition, MiT, imf_config, pmf_config
from diptych.models.layers import sinusoidal_embedding
from diptych.models.part import build_part, part_kind
from diptych.objectives.flow_matching import flow_matching_loss

NUM_CLASSES = 4


def build(**changes) -> MiT:
    settings = {
        "image_size": 8,
        "patch_size": 2,
        "dim": 32,
        "num_layers": 2,
        "num_heads": 4,
        "ffn_dim": 64,
        "bottleneck_dim": 8,
        "num_classes": NUM_CLASSES,
    }
    torch.manual_seed(0)
    return MiT(**settings | changes)


def opened(model: MiT) -> MiT:
    """Gates and output, which start closed, drawn at random."""
    torch.manual_seed(1)
    for block in model.blocks:
        torch.nn.init.normal_(block.attention_gate)
        torch.nn.init.normal_(block.ffn_gate)
    torch.nn.init.normal_(model.patch_out.weight, std=0.2)
    return model


def inputs(batch: int = 3):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 3, 8, 8, generator=generator)
    labels = torch.arange(batch) % (NUM_CLASSES + 1)
    return x, torch.rand(batch, generator=generator), MeanFlowCondition.of(labels, 3.0, (0.2, 0.9))


@pytest.mark.parametrize(
    ("config", "num_parameters", "millions"),
    [
        (pmf_config("B"), 118_234_240, 118),
        (pmf_config("L"), 410_320_768, 410),
        (pmf_config("H"), 955_508_992, 956),
        (pmf_config("B", 32), 120_300_928, 120),
        (pmf_config("L", 32), 412_977_280, 413),
        (pmf_config("H", 32), 959_050_240, 959),
        (imf_config("B"), 88_935_184, 89),
        (imf_config("M"), 173_908_240, 174),
        (imf_config("L"), 409_054_224, 409),
        (imf_config("XL"), 610_415_632, 610),
    ],
)
def test_published_sizes_have_the_parameters_of_the_released_code(config, num_parameters, millions):
    """Exact counts by the released code without its training head.

    The FD-loss paper has 118, 410 and 935 million for pMF and 89, 409 and 610 for iMF; pMF-H of its own code has 956.
    """
    with torch.device("meta"):
        model = MiT(**config)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert round(num_parameters / 1e6) == millions


@pytest.mark.parametrize("changes", [{}, {"rotary": "sequence", "learned_positions": False, "bottleneck_dim": None}])
def test_config_builds_the_same_network_again(changes):
    model = opened(build(noise_scale=2.0, num_class_tokens=3, num_time_tokens=1, prediction="velocity", **changes))
    again = build_part({**model.config_dict(), "kind": part_kind(model)})
    assert again.config_dict() == model.config_dict() and again.noise_scale == 2.0
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(*inputs()), model(*inputs()))
    assert again.prediction == "velocity"


def test_a_fresh_network_paints_nothing():
    assert torch.equal(build()(*inputs()), torch.zeros(3, 3, 8, 8))


def test_order_of_the_batch_does_not_matter():
    model = opened(build())
    x, t, condition = inputs()
    order = torch.tensor([2, 0, 1])
    turned = MeanFlowCondition(
        condition.labels[order], condition.guidance_scale, condition.guidance_start, condition.guidance_end
    )
    torch.testing.assert_close(model(x[order], t[order], turned), model(x, t, condition)[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rotary", ["grid", "sequence"])
def test_places_are_told_by_rotary_positions_alone(rotary):
    model = opened(build(learned_positions=False, rotary=rotary))
    x, t, condition = inputs(1)
    output = model(x, t, condition)
    for change in (lambda images: images.transpose(2, 3), lambda images: images.flip(2)):
        assert (change(model(change(x), t, condition)) - output).abs().max() > 1e-3


def test_everything_it_is_told_is_heard():
    model = opened(build())
    x, t, condition = inputs()
    output = model(x, t, condition)
    values = vars(condition)
    others = {"labels": NUM_CLASSES, "guidance_scale": 7.0, "guidance_start": 0.6, "guidance_end": 0.5}
    for name, other in others.items():
        changed = model(x, t, MeanFlowCondition(**values | {name: torch.full((3,), other)}))
        assert (changed - output).flatten(1).abs().amax(1).min() > 1e-4, name


def test_it_knows_the_length_of_the_stretch_and_not_where_it_lies():
    model = opened(build())
    x, _, condition = inputs()
    early, late = torch.full((3,), 0.1), torch.full((3,), 0.5)
    half = model(x, early, condition, early + 0.5)
    torch.testing.assert_close(model(x, late, condition), half, rtol=1e-4, atol=1e-5)
    assert (model(x, late, condition, late + 0.25) - half).abs().max() > 1e-3


def test_time_and_interval_are_embedded_as_released():
    model = build()
    seen = {}
    for name in ("guidance_in", "sigma_min_in", "sigma_max_in", "duration_in"):
        getattr(model, name).first.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    x, _, condition = inputs(1)
    model(x, torch.tensor([0.25]), condition)
    for name, value in (
        ("guidance_in", 1 - 1 / 3),
        ("sigma_min_in", 0.1),
        ("sigma_max_in", 0.8),
        ("duration_in", 0.75),
    ):
        torch.testing.assert_close(seen[name], sinusoidal_embedding(torch.tensor([value]), 256))


def test_every_parameter_learns():
    model = opened(build())
    model(*inputs()).square().sum().backward()
    assert {name for name, value in model.named_parameters() if not value.grad.abs().max() > 1e-7} == set()


def test_bfloat16_is_close_to_float32():
    model = opened(build())
    x, t, condition = inputs()
    expected = model(x, t, condition)
    low = model.bfloat16()(x.bfloat16(), t, condition)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=5e-2, atol=5e-2)  # gates of order one


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_one_batch_is_learned_a_thousandfold(prediction):
    """As a denoiser, in which the stretch ends at the data."""
    model = opened(build(image_size=4, bottleneck_dim=16, prediction=prediction))
    generator = torch.Generator().manual_seed(4)
    data, noise = torch.randn(2, 4, 3, 4, 4, generator=generator)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7])
    condition = MeanFlowCondition.of(torch.tensor([0, 1, 2, NUM_CLASSES]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    losses = []
    for _ in range(100):
        loss = flow_matching_loss(lambda x_t, t: model(x_t, t, condition), data, noise, t, prediction).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 1000
    x_t = interpolate(data, noise, t)
    torch.testing.assert_close(to_data(model(x_t, t, condition), prediction, x_t, t), data, rtol=0, atol=0.3)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"dim must be a multiple of 4 \* num_heads .* got 24 and 4 heads"):
        build(dim=24)
    with pytest.raises(ValueError, match=r"positions for 8x8, got 8x4"):
        build()(torch.zeros(1, 3, 8, 4), torch.zeros(1), MeanFlowCondition.of(torch.zeros(1, dtype=torch.long)))
