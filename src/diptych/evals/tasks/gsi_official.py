"""GSI-Bench (arXiv 2604.20570) itself: its folders of pictures and instructions.

Pictures are made here and judged by the official scorer, whose detectors (DetAny3D, SAM, DINOv2) and judge of
appearance (Qwen3-VL) are not part of this package: ``--export`` writes the files that it reads, ``--verdicts`` reads
its results. The sums are those of its ``aggregate.py``, with intervals, by operation, and also without the gate.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diptych.data.example import ImageIn, Text
from diptych.evals.protocol import Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.doundo_official import file_image
from diptych.evals.tasks.gsi import COLUMNS
from diptych.evals.tasks.official_results import SpatialResults
from diptych.evals.tasks.published import NO_JUDGE, Published
from diptych.scenes.scores import ScoreTable, mean_score
from diptych.scenes.spatial_scores import Columns, gate

OPERATIONS = {
    "move": ("move", "shift", "relocate", "place", "put", "push", "pull"),
    "rotate": ("rotate", "turn", "spin"),
    "remove": ("remove",),
    "scale": ("scale", "resize", "make", "shrink", "reduce", "enlarge", "expand", "increase"),
    "view": ("view", "changeview", "look"),
}
"""Operation by the first word of an instruction, as the official scorer tells them apart."""

_SHAPES = {"original_bbox_3d": (7,), "new_bbox_3d": (7,), "camera_intrinsics": (3, 3)}
_SHAPES |= dict.fromkeys(("rotation_matrix", "new_rotation_matrix"), (3, 3))
_ALWAYS = ("original_bbox_3d", "camera_intrinsics", "rotation_matrix")
_ALSO = {"move": ("new_bbox_3d",), "scale": ("new_bbox_3d",), "rotate": ("new_rotation_matrix",)}
"""What the official scorer reads beside prompt and target, by operation; nothing of it is needed for a ``view``."""
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class SpatialQuery:
    """One instruction about one picture."""

    image_id: str
    query_id: str
    picture: str
    """Path of the source."""
    prompt: str
    target: str
    operation: str

    @property
    def name(self) -> str:
        """As the edited picture must be called."""
        return f"{self.image_id}_edit_{self.query_id}"


def read_queries(folder: str | Path) -> tuple[SpatialQuery, ...]:
    """Every ``<img_id>_edit_<query_id>.json`` of a folder with the source that belongs to it.

    Raises:
        FileNotFoundError: there is no such folder, or a source is missing.
        ValueError: the folder holds no instructions, or one of them is wrong; the message names file and key.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give --images a data set of GSI-Bench (fine_dataset).")
    files = sorted(folder.glob("*_edit_*.json"))
    if not files:
        raise ValueError(
            f"{folder} holds no <img_id>_edit_<query_id>.json. Give --images a data set of GSI-Bench (fine_dataset)."
        )
    return tuple(_query(path) for path in files)


def _query(path: Path) -> SpatialQuery:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: this is no JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is expected, got {type(content).__name__}.")
    for key in ("prompt", "target"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            raise ValueError(f"{path}: {key} must be a text, got {content.get(key)!r}.")
    operation = operation_of(content["prompt"])
    if not operation:
        known = ", ".join(word for words in OPERATIONS.values() for word in words)
        raise ValueError(f"{path}: prompt must begin with one of {known}, got {content['prompt']!r}.")
    if operation != "view":
        for key in (*_ALWAYS, *_ALSO.get(operation, ())):
            if not _has_shape(content.get(key), _SHAPES[key]):
                shape = " x ".join(map(str, _SHAPES[key]))
                raise ValueError(f"{path}: {key} must hold {shape} numbers, got {content.get(key)!r}.")
    image_id, _, query_id = path.stem.partition("_edit_")
    sources = [found for suffix in _SUFFIXES if (found := path.with_name(image_id + suffix)).is_file()]
    sources += [
        found
        for suffix in _SUFFIXES
        for found in sorted(path.parent.glob(f"{image_id}*{suffix}"))
        if "edit_" not in found.name
    ]
    if not sources:
        raise FileNotFoundError(f"{path}: there is no source {image_id}.jpg or .png beside it. Put it there.")
    return SpatialQuery(image_id, query_id, str(sources[0]), content["prompt"], content["target"], operation)


def operation_of(prompt: str) -> str:
    """The operation of an instruction; empty where its first word is of none."""
    if "camera" in prompt and "from the camera" not in prompt and "to the camera" not in prompt:
        return "view"
    words = prompt.lower().split(" ")
    first = words[1] if words[0] == "please" and len(words) > 1 else words[0]
    return next((operation for operation, verbs in OPERATIONS.items() if first in verbs), "")


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, list) and len(value) == shape[0] and all(_has_shape(item, shape[1:]) for item in value)


@dataclass(frozen=True, kw_only=True)
class SpatialOfficial(Published):
    """One picture for every instruction."""

    queries: tuple[SpatialQuery, ...]
    results: SpatialResults | None = None
    name: str = "gsi-official"
    needs: tuple[str, ...] = ("image_edit",)

    @cached_property
    def _asked(self) -> dict[str, SpatialQuery]:
        return {query.name: query for query in self.queries}

    def requests(self) -> list[Request]:
        """Instruction i has the seed ``seed + i``."""
        return [
            Request(
                query.name, "image", (ImageIn(file_image(Path(query.picture))), Text(query.prompt)), self.seed + place
            )
            for place, query in enumerate(self.queries)
        ]

    def export_names(self) -> dict[str, str]:
        """File by id of the request, as the official scorer reads them."""
        return {query.name: f"{query.name}.png" for query in self.queries}

    def judge_record(self) -> dict[str, Any]:
        return NO_JUDGE if self.results is None else self.results.record()

    def unready(self) -> str:
        if self.results is not None:
            return ""
        return (
            f"{self.name} is judged by the official scorer: write its pictures with --export DIR, and give --verdicts "
            "the folder of its results"
        )

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        if self.results is None:
            raise ValueError(f"{self.unready()}.")
        verdicts: list[Verdict] = []
        for request in requests:
            query = self._asked[request.id]
            key = f"{query.image_id}_{query.query_id}"
            found = self.results.by_key.get(key)
            if found is None:
                raise ValueError(f"the results of {self.results.name} lack {key}. Judge all pictures of this run.")
            ungated = Columns(
                found["compliance"], found["accuracy"], found["locality"] or 0.0, found["appearance"] or 0.0
            )
            gated = gate(ungated, least_locality=-math.inf)  # too little locality is in the results already
            verdicts.append({"gated": asdict(gated), "ungated": asdict(ungated)})
        return verdicts

    def units(self, verdicts: Verdicts) -> list[Unit]:
        zero = Columns(0.0, 0.0, 0.0, 0.0)
        return [
            Unit(
                name,
                query.operation,
                query.image_id,
                (Columns(**verdict["gated"]) if (verdict := verdicts[name]) else zero).average,
            )
            for name, query in self._asked.items()
            if name in verdicts
        ]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        """The mean of the four columns over all instructions, as published; bootstrapped over pictures."""
        units = self.units(verdicts)
        groups = [unit.group for unit in units]
        rows = {}
        for operation in dict.fromkeys(unit.category for unit in units):
            own = [unit for unit in units if unit.category == operation]
            rows[operation] = mean_score([unit.value for unit in own], [unit.group for unit in own])
        for gating, suffix in (("gated", ""), ("ungated", ", ungated")):
            for column, title in COLUMNS.items():
                values = [verdict[gating][column] if (verdict := verdicts[unit.id]) else 0.0 for unit in units]
                rows[f"{title}{suffix}"] = mean_score(values, groups)
        overall = mean_score([unit.value for unit in units], groups)
        details = {"overall_is": "the mean over all instructions of (IC + SA + EL + AC) / 4, gated as published."}
        return ScoreTable(self.label, contender, overall, rows, details)
