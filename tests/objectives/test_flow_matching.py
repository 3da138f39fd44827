"""Flow matching by hand, in all three predictions."""

import pytest
import torch

from diptych.flow.path import interpolate, to_data, to_noise
from diptych.objectives.flow_matching import flow_matching_loss, flow_term

GENERATOR = torch.Generator().manual_seed(0)
DATA, NOISE = torch.randn(5, 3, 2, 2, generator=GENERATOR), torch.randn(5, 3, 2, 2, generator=GENERATOR)
OFFSET = torch.randn(5, 3, 2, 2, generator=GENERATOR)
T = torch.tensor([0.1, 0.3, 0.5, 0.8, 0.9])


def test_by_hand():
    data, noise, t = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([0.25])

    def predict(x_t, t):
        assert x_t.tolist() == [[1.5, 1.75]] and t.tolist() == [0.25]
        return torch.tensor([[5.0, 0.0]])

    # velocity (2, -1): errors (3, 1)
    torch.testing.assert_close(flow_matching_loss(predict, data, noise, t), torch.tensor([5.0]))
    # data (3, 1): errors (2, -1) / 0.75
    torch.testing.assert_close(flow_matching_loss(predict, data, noise, t, "data"), torch.tensor([2.5 / 0.75**2]))
    # noise (1, 2): errors (4, -2) / 0.25
    torch.testing.assert_close(flow_matching_loss(predict, data, noise, t, "noise"), torch.tensor([10 / 0.25**2]))


def test_a_velocity_error_costs_the_same_in_every_prediction():
    wrong = DATA - NOISE + OFFSET
    expected = OFFSET.square().flatten(1).mean(1)
    outputs = {
        "velocity": lambda x_t, t: wrong,
        "data": lambda x_t, t: to_data(wrong, "velocity", x_t, t),
        "noise": lambda x_t, t: to_noise(wrong, "velocity", x_t, t),
    }
    for prediction, predict in outputs.items():
        torch.testing.assert_close(flow_matching_loss(predict, DATA, NOISE, T, prediction), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("prediction", "truth"), [("velocity", DATA - NOISE), ("data", DATA), ("noise", NOISE)])
@pytest.mark.parametrize("t", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_the_truth_costs_nothing_at_any_time(prediction, truth, t):
    loss = flow_matching_loss(lambda x_t, t: truth, DATA, NOISE, torch.full((5,), t), prediction)
    assert loss.max() < 1e-9


def test_near_data_the_weight_of_data_prediction_stops_growing():
    def loss(t: float) -> float:
        return flow_matching_loss(lambda x_t, _: DATA + 1, DATA, NOISE, torch.full((5,), t), "data")[0].item()

    assert loss(0.5) == pytest.approx(4, rel=1e-4)
    assert loss(0.95) == pytest.approx(400, rel=1e-3)
    assert loss(0.99) == pytest.approx(400, rel=1e-3)


def test_the_loss_is_float32_whatever_the_network_computes_in():
    loss = flow_matching_loss(lambda x_t, t: x_t.bfloat16(), DATA.bfloat16(), NOISE, T)
    assert loss.dtype == torch.float32
    data = DATA.bfloat16().float()
    expected = interpolate(data, NOISE, T).bfloat16().float() - (data - NOISE)
    torch.testing.assert_close(loss, expected.square().flatten(1).mean(1))


def test_term_sums_and_tells_values_by_noise_level():
    scale = torch.ones((), requires_grad=True)

    def predict(x_t, t):
        return scale * x_t

    values = flow_matching_loss(predict, DATA, NOISE, T).detach()
    term = flow_term(predict, DATA, NOISE, T)
    torch.testing.assert_close(term.sum.detach(), values.sum())
    assert term.count.item() == 5
    torch.testing.assert_close(term.values, values)
    torch.testing.assert_close(term.levels, 1 - T)
    assert not term.values.requires_grad and term.sum.requires_grad
    weighted = flow_term(predict, DATA, NOISE, T, weights=torch.tensor([2.0, 0, 0, 0, 0]))
    torch.testing.assert_close(weighted.sum.detach(), 2 * values[0])
    assert weighted.count.item() == 5
