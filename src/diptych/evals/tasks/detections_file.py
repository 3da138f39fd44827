"""Stored detections for GenEval, and its official folder of pictures, so that either scorer can judge a run.

A line of a file of detections is one picture: ``{"id": "00000/0002", "detections": [{"class", "confidence", "box",
"color"}]}``. Lines of the official ``results.jsonl`` are read too: ``filename`` and ``details``, whose boxes carry
their confidence, with an optional ``colors`` of the same shape, as the official file does not keep them.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.evals.json_lines import json_lines
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.protocol import Failure
from diptych.evals.tasks.geneval import OFFICIAL_DETECTOR, GenEval, StoredDetections
from diptych.scenes.rules import COLOR_ORDER, Box, Detection

_OFFICIAL_NAME = re.compile(r"(?:^|/)(\d{5})/samples/(\d{4,5})\.png$")


def read_detections(path: str | Path) -> StoredDetections:
    """What a detector found in the pictures of a run.

    A first line ``{"detector": NAME, "revision": TEXT, "official": BOOL}`` says which one it was; without it the file's
    own name stands for it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong, or two lines are about one picture.
    """
    found: dict[str, list[Detection]] = {}
    lines: dict[str, int] = {}
    about: dict[str, Any] = {}
    for number, record in json_lines(path):
        where = f"{path}, line {number}"
        if not found and "detector" in record:
            about = record
            continue
        name, detections = _picture_id(record, where), _detections(record, where)
        if name in found:
            raise ValueError(f"{where}: line {lines[name]} is about the same picture, {name}. Remove one of them.")
        found[name], lines[name] = detections, number
    if not found:
        raise ValueError(f"{path} holds no detections.")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return StoredDetections(
        found,
        name=str(about.get("detector") or f"file {Path(path).name}"),
        revision=str(about.get("revision") or digest),
        official=bool(about.get("official")) and about.get("detector") == OFFICIAL_DETECTOR,
    )


def _picture_id(record: Mapping[str, Any], where: str) -> str:
    if isinstance(record.get("id"), str):
        return str(record["id"])
    match = _OFFICIAL_NAME.search(str(record.get("filename", "")))
    if match is None:
        raise ValueError(
            f'{where}: which picture is it? Give "id": "00000/0000" (prompt, picture), or the official "filename".'
        )
    return f"{match[1]}/{int(match[2]):04d}"


def _detections(record: Mapping[str, Any], where: str) -> list[Detection]:
    if "detections" in record:
        entries = record["detections"]
        if not isinstance(entries, list):
            raise ValueError(f"{where}: detections must be a list, got {type(entries).__name__}.")
        return [_detection(entry, f"{where}, detection {index}") for index, entry in enumerate(entries)]
    if "details" not in record:
        raise ValueError(f'{where}: there are neither "detections" nor the official "details".')
    details, colors = _loaded(record["details"], where), _loaded(record.get("colors", {}), where)
    found = []
    for name, boxes in details.items():
        for index, values in enumerate(boxes):
            own = colors.get(name)
            entry = {"class": name, "confidence": values[4] if len(values) == 5 else None, "box": values[:4]}
            if own is not None:
                entry["color"] = own[index]
            found.append(_detection(entry, f"{where}, {name} {index}"))
    return found


def _loaded(value: Any, where: str) -> Mapping[str, Any]:
    """The official file keeps JSON inside of JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{where}: details are no JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: details must be lists by class, got {type(value).__name__}.")
    return value


def _detection(entry: Any, where: str) -> Detection:
    if not isinstance(entry, dict) or not isinstance(entry.get("class"), str):
        raise ValueError(f"{where}: a class is missing.")
    if not _is_number(entry.get("confidence")):
        raise ValueError(f"{where}: confidence must be a number, got {entry.get('confidence')!r}.")
    color = entry.get("color")
    if color is not None and color not in COLOR_ORDER:
        raise ValueError(f"{where}: color must be one of {', '.join(COLOR_ORDER)}, got {color!r}.")
    return Detection(entry["class"], float(entry["confidence"]), _box(entry.get("box"), where), color)


def _box(value: Any, where: str) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(_is_number(number) for number in value):
        raise ValueError(f"{where}: box must be [x0, y0, x1, y1] in pixels, got {value!r}.")
    x0, y0, x1, y1 = (float(number) for number in value)
    return x0, y0, x1, y1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def write_detections(path: str | Path, about: Mapping[str, Any], by_id: Mapping[str, Sequence[Detection]]) -> None:
    """Writes what ``read_detections`` reads.

    Args:
        about: ``detector``, ``revision``, ``official``.
    """
    lines = [json.dumps(dict(about))]
    for name, detections in by_id.items():
        entries = [
            {
                "class": item.name,
                "confidence": item.confidence,
                "box": list(item.box),
                **({} if item.color is None else {"color": item.color}),
            }
            for item in detections
        ]
        lines.append(json.dumps({"id": name, "detections": entries}))
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def export_pictures(folder: EvaluationFolder, task: GenEval, keys: Mapping[str, str], target: str | Path) -> int:
    """Writes ``00000/metadata.jsonl`` and ``00000/samples/0000.png`` …, as the official scorer reads them; how many.

    What is missing is left out, and the official scorer passes over it.

    Raises:
        ValueError: the task is the twin, which the official scorer does not know.
    """
    if task.is_twin:
        raise ValueError(f"{task.label} is no benchmark of the official scorer. Export geneval-official.")
    rows, written = folder.rows(), 0
    programs = {metadata["id"]: metadata for metadata in task.prompts}
    for name, key in keys.items():
        output = folder.output(rows[key]) if key in rows else Failure("missing")
        if isinstance(output, np.ndarray):
            prompt, picture = name.split("/")
            place = Path(target) / prompt
            (place / "samples").mkdir(parents=True, exist_ok=True)
            own = {field: value for field, value in programs[prompt].items() if field != "id"}
            (place / "metadata.jsonl").write_text(json.dumps(own) + "\n", encoding="utf-8")
            (place / "samples" / f"{picture}.png").write_bytes(folder.file(rows[key].sha256).read_bytes())
            written += 1
    return written
