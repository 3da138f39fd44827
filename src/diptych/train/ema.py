"""An exponential moving average of the trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diptych.train.sharding import from_local, local, sharded_like


class WeightAverage:
    """The average ``a <- d a + (1 - d) w`` in float32, starting from the weights at the start of the stage.

    The decay rises: ``d = min(decay, (1 + k) / (10 + k))`` at update k (from 0), so that the average is not held back
    by the starting weights in a short stage (Polyak averaging as the TensorFlow ``ExponentialMovingAverage`` warms up).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._parameters = dict(parameters)
        self._local = {name: local(parameter.detach()).float().clone() for name, parameter in parameters.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by name, sharded as the parameters are."""
        return {name: from_local(tensor, self._parameters[name]) for name, tensor in self._local.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are now."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        current = [local(parameter.detach()).float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self._local.values()), current, 1 - decay)
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again, to the bit."""
        own = {name: local(parameter.detach()).clone() for name, parameter in self._parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            _copy(own, self._model())

    def copy_to_model(self) -> None:
        """Gives the model the averaged weights for good."""
        _copy(self._local, self._model())

    def _model(self) -> dict[str, Tensor]:
        return {name: local(parameter.detach()) for name, parameter in self._parameters.items()}

    def load(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Puts back a saved average.

        Raises:
            ValueError: the tensors belong to other parameters.
        """
        if set(tensors) != set(self._local):
            missing, extra = sorted(set(self._local) - set(tensors)), sorted(set(tensors) - set(self._local))
            raise ValueError(f"the saved weight average is of another model: missing {missing}, unknown {extra}.")
        _copy(
            {name: local(sharded_like(tensor, self._parameters[name])) for name, tensor in tensors.items()}, self._local
        )
        self.num_updates = num_updates


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
