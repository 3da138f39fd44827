"""GRPO: the objective against closed forms, rollouts against the policy, and a policy that learns what is rewarded."""

import math
from dataclasses import replace

import pytest
import torch

from diptych.data.example import ImageOut, Text
from diptych.methods import grpo
from diptych.methods.grpo import (
    Grpo,
    GrpoConfig,
    SceneReward,
    clipped_policy_loss,
    code_log_probs,
    group_advantages,
    reference_divergence,
    scene_reward,
)
from diptych.scenes.draw import draw
from diptych.scenes.scene import Scene, SceneObject
from diptych.unified.tokens import POLICY, sample_codes
from tests.methods.test_blip3o_next import examples, tiny_next


def test_advantages_are_standardised_in_every_group():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = group_advantages(rewards)
    std = math.sqrt(3 * 0.25**2 + 0.75**2) / math.sqrt(3)
    torch.testing.assert_close(found[0], torch.tensor([0.75, -0.25, -0.25, -0.25]) / (std + 1e-4))
    assert found[1].tolist() == [0.0] * 4
    with pytest.raises(ValueError, match=r"grpo.group_size must be at least 2"):
        group_advantages(rewards[:, :1])


def test_gradient_of_a_softmax_policy_is_the_closed_form():
    """One token, logits z: d/dz_j of -A log pi(o) is A (pi_j - [j = o]); beyond the clip it is 0."""
    logits = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64, requires_grad=True)
    probabilities = logits.detach().softmax(-1)
    drawn, advantages = torch.tensor([2, 0, 2]), torch.tensor([1.5, -0.7, 0.2], dtype=torch.float64)
    log_probs = logits.log_softmax(-1)[drawn][:, None]
    losses = clipped_policy_loss(log_probs, log_probs.detach(), advantages)
    torch.testing.assert_close(losses.detach()[:, 0], -advantages)
    losses.sum().backward()
    one_hot = torch.nn.functional.one_hot(drawn, 3).double()
    expected = (advantages[:, None] * (probabilities - one_hot)).sum(0)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [(1.5, 1.0, -1.2, 0.0), (0.5, 1.0, -0.5, -0.5), (1.5, -1.0, 1.5, 1.5), (0.5, -1.0, 0.8, 0.0)],
)
def test_a_ratio_is_clipped_where_it_would_gain(ratio, advantage, loss, slope):
    log_prob = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found = clipped_policy_loss(log_prob, torch.zeros(1, 1), torch.tensor([advantage]), clip=0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss) and log_prob.grad.item() == pytest.approx(slope)


def test_divergence_has_the_mean_of_the_kl_and_its_value_is_never_negative():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.2, 0.6]).log()
    values = reference_divergence(policy[:, None], reference[:, None])[:, 0]
    assert (values >= 0).all()
    kl = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * values).sum(), kl)


def test_log_probabilities_are_those_the_codes_were_drawn_with():
    """Of 400 sequences from one prompt, first codes are as frequent as they are probable."""
    model = tiny_next()
    with torch.no_grad():
        model.backbone.embedding.weight[model.tokenizer.vocab_size :] *= 2  # far from uniform
    prompts = [(Text("a red circle"),)] * 400
    codes = sample_codes(model, prompts, (64, 64), range(400), POLICY).codes
    example = replace(examples("text_to_image", 1)[0], parts=(*prompts[0], ImageOut(size=(64, 64))))
    batch = model.collator()([example] * 400)
    with torch.no_grad():
        found = code_log_probs(model, batch, codes)
    first = torch.bincount(codes[:, 0], minlength=12) / 400
    own = {int(code): float(value.exp()) for code, value in zip(codes[:, 0], found[:, 0], strict=True)}
    for code, probability in own.items():
        assert float(first[code]) == pytest.approx(probability, abs=5 * math.sqrt(probability / 400))
    assert found.shape == (400, 4) and (found <= 0).all()


def grpo_of(model, **changes):
    return Grpo(GrpoConfig(start_from="-", group_size=8, **changes), model)


def prompt_batch(model, seeds, count=2):
    chosen = examples("text_to_image", count)
    return GrpoConfig(start_from="-").collate(model.collator())(chosen, seeds)


def test_the_policy_alone_gets_gradients_and_the_ratio_is_one():
    model = tiny_next()
    method = grpo_of(model)
    method.reward = lambda chosen, pictures: [float(i % 3) for i in range(len(pictures))]
    terms = method.objective(model, prompt_batch(model, [1, 2]), torch.Generator())
    assert float(terms["policy"].count) == 2 * 8 * 4
    assert float(terms["policy"].sum.detach()) == pytest.approx(0, abs=1e-3)  # advantages of a group sum to zero
    assert float(terms["kl"].sum.detach()) == pytest.approx(0, abs=1e-4)
    terms["policy"].sum.backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max()}
    assert reached == {"backbone"}


def test_the_reward_rises(monkeypatch):
    """A reward that asks for one code in all places: the policy learns to write it."""
    model = tiny_next()
    method = grpo_of(model)
    seen = []

    def watched(*given):
        seen.append(sample_codes(*given))
        return seen[-1]

    monkeypatch.setattr(grpo, "sample_codes", watched)
    method.reward = lambda chosen, pictures: [float((codes == 3).float().mean()) for codes in seen[-1].codes]
    optimizer = torch.optim.Adam(model.backbone.parameters(), 3e-3)
    for step in range(12):
        terms = method.objective(model, prompt_batch(model, [2 * step, 2 * step + 1]), torch.Generator())
        optimizer.zero_grad()
        (terms["policy"].mean + 1e-3 * terms["kl"].mean).backward()
        optimizer.step()
    shares = [float((sampled.codes == 3).float().mean()) for sampled in seen]
    assert shares[0] < 0.25 and min(shares[-2:]) > 0.6
    assert float(terms["kl"].mean.detach()) > 0.1  # far from where it began


def test_rollouts_follow_from_their_seeds_alone():
    model = tiny_next()
    metrics = []
    for _ in range(2):
        method = grpo_of(model)
        pictures = []
        method.reward = lambda chosen, drawn, kept=pictures: kept.extend(drawn) or [0.0] * len(drawn)
        method.objective(model, prompt_batch(model, [1, 2]), torch.Generator())
        metrics.append((method.metrics(), [p.tobytes() for p in pictures]))
    assert metrics[0] == metrics[1]
    assert metrics[0][0]["reward"] == 0 and metrics[0][0]["groups_that_teach"] == 0
    assert len(set(metrics[0][1][:8])) > 1  # of one group: other tokens, other pictures


def test_scenes_are_judged_by_their_programs():
    chosen = examples("text_to_image", 4)
    pictures = [example.parts[-1].image.load() for example in chosen]
    assert scene_reward(chosen, pictures) == [1.0] * 4
    assert sum(scene_reward(chosen, pictures[1:] + pictures[:1])) < 4
    with pytest.raises(ValueError, match="has no program to be judged by: SceneReward needs data of ScenesSource"):
        scene_reward([replace(chosen[0], metadata={})], pictures[:1])


def test_a_picture_that_is_half_right_has_partial_credit():
    scene = Scene((SceneObject("circle", "red", "large", 0.5, 0.5),))
    asked = examples("text_to_image", 1)[0]
    wanted = {"red circle": 1.0, "red star": 0.2, "blue circle": 0.2, "blue star": 0.0}
    for name, reward in wanted.items():
        program = {"tag": "scene", "prompt": name, "include": [{"class": name, "count": 1}], "exclude": []}
        example = replace(asked, metadata={"program": program})
        assert scene_reward([example], [draw(scene, 64)], credit=0.4) == [pytest.approx(reward)]
    with pytest.raises(ValueError, match=r"reward.partial must lie in \[0, 1\), got 1.0"):
        SceneReward(partial=1.0)


def test_prompts_with_pictures_and_bad_settings_are_refused():
    model = tiny_next()
    with pytest.raises(ValueError, match=r"GRPO is of prompts in words that ask for one picture"):
        GrpoConfig(start_from="-").collate(model.collator())(examples("image_edit", 1), [0])
    with pytest.raises(ValueError, match=r"model.group_size must be at least 2"):
        GrpoConfig(start_from="-", group_size=1)
    with pytest.raises(ValueError, match=r"model.clip must lie between 0 and 1, got 1.5"):
        GrpoConfig(start_from="-", clip=1.5)
    with pytest.raises(ValueError, match=r"model.start_from: diptych-scenes draws without tokens"):
        GrpoConfig(start_from="diptych-scenes").build()
