"""Where the time of a generation training step goes: matrix products and attention, or everything else.

Prints the share of self time outside matmul and attention, the largest other items, and the step's rate packed and
unpacked, side by side in one run.

    python benchmarks/generation_step.py [--batch-size 64] [--steps 20] [--threads 1]
"""

import argparse
import time
from collections import defaultdict
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from diptych.data.batch import Batch
from diptych.data.sources.scenes import ScenesSource
from diptych.methods.blip3o import Blip3oObjectives
from diptych.recipes import blip3o
from diptych.unified import UnifiedModel

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "scaled_dot_product", "mkldnn_linear", "flash_attention", "_linear")


def make_batch(model: UnifiedModel, batch_size: int, row_length: int | None) -> Batch:
    """Text-to-image examples whose features are encoded already, as in a stage with cached features."""
    source = ScenesSource(task="text_to_image", num_scenes=batch_size, caption_style="mixed").build()
    examples = [source.example(index, 0) for index in range(batch_size)]
    batch = model.collator(row_length=row_length)(examples, list(range(batch_size)))
    with torch.no_grad():
        groups = tuple(replace(g, features=model.group_features(g, True), images=None) for g in batch.outputs)
    return replace(batch, outputs=groups)


def step(model: UnifiedModel, batch: Batch, objectives: Blip3oObjectives, use_bfloat16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=use_bfloat16):
        terms = objectives.joint(model, batch, torch.Generator())
    terms["flow"].mean.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = replace(blip3o.small().model, start_from={})
    model = config.build()
    model.autoencoder.requires_grad_(False)
    objectives = Blip3oObjectives(time=config.time)

    for use_bfloat16 in (False, True):
        rates = {}
        for row_length in (None, config.row_length):
            batch = make_batch(model, arguments.batch_size, row_length)
            step(model, batch, objectives, use_bfloat16)
            started = time.process_time()
            for _ in range(arguments.steps):
                step(model, batch, objectives, use_bfloat16)
            seconds = time.process_time() - started
            rates[row_length] = arguments.steps * arguments.batch_size / seconds
            used = (batch.layout.example_ids >= 0).float().mean().item()
            print(
                f"{'bfloat16' if use_bfloat16 else 'float32'} rows of {row_length or 'one example'}: "
                f"{rates[row_length]:.0f} examples per processor second, {used:.0%} of positions used"
            )
        print(f"packed over one example a row: {rates[config.row_length] / rates[None]:.2f}x")

    batch = make_batch(model, arguments.batch_size, config.row_length)
    step(model, batch, objectives, True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(arguments.steps):
            step(model, batch, objectives, True)
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        times[event.key] += event.self_cpu_time_total
    total = sum(times.values())
    products = sum(value for key, value in times.items() if any(name in key for name in PRODUCTS))
    print(f"outside matmul and attention: {1 - products / total:.0%} of the profiled time")
    for key, value in sorted(times.items(), key=lambda item: -item[1])[:14]:
        print(f"  {value / total:5.1%}  {key}")


if __name__ == "__main__":
    main()
