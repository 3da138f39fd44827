"""A run folder as the data of a report: whatever is there is shown, whatever is missing is left out.

Reads ``recipe.json``, ``environment.json``, ``manifest.json``, ``metrics.jsonl``, ``samples/`` and ``scores.json``;
``diptych.train`` writes them, and ``diptych.evals.scores_file`` the last.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from diptych.data.picture_files import read_contact_sheet, read_png_metadata
from diptych.evals.report_data import Chart, FileLink, Filmstrip, Frame, Headline, Line, Part, Picture, ReportData
from diptych.evals.scores_file import SCORES_FILE, headlines_of, read_scores, score_boards

MAX_FRAMES = 8
"""Moments of a stage that are shown; the first and the last always are."""
MAX_PROMPTS = 10

_SIGMA = re.compile(r"^(?P<term>.+)/sigma (?P<range>[\d.]+-[\d.]+)$")
_FILES = {
    "recipe.json": "what was run",
    "environment.json": "versions, hardware, command lines",
    "manifest.json": "parts of the model",
    "metrics.jsonl": "every logged number",
    SCORES_FILE: "scores with intervals",
    "samples": "sample grids",
    "checkpoints": "training states, each with its model folder",
    "model": "the trained model",
}


def report_data_from_run(run_dir: str | Path) -> ReportData:
    """What a run folder has to show, finished or not.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds neither a recipe nor metrics, so it is no run folder, or one of its files is damaged.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run folder {folder}.")
    if not (folder / "recipe.json").exists() and not (folder / "metrics.jsonl").exists():
        raise ValueError(f"{folder} is no run folder: it has neither recipe.json nor metrics.jsonl.")
    recipe = _read_json(folder / "recipe.json")
    lines = read_metrics(folder / "metrics.jsonl")
    environment = _first_session(_read_json(folder / "environment.json"))
    scores = read_scores(folder / SCORES_FILE) if (folder / SCORES_FILE).exists() else []
    seconds = max((float(line.get("time", 0.0)) for line in lines), default=0.0)
    name = str((recipe or {}).get("name", folder.name))
    return ReportData(
        title=name,
        summary=_summary(lines),
        created=_moment(environment.get("started")),
        command=shlex.join(environment.get("command") or []),
        environment=_flat_environment(environment),
        headlines=(*headlines_of(scores), *_time_headline(seconds, recipe, lines)),
        score_boards=score_boards(scores),
        charts=run_charts(lines),
        filmstrips=sample_strips(folder / "samples"),
        parts=_parts(_read_json(folder / "manifest.json")),
        recipe=recipe,
        files=tuple(FileLink(path=path, detail=detail) for path, detail in _FILES.items() if (folder / path).exists()),
    )


def run_charts(lines: Sequence[Mapping[str, Any]]) -> tuple[Chart, ...]:
    """Losses of each stage, losses by noise level, scores over the run, and speed."""
    trained = [line for line in lines if line.get("event", "train") == "train"]
    stages = list(dict.fromkeys(str(line.get("stage", "")) for line in trained))
    charts: list[Chart] = []
    for stage in stages:
        own = [line for line in trained if str(line.get("stage", "")) == stage]
        charts += _loss_charts(stage, own)
    scored = [line for line in lines if line.get("event") == "scores"]
    score_names = list(dict.fromkeys(key for line in scored for key in line if key.startswith("score/")))
    if len(scored) > 1 and score_names:
        curves = tuple(_line(scored, name, name.removeprefix("score/"), "step") for name in score_names)
        charts.append(
            Chart(
                title="Scores during the run",
                x_label="step of the run",
                y_label="score",
                lines=curves,
                starts_at_zero=True,
            )
        )
    if any("examples_per_second" in line for line in trained):
        starts = {
            stage: min(line["step"] for line in trained if str(line.get("stage", "")) == stage) for stage in stages
        }
        marks = tuple((step, stage) for stage, step in starts.items()) if len(stages) > 1 else ()
        charts.append(
            Chart(
                title="Speed",
                x_label="step of the run",
                y_label="examples per second",
                lines=(_line(trained, "examples_per_second", "examples/s", "step"),),
                starts_at_zero=True,
                marks=marks,
            )
        )
    return tuple(charts)


def sample_strips(folder: Path) -> tuple[Filmstrip, ...]:
    """The sample grids of each stage as strips: one row a prompt, one column a moment."""
    if not folder.is_dir():
        return ()
    stages: dict[str, list[_Grid]] = {}
    for path in sorted(folder.rglob("*.png")):
        grid = _grid_of(path, folder)
        stages.setdefault(grid.stage, []).append(grid)
    return tuple(_strip(stage, _spread(sorted(grids, key=lambda grid: grid.step))) for stage, grids in stages.items())


@dataclass(frozen=True)
class _Grid:
    stage: str
    step: int
    path: Path


def _grid_of(path: Path, folder: Path) -> _Grid:
    """Stage and step of a grid, from its record or else from a name such as ``000500-generation.png``."""
    record = read_png_metadata(path)
    if isinstance(record.get("stage"), str) and isinstance(record.get("step"), int):
        return _Grid(record["stage"], record["step"], path)
    name = path.relative_to(folder).with_suffix("").as_posix()
    numbers = re.findall(r"\d+", name)
    stage = re.sub(r"(?:step)?[-_/]*\d+", "", name).strip("-_/")
    return _Grid(stage, int(numbers[-1]) if numbers else 0, path)


def _strip(stage: str, grids: Sequence[_Grid]) -> Filmstrip:
    sheets = [read_contact_sheet(grid.path) for grid in grids]
    captions = [tuple(cell.caption for cell in sheet) for sheet in sheets]
    title = stage or "Samples"
    if captions and captions[0] and all(each == captions[0] for each in captions):
        frames = tuple(
            Frame(label=f"step {grid.step:,}", images=tuple(cell.image for cell in sheet[:MAX_PROMPTS]))
            for grid, sheet in zip(grids, sheets, strict=True)
        )
        return Filmstrip(title=title, frames=frames, captions=captions[0][:MAX_PROMPTS])
    whole: list[tuple[str, Picture]] = [(f"step {grid.step:,}", grid.path) for grid in grids]
    return Filmstrip(
        title=title, frames=tuple(Frame(label=label, images=(path,)) for label, path in whole), captions=()
    )


def _spread(grids: Sequence[_Grid]) -> list[_Grid]:
    if len(grids) <= MAX_FRAMES:
        return list(grids)
    last = len(grids) - 1
    return [grids[round(last * index / (MAX_FRAMES - 1))] for index in range(MAX_FRAMES)]


def _loss_charts(stage: str, lines: Sequence[Mapping[str, Any]]) -> list[Chart]:
    keys = list(dict.fromkeys(key for line in lines for key in line if key.startswith("loss/")))
    names = [key.removeprefix("loss/") for key in keys]
    x_key = "stage_step" if all("stage_step" in line for line in lines) else "step"
    terms = [name for name in names if not _SIGMA.match(name)]
    curves = tuple(_line(lines, f"loss/{name}", name, x_key) for name in terms) or (
        (_line(lines, "loss", "loss", x_key),) if any("loss" in line for line in lines) else ()
    )
    charts = []
    prefix = f"{stage}: " if stage else ""
    if curves:
        charts.append(Chart(title=f"{prefix}losses", x_label="step of the stage", y_label="loss", lines=curves))
    for term in dict.fromkeys(match["term"] for name in names if (match := _SIGMA.match(name))):
        levels = sorted(name for name in names if (match := _SIGMA.match(name)) and match["term"] == term)
        by_level = tuple(
            _line(lines, f"loss/{name}", f"σ {name.rpartition('sigma ')[2].replace('-', '–')}", x_key)
            for name in levels
        )
        charts.append(
            Chart(
                title=f"{prefix}{term} by noise level",
                x_label="step of the stage",
                y_label="loss",
                lines=by_level,
                colors="levels",
            )
        )
    # what a method counts beside its losses, such as fd/NAME
    own = [key for line in lines for key in line if "/" in key and not key.startswith("loss/")]
    for group in dict.fromkeys(key.partition("/")[0] for key in own):
        members = [key for key in dict.fromkeys(own) if key.startswith(f"{group}/")]
        by_name = tuple(_line(lines, key, key.partition("/")[2], x_key) for key in members)
        charts.append(Chart(title=f"{prefix}{group}", x_label="step of the stage", y_label=group, lines=by_name))
    return charts


def _line(lines: Sequence[Mapping[str, Any]], key: str, name: str, x_key: str) -> Line:
    # null stands for a value that was not finite.
    points = [(line[x_key], line[key]) for line in lines if line.get(key) is not None]
    return Line(name=name, x=tuple(x for x, _ in points), y=tuple(y for _, y in points))


def _summary(lines: Sequence[Mapping[str, Any]]) -> str:
    stages = list(dict.fromkeys(str(line["stage"]) for line in lines if line.get("stage")))
    if not stages:
        return ""
    steps = max(int(line["step"]) for line in lines)
    number = f"{len(stages)} stages" if len(stages) > 1 else "one stage"
    return f"{steps:,} steps in {number}: {', then '.join(stages)}."


def _time_headline(
    seconds: float, recipe: Mapping[str, Any] | None, lines: Sequence[Mapping[str, Any]]
) -> tuple[Headline, ...]:
    if not seconds:
        return ()
    examples = 0
    for name, stage in ((recipe or {}).get("stages") or {}).items():
        done = max((int(line.get("stage_step", 0)) for line in lines if line.get("stage") == name), default=0)
        examples += done * int(stage.get("batch_size", 0))
    detail = f"{examples:,} examples" if examples else ""
    return (Headline(label="Training time", text=format_duration(seconds), detail=detail),)


def format_duration(seconds: float) -> str:
    """``45 s``, ``7 min 40 s`` or ``3 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _moment(text: Any) -> str:
    """An ISO date as people read it; empty if there is none."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return ""
    return f"{moment:%A} {moment.day} {moment:%B %Y, %H:%M}"


def _first_session(environment: Any) -> Mapping[str, Any]:
    """The session that started the run; a resumed run has several."""
    sessions = environment.get("sessions", environment) if isinstance(environment, Mapping) else environment
    first = sessions[0] if isinstance(sessions, list) and sessions else sessions
    return first if isinstance(first, Mapping) else {}


def _flat_environment(session: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in session.items():
        if key in ("started", "command") or value in (None, [], {}):
            continue
        entries = value.items() if isinstance(value, Mapping) else [(key, value)]
        for name, entry in entries:
            if entry not in (None, [], {}):
                shown = ", ".join(map(str, entry)) if isinstance(entry, list) else str(entry)
                flat[str(name).replace("_", " ")] = shown
    return flat


def _parts(manifest: Any) -> tuple[Part, ...]:
    rows = manifest.get("parts", []) if isinstance(manifest, Mapping) else []
    parts = []
    for row in rows:
        stages = [name for name, is_trained in row.get("stages", {}).items() if is_trained]
        parts.append(
            Part(
                name=row["name"],
                kind=row.get("module", ""),
                num_parameters=row["parameters"],
                num_trainable=row["parameters"] if stages else 0,
                dtype=", ".join(row.get("dtypes", [])),
                trained_in=", ".join(stages),
            )
        )
    return tuple(parts)


def _read_json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a run that was killed may have left half a line at the end."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
