"""Connectors."""

import pytest
import torch

from diptych.models.connectors import IdentityConnector, LinearConnector, MLPConnector


@pytest.mark.parametrize(
    ("connector", "num_parameters"),
    [
        (LinearConnector(6, 10), 6 * 10 + 10),
        (MLPConnector(6, 10), 6 * 10 + 10 + 10 * 10 + 10),
        (MLPConnector(6, 10, hidden_dim=3), 6 * 3 + 3 + 3 * 10 + 10),
        (MLPConnector(6, 8, position_dim=4), 6 * 8 + 8 + 8 * 8 + 8 + 4 * 8),
        (IdentityConnector(6), 0),
    ],
)
def test_width_size_and_config(connector, num_parameters):
    features = torch.randn(2, 5, 3, connector.in_dim, generator=torch.Generator().manual_seed(0))
    assert connector(features).shape == (2, 5, 3, connector.out_dim)
    assert sum(parameter.numel() for parameter in connector.parameters()) == num_parameters
    again = type(connector)(**connector.config_dict())
    again.load_state_dict(connector.state_dict())
    assert torch.equal(again(features), connector(features))


def test_tokens_do_not_mix_and_gelu_is_exact():
    connector = MLPConnector(3, 4)
    features = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(connector(features)[1, 2], connector(features[1, 2]))
    hidden = connector.fc1(features)
    expected = connector.fc2(hidden * torch.special.ndtr(hidden))
    torch.testing.assert_close(connector(features), expected)


def test_positions_tell_every_place_of_a_grid_and_are_added():
    connector = MLPConnector(3, 8, position_dim=8)
    features = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    plain = MLPConnector(3, 8)
    plain.load_state_dict(connector.state_dict(), strict=False)
    positions = connector.positions(4, 5)
    torch.testing.assert_close(connector(features), plain(features) + positions)
    assert torch.pdist(positions.flatten(0, 1)).min() > 1e-3
    torch.testing.assert_close(connector.positions(6, 7)[:4, :5], positions)  # another size, the same places
