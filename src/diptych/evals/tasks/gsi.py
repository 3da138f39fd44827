"""GSI-Bench on the built-in world (``scenes.spatial_edits``, ``scenes.spatial_scores``): edits told in numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from diptych.data.example import ImageIn, Pixels, Text
from diptych.evals.protocol import Output, Request
from diptych.evals.score import reference_tables
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.scenes import SceneItems
from diptych.scenes.doundo import TOLERANCE
from diptych.scenes.edit_checks import DEFAULT_TOLERANCE
from diptych.scenes.scores import ScoreTable, mean_score, score_table
from diptych.scenes.spatial_edits import HELD_OUT, SpatialItem, spatial_items
from diptych.scenes.spatial_scores import LOCALITY, SPATIAL, Columns, spatial_score

COLUMNS = {
    "compliance": "instruction compliance",
    "accuracy": "spatial accuracy",
    "locality": "edit locality",
    "appearance": "appearance consistency",
}
"""Names of the four numbers, IC, SA, EL and AC."""

_ZERO = asdict(Columns(0.0, 0.0, 0.0, 0.0))
_NOTHING = {"gated": _ZERO, "ungated": _ZERO, "exact": False, "distance_error": None}
"""The verdict on what is missing."""


@dataclass(frozen=True, kw_only=True)
class SpatialCompliance(SceneItems):
    """Pictures to be changed by told distances and factors."""

    name: str = "gsi"
    needs: tuple[str, ...] = ("image_edit",)

    @property
    def label(self) -> str:
        return SPATIAL + self.mark

    @cached_property
    def items(self) -> dict[str, SpatialItem]:
        return {item.id: item for item in spatial_items(self.split, self.num_per_category, self.seed)}

    def requests(self) -> list[Request]:
        """Item i has the seed ``seed + i``."""
        requests = []
        for place, (name, item) in enumerate(self.items.items()):
            edit = item.spatial.edit
            parts = (ImageIn(self._picture(edit.source)), Text(edit.instruction))
            requests.append(Request(name, "image", parts, self.seed + place))
        return requests

    def judge_record(self) -> dict[str, Any]:
        return {
            **super().judge_record(),
            "color_difference": TOLERANCE,
            "locality": LOCALITY,
            "tolerance": asdict(DEFAULT_TOLERANCE),
        }

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        verdicts = []
        for request, image in zip(requests, outputs, strict=True):
            assert isinstance(image, np.ndarray)
            score = spatial_score(self.items[request.id].spatial, image)
            verdicts.append(
                {
                    "gated": asdict(score.gated),
                    "ungated": asdict(score.ungated),
                    "exact": score.is_exact,
                    "distance_error": score.distance_error,
                }
            )
        return verdicts

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return [
            Unit(
                name,
                self.items[name].spatial.operation,
                name,
                Columns(**verdict["gated"]).average,
                "" if verdict["exact"] else "not exactly as told",
            )
            for name, verdict in self._present(verdicts).items()
        ]

    def _present(self, verdicts: Verdicts) -> dict[str, Mapping[str, Any]]:
        """Verdicts in the order of the items; on what is missing, zeros."""
        return {name: verdicts[name] or _NOTHING for name in self.items if name in verdicts}

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        units, present = self.units(verdicts), self._present(verdicts)
        table = score_table(self.label, contender, [unit.category for unit in units], [unit.value for unit in units])
        rows = {
            f"{title}{suffix}": mean_score([verdict[gating][column] for verdict in present.values()])
            for gating, suffix in (("gated", ""), ("ungated", ", ungated"))
            for column, title in COLUMNS.items()
        }
        rows["exactly as told"] = mean_score([verdict["exact"] for verdict in present.values()])
        return replace(table, categories={**table.categories, **rows}, details=self._details(present))

    def _details(self, present: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        operations = dict.fromkeys(self.items[name].spatial.operation for name in present)
        by_operation = {
            operation: _summary([v for name, v in present.items() if self.items[name].spatial.operation == operation])
            for operation in operations
        }
        told = {name: self.items[name].spatial for name in present}
        placed = [name for name in present if told[name].operation in ("move", "place", "point")]
        return {
            "overall_is": "the mean over the operations of (IC + SA + EL + AC) / 4, gated as published.",
            "by_operation": by_operation,
            "numbers": {
                "held_out": list(HELD_OUT),
                "trained": _summary([present[name] for name in placed if not told[name].is_held_out]),
                "unseen": _summary([present[name] for name in placed if told[name].is_held_out]),
            },
        }

    def references(self) -> list[ScoreTable]:
        return reference_tables(self, self.image_size)

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        """``oracle``: the target drawn; ``chance``: the target of another item, of another operation."""
        names = list(self.items)
        place = names.index(request.id) + (len(names) // 2 if reference == "chance" else 0)
        return self._picture(self.items[names[place % len(names)]].spatial.edit.target)


def _summary(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Means of all numbers; None of nothing."""
    if not verdicts:
        return None
    errors = [verdict["distance_error"] for verdict in verdicts if verdict["distance_error"] is not None]
    return {
        "count": len(verdicts),
        **{
            f"{column}{suffix}": float(np.mean([verdict[gating][column] for verdict in verdicts]))
            for gating, suffix in (("gated", ""), ("ungated", "_ungated"))
            for column in COLUMNS
        },
        "exact": float(np.mean([verdict["exact"] for verdict in verdicts])),
        "distance_error": float(np.mean(errors)) if errors else None,
        "num_found": len(errors),
    }
