"""What the official scorers of Do-Undo Bench and GSI-Bench wrote, as verdicts on the pictures of a run.

Those scorers need networks and detectors that are not part of this package. They read the pictures that ``--export``
writes, and ``--verdicts`` reads their results: a table of ``eval.py`` (Do-Undo Bench, CSV), or a folder with the three
``*_eval_results.json`` of GSI-Bench and the ``predictions*.json`` of its judge of appearance.
"""

import csv
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diptych.evals.manifest import EvaluationFolder

DOUNDO_COLUMNS = (
    "dino_score_f",
    "dino_score_r",
    "clip_score_f",
    "epe_fwd",
    "epe_rev",
    "fwd_verb_correct",
    "fwd_noun_correct",
    "rev_verb_correct",
    "rev_noun_correct",
)
"""Numbers of a row of ``eval.py``; empty where a metric was not asked for."""

SPATIAL_FILES = {
    "compliance": ("instruction-compliance_eval_results.json", "compliance"),
    "accuracy": ("spatial-accuracy_eval_results.json", "edit_score"),
    "locality": ("edit-locality_eval_results.json", "lpips"),
}
"""File and key of each number of GSI-Bench."""

_DELIMITER = "||V^=^V||"
"""Around the JSON in the judge's answers."""


@dataclass(frozen=True)
class DoUndoResults:
    """Rows of the table of Do-Undo Bench's ``eval.py``."""

    by_id: Mapping[str, Mapping[str, float | None]]
    """By ``narration_id``, the numbers of ``DOUNDO_COLUMNS``."""
    name: str
    revision: str

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision}


@dataclass(frozen=True)
class SpatialResults:
    """The results of GSI-Bench's ``eval.py`` and of its judge of appearance."""

    by_key: Mapping[str, Mapping[str, Any]]
    """By ``<img_id>_<query_id>``: ``operation``, ``compliance``, ``accuracy``, ``locality`` and ``appearance``, in
    [0, 1]; the last two are None where there is no result."""
    name: str
    revision: str

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision}


@runtime_checkable
class Exported(Protocol):
    """A benchmark whose pictures go to an official scorer."""

    def export_names(self) -> dict[str, str]:
        """File of each picture, by id of its request."""
        ...


def export_named(folder: EvaluationFolder, task: Exported, keys: Mapping[str, str], target: str | Path) -> int:
    """Writes the pictures of a run under the names that the official scorer reads; how many.

    What is missing is left out, and the official scorers pass over it.
    """
    rows, names, written = folder.rows(), task.export_names(), 0
    for name, key in keys.items():
        row = rows.get(key)
        if row is not None and isinstance(folder.output(row), np.ndarray):
            file = Path(target) / names[name]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(folder.file(row.sha256).read_bytes())
            written += 1
    return written


def read_results(path: str | Path) -> DoUndoResults | SpatialResults:
    """The results of either benchmark: a CSV file, or a folder.

    Raises:
        FileNotFoundError: there is nothing, or a folder lacks a file.
        ValueError: a file is wrong; the message names line or key.
    """
    path = Path(path)
    if path.is_dir():
        return read_spatial_results(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder {path}. --verdicts takes what the official scorers wrote.")
    return read_doundo_results(path)


def read_doundo_results(path: str | Path) -> DoUndoResults:
    """The CSV of ``eval.py``.

    Raises:
        ValueError: a column is missing, a number is none, or an action stands twice.
    """
    path = Path(path)
    found: dict[str, dict[str, float | None]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in ("action_id", *DOUNDO_COLUMNS) if name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(
                f"{path}, line 1: columns {', '.join(lacking)} are missing. Give the CSV of Do-Undo Bench's eval.py."
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            name = row["action_id"]
            if name in found:
                raise ValueError(f"{where}: action_id {name!r} stands twice. Remove one of the lines.")
            found[name] = {column: _number(row[column], f"{where}, {column}") for column in DOUNDO_COLUMNS}
    if not found:
        raise ValueError(f"{path} holds no results. Run eval.py on the exported pictures.")
    return DoUndoResults(found, "Do-Undo Bench eval.py", _digest(path))


def _number(text: str | None, where: str) -> float | None:
    if text is None or text.strip() in ("", "None", "nan"):
        return None
    try:
        value = float({"True": "1", "False": "0"}.get(text, text))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: a number is expected, got {text!r}.")
    return value


def read_spatial_results(folder: str | Path) -> SpatialResults:
    """A folder of results of GSI-Bench with the judge's ``predictions*.json`` beside them.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: one of them is wrong; the message names the key.
    """
    folder = Path(folder)
    files = {column: folder / name for column, (name, _) in SPATIAL_FILES.items()}
    judged = sorted(folder.glob("predictions*.json"))
    lacking = [path.name for path in files.values() if not path.is_file()]
    if lacking or not judged:
        wanted = ", ".join([*lacking, *([] if judged else ["predictions*.json"])])
        raise FileNotFoundError(
            f"{folder} lacks {wanted}. Run GSI-Bench's eval.py in its three modes and its judge of appearance, and "
            "put their results into one folder."
        )
    if len(judged) > 1:
        raise ValueError(f"{folder} holds {len(judged)} files predictions*.json; leave the one that is meant.")
    tables = {column: _results(path, SPATIAL_FILES[column][1]) for column, path in files.items()}
    appearance = _appearance(judged[0])
    found = {}
    for key, (operation, compliance) in tables["compliance"].items():
        if key not in tables["accuracy"]:
            raise ValueError(f"{files['accuracy']}: {key!r} is missing, which {files['compliance'].name} has.")
        lpips = tables["locality"].get(key)
        found[key] = {
            "operation": operation,
            "compliance": compliance,
            "accuracy": tables["accuracy"][key][1],
            "locality": None if lpips is None else 1 - lpips[1],
            "appearance": appearance.get(_edit_name(key)),
        }
    if not found:
        raise ValueError(f"{files['compliance']} holds no results. Run eval.py on the exported pictures.")
    return SpatialResults(found, "GSI-Bench eval.py", _digest(*files.values(), judged[0]))


def _results(path: Path, field: str) -> dict[str, tuple[str, float]]:
    """Operation and number by key."""
    content = _json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: an object by <img_id>_<query_id> is expected, got {type(content).__name__}.")
    found = {}
    for key, entry in content.items():
        value = entry.get(field) if isinstance(entry, dict) else None
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{path}, {key!r}: {field} must be a number, got {value!r}.")
        found[key] = (str(entry.get("operation", "all")), float(value))
    return found


def _appearance(path: Path) -> dict[str, float | None]:
    """Marks of the judge in [0, 1] by ``<img_id>_edit_<query_id>``; None where its answer holds none."""
    content = _json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: a list of predictions is expected, got {type(content).__name__}.")
    found: dict[str, float | None] = {}
    for number, entry in enumerate(content):
        try:
            name, said = str(entry["meta"]["index"]), str(entry["prediction"])
        except (KeyError, TypeError):
            raise ValueError(
                f"{path}, entry {number}: meta.index and prediction are expected, got {entry!r}."
            ) from None
        try:
            mark = float(json.loads(said.split(_DELIMITER)[1])["score"]) / 10
        except (IndexError, KeyError, TypeError, ValueError):
            found[_stem(name)] = None  # the official scorer counts such an answer as 0
            continue
        if not 0 <= mark <= 1:
            raise ValueError(f"{path}, entry {number}: the score must be 0 to 10, got {10 * mark:g}.")
        found[_stem(name)] = mark
    return found


def _stem(name: str) -> str:
    for suffix in (".jpg", ".png"):
        name = name.removesuffix(suffix)
    return name


def _edit_name(key: str) -> str:
    """``<img_id>_edit_<query_id>`` of ``<img_id>_<query_id>``."""
    image, _, query = key.rpartition("_")
    return f"{image}_edit_{query}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: this is no JSON ({error}).") from None


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
