"""How quickly the bundled model draws: cold start to a written PNG, and images per second in a batch.

python benchmarks/bundled_model.py [--model diptych-scenes] [--runs 5] [--batch 16]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="diptych-scenes")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()

    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(arguments.runs):
            command = [sys.executable, "-m", "diptych", "generate", "a red circle above a blue square"]
            started = time.perf_counter()
            subprocess.run([*command, "--model", arguments.model, "--out", f"{folder}/{run}"], check=True,
                           capture_output=True)  # fmt: skip
            seconds.append(time.perf_counter() - started)
    print(
        f"cold start to written PNG: median {statistics.median(seconds):.2f} s, "
        f"{min(seconds):.2f} to {max(seconds):.2f} s over {len(seconds)} runs"
    )

    import diptych

    model = diptych.load(arguments.model)
    prompts = ["a red circle above a blue square"] * arguments.batch
    model.generate_image(prompts)
    rates = []
    for run in range(arguments.runs):
        started = time.perf_counter()
        model.generate_image(prompts, seed=run)
        rates.append(arguments.batch / (time.perf_counter() - started))
    one_started = time.perf_counter()
    for seed in range(arguments.batch):
        model.generate_image(prompts[0], seed=seed)
    one = arguments.batch / (time.perf_counter() - one_started)
    print(
        f"batch of {arguments.batch}: median {statistics.median(rates):.1f} images/s "
        f"({min(rates):.1f} to {max(rates):.1f}); one at a time {one:.1f} images/s"
    )


if __name__ == "__main__":
    main()
