"""Properties of the Lumina-Next denoiser; its numbers are held against diffusers in test_lumina_parity.py."""

import pytest
import torch
from torch import nn

from diptych.flow.path import interpolate
from diptych.models.denoisers.lumina import LuminaDiT
from diptych.models.layers import sinusoidal_embedding
from diptych.objectives.flow_matching import flow_matching_loss

CHANNELS, CONDITION_DIM = 6, 10


def build(**changes) -> LuminaDiT:
    settings = {"channels": CHANNELS, "condition_dim": CONDITION_DIM, "dim": 32, "num_layers": 2, "num_heads": 4}
    torch.manual_seed(0)
    return LuminaDiT(**settings | {"ffn_multiple_of": 32} | changes)


def open_gates(model: LuminaDiT) -> LuminaDiT:
    for block in model.blocks:
        nn.init.constant_(block.attention.gate, 0.7)
    return model


def inputs(batch: int = 3, size: tuple[int, int] = (4, 4), tokens: int = 5, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, CHANNELS, *size, generator=generator)
    return x, torch.rand(batch, generator=generator), torch.randn(batch, tokens, CONDITION_DIM, generator=generator)


@pytest.mark.parametrize(("condition_dim", "num_parameters"), [(2048, 1_362_257_824), (3584, 1_365_010_336)])
def test_released_sizes_have_the_published_number_of_parameters(condition_dim, num_parameters):
    """BLIP3-o 4B and 8B, the whole denoiser: patch and condition projections included, learnable queries not."""
    with torch.device("meta"):
        model = LuminaDiT(channels=1792, condition_dim=condition_dim, dim=1792, num_layers=24, num_heads=28)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert model.ffn_dim == 4864 and model.time_dim == 1024


def test_config_builds_the_same_network_again():
    model = build(patch_size=2, prediction="data", qk_norm=False, time_dim=24, initial_gate=0.5)
    again = LuminaDiT(**model.config_dict())
    assert again.config_dict() == model.config_dict()
    again.load_state_dict(model.state_dict())
    x, t, condition = inputs()
    assert torch.equal(again(x, t, condition), model(x, t, condition))
    assert again.prediction == "data"


@pytest.mark.parametrize(("patch_size", "size"), [(1, (1, 1)), (1, (2, 7)), (2, (6, 4)), (3, (3, 6))])
def test_output_has_the_shape_of_the_latents_on_any_grid(patch_size, size):
    x, t, condition = inputs(size=size)
    assert build(patch_size=patch_size)(x, t, condition).shape == x.shape


def test_with_closed_gates_only_the_mean_of_the_condition_matters():
    model = build()
    x, t, condition = inputs()
    with torch.no_grad():  # the mean is taken after a layer with GELU: make that layer linear
        model.condition_in[1] = nn.Identity()
        shuffled = condition[:, [4, 2, 0, 1, 3]] + torch.tensor([1.0, -1, 0, 2, -2])[:, None]
        torch.testing.assert_close(model(x, t, condition), model(x, t, shuffled), rtol=1e-4, atol=1e-5)
        assert (model(x, t, condition) - model(x, t, condition + 1)).abs().max() > 1e-3
        open_gates(model)
        assert (model(x, t, condition) - model(x, t, shuffled)).abs().max() > 1e-3


def test_gates_start_closed_unless_told_otherwise():
    assert all((block.attention.gate == 0).all() for block in build().blocks)
    assert all((block.attention.gate == 1).all() for block in build(initial_gate=1.0).blocks)


def test_the_condition_is_a_set():
    model = open_gates(build())
    x, t, condition = inputs()
    torch.testing.assert_close(model(x, t, condition), model(x, t, condition[:, [3, 1, 4, 0, 2]]), rtol=1e-4, atol=1e-5)


def test_masked_condition_rows_change_nothing():
    model = open_gates(build())
    x, t, condition = inputs()
    padding = 100 * torch.randn(3, 4, CONDITION_DIM, generator=torch.Generator().manual_seed(2))
    padded = torch.cat((condition[:, :3], padding, condition[:, 3:]), dim=1)
    mask = torch.tensor([True] * 3 + [False] * 4 + [True] * 2).expand(3, -1)
    torch.testing.assert_close(model(x, t, padded, mask), model(x, t, condition), rtol=1e-4, atol=1e-5)
    all_true = torch.ones(3, 5, dtype=torch.bool)
    torch.testing.assert_close(model(x, t, condition, all_true), model(x, t, condition), rtol=1e-4, atol=1e-5)


def test_rows_of_unequal_length_equal_rows_alone():
    model = open_gates(build())
    x, t, condition = inputs()
    lengths = [5, 1, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    together = model(x, t, condition, mask)
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1], t[row : row + 1], condition[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_without_any_condition_attends_to_nothing(dtype):
    model = open_gates(build()).to(dtype)
    x, t, condition = inputs()
    x, condition = x.to(dtype), condition.to(dtype).requires_grad_()
    mask = torch.tensor([[True] * 5, [False] * 5, [True] * 5])
    output = model(x, t, condition, mask)
    output.float().square().sum().backward()
    assert output.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert condition.grad[1].abs().max() == 0 and condition.grad[0].abs().max() > 0
    with torch.no_grad():
        for block in model.blocks:
            block.attention.gate.zero_()
        closed = model(x, t, condition, mask)
    assert torch.equal(output[1], closed[1]) and not torch.equal(output[0], closed[0])


def test_several_may_be_drawn_from_one_condition():
    model = open_gates(build())
    x, t, condition = inputs()
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    index = torch.tensor([2, 0, 2])
    torch.testing.assert_close(
        model(x, t, condition, mask, index), model(x, t, condition[index], mask[index]), rtol=1e-4, atol=1e-5
    )
    encoded = model.encode_condition(condition, mask)
    torch.testing.assert_close(
        model(x, t, encoded, condition_index=index), model(x, t, condition, mask, index), rtol=1e-4, atol=1e-5
    )


def test_order_of_the_batch_does_not_matter():
    model = open_gates(build())
    x, t, condition = inputs()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        model(x, t, condition)[order], model(x[order], t[order], condition[order]), rtol=1e-4, atol=1e-5
    )


def test_rows_and_columns_are_told_apart():
    model = build()
    _, t, condition = inputs(batch=1)
    base, mark = torch.randn(2, 1, CHANNELS, 1, 1, generator=torch.Generator().manual_seed(3))

    def response(row: int, col: int) -> torch.Tensor:
        """The output at a patch that alone differs from all others."""
        x = base.repeat(1, 1, 3, 3)
        x[:, :, row : row + 1, col : col + 1] += mark
        return model(x, t[:1], condition)[0, :, row, col]

    places = [response(row, col) for row in range(3) for col in range(3)]
    for i in range(9):
        for j in range(i):
            assert (places[i] - places[j]).abs().max() > 1e-6, (i, j)


def test_the_network_is_told_sigma_in_thousandths():
    model = build()
    seen = []
    model.time_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, _, condition = inputs()
    model(x, torch.tensor([0.0, 0.25, 1.0]), condition)
    torch.testing.assert_close(seen[0], sinusoidal_embedding(torch.tensor([1000.0, 750.0, 0.0]), 256))


def test_every_parameter_learns_once_the_gates_are_open():
    model = open_gates(build())
    x, t, condition = inputs()
    model(x, t, condition).square().sum().backward()
    still = {name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 1e-8}
    # A constant on all keys of the cross-attention leaves its softmax as it is.
    assert {name for name in still if not name.endswith("cross_key_norm.bias")} == set()


def test_bfloat16_is_close_to_float32():
    model = open_gates(build())
    x, t, condition = inputs()
    expected = model(x, t, condition)
    low = model.bfloat16()(x.bfloat16(), t, condition.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_one_batch_is_learned_a_thousandfold(prediction):
    model = build(prediction=prediction)
    generator = torch.Generator().manual_seed(4)
    data, noise = torch.randn(2, 4, CHANNELS, 2, 3, generator=generator)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    condition = torch.randn(4, 3, CONDITION_DIM, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
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
    target = {"velocity": data - noise, "data": data}[prediction]  # and not its negative
    torch.testing.assert_close(model(x_t, t, condition), target, rtol=0, atol=0.3)


def test_bad_widths_are_refused():
    with pytest.raises(ValueError, match=r"dim must be a multiple of 4 \* num_heads .* got 24 and 4 heads"):
        build(dim=24)
    with pytest.raises(ValueError, match=r"height and width must be multiples of patch_size: got 5x4 and 2. Use 4x4"):
        build(patch_size=2)(*inputs(size=(5, 4)))
