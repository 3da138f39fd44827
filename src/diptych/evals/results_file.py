"""``results.json`` with the top-level keys of lmms-eval, and ``report.md``: for other tools, and for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.evals.manifest import content_hash
from diptych.evals.score import TaskResult
from diptych.evals.scores_file import score_boards
from diptych.scenes.scores import ScoreTable

CONTAMINATION = {
    "geneval-official": "Instruction-tuning sets with prompts made like GenEval's (BLIP3o-60k among them) raise this "
    "score; what the model was trained on is for its authors to say.",
}
"""What is known of training data that holds a benchmark, by task."""
OF_SPLIT = {
    "test": "Training scenes never hold the compositions of this split; the wording of prompts is that of training.",
    "novel": "Training scenes never hold the object types of this split; the wording of prompts is that of training.",
    "train": "These are scenes as in training: the score says nothing of what was held out.",
}
"""The same of a benchmark of the built-in world, for models that were trained on it."""
UNKNOWN = "It is not known here whether the model was trained on it; that is for its authors to say."


def results_json(
    run: Mapping[str, Any], results: Sequence[TaskResult], references: Sequence[ScoreTable]
) -> dict[str, Any]:
    """Top-level keys as lmms-eval has them; everything that it has no key for is under ``diptych``.

    A metric is ``NAME,none``; ``NAME_stderr,none`` is a quarter of the width of the 95 % interval, about.
    """
    by_label = {entry["label"]: entry for entry in run["tasks"]}
    found: dict[str, Any] = {
        "results": {},
        "configs": {},
        "versions": {},
        "n-shot": {},
        "n-samples": {},
        "higher_is_better": {},
        "task_hashes": {},
    }
    for result in results:
        label = result.table.benchmark
        entry = by_label[label]
        scores = {"score": result.table.overall, **result.table.categories}
        metrics: dict[str, Any] = {"alias": label}
        for name, value in scores.items():
            metrics[f"{name},none"] = value.value
            metrics[f"{name}_stderr,none"] = (value.high - value.low) / (2 * 1.959964)
        found["results"][label] = metrics
        found["configs"][label] = {"task": result.task, **entry["config"], "generation_kwargs": entry["settings"]}
        found["versions"][label] = entry["version"]
        found["n-shot"][label] = 0
        found["n-samples"][label] = {
            "original": result.num_samples,
            "effective": result.num_samples - len(result.missing),
        }
        found["higher_is_better"][label] = dict.fromkeys(scores, True)
        found["task_hashes"][label] = content_hash([entry["config"], entry["version"], sorted(entry["keys"])])
    contender = run["contender"]
    return {
        **found,
        "config": {"model": contender["name"], "model_args": contender["identity"]},
        "model_name": contender["name"],
        "diptych": {
            "about": run["about"],
            "skipped": run["skipped"],
            "results": [result.to_dict() for result in results],
            "references": [table.to_dict() for table in references],
            "contamination": {
                result.table.benchmark: contamination_note(result.task, by_label[result.table.benchmark]["config"])
                for result in results
            },
        },
    }


def contamination_note(task: str, config: Mapping[str, Any]) -> str:
    """What is known of training data that holds a task, or that nothing is."""
    return CONTAMINATION.get(task) or OF_SPLIT.get(str(config.get("split")), UNKNOWN)


def markdown(run: Mapping[str, Any], results: Sequence[TaskResult], references: Sequence[ScoreTable]) -> str:
    """Tables and everything that a reader of them must know."""
    lines = [f"# {_cell(run['contender']['name'])}", ""]
    for board in score_boards([*[result.table for result in results], *references]):
        lines += [f"## {board.title}", "", f"| | {' | '.join(map(_cell, board.systems))} |"]
        lines += ["| --- |" + " ---: |" * len(board.systems)]
        for row in board.rows:
            cells = []
            for system in board.systems:
                estimate = row.scores.get(system)
                if estimate is None:
                    cells.append("–")
                elif estimate.low is None or estimate.high is None or system in board.references:
                    cells.append(f"{estimate.value:.3f}")
                else:
                    cells.append(f"{estimate.value:.3f} ({estimate.low:.2f}–{estimate.high:.2f})")
            name = f"**{row.name}**" if row.is_total else row.name
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", board.note, ""]
    lines += ["## How it was measured", "", *[f"- {fact}" for fact in facts(run, results)], ""]
    return "\n".join(lines)


def facts(run: Mapping[str, Any], results: Sequence[TaskResult]) -> list[str]:
    """What belongs to the scores, a sentence each: model, settings, seeds, judges, missing samples, skipped tasks."""
    contender = run["contender"]
    said = [f"Model {contender['name']}, identity {json.dumps(contender['identity'], sort_keys=True)}."]
    by_label = {entry["label"]: entry for entry in run["tasks"]}
    for result in results:
        label = result.table.benchmark
        entry = by_label[label]
        said.append(
            f"{label}: {result.num_samples} samples, config {json.dumps(entry['config'], sort_keys=True)}, "
            f"settings {json.dumps(entry['settings'], sort_keys=True)}, "
            f"prompt rewriter {entry['config'].get('rewriter') or 'none'}."
        )
        said.append(
            f"{label}: judged by {json.dumps(dict(result.judge), sort_keys=True)}. {judge_warning(result)}".strip()
        )
        if result.missing:
            name, reason = next(iter(result.missing.items()))
            without = result.table.details["missing"]["score_without_them"]
            counted_as = result.table.details["missing"]["counted_as"]
            said.append(
                f"{label}: {len(result.missing)} samples are missing and counted as {counted_as}, such as {name} "
                f"({reason}); without them the score is {without:.3f}."
            )
        said.append(f"{label}: training data: {contamination_note(result.task, entry['config'])}")
    return said + [f"Skipped: {reason}." for reason in run["skipped"].values()]


def judge_warning(result: TaskResult) -> str:
    """That pictures of a published benchmark were not judged by its own judge; empty where there is nothing to say."""
    detector = result.judge.get("detector")
    if result.judge.get("official") is False and result.task != "dpg":
        return "This is not the official judge: the score is not comparable with published ones."
    if result.task != "geneval-official" or not isinstance(detector, dict) or detector.get("official"):
        return ""
    return "This is not the official detector: the score is not comparable with published ones."


def write_results(
    folder: Path, run: Mapping[str, Any], results: Sequence[TaskResult], references: Sequence[ScoreTable]
) -> None:
    """Writes ``results.json`` and ``report.md``."""
    content = json.dumps(results_json(run, results, references), indent=2, ensure_ascii=False) + "\n"
    for name, text in (("results.json", content), ("report.md", markdown(run, results, references))):
        unfinished = folder / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / name)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
