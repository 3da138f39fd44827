"""GRPO on image tokens, as BLIP3o-NEXT (arXiv 2510.15857, section on reinforcement learning) trains them.

The backbone is a policy that writes the tokens of a picture; the denoiser, which stays frozen, renders it; a reward
judges the picture. Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300, section 4.1):

    for each prompt: G token sequences o_1 ... o_G of the policy, rendered and judged: r_1 ... r_G
    A_i = (r_i - mean(r)) / (std(r) + 1e-4)                          group-relative advantage, the same for all tokens
    rho_ik = pi(o_ik | prompt, o_i<k) / pi_old(o_ik | ...)
    L = mean_ik [ -min(rho_ik A_i, clip(rho_ik, 1 - eps, 1 + eps) A_i)  +  beta KL_ik ]
    KL_ik = pi_ref / pi - log(pi_ref / pi) - 1                                           (equation 4)

The mean runs over the tokens of all sequences. G = 16, eps = 0.2, beta = 1e-3 and 30 steps with guidance 2 to render in
the paper's scripts. Rollouts are made for every step anew, so pi_old is the policy itself: the ratio is 1 in value and
its gradient that of the log-probability, and nothing is clipped (TRL's default, which they use).

Differs: the policy is the distribution over image tokens alone, other tokens left out; it is sampled as it is, at
temperature 1 without top-p and top-k, so that the gradient is that of what was drawn; pictures of one group are
rendered from the same noise, so that they differ by their tokens only.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.data.batch import Batch
from diptych.data.example import Example, ImageOut, Part, Pixels, Text, load_pixels
from diptych.data.shuffle import derive_key
from diptych.data.sources.scenes import ScenesSource
from diptych.frechet.distance import frechet_distance
from diptych.frechet.moments import Moments
from diptych.models.preprocess import to_uint8
from diptych.objectives.loss_term import LossTerm, Objective
from diptych.objectives.randomness import normal_from_seeds
from diptych.scenes.parse import parse
from diptych.scenes.rules import evaluate_metadata
from diptych.scenes.scores import ScoreTable, score_table
from diptych.scenes.twin import parsed_detections
from diptych.train.recipe import Stage
from diptych.unified import UnifiedModel
from diptych.unified.tokens import POLICY, draws_by_tokens, sample_codes

ADVANTAGE_EPS = 1e-4
_BATCH = 32
"""Pictures at a time where no gradient is kept."""


@runtime_checkable
class Reward(Protocol):
    """Judges pictures. A server of detectors or of text recognition stands behind the same call."""

    def __call__(self, examples: Sequence[Example], pictures: Sequence[Pixels]) -> Sequence[float]:
        """One number for each picture; higher is better.

        Args:
            examples: what was asked for: its text, and ``metadata`` of its source.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SceneReward:
    """1 where the built-in world's exact rules find what the prompt asks for, else 0 or ``partial`` credit."""

    partial: float = 0.0
    """Credit of a picture that is not right, times the share of what was asked for that an object has: of a "red star"
    a red circle has half. Where few pictures are right, most groups have nothing else to learn from."""

    def __post_init__(self) -> None:
        if not 0 <= self.partial < 1:
            raise ValueError(f"reward.partial must lie in [0, 1), got {self.partial}.")

    def build(self) -> Reward:
        return partial(scene_reward, credit=self.partial)


def scene_reward(examples: Sequence[Example], pictures: Sequence[Pixels], credit: float = 0.0) -> list[float]:
    """The picture is parsed and held against the program of its example.

    Args:
        credit: see ``SceneReward.partial``.

    Raises:
        ValueError: an example without a program: it is not of the built-in world.
    """
    values = []
    for example, picture in zip(examples, pictures, strict=True):
        if "program" not in example.metadata:
            raise ValueError(
                f"example {example.key!r} has no program to be judged by: SceneReward needs data of ScenesSource."
            )
        program, detections = example.metadata["program"], parsed_detections(parse(picture))
        if evaluate_metadata(program, detections).correct:
            values.append(1.0)
            continue
        found = [set(detection.name.split()) for detection in detections]
        asked = [set(str(clause["class"]).split()) for clause in program["include"]]
        shares = [max((len(words & own) / len(words) for own in found), default=0.0) for words in asked]
        values.append(credit * sum(shares) / len(shares))
    return values


# -- the objective ---------------------------------------------------------------------------------------------------


def group_advantages(rewards: Float[Tensor, "groups members"]) -> Float[Tensor, "groups members"]:
    """Rewards against those of their group: of mean 0 and, but for `ADVANTAGE_EPS`, standard deviation 1.

    Raises:
        ValueError: groups of one.
    """
    if rewards.shape[1] < 2:
        raise ValueError("grpo.group_size must be at least 2: a group of one has no mean to be better than.")
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + ADVANTAGE_EPS)


def clipped_policy_loss(
    log_probs: Float[Tensor, "sequences tokens"],
    old_log_probs: Float[Tensor, "sequences tokens"],
    advantages: Float[Tensor, " sequences"],
    clip: float = 0.2,
) -> Float[Tensor, "sequences tokens"]:
    """``-min(rho A, clip(rho) A)`` of every token."""
    ratio = (log_probs - old_log_probs).exp()
    gain = advantages[:, None]
    return -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)


def reference_divergence(
    log_probs: Float[Tensor, "sequences tokens"], reference_log_probs: Float[Tensor, "sequences tokens"]
) -> Float[Tensor, "sequences tokens"]:
    """The unbiased, non-negative estimate of KL(policy | reference) at tokens that the policy drew."""
    difference = reference_log_probs - log_probs
    return difference.exp() - difference - 1


def code_log_probs(
    model: UnifiedModel, batch: Batch, codes: Int[Tensor, "sequences tokens"], backbone: Any = None
) -> Float[Tensor, "sequences tokens"]:
    """Log-probabilities of the codes of a batch's pictures, in nats; softmax in float32.

    Args:
        batch: prompts in words, each in a row of its own, that end in a picture.
        backbone: another policy than the model's own, such as the reference.
    """
    backbone = model.backbone if backbone is None else backbone
    head, slots, layout = model.image_head, batch.outputs[0].slots, batch.layout
    ids = batch.token_ids.flatten().index_copy(0, slots.flatten(), head.token_ids(codes).flatten())
    mask = None if layout.is_plain_causal else layout.mask()
    output = backbone(backbone.embed(ids.reshape(batch.token_ids.shape)), layout.positions, mask)
    log_probs = head.code_logits(backbone, output.hidden_states.flatten(0, 1)[slots[:, :-1]]).log_softmax(-1)
    return log_probs.gather(-1, codes.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class PromptBatch:
    """A batch that remembers what it was made of, as rewards need it."""

    batch: Batch
    examples: tuple[Example, ...]
    collator: Any

    @property
    def num_tokens(self) -> int:
        return self.batch.num_tokens

    def to(self, device: torch.device | str) -> "PromptBatch":
        return replace(self, batch=self.batch.to(device))


@dataclass(frozen=True)
class _Collate:
    """Prompts of examples, without the pictures."""

    collator: Any

    def __call__(self, examples: Sequence[Example], seeds: Sequence[int]) -> PromptBatch:
        for example in examples:
            if not isinstance(example.parts[-1], ImageOut) or any(not isinstance(p, Text) for p in example.parts[:-1]):
                raise ValueError(f"example {example.key!r}: GRPO is of prompts in words that ask for one picture.")
        return PromptBatch(self.collator(examples, seeds), tuple(examples), self.collator)


@torch.no_grad()
def render(
    model: UnifiedModel, hidden_states: Float[Tensor, "images queries dim"], seeds: Int[Tensor, " images"]
) -> list[Pixels]:
    """Pictures from the hidden states at their tokens, from noise of the seeds, as the model's settings say."""
    head, pictures = model.image_head, []
    shape = model.autoencoder.latent_shape(*model.images.size)
    for states, own in zip(hidden_states.split(_BATCH), seeds.split(_BATCH), strict=True):
        noise = normal_from_seeds(own, shape, "render")
        latents = head.draw(head.condition(states), head.null_condition(len(states)), noise, model.draw_settings)
        decoded = model.autoencoder.decode(latents.to(states.dtype)).float().clamp(-1, 1)
        pictures += list(to_uint8(decoded, value_range=(-1, 1)))
    return pictures


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """Reinforcement learning of a model that draws by tokens; ``build()`` loads that model."""

    start_from: str
    """The model: a model folder, a checkpoint or a run."""
    reward: Any = field(default_factory=SceneReward)
    """What judges: a config whose ``build()`` gives a `Reward`."""
    group_size: int = 16
    """Pictures of one prompt."""
    clip: float = 0.2
    """How far the ratio may leave 1."""
    held_out: Any = field(
        default_factory=lambda: ScenesSource(task="text_to_image", caption_style="short", split="test", max_objects=2)
    )
    """Prompts and real pictures that are never trained on: a source config."""
    features: Any = None
    """Network of the Fréchet distance beside the held-out reward; None leaves it out."""

    companion_scorers: ClassVar[tuple[str, ...]] = ("held_out",)
    """What ``evaluation.scorers`` may name beside the benchmarks of every unified model."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"model.group_size must be at least 2, a group of one has no mean to be better than: "
                f"got {self.group_size}."
            )
        if not 0 < self.clip < 1:
            raise ValueError(f"model.clip must lie between 0 and 1, got {self.clip}.")

    def build(self) -> UnifiedModel:
        from diptych.unified.folder import load_model

        model = load_model(self.start_from)
        if not draws_by_tokens(model.image_head):
            raise ValueError(f"model.start_from: {self.start_from} draws without tokens. Train blip3o_next first.")
        return model

    def objectives(self) -> dict[str, Objective]:
        """All are the companion's."""
        return {}

    def companion(self, model: UnifiedModel, run_dir: Path) -> "Grpo":
        return Grpo(self, model)

    def collate(self, collator: Any) -> Callable[[Sequence[Example], Sequence[int]], PromptBatch]:
        """Batches that keep their examples."""
        return _Collate(collator)


class Grpo:
    """Rollouts, rewards and the reference policy: the companion of a run."""

    def __init__(self, config: GrpoConfig, model: UnifiedModel) -> None:
        self.config, self.model = config, model
        self.reward: Reward = config.reward.build()
        # The policy as the run began with it, also where it is resumed: start_from is loaded anew.
        self.reference: Any = deepcopy(model.backbone).eval().requires_grad_(False)
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def objectives(self) -> dict[str, Objective]:
        return {"policy": self.objective, "kl": self.objective}

    def scorers(self) -> dict[str, Callable[[Any, int, int], list[ScoreTable]]]:
        return {"held_out": self.score}

    def objective(self, model: UnifiedModel, batch: PromptBatch, generator: torch.Generator) -> dict[str, LossTerm]:
        """``policy`` and ``kl``, counted in tokens."""
        group = self.config.group_size
        seeds = batch.batch.example_seeds
        examples = [example for example in batch.examples for _ in range(group)]
        requests: list[tuple[Part, ...]] = [example.parts[:-1] for example in examples]
        rolls = [derive_key(int(seed), "rollout", member) >> 1 for seed in seeds.tolist() for member in range(group)]
        sampled = sample_codes(model, requests, model.images.size, rolls, POLICY)
        codes, states = sampled.codes.clone(), sampled.hidden_states.clone()
        pictures = render(model, states, seeds.repeat_interleave(group))
        rewards = torch.tensor(self.reward(examples, pictures), dtype=torch.float32, device=codes.device)
        advantages = group_advantages(rewards.reshape(-1, group)).flatten()
        drawn = [
            replace(example, parts=(*parts, ImageOut(size=model.images.size)))
            for example, parts in zip(examples, requests, strict=True)
        ]
        prompts = replace(batch.collator, row_length=None)(drawn).to(codes.device)
        log_probs = code_log_probs(model, prompts, codes)
        with torch.no_grad():
            self.reference.to(codes.device)
            reference = code_log_probs(model, prompts, codes, self.reference)
        losses = clipped_policy_loss(log_probs, log_probs.detach(), advantages, self.config.clip)
        divergence = reference_divergence(log_probs, reference)
        spread = rewards.reshape(-1, group).std(1)
        self._steps.append((rewards.mean(), (spread > 0).float().mean(), -log_probs.detach().mean()))
        count = torch.tensor(float(losses.numel()), device=codes.device)
        return {"policy": LossTerm(losses.sum(), count), "kl": LossTerm(divergence.sum(), count)}

    def score(self, model: UnifiedModel, num_prompts: int, seed: int) -> list[ScoreTable]:
        """The reward on held-out prompts, one picture each, and the Fréchet distance of these to the real ones: of the
        model, and of that which the run began with."""
        source = self.config.held_out.build()
        examples = [source.example(index, 0) for index in range(num_prompts)]
        before = self.config.build().to(model.device).eval()
        contenders = {"model": model, "before": before}
        return [self._scored(name, contender, examples, seed) for name, contender in contenders.items()]

    def _scored(self, name: str, model: UnifiedModel, examples: Sequence[Example], seed: int) -> ScoreTable:
        drawn = model.generate_image([[*example.parts[:-1]] for example in examples], seed=seed)
        pictures = [np.asarray(image) for image in drawn]
        values = list(self.reward(examples, pictures))
        details: dict[str, Any] = {}
        if self.config.features is not None:
            details["frechet_distance"] = self._distance(examples, pictures)
        prompts = [str(example.parts[0].text) for example in examples if isinstance(example.parts[0], Text)]
        return score_table("held-out reward", name, ["all"] * len(values), values, prompts, details=details)

    @torch.no_grad()
    def _distance(self, examples: Sequence[Example], pictures: Sequence[Pixels]) -> float:
        network = self.config.features.build().to(self.model.device)
        moments: list[Moments] = []
        last = [example.parts[-1] for example in examples]
        real = [load_pixels(part.image) for part in last if isinstance(part, ImageOut) and part.image is not None]
        for own in (real, pictures):
            images = torch.from_numpy(np.stack(list(own))).permute(0, 3, 1, 2).float() / 255
            rows = torch.cat([network(part.to(self.model.device), value_range=(0, 1)) for part in images.split(_BATCH)])
            moments.append(Moments(rows.shape[1]))
            moments[-1].update(rows.cpu())
        return frechet_distance(moments[0], moments[1], is_quiet=True)

    def begin_stage(self, name: str, stage: Stage, is_new: bool) -> None:
        """Nothing: the reference is the model that the run was given."""

    def after_step(self) -> None:
        """Nothing is kept from step to step."""

    def metrics(self) -> Mapping[str, float]:
        """Means since the last call: ``reward``, the share of groups whose rewards differ, and surprise in nats."""
        if not self._steps:
            return {}
        means = [torch.stack(values).mean().item() for values in zip(*self._steps, strict=True)]
        self._steps.clear()
        return dict(zip(("reward", "groups_that_teach", "surprise"), means, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""
