"""Closed forms of the shared layers."""

import math

import pytest
import torch

from diptych.models.layers import (
    RMSNorm,
    SwiGLU,
    apply_rotary,
    apply_rotary_interleaved,
    rotary_table,
    rotary_table_2d,
    sinusoidal_embedding,
    swiglu_hidden_dim,
)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_rms_norm_equals_torch_in_value_and_gradient():
    norm = RMSNorm(24, eps=1e-5)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    x = draw(2, 5, 24).requires_grad_()
    direction = draw(2, 5, 24, seed=2)
    reference = torch.nn.functional.rms_norm(x, (24,), norm.weight, 1e-5)
    expected = torch.autograd.grad((reference * direction).sum(), (x, norm.weight))
    ours = norm(x)
    given = torch.autograd.grad((ours * direction).sum(), (x, norm.weight))
    torch.testing.assert_close(ours, reference)
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_rms_norm_scale_is_a_factor_on_the_weight():
    norm, x, scale = RMSNorm(8), draw(3, 4, 8), draw(3, 1, 8, seed=1)
    torch.testing.assert_close(norm(x, scale), norm(x) * scale)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    norm, x = RMSNorm(64), 100 * draw(4, 64, dtype=torch.bfloat16)
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), norm(x.float()).bfloat16(), rtol=0, atol=0)


def test_swiglu_by_hand():
    layer = SwiGLU(1, 1)
    with torch.no_grad():
        layer.gate.weight.fill_(2.0)
        layer.up.weight.fill_(3.0)
        layer.down.weight.fill_(0.5)
    x = torch.tensor([[1.5]])
    assert layer(x).item() == pytest.approx(0.5 * (3.0 / (1 + math.exp(-3.0))) * 4.5, rel=1e-6)
    assert sorted(layer.state_dict()) == ["down.weight", "gate.weight", "up.weight"]


def test_swiglu_width_rule():
    assert swiglu_hidden_dim(1792) == 4864  # BLIP3-o
    assert swiglu_hidden_dim(4096) == 11008  # LLaMA 7B
    assert swiglu_hidden_dim(96, multiple_of=32) == 256
    assert swiglu_hidden_dim(48, multiple_of=128) == 128


@pytest.mark.parametrize("rotate", [apply_rotary, apply_rotary_interleaved])
def test_rotary_products_depend_on_the_distance_alone(rotate):
    q, k = draw(1, 1, 1, 16), draw(1, 1, 1, 16, seed=1)

    def product(query_position: float, key_position: float) -> float:
        rotated_q = rotate(q, *rotary_table(torch.tensor([query_position]), 16, 100.0))
        rotated_k = rotate(k, *rotary_table(torch.tensor([key_position]), 16, 100.0))
        return (rotated_q * rotated_k).sum().item()

    assert product(0, 0) == pytest.approx((q * k).sum().item(), rel=1e-5)
    assert product(9, 4) == pytest.approx(product(5, 0), rel=1e-4)
    assert product(5, 0) != pytest.approx(product(0, 5), rel=1e-2)  # the sign of the distance counts


def test_rotary_conventions_by_hand():
    cos, sin = rotary_table(torch.tensor([3]), 4, 10_000.0)
    angles = (3.0, 3.0 * 0.01)
    x = torch.tensor([1.0, 2.0, 5.0, 7.0]).reshape(1, 1, 1, 4)

    def turn(a: float, b: float, angle: float) -> tuple[float, float]:
        return a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)

    (h0, h2), (h1, h3) = turn(1, 5, angles[0]), turn(2, 7, angles[1])
    torch.testing.assert_close(apply_rotary(x, cos, sin).flatten(), torch.tensor([h0, h1, h2, h3]))
    (i0, i1), (i2, i3) = turn(1, 2, angles[0]), turn(5, 7, angles[1])
    torch.testing.assert_close(apply_rotary_interleaved(x, cos, sin).flatten(), torch.tensor([i0, i1, i2, i3]))


@pytest.mark.parametrize("rotate", [apply_rotary, apply_rotary_interleaved])
def test_rotary_tables_of_each_row_equal_rows_one_by_one(rotate):
    x, positions = draw(2, 3, 4, 8), torch.tensor([[0, 1, 2, 3], [5, 3, 3, 9]])
    together = rotate(x, *rotary_table(positions, 8))
    for row in range(2):
        torch.testing.assert_close(together[row : row + 1], rotate(x[row : row + 1], *rotary_table(positions[row], 8)))


def test_rotary_table_2d_alternates_rows_and_columns():
    cos, sin = rotary_table_2d(2, 3, 8, theta=10_000.0)
    assert cos.shape == sin.shape == (6, 4)
    for index, (row, col) in enumerate((r, c) for r in range(2) for c in range(3)):
        angles = torch.tensor([row * 1.0, col * 1.0, row * 0.01, col * 0.01])  # w_i = theta ** (-4 i / 8)
        torch.testing.assert_close(cos[index], angles.cos())
        torch.testing.assert_close(sin[index], angles.sin())


def test_rotary_table_2d_may_put_rows_before_columns():
    cos, sin = rotary_table_2d(2, 3, 8, alternate=False)
    angles = torch.tensor([1.0, 0.01, 2.0, 0.02])  # row 1, column 2
    torch.testing.assert_close(cos[5], angles.cos())
    torch.testing.assert_close(sin[5], angles.sin())


def test_sinusoidal_embedding_puts_cosines_first():
    t = torch.tensor([0.0, 250.0])
    embedding = sinusoidal_embedding(t, 4)
    expected = torch.tensor([[1, 1, 0, 0], [math.cos(250), math.cos(2.5), math.sin(250), math.sin(2.5)]])
    torch.testing.assert_close(embedding, expected)


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="even head_dim, got 7"):
        rotary_table(torch.arange(3), 7)
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        rotary_table_2d(2, 2, 6)
    with pytest.raises(ValueError, match="even dim, got 5"):
        sinusoidal_embedding(torch.zeros(1), 5)
