"""How quickly the harness judges: pictures per second of the tasks of the built-in world, from a run folder.

Prints figures and asserts nothing. Verdicts that are there are left alone: a copy of the folder is judged from scratch.

python benchmarks/evaluation.py [RUN] [--processes 1 2] [--num 60] [--panel] [--model diptych-scenes]

Without RUN the oracle's pictures are judged. --panel also times the whole panel, drawing and answering included:
`diptych evaluate MODEL --on scenes` in both splits.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from diptych.evals.harness import planned_before, reference_rows, score_run
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.processes import judge_in_processes


def evaluate(*words: object) -> float:
    """Seconds of a ``diptych evaluate``."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "diptych", "evaluate", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def from_scratch(run: Path, target: Path) -> EvaluationFolder:
    """A copy of a run without what was said of it."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("verdicts", "references", "units"))
    return EvaluationFolder(target)


def processor_time() -> float:
    """Seconds of this process and of its children that have ended; other programs on the machine disturb it least."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def judging(run: Path, processes: int, scratch: Path) -> str:
    """Pictures and answers per second of judging alone, with references, and of judging again."""
    folder = from_scratch(run, scratch / f"judged-by-{processes}")
    entries = folder.read_run()["tasks"]
    rows = folder.rows()
    asked = [rows[key] for entry in entries for key in entry["keys"].values() if key in rows]
    pictures = sum(row.size is not None for row in asked)
    for entry in entries:  # what is read against is measured once for a run, and not by the picture
        reference_rows(folder, planned_before(folder, entry).build())
    started, worked = time.perf_counter(), processor_time()
    if processes > 1:
        judge_in_processes(folder, processes)
    score_run(folder)
    seconds, worked = time.perf_counter() - started, processor_time() - worked
    started = time.perf_counter()
    score_run(folder)
    again = time.perf_counter() - started
    return (
        f"judged by {processes} process{'es' if processes > 1 else ''}: {pictures} pictures and "
        f"{len(asked) - pictures} answers in {seconds:.1f} s = {pictures / seconds:.0f} pictures/s "
        f"({len(asked) / seconds:.0f} samples/s), "
        f"{pictures / worked:.0f} pictures per second of processor time; again, with verdicts known: {again:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--num", type=int, default=60, help="items of each category of the oracle's pictures")
    parser.add_argument("--panel", action="store_true")
    parser.add_argument("--model", default="diptych-scenes")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        scratch, run = Path(name), arguments.run
        if arguments.panel:
            run, most = scratch / "panel", max(arguments.processes)
            made = evaluate(arguments.model, "--on", "scenes", "--phase", "produce", "--processes", most, "--out", run)
            judged = evaluate(run, "--phase", "score", "--processes", most)
            print(
                f"the scenes panel of {arguments.model}, splits test and novel, by {most} processes: "
                f"{made / 60:.1f} min to make, {judged / 60:.1f} min to judge with all references, "
                f"{(made + judged) / 60:.1f} min in all"
            )
        elif run is None:
            run = scratch / "oracle"
            number = ("--num-per-category", arguments.num)
            evaluate("oracle", "--on", "scenes", "--splits", "test", *number, "--phase", "produce", "--out", run)
        for processes in arguments.processes:
            print(judging(run, processes, scratch))


if __name__ == "__main__":
    main()
