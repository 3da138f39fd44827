"""The weights a checkpoint keeps: every part that some stage trains; the others are known by their fingerprints.

Of a part with adapters the adapters are kept, and the rest is known by its fingerprint.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diptych.models.adapters import has_adapters, is_adapter
from diptych.train.parts import part_of, parts_of


def trained_weights(model: nn.Module, parts: set[str]) -> dict[str, Tensor]:
    """Parameters and saved buffers of the given parts, by name; what is tied, once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    adapted = _adapted(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if part_of(name) in adapted and not is_adapter(name):
            continue
        if part_of(name) in parts and isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


@torch.no_grad()
def load_trained_weights(model: nn.Module, parts: set[str], saved: Mapping[str, Tensor]) -> None:
    """Puts back what ``trained_weights`` gave.

    Raises:
        ValueError: the weights belong to another model.
    """
    own = trained_weights(model, parts)
    missing, extra = sorted(set(own) - set(saved)), sorted(set(saved) - set(own))
    shapes = [name for name in own if name in saved and own[name].shape != saved[name].shape]
    if missing or extra or shapes:
        raise ValueError(
            "the checkpoint's weights are of another model than the recipe builds: "
            f"missing {missing[:5]}, unknown {extra[:5]}, of another shape {shapes[:5]}."
        )
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def frozen_parts(model: nn.Module, trained: set[str]) -> set[str]:
    """Parts of which at least some weights are not saved: no stage trains them, or their adapters alone."""
    return (set(parts_of(model)) - trained) | _adapted(model)


def _adapted(model: nn.Module) -> set[str]:
    return {name for name, part in parts_of(model).items() if has_adapters(part)}


def fingerprints(model: nn.Module, parts: set[str]) -> dict[str, str]:
    """SHA-256 over the names, dtypes, shapes and bytes of each given part's tensors, adapters left out."""
    hashes = {part: hashlib.sha256() for part in sorted(parts)}
    for name, tensor in model.state_dict().items():
        if part_of(name) in parts and isinstance(tensor, Tensor) and not is_adapter(name):
            digest = hashes[part_of(name)]
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {part: digest.hexdigest() for part, digest in hashes.items()}


def check_fingerprints(model: nn.Module, saved: Mapping[str, str]) -> None:
    """Raises ``ValueError`` if a part that no stage trains is not the one that the run began with."""
    present = {part for part in saved if any(part_of(name) == part for name in model.state_dict())}
    now = fingerprints(model, present)
    for part, fingerprint in saved.items():
        if now.get(part) != fingerprint:
            raise ValueError(
                f"the frozen part {part!r} is not the one this run began with: its weights differ. Restore the file or "
                "model that the recipe takes it from, or start a new run."
            )
