"""Properties of JiT; its numbers are held against the released code in tests/interop/test_jit_checkpoints.py."""

import pytest
import torch

from diptych.flow.path import interpolate
from diptych.models.denoisers.jit import JiT, jit_config
from diptych.models.layers import sinusoidal_embedding
from diptych.models.part import build_part, part_kind
from diptych.objectives.flow_matching import flow_matching_loss

NUM_CLASSES = 4


def build(**changes) -> JiT:
    settings = {
        "image_size": 8,
        "patch_size": 2,
        "dim": 32,
        "num_layers": 3,
        "num_heads": 4,
        "bottleneck_dim": 8,
        "num_classes": NUM_CLASSES,
        "in_context_start": 1,
        "num_in_context": 2,
    }
    torch.manual_seed(0)
    return JiT(**settings | changes)


def opened(model: JiT) -> JiT:
    """Gates and output, which start closed, drawn at random."""
    torch.manual_seed(1)
    for layer in (*(block.modulation for block in model.blocks), model.out_modulation, model.patch_out):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return model


def inputs(batch: int = 3):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 3, 8, 8, generator=generator)
    return x, torch.rand(batch, generator=generator), torch.arange(batch) % (NUM_CLASSES + 1)


@pytest.mark.parametrize(
    ("size", "patch_size", "num_parameters", "millions"),
    [
        ("B", 16, 131_320_320, 131),
        ("L", 16, 459_139_808, 459),
        ("H", 16, 952_842_048, 953),
        ("B", 32, 133_387_008, 133),
        ("L", 32, 461_796_320, 462),
        ("H", 32, 956_383_296, 956),
    ],
)
def test_published_sizes_have_the_parameters_of_the_released_code(size, patch_size, num_parameters, millions):
    """Exact counts by the released code, fixed positions included; the FD-loss paper has the first three."""
    with torch.device("meta"):
        model = JiT(**jit_config(size, patch_size))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert round(num_parameters / 1e6) == millions
    assert not model.positions.requires_grad and model.image_size == 16 * patch_size


def test_config_builds_the_same_network_again():
    model = opened(build(learned_positions=True, noise_scale=2.0))
    again = build_part({**model.config_dict(), "kind": part_kind(model)})
    assert again.config_dict() == model.config_dict() and again.noise_scale == 2.0
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(*inputs()), model(*inputs()))
    assert again.prediction == "data"


def test_a_fresh_network_paints_nothing():
    assert torch.equal(build()(*inputs()), torch.zeros(3, 3, 8, 8))


def test_order_of_the_batch_does_not_matter():
    model = opened(build())
    order = torch.tensor([2, 0, 1])
    expected = model(*inputs())[order]
    torch.testing.assert_close(model(*(value[order] for value in inputs())), expected, rtol=1e-4, atol=1e-5)


def test_rows_and_columns_are_told_apart():
    model = opened(build())
    model.positions.data.zero_()  # by the rotary positions alone
    x, t, labels = inputs(1)
    flipped = model(x.transpose(2, 3), t, labels).transpose(2, 3)
    assert (model(x, t, labels) - flipped).abs().max() > 1e-2
    rolled = model(x.roll(2, 2), t, labels).roll(-2, 2)
    assert (model(x, t, labels) - rolled).abs().max() > 1e-3


def test_class_time_and_in_context_tokens_are_heard():
    model = opened(build())
    x, t, labels = inputs()
    with torch.no_grad():
        output = model(x, t, labels)
        assert (model(x, t, (labels + 1) % NUM_CLASSES) - output).flatten(1).abs().amax(1).min() > 1e-3
        assert (model(x, 1 - t, labels) - output).flatten(1).abs().amax(1).min() > 1e-3
        model.in_context_positions.add_(1)
        assert (model(x, t, labels) - output).abs().max() > 1e-3


def test_the_network_is_told_t_itself():
    model = build()
    seen = []
    model.time_in.first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    t = torch.tensor([0.0, 0.25, 1.0])
    model(inputs()[0], t, inputs()[2])
    assert torch.equal(seen[0], sinusoidal_embedding(t, 256))


def test_every_parameter_learns_and_fixed_positions_do_not():
    for learned in (False, True):
        model = opened(build(learned_positions=learned))
        model(*inputs()).square().sum().backward()
        still = {
            name for name, value in model.named_parameters() if value.grad is None or value.grad.abs().max() < 1e-7
        }
        expected = set() if learned else {"positions"}
        assert still == expected


def test_bfloat16_is_close_to_float32():
    model = opened(build())
    x, t, labels = inputs()
    expected = model(x, t, labels)
    low = model.bfloat16()(x.bfloat16(), t, labels)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=5e-2, atol=5e-2)  # three blocks of open gates


def test_one_batch_is_learned_a_thousandfold():
    model = opened(build(image_size=4, bottleneck_dim=16, num_layers=2))
    generator = torch.Generator().manual_seed(4)
    data, noise = torch.randn(2, 4, 3, 4, 4, generator=generator)
    t, labels = torch.tensor([0.1, 0.3, 0.5, 0.7]), torch.tensor([0, 1, 2, NUM_CLASSES])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    losses = []
    for _ in range(100):
        loss = flow_matching_loss(lambda x_t, t: model(x_t, t, labels), data, noise, t, model.prediction).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 1000
    torch.testing.assert_close(model(interpolate(data, noise, t), t, labels), data, rtol=0, atol=0.3)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"dim must be a multiple of 4 \* num_heads .* got 24 and 4 heads"):
        build(dim=24)
    with pytest.raises(ValueError, match=r"image_size must be a multiple of .*patch_size: got 8 and 3. Use 6 or 9"):
        build(patch_size=3)
    with pytest.raises(ValueError, match=r"in_context_start must be a block between 0 and 2, got 3"):
        build(in_context_start=3)
    with pytest.raises(ValueError, match=r"positions for 8x8, got 4x8"):
        build()(torch.zeros(1, 3, 4, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
