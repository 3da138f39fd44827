"""Parts of saved models in a new one: what a recipe's ``model.start_from`` names."""

from collections.abc import Mapping

from diptych.unified.folder import load_part
from diptych.unified.model import UnifiedModel

_SIZES = ("channels", "stride", "dim", "patch_size", "vocab_size", "num_queries", "first_token", "num_codes")


def take_parts(model: UnifiedModel, start_from: Mapping[str, str]) -> None:
    """Puts parts of saved models into the model, in the given order.

    Args:
        start_from: part -> model it is taken from; ``PART.MODULE`` takes the weights of one module inside a part.

    Raises:
        ValueError: there is no such part, or it has other sizes.
    """
    for name, source in start_from.items():
        if "." in name:
            _take_weights(model, name, source)
            continue
        if name not in model.parts():
            raise ValueError(f"model.start_from: there is no part {name!r}; parts are {', '.join(model.parts())}.")
        part = load_part(source, name)
        for size in _SIZES:
            given, expected = getattr(part, size, None), getattr(model.parts()[name], size, None)
            if given != expected:
                raise ValueError(
                    f"model.start_from: the {name} of {source} has {size} {given}, the recipe's has {expected}. "
                    "Give the recipe's the same sizes."
                )
        setattr(model, name, part)


def _take_weights(model: UnifiedModel, name: str, source: str) -> None:
    """Weights of one module inside a part from the same module of a saved model."""
    part, inner = name.split(".", 1)
    try:
        model.parts()[part].get_submodule(inner).load_state_dict(
            load_part(source, part).get_submodule(inner).state_dict()
        )
    except (KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"model.start_from: {name} of {source} does not fit the recipe's: {error}") from error
