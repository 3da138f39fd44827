"""Two runs item by item: intervals and p-values that know the pairs, and refusals of what is not comparable."""

import json

import numpy as np
import pytest

from diptych.cli.main import main
from diptych.evals.compare_scores import _difference, compare_scores, merged_tables
from diptych.evals.task import Unit


def strata(first, second, groups=None):
    """One category of paired values."""
    names = [str(i) for i in range(len(first))] if groups is None else groups
    return [
        [
            (Unit(str(i), "all", name, float(a)), Unit(str(i), "all", name, float(b)))
            for i, (a, b, name) in enumerate(zip(first, second, names, strict=True))
        ]
    ]


def test_a_difference_that_is_there_is_found_and_one_that_is_not_is_not():
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.5
    better = first | (rng.random(400) < 0.1)  # wins 5 % and loses nothing: certain when paired
    found = _difference("b", "", strata(first, better), 2000, 0)
    assert (
        found.value == pytest.approx(float(np.mean(better) - np.mean(first))) and 0.01 < found.low < found.high < 0.09
    )
    assert found.p_value < 0.001 and found.is_significant
    # Unpaired, the interval of a difference of two rates of 0.5 would be +-0.07 wide and hold zero.
    same = _difference("b", "", strata(first, first), 2000, 0)
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_p_values_are_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(1)
    values = []
    for seed in range(200):
        first, second = rng.random((2, 60)) < 0.4
        values.append(_difference("b", "", strata(first, second), 200, seed).p_value)
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.1 and 0.4 < np.mean(values) < 0.7


def test_groups_stay_together():
    rng = np.random.default_rng(2)
    by_group = np.repeat(rng.random(20) < 0.6, 50)
    groups = [str(i // 50) for i in range(1000)]
    grouped = _difference("b", "", strata(np.zeros(1000), by_group, groups), 2000, 0)
    alone = _difference("b", "", strata(np.zeros(1000), by_group), 2000, 0)
    assert grouped.num_groups == 20 and grouped.high - grouped.low > 4 * (alone.high - alone.low)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Oracle and constant, judged."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("oracle", "constant"):
        words = ["evaluate", name, "--on", "questions,xtc", "--splits", "test", "--num-per-category", "4"]
        assert main([*words, "--samples", "1", "--out", str(folder / name)]) == 0
    return folder


def changed(runs, tmp_path, edit):
    """A copy of the constant's run with an edited file of JSON."""
    import shutil

    shutil.copytree(runs / "constant", tmp_path / "changed")
    for name in ("run.json", "results.json"):
        file = tmp_path / "changed" / name
        content = json.loads(file.read_text())
        edit(name, content)
        file.write_text(json.dumps(content))
    return tmp_path / "changed"


def test_two_runs(runs, capsys):
    found = {(one.benchmark, one.category): one for one in compare_scores(runs / "constant", runs / "oracle")}
    whole = found["question-answering", ""]
    assert (
        whole.second == pytest.approx(1)
        and whole.value == pytest.approx(1 - whole.first)
        and whole.num_units == 28
        and whole.is_significant
    )
    assert found["question-answering", "color"].value == 1.0
    assert found["consistency", ""].value == 1.0 and found["consistency", ""].num_groups == 4
    capsys.readouterr()
    assert main(["compare", str(runs / "constant"), str(runs / "oracle")]) == 0
    printed = capsys.readouterr().out
    assert "question-answering" in printed and "+1.000 to +1.000" in printed and "constant" in printed
    assert main(["compare", str(runs / "constant"), str(runs / "oracle"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["benchmark"] == "question-answering"
    tables = merged_tables([runs / "constant", runs / "oracle"])
    assert [table.contender for table in tables] == ["constant", "oracle"] * 2


def test_another_judge_is_refused(runs, tmp_path):
    def edit(name, content):
        if name == "results.json":
            content["diptych"]["results"][0]["judge"]["revision"] = "2"

    other = changed(runs, tmp_path, edit)
    with pytest.raises(ValueError, match=r'question-answering: the runs have different judges, .*"revision": "1".*"2"'):
        compare_scores(runs / "oracle", other)
    with pytest.raises(ValueError, match="have different judges"):
        merged_tables([runs / "oracle", other])


def test_what_was_asked_differently_is_refused(runs, tmp_path):
    def edit(name, content):
        if name == "run.json":
            content["tasks"][0]["config"]["seed"] = 5

    with pytest.raises(ValueError, match="the runs were asked differently, seed is 0 and 5"):
        compare_scores(runs / "oracle", changed(runs, tmp_path, edit))


def test_another_size_of_pictures_and_one_name_twice_are_fine(runs, tmp_path):
    def edit(name, content):
        if name == "run.json":
            content["tasks"][0]["config"]["image_size"] = [128, 128]

    other = changed(runs, tmp_path, edit)
    assert compare_scores(runs / "constant", other)[0].value == 0.0
    names = {table.contender for table in merged_tables([runs / "constant", other])}
    assert names == {"constant (constant)", "constant (changed)"}


def test_runs_that_have_nothing_to_compare(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no evaluation"):
        compare_scores(runs / "oracle", tmp_path)
    words = ["evaluate", "oracle", "--on", "editing", "--splits", "test", "--num-per-category", "1"]
    assert main([*words, "--out", str(tmp_path / "a"), "--phase", "produce"]) == 0
    with pytest.raises(FileNotFoundError, match=r"has not been judged: results\.json is missing"):
        compare_scores(runs / "oracle", tmp_path / "a")
    assert main(["evaluate", str(tmp_path / "a"), "--phase", "score"]) == 0
    with pytest.raises(ValueError, match="have no benchmark in common"):
        compare_scores(runs / "oracle", tmp_path / "a")
