"""FD-loss: the Fréchet distance of a generated population to real statistics, as a loss for the generator.

    L = sum_i w_i FD_i / (sg[FD_i] + c)        (sg: no gradient; c = 0.01)

over representations i, each with its own reference and estimator. The value stays near ``sum w_i``; the distances tell
the progress. Differences from the paper's code: the gradient is in closed form and finite where covariances are
singular (``gradient``), features that are not finite stop the run instead of passing a constant, and a term may be
divided by a fixed validation distance instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.frechet.estimators import PopulationEstimator
from diptych.frechet.gradient import FrechetReference, frechet_to_reference
from diptych.frechet.moments import check_finite_rows
from diptych.frechet.warm_route import WarmRoute

_ROUTE = "route."


@dataclass(frozen=True, kw_only=True)
class Representation:
    """One feature space of the loss."""

    reference: FrechetReference
    """Statistics of real images."""
    estimator: PopulationEstimator
    """Whom the batch stands for."""
    weight: float = 1.0
    """w."""
    validation_distance: float | None = None
    """If given, the term is ``FD / validation_distance``, the FDr of the papers; if None, ``FD / (sg[FD] + c)``."""
    route: WarmRoute | None = None
    """If given, gradients come by products of matrices where those are exact enough. Not shared."""

    def __post_init__(self) -> None:
        if self.validation_distance is not None and self.validation_distance <= 0:
            raise ValueError(
                f"representation.validation_distance must be positive, got {self.validation_distance}. "
                "None divides by the distance itself."
            )

    def state_dict(self) -> dict[str, Any]:
        """Of the estimator and, named ``route.FIELD``, of the route."""
        route = {} if self.route is None else self.route.state_dict()
        return {**self.estimator.state_dict(), **{_ROUTE + key: value for key, value in route.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another was. Without the state of a route this one begins exact; one too many is left out."""
        self.estimator.load_state_dict({key: value for key, value in state.items() if not key.startswith(_ROUTE)})
        route = {key.removeprefix(_ROUTE): value for key, value in state.items() if key.startswith(_ROUTE)}
        if self.route is not None and route.get("num_exact") is not None:
            self.route.load_state_dict(route)


@dataclass(frozen=True, kw_only=True)
class FDLossResult:
    """What one step gives."""

    loss: Float[Tensor, ""]
    """float32, float64 if all features are."""
    distances: dict[str, Float[Tensor, ""]]
    """By representation, float64, without gradient: what to log."""


class FDLoss:
    """The loss of one generator; ``loss(features).loss.backward()``, an optimizer step, then ``loss.commit()``."""

    def __init__(
        self,
        representations: Mapping[str, Representation],
        *,
        constant: float = 0.01,
        relative_cutoff: float = 1e-13,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Composes the representations.

        Args:
            constant: c; it stops a term from growing while its distance vanishes.
            relative_cutoff: see `frechet_to_reference`.
            gather: makes the features of all processes out of those of this one, as ``gather.gather_features`` does.
        """
        if not representations:
            raise ValueError("FDLoss needs at least one representation, got none.")
        self.representations = dict(representations)
        self.constant = constant
        self.relative_cutoff = relative_cutoff
        self.gather = gather

    def __call__(self, features: Mapping[str, Float[Tensor, "_ _"]]) -> FDLossResult:
        """The loss of a batch; the representations may have batches of different sizes.

        Raises:
            ValueError: representations that are missing or unknown, features that are not finite (rows named).
        """
        if set(features) != set(self.representations):
            raise ValueError(f"features must be of {sorted(self.representations)}, got {sorted(features)}.")
        terms, distances = [], {}
        for name, representation in self.representations.items():
            batch = features[name]
            dim = len(representation.reference.mean)
            if batch.shape[1] != dim:
                raise ValueError(f"features of {name} must have the reference's width {dim}, got {batch.shape[1]}.")
            check_finite_rows(batch, f"features of {name}")
            batch = batch if self.gather is None else self.gather(batch)
            mean, covariance = representation.estimator.population(batch)
            distance = frechet_to_reference(
                mean, covariance, representation.reference, self.relative_cutoff, representation.route
            )
            scale: Tensor | float | None = representation.validation_distance
            if scale is None:
                scale = distance.detach() + self.constant
            terms.append(representation.weight * distance / scale)
            distances[name] = distance.detach()
        loss = torch.stack(terms).sum()
        is_double = all(batch.dtype == torch.float64 for batch in features.values())
        return FDLossResult(loss=loss if is_double else loss.float(), distances=distances)

    def warm_start(self, features: Mapping[str, Float[Tensor, "_ _"]]) -> None:
        """Starts every estimator with features of the generator as it is; all processes must give the same."""
        for name, representation in self.representations.items():
            check_finite_rows(features[name], f"features of {name}")
            representation.estimator.warm_start(features[name])

    def commit(self) -> None:
        """Takes the last batch into the populations."""
        for representation in self.representations.values():
            representation.estimator.commit()

    def route_metrics(self) -> dict[str, float]:
        """``fd_exact/NAME``, how many steps took the exact route, and ``fd_error/NAME``, the error of the last."""
        routes = {name: one.route for name, one in self.representations.items() if one.route is not None}
        exact = {f"fd_exact/{name}": float(route.num_exact) for name, route in routes.items()}
        return exact | {f"fd_error/{name}": route.last_error for name, route in routes.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state of every estimator and, named ``route.FIELD``, of every route, by representation."""
        return {name: one.state_dict() for name, one in self.representations.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a loss of the same representations was."""
        if set(state) != set(self.representations):
            raise ValueError(f"FDLoss has {sorted(self.representations)}, the state {sorted(state)}.")
        for name, one in self.representations.items():
            one.load_state_dict(state[name])

    def tensors(self) -> dict[str, Tensor]:
        """`state_dict` for files that hold tensors alone: ``representation/field``, numbers too, what is None not."""
        return {
            f"{name}/{key}": torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
            for name, fields in self.state_dict().items()
            for key, value in fields.items()
            if value is not None
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `tensors` gave.

        Raises:
            ValueError: they are of another representation.
        """
        state: dict[str, dict[str, Any]] = {name: dict.fromkeys(fields) for name, fields in self.state_dict().items()}
        for path, tensor in tensors.items():
            name, key = path.rsplit("/", 1)
            if name not in state:
                raise ValueError(f"the saved state is of the representation {name!r}; there are {', '.join(state)}.")
            state[name][key] = tensor.item() if tensor.ndim == 0 else tensor
        self.load_state_dict(state)
