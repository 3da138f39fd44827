"""Following a population's gradient: as exact as it says, exact again where it must be, resumed to the bit."""

import pytest
import torch

from diptych.frechet import Moments
from diptych.frechet.estimators import BatchOnly, MovingAverage, PopulationEstimator, Queue
from diptych.frechet.gradient import FrechetReference, frechet_to_reference
from diptych.frechet.loss import FDLoss, Representation
from diptych.frechet.warm_route import WarmRoute

DIM, BATCH = 96, 48
SCALES = torch.logspace(0, -2, DIM, dtype=torch.float64)  # variances over four decades
ESTIMATORS = {
    "average": lambda: MovingAverage(DIM, 0.99),
    "queue": lambda: Queue(DIM, 100 * BATCH),
    "batch": BatchOnly,
}


def drawn(num: int, seed: int, shift: float = 1.0) -> torch.Tensor:
    """Features of a generator that mixes the axes of the real ones."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, DIM, generator=generator, dtype=torch.float64) * SCALES
    mix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (rows + 0.3 * rows @ mix / DIM**0.5) * shift


def real_moments() -> FrechetReference:
    moments = Moments(DIM)
    generator = torch.Generator().manual_seed(1)
    moments.update(torch.randn(20 * DIM, DIM, generator=generator, dtype=torch.float64) * SCALES)
    return FrechetReference.of(moments)


def warm(estimator: PopulationEstimator) -> PopulationEstimator:
    estimator.warm_start(drawn(100 * BATCH, 2).float())
    return estimator


def gradient_of(estimator, rows, reference, route=None) -> tuple[torch.Tensor, torch.Tensor]:
    features = rows.clone().requires_grad_()
    distance = frechet_to_reference(*estimator.population(features), reference, route=route)
    return distance.detach(), torch.autograd.grad(distance, features)[0]


@pytest.mark.parametrize("kind", ["average", "queue"])
def test_gradients_are_as_exact_as_measured(kind):
    reference, route, estimator = real_moments(), WarmRoute(), warm(ESTIMATORS[kind]())
    errors = []
    for step in range(25):
        rows = drawn(BATCH, 10 + step, shift=1 - 0.002 * step).float()
        distance, gradient = gradient_of(estimator, rows, reference, route)
        expected_distance, expected = gradient_of(estimator, rows, reference)
        error = ((gradient - expected).norm() / expected.norm()).item()
        assert error <= 1e-4
        if route.last_error:
            errors.append(error)
            assert error <= route.last_error <= 1e-4
            assert route.last_error < 20 * error + 1e-6  # an estimate, not an excuse
            assert distance.item() == pytest.approx(expected_distance.item(), rel=1e-4)
        estimator.commit()
    assert route.num_warm >= 20
    assert route.num_warm + route.num_exact == 25
    assert max(errors) > 0


def test_float64_follows_where_float32_rounds_too_much():
    reference, estimator = real_moments(), warm(ESTIMATORS["average"]())
    routes = {dtype: WarmRoute(dtype=dtype, tolerance=1e-7, max_turns=8) for dtype in (torch.float32, torch.float64)}
    for step in range(4):
        rows = drawn(BATCH, 10 + step)
        _, expected = gradient_of(estimator, rows, reference)
        for route in routes.values():
            _, gradient = gradient_of(estimator, rows, reference, route)
            assert (gradient - expected).norm() <= 1e-7 * expected.norm()
        estimator.commit()
    assert (routes[torch.float32].num_warm, routes[torch.float64].num_warm) == (0, 3)


def test_a_jump_is_answered_by_the_exact_route():
    reference, route, estimator = real_moments(), WarmRoute(), warm(MovingAverage(DIM, 0.99))
    for step in range(3):
        gradient_of(estimator, drawn(BATCH, 10 + step), reference, route)
        estimator.commit()
    assert (route.num_exact, route.num_warm) == (1, 2)
    other = MovingAverage(DIM, 0.99)
    other.warm_start(drawn(100 * BATCH, 3).roll(7, 1))
    rows = drawn(BATCH, 20)
    found = gradient_of(other, rows, reference, route)
    assert (route.num_exact, route.last_error) == (2, 0.0)
    for ours, exact in zip(found, gradient_of(other, rows, reference), strict=True):
        assert torch.equal(ours, exact)


def test_a_singular_population_is_never_followed():
    reference, route = real_moments(), WarmRoute()
    for step in range(3):  # 48 rows of 96 dimensions
        rows = drawn(BATCH, 10 + step)
        _, gradient = gradient_of(BatchOnly(), rows, reference, route)
        assert torch.equal(gradient, gradient_of(BatchOnly(), rows, reference)[1])
    assert (route.num_exact, route.num_warm) == (3, 0)


def test_without_gradient_nothing_is_followed():
    reference, route, estimator = real_moments(), WarmRoute(), warm(ESTIMATORS["average"]())
    with torch.no_grad():
        frechet_to_reference(*estimator.population(drawn(BATCH, 5)), reference, route=route)
    assert (route.num_exact, route.num_warm) == (0, 0)


def test_resume_is_equal_to_the_bit_and_goes_with_and_without_a_route():
    def make(route: WarmRoute | None) -> FDLoss:
        estimator = MovingAverage(DIM, 0.99)
        return FDLoss({"x": Representation(reference=real_moments(), estimator=estimator, route=route)})

    def step(loss: FDLoss, seed: int) -> torch.Tensor:
        features = drawn(BATCH, seed).float().requires_grad_()
        (gradient,) = torch.autograd.grad(loss({"x": features}).loss, features)
        loss.commit()
        return gradient

    straight, resumed, with_none, cold = make(WarmRoute()), make(WarmRoute()), make(None), make(WarmRoute())
    straight.warm_start({"x": drawn(100 * BATCH, 2)})
    assert straight.route_metrics() == {"fd_exact/x": 0.0, "fd_error/x": 0.0}
    for seed in range(3):
        step(straight, seed)
    tensors = {name: value.clone() for name, value in straight.tensors().items()}
    resumed.load_tensors(tensors)
    with_none.load_tensors(tensors)  # what a route kept is left out
    cold.load_tensors(with_none.tensors())  # begins exact
    followed, exact = step(straight, 3), step(with_none, 3)
    assert torch.equal(step(resumed, 3), followed)
    assert torch.equal(step(cold, 3), exact)
    assert not torch.equal(followed, exact)
    assert straight.route_metrics()["fd_exact/x"] == 1
    assert 0 < straight.route_metrics()["fd_error/x"] <= 1e-4
    assert with_none.route_metrics() == {}


def test_refusals():
    with pytest.raises(ValueError, match=r"WarmRoute.tolerance must be positive, got 0.0"):
        WarmRoute(tolerance=0.0)
    with pytest.raises(ValueError, match=r"WarmRoute.max_turns must be at least 2, got 1"):
        WarmRoute(max_turns=1)
    with pytest.raises(ValueError, match=r"WarmRoute expects a state of .*, got \['scaled'\]"):
        WarmRoute().load_state_dict({"scaled": None})
    assert WarmRoute.within(None) is None
