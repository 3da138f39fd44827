"""When a loss is no longer a number: which module made it so, and with which batch."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.train.sharding import local


class NonFiniteLoss(RuntimeError):
    """The loss or a gradient is nan or infinite; the batch was saved and no weight was changed by it."""


def find_culprit(model: nn.Module, run_forward: Callable[[], Mapping[str, Tensor]]) -> str:
    """A sentence on where nan or inf first appears: weights, a module's output, an objective, or the backward pass.

    Args:
        run_forward: runs the forward pass again as it was and returns the losses by name.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not _is_finite(tensor):
            return f"the weight {name} itself is not finite"
    found: list[str] = []

    def check(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if not found and any(not _is_finite(tensor) for _, tensor in _tensors(output)):
                was_fine = all(_is_finite(tensor) for _, tensor in _tensors(inputs))
                received = "from finite inputs" if was_fine else "already given non-finite inputs"
                found.append(f"the module {name} ({type(module).__name__}) gives non-finite values {received}")

        return hook

    handles = [module.register_forward_hook(check(name, module)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            losses = run_forward()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    bad = [name for name, loss in losses.items() if not _is_finite(loss)]
    if bad:
        return f"the objective {bad[0]} gives a non-finite loss from finite outputs of all modules"
    gradients = [name for name, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    if gradients:
        # The backward pass runs from the last module to the first, so the last one of them was reached first.
        return f"the forward pass is finite, but the backward pass gives a non-finite gradient for {gradients[-1]}"
    return "running the step again gave finite values only, so the fault does not repeat (a hardware fault?)"


def save_batch(folder: Path, batch: Any, facts: Mapping[str, Any]) -> None:
    """Writes a batch for a later look: its tensors to ``batch.safetensors``, all else to ``batch.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name or "batch": tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(batch)}
    save_file(tensors, folder / "batch.safetensors")
    shapes = {name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype)} for name, tensor in tensors.items()}
    text = json.dumps({**facts, "tensors": shapes, "batch": type(batch).__name__}, indent=2, default=repr)
    (folder / "batch.json").write_text(text + "\n", encoding="utf-8")


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside dataclasses, dicts, lists and tuples, by dotted name."""
    if isinstance(value, Tensor):
        yield name, value
        return
    children: Mapping[Any, Any] = {}
    if is_dataclass(value) and not isinstance(value, type):
        children = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, Mapping):
        children = value
    elif isinstance(value, list | tuple):
        children = dict(enumerate(value))
    for key, child in children.items():
        yield from _tensors(child, f"{name}.{key}" if name else str(key))


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(local(tensor)).all())
