"""Entropy of hidden states: values known in closed form, and the probe of a real model."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.cli.main import main
from diptych.evals.entropy import median_bandwidth, pair_entropy, renyi_entropy
from diptych.evals.entropy_probe import ProbeSettings, curves, digest_of, probe, probe_items
from tests.tiny_models import tiny_model


def normal(n, dim=64, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_states_have_none_and_far_ones_log_n():
    assert renyi_entropy(torch.ones(16, 8), 1.0) == pytest.approx(0, abs=1e-9)
    assert renyi_entropy(100 * torch.eye(16), 1.0) == pytest.approx(4, abs=1e-9)
    assert renyi_entropy(normal(1), 1.0) == pytest.approx(0, abs=1e-12)
    # Two states with kernel value c have the eigenvalues (1 + c) / 2 and (1 - c) / 2.
    c, alpha = math.exp(-0.5), 1.01
    expected = math.log2(((1 + c) / 2) ** alpha + ((1 - c) / 2) ** alpha) / (1 - alpha)
    assert renyi_entropy(torch.tensor([[0.0], [1.0]]), 1.0, alpha) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("clusters", [1, 5, 20])
def test_clusters_count(clusters):
    states = 50 * normal(clusters).repeat(100 // clusters, 1)
    assert renyi_entropy(states, 1.0) == pytest.approx(math.log2(clusters), abs=1e-6)
    shuffled = states[torch.randperm(100, generator=torch.Generator().manual_seed(1))]
    assert renyi_entropy(shuffled, 1.0) == pytest.approx(renyi_entropy(states, 1.0), abs=1e-9)


def test_conditional_is_none_for_a_copy_and_grows_to_one_bit():
    prompt, noise = normal(64), normal(64, seed=1)
    found = [
        pair_entropy(prompt, share * prompt + math.sqrt(1 - share**2) * noise).conditional
        for share in (1.0, 0.99, 0.9, 0.5, 0.0)
    ]
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found == sorted(found) and 0.5 < found[-1] <= 1 + 1e-6
    assert pair_entropy(prompt, prompt[:1].repeat(64, 1)).conditional < -1  # a collapsed response
    flat = torch.ones(4, 3)
    assert pair_entropy(flat, flat).joint == pytest.approx(0, abs=1e-9)


def test_whose_response_depends_on_its_prompt_leads_and_no_trivial_one_does():
    """The excess of own prompts over others': copies before half copies, and nothing for chance and a constant."""
    prompts, constant = [normal(16, seed=seed) for seed in range(8)], normal(16, seed=99)

    def excess(responses):
        pairs = [(prompt, prompts[index - 1], responses[index]) for index, prompt in enumerate(prompts)]
        own = [pair_entropy(prompt, response).conditional for prompt, _, response in pairs]
        return sum(own) / 8 - sum(pair_entropy(other, response).conditional for _, other, response in pairs) / 8

    oracle = excess(prompts)
    partial = excess([0.95 * prompt + 0.3 * normal(16, seed=50 + index) for index, prompt in enumerate(prompts)])
    chance = excess([normal(16, seed=100 + index) for index in range(8)])
    assert oracle < partial < -0.1 and oracle < -0.8
    for trivial in (chance, excess([constant] * 8), excess([constant[:1].repeat(16, 1)] * 8)):
        assert abs(trivial) < 0.05


def test_scale_and_place_have_no_influence():
    prompt, response = normal(8), normal(8, seed=1)
    plain, moved = pair_entropy(prompt, response), pair_entropy(100 * prompt + 7, 100 * response + 7)
    assert moved.joint == pytest.approx(plain.joint, abs=1e-9) and moved.sigma == pytest.approx(plain.sigma)
    assert median_bandwidth(torch.tensor([[0.0], [1.0], [3.0]]), 0.5) == pytest.approx(1.0)
    # Repeated states leave the scale to those that differ.
    assert median_bandwidth(torch.tensor([[0.0], [0.0], [0.0], [2.0]]), 1.0) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pair_entropy(normal(4), normal(5)), "equally many states"),
        (lambda: pair_entropy(normal(1), normal(1)), "a prompt of one token has no entropy"),
        (lambda: pair_entropy(normal(4), normal(4), bandwidth=0.0), "positive multiple"),
        (lambda: renyi_entropy(normal(4), 0.0), "sigma must be positive"),
        (lambda: renyi_entropy(normal(4), 1.0, alpha=1.0), "alpha must be"),
        (lambda: renyi_entropy(normal(4) * math.inf, 1.0), "finite"),
        (lambda: renyi_entropy(normal(0), 1.0), "at least one state"),
        (lambda: ProbeSettings(tokens=1), "tokens must be at least 2"),
        (lambda: ProbeSettings(scenes=1), "at least 2 scenes"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_probe_of_a_model_and_of_a_pair():
    model, other, settings = tiny_model(), tiny_model(1), ProbeSettings(scenes=4, tokens=4)
    rows = probe(model, model, settings, "tiny")
    assert rows == probe(model, model, settings, "tiny")
    assert len(rows) == 2 * 2 * 4 * 3  # directions, own and shuffled, scenes, layers
    for row in rows:
        assert (row["prompt_id"] == row["response_id"]) == (row["pair"] == "own")
        assert row["H_cond"] == pytest.approx(row["H_joint"] - row["H_p"])
        assert 0 <= row["H_r"] <= 2 + 1e-9 and row["n"] == row["m"] == 4 and row["m_all"] >= 4 >= row["m_own"]
    # The queries are the same before the first block, whatever is drawn.
    embeddings = [row for row in rows if (row["task"], row["pair"], row["layer"]) == ("gen", "own", 0)]
    assert all(row["m_all"] == 4 for row in embeddings)
    found = {(curve.task, curve.measure): curve for curve in curves(rows)}
    und, gen, gap = (found[task, "H_r"] for task in ("und", "gen", "und-gen"))
    assert gap.layers == (0, 1, 2) and gap.scenes == 4
    assert gap.mean == pytest.approx([a - b for a, b in zip(und.mean, gen.mean, strict=True)])
    assert all(low <= mean <= high for low, mean, high in zip(gap.low, gap.mean, gap.high, strict=True))
    pair = probe(model, other, settings, "pair", layers=[2])
    same = [row["H_r"] for row in rows if row["task"] == "und" and row["layer"] == 2]
    assert [row["H_r"] for row in pair if row["task"] == "und"] == same
    assert [row["H_r"] for row in pair if row["task"] == "gen"] != [
        row["H_r"] for row in rows if row["task"] == "gen" and row["layer"] == 2
    ]


def test_pictures_with_captions_are_probed_by_the_same_code(tmp_path):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a photograph of {number} things on a table, with a lamp")
    (tmp_path / "1.png").write_bytes(b"no picture")
    model, settings = tiny_model(), ProbeSettings(scenes=5, tokens=4, data=str(tmp_path))
    items = probe_items(settings, (32, 32))
    assert [item.name for item in items] == ["picture-0000", "picture-0002"] and items[0].picture.shape == (20, 30, 3)
    rows = probe(model, model, settings, "tiny", layers=[2])
    assert {row["prompt_id"] for row in rows} == {"picture-0000", "picture-0002"} and len(rows) == 2 * 2 * 2
    assert digest_of(items) != digest_of(items[::-1])
    (tmp_path / "2.txt").unlink()
    with pytest.raises(ValueError, match=r"holds 1 captioned pictures, a probe needs 2\. Put a \.txt file beside each"):
        probe_items(settings, (32, 32))


def test_probe_says_what_is_wrong():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.2, got \[3\]"):
        probe(model, model, ProbeSettings(scenes=2), "tiny", layers=[3])
    with pytest.raises(ValueError, match="Ask for fewer with --tokens"):
        probe(model, model, ProbeSettings(scenes=2, tokens=500), "tiny")


def test_command(tmp_path, capsys):
    tiny_model().save(tmp_path / "model")
    out = tmp_path / "out"
    words = ["probe", str(tmp_path / "model"), "--scenes", "2", "--tokens", "4", "--device", "cpu", "--out", str(out)]
    assert main(words) == 0
    assert "und-gen" in capsys.readouterr().out
    assert len((out / "probe.jsonl").read_text().splitlines()) == 24
    record = json.loads((out / "probe.json").read_text())
    assert record["settings"]["tokens"] == 4 and len(record["curves"]) == 15
    assert "Entropy of responses" in (out / "report.html").read_text()
    assert main(["probe", "oracle"]) == 2
    assert "oracle has no hidden states" in capsys.readouterr().err
    assert main(["evaluate", "--list"]) == 0
    assert "diptych probe MODEL" in capsys.readouterr().out
