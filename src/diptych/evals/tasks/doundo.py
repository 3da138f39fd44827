"""Do-Undo Bench on the built-in world (``scenes.doundo``): an edit, and its taking back from what the edit led to."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from diptych.data.example import ImageIn, Pixels, Text
from diptych.evals.protocol import Earlier, Output, Request
from diptych.evals.score import reference_tables
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.scenes import SceneItems
from diptych.scenes.doundo import (
    CONTROL,
    DOUNDO,
    DOUNDO_KINDS,
    TOLERANCE,
    DoUndoItem,
    composite,
    doundo_items,
    guess_bound,
    score_step,
)
from diptych.scenes.edit_checks import DEFAULT_TOLERANCE
from diptych.scenes.edits import Edit
from diptych.scenes.scores import ScoreTable, mean_score, score_table

_NOTHING = {"edited": 0.0, "kept": 0.0, "iou": 0.0, "progress": 0.0, "state": False, "away": None}
"""The verdict on what is missing."""


@dataclass(frozen=True)
class Step:
    """One request of an item."""

    name: str
    """``do-1``, ``undo-1``, ``undo-true``, ``do-2``, ``undo-2``, …"""
    edit: Edit
    earlier: str = ""
    """The step whose picture is edited; empty: the exact source of the edit."""


@dataclass(frozen=True, kw_only=True)
class DoUndo(SceneItems):
    """Every edit done and taken back ``rounds`` times in a row, and once taken back from the true picture."""

    name: str = "do-undo"
    rounds: int = 1
    needs: tuple[str, ...] = ("image_edit",)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"do-undo: rounds must be at least 1, got {self.rounds}. --rounds says how many.")

    @property
    def label(self) -> str:
        return DOUNDO + self.mark

    def config(self) -> dict[str, Any]:
        return {**super().config(), "rounds": self.rounds}

    def judge_record(self) -> dict[str, Any]:
        return {**super().judge_record(), "color_difference": TOLERANCE, "tolerance": asdict(DEFAULT_TOLERANCE)}

    @cached_property
    def items(self) -> dict[str, DoUndoItem]:
        return {item.id: item for item in doundo_items(self.split, self.num_per_category, self.seed)}

    def steps(self, item: DoUndoItem) -> list[Step]:
        """What is asked about an item, in order."""
        steps = [Step("do-1", item.forward), Step("undo-1", item.undo, "do-1"), Step("undo-true", item.undo)]
        for number in range(2, self.rounds + 1):
            steps.append(Step(f"do-{number}", item.forward, f"undo-{number - 1}"))
            steps.append(Step(f"undo-{number}", item.undo, f"do-{number}"))
        return steps

    @cached_property
    def _asked(self) -> dict[str, tuple[DoUndoItem, Step]]:
        return {f"{item.id}/{step.name}": (item, step) for item in self.items.values() for step in self.steps(item)}

    def requests(self) -> list[Request]:
        """Step k of item i has the seed ``seed + k * items + i``."""
        requests = []
        for place, item in enumerate(self.items.values()):
            for number, step in enumerate(self.steps(item)):
                seen = (
                    Earlier(f"{item.id}/{step.earlier}") if step.earlier else ImageIn(self._picture(step.edit.source))
                )
                parts = (seen, Text(step.edit.instruction))
                seed = self.seed + number * len(self.items) + place
                requests.append(Request(f"{item.id}/{step.name}", "image", parts, seed))
        return requests

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        return [
            self._verdict(self._asked[request.id][1], output) for request, output in zip(requests, outputs, strict=True)
        ]

    def _verdict(self, step: Step, output: Output) -> Verdict:
        assert isinstance(output, np.ndarray)
        score, state = score_step(step.edit, output)
        return {**asdict(score), "state": state}

    def _found(self, verdicts: Verdicts, item: DoUndoItem, step: str) -> Verdict | None:
        """The verdict on a step, nothing reached where it is missing; None where it is left out."""
        name = f"{item.id}/{step}"
        return (verdicts[name] or _NOTHING) if name in verdicts else None

    def _composites(self, verdicts: Verdicts, kinds: Sequence[str]) -> dict[str, float]:
        """By item, of items of which both steps are there or missing; those left out are left out."""
        found = {}
        for item in self.items.values():
            done, undone = self._found(verdicts, item, "do-1"), self._found(verdicts, item, "undo-1")
            if item.kind in kinds and done is not None and undone is not None:
                found[item.id] = composite(done["progress"], undone["iou"])
        return found

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return [
            Unit(name, self.items[name].kind, name, value, self._reason(verdicts, self.items[name]))
            for name, value in self._composites(verdicts, DOUNDO_KINDS).items()
        ]

    def _reason(self, verdicts: Verdicts, item: DoUndoItem) -> str:
        done, undone = self._found(verdicts, item, "do-1"), self._found(verdicts, item, "undo-1")
        assert done is not None and undone is not None
        said = ["not done"] if not done["state"] else []
        return "; ".join(said if undone["state"] else [*said, "the source did not come back"])

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        units = self.units(verdicts)
        if not units:
            raise ValueError(f"{self.label}: no edit has both of its pictures.")
        table = score_table(self.label, contender, [unit.category for unit in units], [unit.value for unit in units])
        rows = {name: mean_score(values) for name, values in self._columns(verdicts, DOUNDO_KINDS).items() if values}
        if control := self._both(verdicts, (CONTROL,)):
            rows[f"{CONTROL}, done and undone"] = mean_score(control)
        return replace(table, categories={**table.categories, **rows}, details=self._details(verdicts))

    def _column(self, verdicts: Verdicts, kinds: Sequence[str], step: str, field: str) -> list[float]:
        """One number of every verdict on a step; a progress is cut to [0, 1]."""
        found = [self._found(verdicts, item, step) for item in self.items.values() if item.kind in kinds]
        return [min(max(float(verdict[field]), 0.0), 1.0) for verdict in found if verdict is not None]

    def _columns(self, verdicts: Verdicts, kinds: Sequence[str]) -> dict[str, list[float]]:
        column = {
            name: self._column(verdicts, kinds, step, field)
            for name, step, field in (
                ("done", "do-1", "state"),
                ("undone", "undo-1", "state"),
                ("undone from the true picture", "undo-true", "state"),
                ("progress", "do-1", "progress"),
                ("edited region", "do-1", "edited"),
                ("kept region", "do-1", "kept"),
                ("returned region", "undo-1", "iou"),
                ("returned from the true picture", "undo-true", "iou"),
            )
        }
        return {"done and undone": self._both(verdicts, kinds), **column}

    def _both(self, verdicts: Verdicts, kinds: Sequence[str]) -> list[float]:
        """Of every item, whether the parser reads the target after doing and the source after undoing."""
        found = []
        for item in self.items.values():
            done, undone = self._found(verdicts, item, "do-1"), self._found(verdicts, item, "undo-1")
            if item.kind in kinds and done is not None and undone is not None:
                found.append(float(done["state"] and undone["state"]))
        return found

    def _details(self, verdicts: Verdicts) -> dict[str, Any]:
        rounds = []
        for number in range(1, self.rounds + 1):
            found = [
                verdict
                for item in self.items.values()
                if item.kind in DOUNDO_KINDS and (verdict := self._found(verdicts, item, f"undo-{number}")) is not None
            ]
            away = [verdict["away"] for verdict in found if verdict["away"] is not None]
            rounds.append(
                {
                    "round": number,
                    "returned_region": float(np.mean([verdict["iou"] for verdict in found])) if found else None,
                    "undone": float(np.mean([verdict["state"] for verdict in found])) if found else None,
                    "color_difference_from_source": float(np.mean(away)) if away else None,
                }
            )
        control = [item for item in self.items.values() if item.kind == CONTROL]
        return {
            "overall_is": f"the mean of {', '.join(DOUNDO_KINDS)}: sqrt(progress * returned region) of every edit.",
            "rounds": rounds,
            "control_guess": guess_bound(control),
        }

    def references(self) -> list[ScoreTable]:
        return reference_tables(self, self.image_size)

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        """``oracle``: what the edit leads to, drawn; ``chance``: what another item's leads to."""
        item, step = self._asked[request.id]
        if reference == "chance":
            names = list(self.items)
            other = self.items[names[(names.index(item.id) + len(names) // 2) % len(names)]]
            step = Step(step.name, other.undo if step.name.startswith("undo") else other.forward)
        return self._picture(step.edit.target)
