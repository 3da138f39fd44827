"""Where the parts of a model are in inference: taken in turn by one device, or each on a device of its own.

A picture is made in three stages, one after the other for a whole batch: the backbone reads (with what encodes pictures
of the prompt, where there are any), the denoiser draws features, the generation space renders them. So a device that
is given only what the present stage runs must hold the largest of the three instead of their sum. What is small
(queries, connectors) stays where the backbone runs.
"""

from collections.abc import Mapping
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
        _move_small(model, self._movable, self.device)

    def device_of(self, part: str) -> torch.device:
        """Where a part runs: wherever the others do."""
        return self.device

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


class PartDevices:
    """Parts on devices of their own, for good, as ``device_map`` of transformers has it for layers.

    Attributes:
        device: the backbone's, where prompts are read; ``model.device`` while a placement is set.
    """

    def __init__(self, model: nn.Module, devices: Mapping[str, torch.device | str]) -> None:
        """Moves the parts.

        Args:
            devices: of the backbone, and of ``encoder``, ``denoiser`` and ``autoencoder`` that are not to be with it.

        Raises:
            ValueError: a part that the model has not, or none for the backbone.
        """
        parts = _movable(model)
        unknown = [name for name in devices if name not in parts]
        if unknown:
            raise ValueError(
                f"device names {', '.join(unknown)}, which can't be placed; this model's parts are {', '.join(parts)}."
            )
        if "backbone" not in devices:
            raise ValueError("device places parts, but not the backbone. Name its device too: backbone=cuda:0,….")
        self._devices = {name: torch.device(device) for name, device in devices.items()}
        self.device = self._devices["backbone"]
        for name, part in parts.items():
            part.to(self.device_of(name))
        _move_small(model, parts, self.device)

    def device_of(self, part: str) -> torch.device:
        """Where a part runs."""
        return self._devices.get(part, self.device)

    def enter(self, stage: Stage) -> None:
        """Nothing moves."""


def _move_small(model: nn.Module, parts: Mapping[str, nn.Module], device: torch.device) -> None:
    """Moves what is in none of the parts."""
    elsewhere = {id(tensor) for part in parts.values() for tensor in _tensors(part)}
    for module in model.modules():
        if any(id(tensor) not in elsewhere for tensor in _own_tensors(module)):
            module._apply(lambda tensor: tensor.to(device), recurse=False)


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
