"""Do-Undo Bench (arXiv 2512.13609) itself: its annotations, on frames of EPIC-KITCHENS.

Pictures are made here and judged by the official ``eval.py``, whose networks (LaViLA, RAFT, DINOv2, CLIP) are not part
of this package: ``--export`` writes the files that it reads, ``--verdicts`` reads the table that it writes. The
released inference undoes from the true end frame; beside it the picture that the forward edit led to is undone.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.example import ImageIn, LazyImage, Part, Pixels, Text, pil_to_pixels
from diptych.data.picture_files import read_picture
from diptych.evals.protocol import Earlier, Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.official_results import DoUndoResults
from diptych.evals.tasks.published import NO_JUDGE, Published
from diptych.scenes.scores import Score, ScoreTable, mean_score

DIRECTIONS = {
    "fwd": {"DINO-F": "dino_score_f", "CLIP": "clip_score_f", "A-F": "fwd_verb_correct", "N-F": "fwd_noun_correct"},
    "rev": {"DINO-R": "dino_score_r", "A-R": "rev_verb_correct", "N-R": "rev_noun_correct"},
}
"""Columns of the paper's table by direction, with what ``eval.py`` calls them."""
ERRORS = {"fwd": {"EPE-F": "epe_fwd"}, "rev": {"EPE-R": "epe_rev"}}
"""In pixels at 512 x 512; smaller is better."""
_HEADLINE = ("DINO-F", "DINO-R")


@dataclass(frozen=True)
class DoUndoRow:
    """One annotation."""

    id: str
    start: str
    """Path of the frame before, below the folder of frames."""
    end: str
    forward_prompt: str
    reverse_prompt: str


def read_annotations(path: str | Path) -> tuple[DoUndoRow, ...]:
    """The rows of ``annotations_test.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no JSON array, or a row of it is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Give --prompts annotations_test.json of Do-Undo Bench.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON ({error}). Give --prompts annotations_test.json of Do-Undo Bench."
        ) from None
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: a JSON array of annotations is expected, got {type(content).__name__}.")
    rows: dict[str, DoUndoRow] = {}
    for number, record in enumerate(content):
        where = f"{path}, row {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a JSON object is expected, got {type(record).__name__}.")
        row = _row(record, where)
        if row.id in rows:
            raise ValueError(f"{where}: narration_id {row.id!r} stands twice. Remove one of the rows.")
        rows[row.id] = row
    return tuple(rows.values())


def _row(record: Mapping[str, Any], where: str) -> DoUndoRow:
    name = record.get("narration_id")
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"{where}: narration_id must be a name without a slash, got {name!r}.")
    prompts = [_prompt(record.get(key), f"{where}: {key}") for key in ("forward_prompt", "reverse_prompt")]
    return DoUndoRow(name, _frame(record, "start", where), _frame(record, "stop", where), *prompts)


def _prompt(value: Any, where: str) -> str:
    """A prompt, or the first of a list of prompts that is written as text."""
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        with suppress(SyntaxError, ValueError):
            value = ast.literal_eval(value.strip())
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} must be a text, got {value!r}.")
    return value.strip()


def _frame(record: Mapping[str, Any], which: str, where: str) -> str:
    """``<participant>/rgb_frames/<video>/frame_<ten digits>.jpg``."""
    number = record.get(f"{which}_frame")
    try:
        number = int(str(number))
    except ValueError:
        raise ValueError(f"{where}: {which}_frame must be a whole number, got {number!r}.") from None
    for key in ("participant_id", "video_id"):
        if not isinstance(record.get(key), str) or not record[key]:
            raise ValueError(f"{where}: {key} must be a name, got {record.get(key)!r}.")
    return f"{record['participant_id']}/rgb_frames/{record['video_id']}/frame_{number:010d}.jpg"


@dataclass(frozen=True, kw_only=True)
class DoUndoOfficial(Published):
    """Every annotation done (``fwd``), undone from the true end frame (``rev``), and from the picture that was made
    (``rev-generated``)."""

    rows: tuple[DoUndoRow, ...]
    images: str
    """Folder of the frames of EPIC-KITCHENS."""
    results: DoUndoResults | None = None
    name: str = "do-undo-official"
    needs: tuple[str, ...] = ("image_edit",)

    @cached_property
    def _ids(self) -> dict[str, tuple[DoUndoRow, str]]:
        return {f"{row.id}/{step}": (row, step) for row in self.rows for step in ("fwd", "rev", "rev-generated")}

    def requests(self) -> list[Request]:
        """Step k of row i has the seed ``seed + k * rows + i``.

        Raises:
            FileNotFoundError: a frame is missing.
        """
        requests = []
        for place, row in enumerate(self.rows):
            start, end = (ImageIn(self._frame(row, frame)) for frame in (row.start, row.end))
            reverse = Text(row.reverse_prompt)
            steps: dict[str, tuple[Part | Earlier, ...]] = {
                "fwd": (start, Text(row.forward_prompt)),
                "rev": (end, reverse),
                "rev-generated": (Earlier(f"{row.id}/fwd"), reverse),
            }
            for number, (step, parts) in enumerate(steps.items()):
                seed = self.seed + number * len(self.rows) + place
                requests.append(Request(f"{row.id}/{step}", "image", parts, seed))
        return requests

    def _frame(self, row: DoUndoRow, frame: str) -> LazyImage:
        path = Path(self.images) / frame
        if not path.is_file():
            raise FileNotFoundError(
                f"{row.id}: there is no frame {path}. Give --images the folder of EPIC-KITCHENS that holds "
                "<participant>/rgb_frames/<video>/frame_*.jpg."
            )
        return file_image(path)

    def export_names(self) -> dict[str, str]:
        """File by id of the request, as ``eval.py`` reads them; the true cycle lies in a folder of its own."""
        return {
            f"{row.id}/{step}": name
            for row in self.rows
            for step, name in (
                ("fwd", f"{row.id}_fwd.png"),
                ("rev", f"{row.id}_rev.png"),
                ("rev-generated", f"from-generated/{row.id}_rev.png"),
            )
        }

    def judge_record(self) -> dict[str, Any]:
        return NO_JUDGE if self.results is None else self.results.record()

    def unready(self) -> str:
        if self.results is not None:
            return ""
        return (
            f"{self.name} is judged by the official eval.py: write its pictures with --export DIR, and give --verdicts "
            "the table that it wrote"
        )

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        if self.results is None:
            raise ValueError(f"{self.unready()}.")
        verdicts: list[Verdict] = []
        for request in requests:
            row, step = self._ids[request.id]
            found = self.results.by_id.get(row.id)
            if found is None:
                raise ValueError(
                    f"the results of {self.results.name} lack {row.id}. Run eval.py on all pictures of this run."
                )
            columns = {**DIRECTIONS.get(step, {}), **ERRORS.get(step, {})}
            verdicts.append({name: found[column] for name, column in columns.items()})
        return verdicts

    def _values(self, verdicts: Verdicts, step: str, column: str) -> dict[str, float]:
        """By row; a missing sample is 0, a metric that was not run is left out."""
        found = {}
        for row in self.rows:
            name = f"{row.id}/{step}"
            if name in verdicts:
                verdict = verdicts[name]
                value = 0.0 if verdict is None else verdict[column]
                if value is not None:
                    found[row.id] = float(value)
        return found

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return [
            Unit(f"{name}/{column}", column, name, value)
            for step, column in zip(("fwd", "rev"), _HEADLINE, strict=True)
            for name, value in self._values(verdicts, step, column).items()
        ]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        """The columns of the paper, as shares; errors of the flow, in pixels, are in ``details``.

        Raises:
            ValueError: the official scorer was run without DINO.
        """
        units = self.units(verdicts)
        if not units:
            raise ValueError(f"{self.label}: there are no DINO scores. Run eval.py with --dino.")
        rows: dict[str, Score] = {}
        errors: dict[str, float] = {}
        for step in DIRECTIONS:
            for column in DIRECTIONS[step]:
                if values := self._values(verdicts, step, column):
                    rows[column] = mean_score(list(values.values()))
            for column in ERRORS[step]:
                there = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
                if values := self._values(there, step, column):
                    errors[column] = float(np.mean(list(values.values())))
        overall = mean_score([unit.value for unit in units], [unit.group for unit in units])
        details = {
            "overall_is": "the mean of DINO-F and DINO-R; the paper has no single number.",
            "flow_errors_in_pixels": errors,
            "reverse_from": "the true end frame, as in the released inference",
        }
        return ScoreTable(self.label, contender, overall, rows, details)

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        """``oracle``: the true frame; it is what the scores of a run should be read against.

        Raises:
            ValueError: another reference.
        """
        if reference != "oracle":
            raise ValueError(f"{self.name} has no {reference}: nobody knows a random frame of its kitchens.")
        row, step = self._ids[request.id]
        return self._frame(row, row.end if step == "fwd" else row.start).load()


def file_image(path: Path) -> LazyImage:
    """A picture that is read when it is needed."""
    about = path.stat()
    return LazyImage(f"{path}|{about.st_size}|{about.st_mtime_ns}", partial(_pixels, str(path)))


def _pixels(path: str) -> Pixels:
    return pil_to_pixels(read_picture(path))
