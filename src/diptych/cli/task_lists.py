"""What ``diptych evaluate --list`` and ``--dry-run`` print: benchmarks and their needs, samples and their cost."""

from argparse import Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.evals.harness import Run
    from diptych.evals.manifest import EvaluationFolder
    from diptych.evals.tasks import TaskEntry

PICTURES_A_SECOND, ANSWERS_A_SECOND = 4, 10
"""For the estimates of the list, where no model is at hand."""


def task_list() -> str:
    """The tasks with what they need."""
    from diptych.evals.tasks import TASKS as KNOWN

    lines = []
    for name, entry in KNOWN.items():
        lines.append(f"{name:<18}{entry.summary}")
        lines.append(f"{'':<18}needs {', '.join(entry.needs)}{'; ' + entry.files if entry.files else ''}")
        lines.append(f"{'':<18}{_work_of(entry)}; judged by {entry.judge}")
    lines.append(f"{'lmms:TASK':<18}a task of lmms-eval that asks for words about pictures")
    lines.append(f"{'':<18}needs image_to_text; pip install 'diptych[lmms]'")
    lines.append(f"{'(entropy)':<18}entropy of hidden states by layer, which is no score: `diptych probe MODEL`")
    lines.append("")
    lines.append(
        f"Times are for {PICTURES_A_SECOND} pictures and {ANSWERS_A_SECOND} answers a second (diptych-scenes on two "
        "CPU cores makes more), without the judge. With --dry-run they are measured on MODEL and this machine."
    )
    return "\n".join(lines)


def _work_of(entry: "TaskEntry") -> str:
    """How many pictures and answers a task asks for, and how long that takes."""
    counted = [f"{entry.pictures:,} pictures, {entry.per_prompt} a prompt"] if entry.pictures else []
    counted += [f"{entry.answers:,} answers"] if entry.answers else []
    seconds = entry.pictures / PICTURES_A_SECOND + entry.answers / ANSWERS_A_SECOND
    took = f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
    return f"{' and '.join(counted)} (about {took})" if counted else f"{entry.per_prompt} picture a prompt"


def outlook_table(folder: "EvaluationFolder", plan: "Run", arguments: Namespace) -> str:
    """Samples that are there and missing, with the time they would take."""
    from diptych.evals.harness import outlook

    found = outlook(folder, plan, arguments.batch_size, arguments.processes)
    lines = [f"{'task':<28}{'samples':>9}{'there':>9}{'to make':>9}{'about':>10}"]
    for one in found:
        there = one.num_samples - one.num_missing
        lines.append(f"{one.label:<28}{one.num_samples:>9}{there:>9}{one.num_missing:>9}{_duration(one.seconds):>10}")
    total = sum(one.seconds or 0.0 for one in found)
    counts = [sum(one.num_samples for one in found), sum(one.num_missing for one in found)]
    lines.append(f"{'in all':<28}{counts[0]:>9}{counts[0] - counts[1]:>9}{counts[1]:>9}{_duration(total):>10}")
    return "\n".join(lines)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
