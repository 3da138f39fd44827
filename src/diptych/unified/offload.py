"""Inference in little device memory: only what the present stage runs is on the device, the rest waits in main memory.

A picture is made in three stages, one after the other for a whole batch: the backbone reads (with what encodes pictures
of the prompt, where there are any), the denoiser draws features, the generation space renders them. So a device must
hold the largest of the three instead of their sum. What is small (queries, connectors) stays on the device.
"""

from typing import Any, Literal, TypeAlias

import torch
from torch import nn

Stage: TypeAlias = Literal["read", "read pictures", "draw", "render"]

HOME = torch.device("cpu")


class StagedPlacement:
    """Moves the parts of a model between main memory and a device, as the stages of inference need them.

    Attributes:
        device: where stages run; ``model.device`` while a placement is set.
        present: names of the movable parts that are on the device.
        moves: every move so far, ``("backbone", "in")`` or ``("backbone", "out")``.
    """

    def __init__(self, model: nn.Module, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._movable = _movable(model)
        self._sees_with = "encoder" if "encoder" in self._movable else "autoencoder"
        self.present: set[str] = set()
        self.moves: list[tuple[str, str]] = []
        for part in self._movable.values():
            part.to(HOME)
        moved = {id(tensor) for part in self._movable.values() for tensor in _tensors(part)}
        for module in model.modules():  # what is small
            if any(id(tensor) not in moved for tensor in _own_tensors(module)):
                module._apply(self._to_device, recurse=False)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)

    def enter(self, stage: Stage) -> None:
        """Makes room for a stage, then brings in what it runs; nothing moves if that is there already."""
        needed = self._parts_of(stage)
        for name in sorted(self.present - needed):
            self._move(name, HOME)
            self.present.remove(name)
            self.moves.append((name, "out"))
        for name in sorted(needed - self.present):
            self._move(name, self.device)
            self.present.add(name)
            self.moves.append((name, "in"))

    def _move(self, name: str, device: torch.device) -> None:
        # Stages run in inference mode, where a moved parameter could no longer be moved or trained outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._movable[name].to(device)

    def _parts_of(self, stage: Stage) -> set[str]:
        parts = {
            "read": {"backbone"},
            "read pictures": {"backbone", self._sees_with},
            "draw": {"denoiser"},
            "render": {"autoencoder"},
        }[stage]
        return parts & self._movable.keys()


def _movable(model: Any) -> dict[str, nn.Module]:
    found = {
        "backbone": model.backbone,
        "encoder": model.encoder,
        "denoiser": getattr(model.image_head, "denoiser", None),
        "autoencoder": model.autoencoder,
    }
    return {name: part for name, part in found.items() if isinstance(part, nn.Module)}


def _tensors(part: nn.Module) -> list[torch.Tensor]:
    return [*part.parameters(), *part.buffers()]


def _own_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]
