"""FD-loss as a whole: scaling, several representations, resume, and a generator that learns."""

import pytest
import torch

from diptych.frechet import Moments
from diptych.frechet.estimators import BatchOnly, MovingAverage, Queue
from diptych.frechet.gradient import FrechetReference
from diptych.frechet.loss import FDLoss, Representation


def normal(num: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(features: torch.Tensor) -> FrechetReference:
    moments = Moments(features.shape[1])
    moments.update(features)
    return FrechetReference.of(moments)


def two_spaces(**fields) -> FDLoss:
    return FDLoss(
        {
            "a": Representation(reference=reference(normal(50, 4, 0)), estimator=BatchOnly(), **fields),
            "b": Representation(reference=reference(normal(50, 6, 1)), estimator=Queue(6, 30), weight=0.5),
        }
    )


def test_the_value_and_the_gradient_are_those_of_the_formula():
    loss = two_spaces()
    features = {"a": normal(9, 4, 2).requires_grad_(), "b": normal(5, 6, 3).requires_grad_()}  # other batch sizes
    loss.warm_start({name: tensor.detach() for name, tensor in features.items()})
    result = loss(features)
    a, b = result.distances["a"], result.distances["b"]
    assert result.loss.dtype == torch.float64
    torch.testing.assert_close(result.loss.detach(), a / (a + 0.01) + 0.5 * b / (b + 0.01))
    result.loss.backward()
    for name, weight in (("a", 1.0), ("b", 0.5)):
        plain = FDLoss({name: Representation(**{**vars(loss.representations[name]), "validation_distance": 1.0})})
        alone = features[name].detach().requires_grad_()
        (grad,) = torch.autograd.grad(plain({name: alone}).loss, alone)  # of weight * FD
        torch.testing.assert_close(features[name].grad, grad / (result.distances[name] + 0.01), rtol=1e-10, atol=1e-14)
        assert weight == plain.representations[name].weight


def test_six_representations_are_the_sum_of_each_alone():
    dims = dict(zip("abcdef", (3, 4, 5, 6, 7, 8), strict=True))
    references = {name: reference(normal(60, dim, dim)) for name, dim in dims.items()}

    def loss_of(names: str) -> FDLoss:
        loss = FDLoss(
            {
                name: Representation(reference=references[name], estimator=Queue(dims[name], 40), weight=1 / dims[name])
                for name in names
            }
        )
        loss.warm_start({name: normal(30, dims[name], 10 + dims[name]) for name in names})
        return loss

    rows = {name: normal(2 * dim, dim, 20 + dim) for name, dim in dims.items()}  # each its own number of rows
    together = {name: tensor.clone().requires_grad_() for name, tensor in rows.items()}
    result = loss_of("abcdef")(together)
    result.loss.backward()
    total = 0.0
    for name, tensor in rows.items():
        alone = tensor.clone().requires_grad_()
        one = loss_of(name)({name: alone})
        one.loss.backward()
        total += one.loss.item()
        assert torch.equal(together[name].grad, alone.grad) and alone.grad.abs().max() > 0
    assert result.loss.item() == pytest.approx(total, rel=1e-12)
    assert 0.8 * sum(1 / dim for dim in dims.values()) < result.loss.item() < sum(1 / dim for dim in dims.values())


def test_division_by_a_validation_distance():
    loss = two_spaces(validation_distance=4.0)
    loss.warm_start({"a": normal(9, 4, 2), "b": normal(9, 6, 3)})
    result = loss({"a": normal(9, 4, 2), "b": normal(9, 6, 3)})
    b = result.distances["b"]
    torch.testing.assert_close(result.loss, result.distances["a"] / 4 + 0.5 * b / (b + 0.01))


def test_float32_and_bfloat16_features():
    for dtype in (torch.float32, torch.bfloat16):
        loss = two_spaces()
        start = {"a": normal(9, 4, 2).to(dtype), "b": normal(9, 6, 3).to(dtype)}
        loss.warm_start(start)
        features = {name: tensor.requires_grad_() for name, tensor in start.items()}
        result = loss(features)
        assert result.loss.dtype == torch.float32
        result.loss.backward()
        assert all(tensor.grad is not None and tensor.grad.dtype == dtype for tensor in features.values())


def test_resume_is_equal_to_the_bit():
    def make() -> FDLoss:
        return FDLoss(
            {
                "a": Representation(reference=reference(normal(50, 4, 0)), estimator=MovingAverage(4, 0.9)),
                "b": Representation(reference=reference(normal(50, 6, 1)), estimator=Queue(6, 30)),
            }
        )

    def step(loss: FDLoss, seed: int) -> torch.Tensor:
        result = loss({"a": normal(5, 4, seed).float(), "b": normal(5, 6, seed).float()})
        loss.commit()
        return result.loss

    straight, resumed, from_tensors = make(), make(), make()
    straight.warm_start({"a": normal(9, 4, 2).float(), "b": normal(9, 6, 3).float()})
    for seed in range(4):
        step(straight, seed)
    resumed.load_state_dict(straight.state_dict())
    tensors = {name: value.clone() for name, value in straight.tensors().items()}
    assert all(name.startswith(("a/", "b/")) and isinstance(value, torch.Tensor) for name, value in tensors.items())
    from_tensors.load_tensors(tensors)
    expected = [step(straight, seed).item() for seed in range(9)]
    assert [step(resumed, seed).item() for seed in range(9)] == expected
    assert [step(from_tensors, seed).item() for seed in range(9)] == expected
    with pytest.raises(ValueError, match="the saved state is of the representation 'c'; there are a, b"):
        from_tensors.load_tensors({"c/mean": torch.zeros(4)})


@pytest.mark.parametrize("kind", ["batch", "average", "queue"])
def test_a_linear_generator_learns_the_real_moments(kind):
    """Any estimator brings the distance from far down to what so small a batch leaves; the loss stays near 1."""
    real = normal(4000, 4, 0) @ normal(4, 4, 1) + 2
    estimator = {"batch": BatchOnly(), "average": MovingAverage(4, 0.5), "queue": Queue(4, 96)}[kind]
    loss = FDLoss({"x": Representation(reference=reference(real), estimator=estimator)})
    layer = torch.nn.Linear(4, 4).double()
    torch.nn.init.eye_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    loss.warm_start({"x": layer(normal(96, 4, 2)).detach()})
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.06)
    distances = []
    for seed in range(150):
        result = loss({"x": layer(normal(32, 4, 100 + seed))})
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        loss.commit()
        distances.append(result.distances["x"].item())
        assert 0.5 < result.loss.item() < 1
    assert sum(distances[-20:]) / 20 < 0.1 * distances[0]
    whole = Moments(4)
    whole.update(layer(normal(4000, 4, 3)))
    assert (whole.mean - real.mean(0)).norm() < 0.3


def test_refusals():
    loss = two_spaces()
    with pytest.raises(ValueError, match=r"features must be of \['a', 'b'\], got \['a'\]"):
        loss({"a": normal(9, 4, 2)})
    with pytest.raises(ValueError, match="features of a must have the reference's width 4, got 5"):
        loss({"a": normal(9, 5, 2), "b": normal(9, 6, 3)})
    bad = normal(9, 4, 2)
    bad[3] = torch.nan
    with pytest.raises(ValueError, match="features of a must be finite, but rows 3 of 9"):
        loss({"a": bad, "b": normal(9, 6, 3)})
    with pytest.raises(ValueError, match="features of a must be finite, but rows 3 of 9"):
        loss.warm_start({"a": bad, "b": normal(9, 6, 3)})
    with pytest.raises(ValueError, match="FDLoss needs at least one representation"):
        FDLoss({})
    with pytest.raises(ValueError, match=r"the state \['c'\]"):
        loss.load_state_dict({"c": {}})
    with pytest.raises(ValueError, match=r"validation_distance must be positive, got 0\.0"):
        two_spaces(validation_distance=0.0)
