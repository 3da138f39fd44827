"""Reward models: a prompt and its picture go in, one number comes out, on a scale of its own.

HPSv2, HPSv3 and ImageReward are packages with weights that are not part of this one. A function of one's own calls
them (``FunctionReward``), or their numbers are read from a file (``read_rewards``).
"""

import hashlib
import importlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from diptych.data.example import Pixels
from diptych.evals.json_lines import json_lines
from diptych.evals.protocol import Failure

RewardFunction: TypeAlias = Callable[[Sequence[str], Sequence[Pixels]], Sequence[float]]
"""From prompts and their pictures (uint8 RGB) to a number for each."""


@runtime_checkable
class RewardModel(Protocol):
    """Rates pictures of prompts."""

    def record(self) -> dict[str, Any]:
        """JSON-able: ``name`` and ``revision``, which go into the record of every score."""
        ...

    def rate(self, ids: Sequence[str], prompts: Sequence[str], images: Sequence[Pixels]) -> Sequence[float | Failure]:
        """A number for each picture."""
        ...


@dataclass(frozen=True)
class FunctionReward:
    """A function as a reward model.

    Attributes:
        name: how reports name it: ``package.module:function``.
        revision: the function's ``revision`` attribute where it has one, else a digest of the source of its module.
    """

    function: RewardFunction
    name: str
    revision: str

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision}

    def rate(self, ids: Sequence[str], prompts: Sequence[str], images: Sequence[Pixels]) -> list[float | Failure]:
        """
        Raises:
            ValueError: the function returned another number of values.
        """
        values = list(self.function(prompts, images))
        if len(values) != len(ids):
            raise ValueError(f"{self.name} was given {len(ids)} pictures and returned {len(values)} numbers.")
        return [
            float(value) if _is_number(value) else Failure(f"{self.name} returned {value!r}, which is no number")
            for value in values
        ]


def named_function(name: str) -> FunctionReward:
    """The reward model ``package.module:function``.

    Raises:
        ValueError: there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"--judge {name}: the module {module_name} cannot be imported ({error}).") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"--judge {name}: {module_name} has no function {function_name!r}.")
    revision = getattr(function, "revision", None)
    if revision is None:
        revision = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:16]
    return FunctionReward(function, name, str(revision))


@dataclass(frozen=True)
class StoredRewards:
    """Numbers from a file.

    Attributes:
        by_id: of each picture, by id of its request.
    """

    by_id: Mapping[str, float]
    name: str
    revision: str

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision}

    def rate(self, ids: Sequence[str], prompts: Sequence[str], images: Sequence[Pixels]) -> list[float | Failure]:
        return [
            self.by_id[name] if name in self.by_id else Failure(f"the rewards of {self.name} lack {name}")
            for name in ids
        ]


def read_rewards(path: str | Path) -> StoredRewards:
    """JSON lines ``{"id", "reward"}``; a first line ``{"reward_model": NAME, "revision": TEXT}`` says whose they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong, or two lines are about one picture.
    """
    found: dict[str, float] = {}
    lines: dict[str, int] = {}
    about: dict[str, Any] = {}
    for number, record in json_lines(path):
        where = f"{path}, line {number}"
        if not found and "reward_model" in record:
            about = record
            continue
        name, value = record.get("id"), record.get("reward")
        is_number = isinstance(value, int | float) and _is_number(value)
        if not isinstance(name, str) or not name:
            raise ValueError(f'{where}: which picture is it? Give "id", as in manifest.jsonl.')
        if value is None or not is_number:
            raise ValueError(f"{where}: reward must be a number, got {value!r}.")
        if name in found:
            raise ValueError(f"{where}: line {lines[name]} is about the same picture, {name}. Remove one of them.")
        found[name], lines[name] = float(value), number
    if not found:
        raise ValueError(f"{path} holds no rewards.")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return StoredRewards(
        found, str(about.get("reward_model") or f"file {Path(path).name}"), str(about.get("revision") or digest)
    )


def write_rewards(path: str | Path, about: Mapping[str, Any], by_id: Mapping[str, float]) -> None:
    """Writes what ``read_rewards`` reads.

    Args:
        about: ``reward_model`` and ``revision``.
    """
    lines = [json.dumps(dict(about)), *(json.dumps({"id": name, "reward": value}) for name, value in by_id.items())]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
