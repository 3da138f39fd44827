"""What a generation step of BLIP3-o costs: the original's way, and ours with each measure added in turn.

The original's way, written plainly here (its code: `main` of the released repository): one example a row, padded to the
longest; the whole sequence through the frozen language model with a graph and gradient checkpointing; vocabulary logits
of every position and their cross-entropy, which is not part of the loss; targets encoded in every step.

Losses and gradients of all rows are asserted to be equal, but for the last, which is another estimator: several noise
levels for each prompt. Times are of the processor (one thread: what a busy machine does beside does not count).

    python benchmarks/blip3o_training.py [--batch-size 16] [--steps 2] [--threads 1] [--logits 32000]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diptych.data.batch import Batch
from diptych.data.example import Example, ImageOut, LazyImage, Text
from diptych.data.layout import SpanKind
from diptych.data.sources.scenes import ScenesSource
from diptych.flow.time import DiscreteTime
from diptych.methods.blip3o import Blip3oConfig, Blip3oObjectives
from diptych.models.backbones.transformer import CausalTransformer
from diptych.objectives.randomness import normal_from_seeds, uniform_from_seeds
from diptych.train.part_configs import BackboneConfig, FeaturesConfig, LuminaConfig, VitConfig
from diptych.unified import ImagePolicy, UnifiedModel

ROW_LENGTH = 288
REPEATS = 4
SIDE = 128
CONDITION_DROP = 0.1
CONFIG = Blip3oConfig(
    images=ImagePolicy(size=(SIDE, SIDE)),
    features=FeaturesConfig(
        encoder=VitConfig(image_size=(SIDE, SIDE), patch_size=8, dim=512, num_layers=12, num_heads=8),
        channels=256,
        decoder_dim=32,
        decoder_layers=1,
        decoder_heads=1,
    ),
    backbone=BackboneConfig(dim=512, num_layers=8, num_heads=8, num_kv_heads=8, ffn_dim=1376, residual_init=1.0),
    denoiser=LuminaConfig(dim=512, num_layers=6, num_heads=8, prediction="velocity", initial_gate=0.5),
    num_queries=64,
)
"""Medium sizes: the encoder costs about as much as the language model's pass; at the published sizes it is over three
times that of all the rest."""


@dataclass(frozen=True)
class Row:
    """A way of doing the step, and its name in the table."""

    name: str
    run: Callable[[], torch.Tensor]
    batch: Batch
    is_same: bool = True


def make_model(num_logits: int) -> UnifiedModel:
    torch.manual_seed(0)
    model = CONFIG.build()
    config = {**model.backbone.config_dict(), "vocab_size": num_logits}
    model.backbone = CausalTransformer(**{name: value for name, value in config.items() if name != "kind"})
    for name, part in model.parts().items():
        part.requires_grad_(name == "image_head")
    return model.eval()


def make_examples(model: UnifiedModel, count: int) -> list[Example]:
    """Prompts of 20 to 80 tokens, with pictures of noise."""
    random = np.random.default_rng(0)
    captions = ScenesSource(task="text_to_image", num_scenes=4 * count, caption_style="mixed").build()
    words = [
        part.text for index in range(4 * count) for part in captions.example(index, 0).parts if isinstance(part, Text)
    ]
    examples = []
    for number in range(count):
        wanted = int(random.integers(20, 81))
        tokens = model.tokenizer.encode(", ".join(words[number:] + words[:number]))[:wanted]
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        image = LazyImage(f"noise/{number}", lambda pixels=pixels: pixels)  # type: ignore[misc]
        examples.append(Example((Text(model.tokenizer.decode(tokens)), ImageOut(image)), key=str(number)))
    return examples


def original_step(model: UnifiedModel, batch: Batch, has_checkpoints: bool, has_logits: bool) -> torch.Tensor:
    """The flow loss of a padded batch, as the original computes it."""
    group = batch.outputs[0]
    with torch.no_grad():
        data = model.group_features(group, is_output=True).float()
    embedded = model.embed(batch)
    blocks: Any = model.backbone.blocks
    if has_checkpoints:
        for block in blocks:
            block.forward = _checkpointed(type(block).forward, block)
    try:
        hidden_states = model.backbone(embedded, batch.layout.positions).hidden_states
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
    if has_logits:
        logits = model.backbone.logits(hidden_states).float()
        is_text = batch.layout.kinds[:, 1:] == SpanKind.TEXT
        labels = torch.where(is_text, batch.token_ids[:, 1:], -100)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100)  # computed and left out
    condition = hidden_states.flatten(0, 1)[group.slots]
    seeds = batch.example_seeds[group.example_ids]
    t = DiscreteTime().at(uniform_from_seeds(seeds, (1,), "time")).flatten()
    noise = normal_from_seeds(seeds, (1, *data.shape[1:]), "noise").flatten(0, 1)
    keep = uniform_from_seeds(seeds, (1,), "condition_drop") >= CONDITION_DROP
    level = t[:, None, None, None]
    x_t = level * data + (1 - level) * noise
    output = model.image_head.denoiser(x_t, t, condition * keep[..., None])
    return (output.float() - (data - noise)).square().mean()


def _checkpointed(forward: Any, block: Any) -> Any:
    return lambda *given: checkpoint(forward, block, *given, use_reentrant=False)


def our_step(model: UnifiedModel, batch: Batch, frozen_prefix: bool, repeats: int = 1) -> torch.Tensor:
    objectives = Blip3oObjectives(
        condition_drop=CONDITION_DROP, noise_repeats=repeats, frozen_prefix=frozen_prefix, time=DiscreteTime()
    )
    return objectives.joint(model, batch, torch.Generator())["flow"].mean


def with_features(model: UnifiedModel, batch: Batch) -> Batch:
    """The batch as a feature cache gives it."""
    with torch.no_grad():
        groups = tuple(replace(g, features=model.group_features(g, True), images=None) for g in batch.outputs)
    return replace(batch, outputs=groups)


def make_rows(model: UnifiedModel, batch_size: int) -> list[Row]:
    examples, seeds = make_examples(model, batch_size), list(range(batch_size))
    padded = model.collator()(examples, seeds)
    packed = model.collator(row_length=ROW_LENGTH)(examples, seeds)
    cached = with_features(model, packed)
    return [
        Row("(a) the original's way", lambda: original_step(model, padded, True, True), padded),
        Row("without gradient checkpointing", lambda: original_step(model, padded, False, True), padded),
        Row("+ no logits", lambda: original_step(model, padded, False, False), padded),
        Row("+ packed rows", lambda: our_step(model, packed, False), packed),
        Row("+ prompts without a graph", lambda: our_step(model, packed, True), packed),
        Row("+ cached targets", lambda: our_step(model, cached, True), cached),
        Row(f"option: {REPEATS} noise levels a prompt", lambda: our_step(model, cached, True, REPEATS), cached, False),
    ]


def measure(model: UnifiedModel, row: Row, num_steps: int) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
    """Processor seconds a step, and loss and gradients."""
    seconds = []
    for _ in range(num_steps + 1):  # the first warms up
        model.zero_grad()
        started = time.process_time()
        loss = row.run()
        loss.backward()
        seconds.append(time.process_time() - started)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return min(seconds[1:]), loss.detach(), gradients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--logits", type=int, default=32_000, help="words of the language model's vocabulary")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = make_model(arguments.logits)
    first: tuple[float, torch.Tensor, dict[str, torch.Tensor]] | None = None
    print("| step | seconds | times (a) | padding |\n|---|---|---|---|", flush=True)
    for row in make_rows(model, arguments.batch_size):
        seconds, loss, gradients = found = measure(model, row, arguments.steps)
        first = first or found
        if row.is_same:
            torch.testing.assert_close(loss, first[1], rtol=1e-4, atol=0.0)
            assert gradients.keys() == first[2].keys()
            largest = max(float(gradient.abs().max()) for gradient in first[2].values())
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, first[2][name], rtol=1e-3, atol=1e-5 * largest)
        waste = (row.batch.layout.example_ids < 0).float().mean().item()
        print(f"| {row.name} | {seconds:.2f} | {first[0] / seconds:.2f} | {waste:.0%} |", flush=True)


if __name__ == "__main__":
    main()
