"""Means over seeds and samples by hand, diversity by hand, and tables of made-up cells."""

import json
import math

import numpy as np
import pytest

from diptych.evals.comparison import Cell, before_drawing, loss_charts, pooled_fdr_k, pooled_tables, read_cell
from diptych.evals.comparison_report import Comparison, comparison_json, comparison_report, comparison_tables, markdown
from diptych.evals.diversity import diversity, mean_over_seeds, pairwise_distances, student_quantile
from diptych.evals.report import render_report
from diptych.evals.report_data import Table
from diptych.evals.run_cost import RunCost, StageCost, read_cost, read_losses, seconds_per_step
from diptych.scenes.scores import Score, ScoreTable


def score(value, half=0.1):
    return Score(value, value - half, value + half, 50, 40)


def test_diversity_is_the_mean_distance_of_pairs_of_one_prompt():
    features = np.array([[[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]], dtype=np.float32)
    np.testing.assert_allclose(pairwise_distances(features), [10 / 3, 0.0])
    found = diversity(features)
    assert found.value == pytest.approx(5 / 3) and (found.low, found.high) == pytest.approx((0.0, 10 / 3))
    assert (found.num_items, found.num_groups) == (6, 2)
    same = diversity(features[1:])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="at least 2 of each, got 1"):
        pairwise_distances(features[:, :1])


def test_the_interval_is_of_seeds_and_samples_together():
    one = mean_over_seeds([score(0.5)])
    assert (one.low, one.high) == pytest.approx((0.4, 0.6))
    two = mean_over_seeds([score(0.50), score(0.52)])  # s = 0.02 / sqrt 2, so t s / sqrt 2 = 12.706 * 0.01
    half = math.hypot(0.12706, 0.1)
    assert (two.value, two.low, two.high) == pytest.approx((0.51, 0.51 - half, 0.51 + half))
    equal = mean_over_seeds([score(0.5)] * 5)
    assert (equal.low, equal.high) == pytest.approx((0.4, 0.6))  # the same prompts: more seeds tell no more about them
    wide = mean_over_seeds([score(0.0, 0.0), score(1.0, 0.0)], most=1.0)
    assert (wide.low, wide.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="at least one score"):
        mean_over_seeds([])


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.706), (2, 4.303), (11, 2.2010), (20, 2.0860), (60, 2.0003)])
def test_students_quantiles(degrees, quantile):
    assert student_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


def recipe(*stages):
    """A recipe's JSON: name, objectives and steps of each stage, in batches of 10."""
    return {"name": "r", "stages": {
        name: {"objectives": dict.fromkeys(objectives, 1.0), "num_steps": steps, "batch_size": 10}
        for name, objectives, steps in stages
    }}  # fmt: skip


SEQUENTIAL = recipe(("vae", ["reconstruction"], 4), ("understanding", ["text"], 2), ("generation", ["flow"], 2))
JOINT = recipe(("joint", ["text", "mse"], 4))


def test_understanding_is_compared_with_the_stage_before_drawing():
    assert before_drawing(SEQUENTIAL) == "understanding"
    assert before_drawing(JOINT) is None
    assert before_drawing(recipe(("draw", ["flow"], 1), ("ask", ["text"], 1))) is None


def make_run(folder, config, losses):
    """A run folder as far as a comparison reads it."""
    run = folder / "run"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text(json.dumps(config))
    parts = [{"parameters": 7, "stages": {"a": True}}, {"parameters": 5, "stages": {"a": False}}]
    (run / "manifest.json").write_text(json.dumps({"parts": parts}))
    lines, step = [], 0
    for name, stage in config["stages"].items():
        for place in range(1, stage["num_steps"] + 1):
            step += 1
            term = next(iter(stage["objectives"]))
            lines.append({"event": "train", "step": step, "stage": name, "stage_step": place, "time": step,
                          "seconds_per_step": 0.5, "flops_per_step": 100.0, "peak_memory": 2.0**30,
                          f"loss/{term}": losses, f"loss/{term}/sigma 0.00-0.25": 9.0})  # fmt: skip
        lines.append({"event": "stage_end", "step": step, "stage": name, "stage_step": place, "time": step})
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"event": "tra')


def cell(folder, name, seed, config, losses, right=0.5):
    """A finished cell; ``right`` is what it scores."""
    own = folder / f"{name}-{seed}"
    make_run(own, config, losses)
    stages = list(config["stages"])
    return Cell(
        folder=own,
        recipe=name,
        seed=seed,
        cost=read_cost(own / "run"),
        tables=(
            ScoreTable("geneval-twin", name, score(right), {"colors": score(right)}),
            ScoreTable("geneval-twin", "chance", score(0.1), {"colors": score(0.1)}),
        ),
        stage_scores={"question-answering": {stage: score(0.2 * i) for i, stage in enumerate(stages)}},
        diversity={"pixels": score(2.0)},
        diversity_of_real={"pixels": score(3.0)},
        distances={
            "pixels": {"value": 8.0, "low": 6.0, "high": 10.0, "fdr": 4.0, "count": 60},
            "scenes": {"value": 3.0, "low": 3.0, "high": 3.0, "fdr": 2.0, "count": 60},
        },
        prompts=(),
        record={"recipe": name, "seed": seed},
    )


def test_a_runs_cost_is_read_from_its_folder(tmp_path):
    make_run(tmp_path, SEQUENTIAL, 1.0)
    cost = read_cost(tmp_path / "run")
    assert cost.stages[0] == StageCost(name="vae", num_steps=4, batch_size=10, seconds=2.0, flops_per_step=100.0)
    assert (cost.parameters, cost.trained_parameters, cost.peak_memory) == (12, 7, 2.0**30)
    assert (cost.examples(), cost.examples(["vae"])) == (80, 40)
    assert (cost.flops(), cost.flops(["vae"])) == (800.0, 400.0)
    assert (cost.seconds(), cost.seconds(["vae"])) == (4.0, 2.0)
    assert RunCost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost
    assert read_losses(tmp_path / "run") == {
        "reconstruction": [(10, 1.0), (20, 1.0), (30, 1.0), (40, 1.0)],
        "text": [(50, 1.0), (60, 1.0)],
        "flow": [(70, 1.0), (80, 1.0)],
    }


def test_a_step_is_timed_once_the_first_ones_have_warmed_up(tmp_path):
    def log(stage, times):
        line = {"event": "train", "step": 1, "stage": stage}
        return [json.dumps({**line, "seconds_per_step": each}) + "\n" for each in times]

    (tmp_path / "metrics.jsonl").write_text("".join([*log("one", [9, 5, 1, 1.5, 4]), *log("two", [3, 2])]))
    assert seconds_per_step(tmp_path) == {"one": 1.5, "two": 2}
    (tmp_path / "metrics.jsonl").write_text("".join(log("one", [9])))
    with pytest.raises(ValueError, match="stage 'one' has logged once; log every step of two or more"):
        seconds_per_step(tmp_path)


@pytest.fixture
def comparison(tmp_path):
    cells = [
        cell(tmp_path, "a", 0, SEQUENTIAL, 1.0, 0.4),
        cell(tmp_path, "a", 1, SEQUENTIAL, 3.0, 0.6),
        cell(tmp_path, "b", 0, JOINT, 5.0),
    ]
    return Comparison(
        folder=tmp_path, recipes={"a": SEQUENTIAL, "b": JOINT}, seeds=(0, 1), budget="examples=40", uncounted=("vae",),
        cells=cells, failed={"b, seed 1": "exit code 2, log.txt: out of | luck"}, num_missing=0, command="diptych …",
        facts={"data": "the same"},
    )  # fmt: skip


def test_scores_are_means_over_the_seeds_of_a_recipe(comparison):
    tables = pooled_tables(comparison.cells, ["a", "b"])
    assert [(table.contender, table.overall.value) for table in tables] == [
        ("a", pytest.approx(0.5)), ("b", pytest.approx(0.5)), ("chance", pytest.approx(0.1))
    ]  # fmt: skip
    assert tables[0].overall.low == 0.0 and tables[1].overall.low == pytest.approx(0.4)
    k = pooled_fdr_k(comparison.of("b"))
    assert (k.value, k.low, k.high) == pytest.approx((3.0, 2.5, 3.5))  # (4 + 2) / 2, with 4 from 3 to 5


def test_curves_have_bands_from_the_least_to_the_most_seed(comparison):
    charts = {chart.title: chart for chart in loss_charts(comparison.cells, ["a", "b"])}
    assert set(charts) == {"reconstruction", "text", "flow"}
    two, one = charts["text"].lines
    assert (two.x, two.y, two.low, two.high) == ((50, 60), (2.0, 2.0), (1.0, 1.0), (3.0, 3.0))
    assert (one.name, one.x, one.low) == ("b", (10, 20, 30, 40), ())
    assert '<polygon points="' in render_report(comparison_report(comparison))


def test_tables_say_what_was_used_kept_and_missed(comparison):
    tables = {table.title: {row[0]: row[1:] for row in table.rows} for table in comparison_tables(comparison)}
    assert tables["Budget"]["a"] == (
        "2 of 2",
        "vae 4 x 10, understanding 2 x 10, generation 2 x 10",
        "40",
        "400",
        "2 s",
    )
    assert tables["Budget"]["b"][0] == "1 of 2"
    assert tables["Cost of training"]["a"] == ("12", "7", "10", "20.0", "1.00 GiB")
    kept = tables["Understanding kept or lost"]
    assert kept["a"][-1] == "+0.200 (+0.200 to +0.200)" and kept["b"][-1] == "–"
    assert tables["Diversity"]["real pictures"] == ("3.000 (2.900 to 3.100)",)
    assert tables["Fréchet distance"]["b"][:2] == ("8.000 (6.000 to 10.000)", "4.000 (3.000 to 5.000)")
    assert tables["Failed cells"] == {"b, seed 1": ("exit code 2, log.txt: out of | luck",)}


def test_the_page_the_text_and_the_json_hold_the_same(comparison):
    page, text = render_report(comparison_report(comparison)), markdown(comparison)
    for number in ("8.000 (6.000 to 10.000)", "+0.200 (+0.200 to +0.200)"):
        assert number in page and number in text
    assert "3 of 4 runs are finished. 1 failed." in page and "out of \\| luck" in text
    found = json.loads(json.dumps(comparison_json(comparison)))
    assert found["budget"] == "examples=40" and found["failed"].keys() == {"b, seed 1"} and len(found["cells"]) == 3
    assert found["scores"][0]["overall"]["value"] == pytest.approx(0.5)


def test_a_damaged_cell_is_named(tmp_path):
    assert read_cell(tmp_path) is None
    (tmp_path / "cell.json").write_text('{"recipe": "a"')
    with pytest.raises(ValueError, match=r"cell.json cannot be read .* Delete it: the cell is then scored again"):
        read_cell(tmp_path)


def test_a_table_needs_a_cell_a_column():
    with pytest.raises(ValueError, match=r"Table 't': a row needs a name and 2 values, got 2 cells"):
        Table(title="t", columns=("a", "b"), rows=(("row", "1"),))
