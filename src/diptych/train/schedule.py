"""Learning rate over the steps of a stage, as a pure function: nothing to save, nothing to resume."""

import math

from diptych.train.recipe import OptimizerConfig


def lr_factor(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """The share of the peak learning rate that step ``step`` (from 0) of ``num_steps`` uses.

    Warm-up: ``(step + 1) / warmup_steps``. After it, with progress p going from 0 at the first step after the warm-up
    to 1 at the last step, and r = ``min_lr_ratio``:

    - constant: 1
    - linear: ``1 - (1 - r) p``
    - cosine: ``r + (1 - r) (1 + cos(pi p)) / 2`` (arXiv 1608.03983, equation 5, without restarts)
    - wsd: 1, then linear to r over the last ``decay_fraction`` of the stage (arXiv 2404.06395, section 4)
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    last = num_steps - 1
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":
        decay_start = max(config.warmup_steps, math.floor(num_steps * (1 - config.decay_fraction)))
        progress = max(0.0, (step - decay_start + 1) / max(1, last - decay_start + 1))
        return 1 - (1 - config.min_lr_ratio) * progress
    progress = (step - config.warmup_steps) / max(1, last - config.warmup_steps)
    if config.schedule == "linear":
        return 1 - (1 - config.min_lr_ratio) * progress
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
