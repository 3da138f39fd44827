"""Where the time of a generation training step goes: matrix products and attention, or everything else.

Prints the step's rate with one example a row and packed; the share of the profiled time outside of matmul and attention
with its largest items; and the same after each of the things that were taken out of the step is put back as it is
usually written.

    python benchmarks/generation_step.py [--batch-size 64] [--steps 10] [--threads 1]
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from diptych.data.batch import Batch
from diptych.data.sources.scenes import ScenesSource
from diptych.methods.blip3o import Blip3oConfig
from diptych.models.backbones import transformer
from diptych.models.denoisers import lumina
from diptych.models.layers import RMSNorm
from diptych.recipes import blip3o
from diptych.train.precision import autocast_dtype
from diptych.unified import UnifiedModel

PRODUCTS = ("mm", "scaled_dot_product", "flash_attention", "_softmax", "_linear")
Step = Callable[[], None]


def make_batch(model: UnifiedModel, batch_size: int, row_length: int | None) -> Batch:
    """Text-to-image examples whose features are encoded already, as in a stage with cached features."""
    source = ScenesSource(task="text_to_image", num_scenes=batch_size, caption_style="mixed").build()
    examples = [source.example(index, 0) for index in range(batch_size)]
    batch = model.collator(row_length=row_length)(examples, list(range(batch_size)))
    with torch.no_grad():
        groups = tuple(replace(g, features=model.group_features(g, True), images=None) for g in batch.outputs)
    return replace(batch, outputs=groups)


def make_step(model: UnifiedModel, config: Blip3oConfig, batch: Batch, dtype: torch.dtype) -> Step:
    objective = config.objectives()["flow"]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            terms = objective(model, batch, torch.Generator())
        terms["flow"].mean.backward()

    return step


# -- what was taken out of the step, as it is usually written ----------------------------------------------------------


def plain_norm(self: RMSNorm, x: Tensor, scale: Tensor | None = None) -> Tensor:
    """The scale in a pass of its own behind torch's own norm."""
    normed = F.rms_norm(x.float(), (self.dim,), self.weight.float(), self.eps).to(x.dtype)
    return normed if scale is None else normed * scale


def plain_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of channels by four products of strided halves."""
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)
    first, second = x.float()[..., 0::2], x.float()[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2).to(x.dtype)


def condition_of_every_level(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The condition's rows once for every noise level, each with embedding, norms, keys and values of its own."""

    def run(self: lumina.LuminaDiT, x_t: Tensor, t: Tensor, condition: Tensor, mask=None, index=None) -> Tensor:  # type: ignore[no-untyped-def]
        if index is None:
            return forward(self, x_t, t, condition, mask)
        return forward(self, x_t, t, condition[index], None if mask is None else mask[index])

    return run


def rotary_put_back() -> AbstractContextManager[object]:
    stack = ExitStack()
    for module in (transformer, lumina):
        stack.enter_context(patch.object(module, "apply_rotary_interleaved", plain_rotary))
    return stack


PUT_BACK: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "adaptive scales as passes of their own behind the norms": lambda: patch.object(RMSNorm, "forward", plain_norm),
    "rotary positions by strided halves": rotary_put_back,
    "the condition prepared for every noise level": lambda: patch.object(
        lumina.LuminaDiT, "forward", condition_of_every_level(lumina.LuminaDiT.forward)
    ),
}


def all_put_back() -> AbstractContextManager[object]:
    stack = ExitStack()
    for put_back in PUT_BACK.values():
        stack.enter_context(put_back())
    return stack


def within(put_back: Callable[[], AbstractContextManager[object]], step: Step) -> Step:
    def run() -> None:
        with put_back():
            step()

    return run


# -- measuring ---------------------------------------------------------------------------------------------------------


def seconds_of(steps: Mapping[str, Step], num_rounds: int) -> dict[str, float]:
    """Processor seconds of each step, taken in turn; the least of all rounds, which other work disturbs least."""
    least = dict.fromkeys(steps, float("inf"))
    for _ in range(num_rounds + 1):
        for name, step in steps.items():
            started = time.process_time()
            step()
            least[name] = min(least[name], time.process_time() - started)
    return least


def outside_of_products(step: Step, num_steps: int) -> tuple[float, dict[str, float]]:
    """Share of the time outside of matmul and attention, and the share of every operation outside."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(num_steps):
            step()
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        times[event.key] += event.self_cpu_time_total
    total = sum(times.values())
    outside = {key: value / total for key, value in times.items() if not any(name in key for name in PRODUCTS)}
    return sum(outside.values()), dict(sorted(outside.items(), key=lambda item: -item[1]))


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
    dtype = autocast_dtype("auto", torch.device("cpu"))

    batches = {length: make_batch(model, arguments.batch_size, length) for length in (None, config.row_length)}
    rows = {
        f"rows of {length or 'one example'}": make_step(model, config, batches[length], dtype) for length in batches
    }
    seconds = seconds_of(rows, arguments.steps)
    print(f"{str(dtype).removeprefix('torch.')}, {arguments.threads} thread(s), {arguments.batch_size} examples a step")
    for (name, least), batch in zip(seconds.items(), batches.values(), strict=True):
        used = (batch.layout.example_ids >= 0).float().mean().item()
        print(f"{name}: {arguments.batch_size / least:.0f} examples per processor second, {used:.0%} of positions used")
    alone, packed = seconds.values()
    print(f"packed over one example a row: {alone / packed:.2f}x\n")

    step = make_step(model, config, batches[config.row_length], dtype)
    ways = {"as it is": ExitStack, **PUT_BACK, "all of them": all_put_back}
    seconds = seconds_of({name: within(put_back, step) for name, put_back in ways.items()}, arguments.steps)
    for name, put_back in ways.items():
        share, items = outside_of_products(within(put_back, step), arguments.steps)
        ratio = seconds[name] / seconds["as it is"]
        print(f"{name}: {share:.0%} outside of matmul and attention, a step takes {ratio:.2f}x the time")
        for key, value in list(items.items())[: 8 if name == "as it is" else 0]:
            print(f"  {value:5.1%}  {key}")


if __name__ == "__main__":
    main()
