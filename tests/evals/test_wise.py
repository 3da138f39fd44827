"""WISE: marks and weights of both scales by hand, answers in other forms, and the files of its scripts."""

import json

import numpy as np
import pytest

from diptych.cli.main import main
from diptych.evals.judges import Answer, StoredAnswers
from diptych.evals.protocol import Failure
from diptych.evals.scores_file import read_scores
from diptych.evals.tasks import TaskOptions, build_task
from diptych.evals.tasks.wise import (
    OFFICIAL_JUDGES,
    RANGES,
    WEIGHTS,
    KnowledgePrompt,
    Wise,
    marks_in,
    read_knowledge,
    read_marks,
    wiscore,
)

ONE_OF_EACH = {"culture": 7, "time": 401, "space": 700, "biology": 750, "physics": 801, "chemistry": 1000}


def entry(number, **fields):
    return {"Prompt": f"prompt {number}", "Explanation": f"meaning {number}", "prompt_id": number, **fields}


ALL = tuple(ONE_OF_EACH.values())


def task_of(scale, said, name="someone", ids=ALL):
    """A benchmark with a prompt of each category, and what its judge said by id."""
    answers = {f"{number}#{scale}": Answer(text) for number, text in said.items()}
    prompts = tuple(KnowledgePrompt(number, "p", "e") for number in ids)
    return Wise(scale=scale, prompts=prompts, examiner=StoredAnswers(answers, name, "1"))


def verdicts_of(task):
    requests = task.requests()
    found = task.judge(requests, [np.zeros((4, 4, 3), np.uint8)] * len(requests))
    return dict(zip([request.id for request in requests], found, strict=True))


def said(consistency, realism, quality):
    return f"Consistency: {consistency}\nRealism: {realism}\nAesthetic Quality: {quality}"


@pytest.mark.parametrize(
    ("marks", "value"),
    [((2, 2, 2), 1.0), ((0, 0, 0), 0.0), ((2, 0, 0), 0.7), ((0, 2, 0), 0.2), ((0, 0, 2), 0.1), ((1, 2, 1), 0.6)],
)
def test_wiscore(marks, value):
    assert wiscore(*marks) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        (said(2, 1, 0), (2, 1, 0)),
        ("**Consistency**: 1\n**Realism:** 2\n**Aesthetic Quality:** 2", (1, 2, 2)),
        ("consistency 1, REALISM 0, aesthetic quality 1", (1, 0, 1)),
        ("Consistency: 2\nRealism: 1", None),
        (said(3, 1, 0), None),
        (said(10, 1, 0), None),
        ("I cannot judge this.", None),
    ],
)
def test_marks_are_found_in_answers(text, marks):
    keys = ("consistency", "realism", "aesthetic_quality")
    assert marks_in(text) == (None if marks is None else dict(zip(keys, marks, strict=True)))


def test_categories_are_weighted_on_the_scale_of_the_paper():
    assert sum(WEIGHTS["legacy"].values()) == pytest.approx(1) == sum(WEIGHTS["verified"].values())
    for category, number in ONE_OF_EACH.items():
        task = task_of("legacy", {other: said(2, 2, 2) if other == number else said(0, 0, 0)
                                  for other in ONE_OF_EACH.values()})  # fmt: skip
        table = task.table(verdicts_of(task), "mine")
        assert table.overall.value == pytest.approx(WEIGHTS["legacy"][category])
        assert {name: score.value for name, score in table.categories.items() if score.value} == {category: 1.0}
    assert "0.167 time" in table.details["overall_is"] and "legacy scale" in table.details["overall_is"]
    assert table.details["mean_marks_of_2"] == pytest.approx(
        dict.fromkeys(("consistency", "realism", "aesthetic_quality"), 1 / 3)
    )
    assert [RANGES[name][1] - RANGES[name][0] + 1 for name in RANGES] == [400, 167, 133, 100, 100, 100]


def test_verified_is_another_scale():
    task = task_of("verified", {number: "Yes." if number < 500 else "no" for number in ONE_OF_EACH.values()})
    table = task.table(verdicts_of(task), "mine")
    assert table.overall.value == pytest.approx(0.4 + 0.12) and table.benchmark == "wise-verified"
    assert task.judge_record()["scale"] == "verified"
    assert task.config() != task_of("legacy", {}).config()


def test_categories_that_were_not_asked_for_are_named():
    task = task_of("legacy", {1: said(2, 2, 2), 2: said(0, 0, 0), 401: said(2, 2, 2)}, ids=(1, 2, 401))
    table = task.table(verdicts_of(task), "mine")
    assert table.overall.value == pytest.approx((0.4 * 0.5 + 0.167) / 0.567)
    assert "space, biology, physics, chemistry are not among the prompts" in table.details["overall_is"]
    assert table.overall.low < table.overall.value < table.overall.high


def test_an_answer_in_another_form_is_no_verdict():
    found = verdicts_of(task_of("legacy", {7: "Great picture!", 401: said(2, 2, 2)}, ids=(7, 401, 700)))
    assert found["7"] == Failure("the judge was to give three marks from 0 to 2 and said 'Great picture!'")
    assert found["700"] == Failure("the answers of someone lack 700#legacy") and found["401"]["score"] == 1.0
    found = verdicts_of(task_of("verified", {7: "perhaps"}, ids=(7,)))
    assert found["7"] == Failure("the judge was to say yes or no and said 'perhaps'")


def test_only_the_official_judge_and_words_are_called_official():
    assert task_of("legacy", {}, OFFICIAL_JUDGES["legacy"]).judge_record()["official"] is True
    assert task_of("verified", {}, OFFICIAL_JUDGES["legacy"]).judge_record()["official"] is False
    assert task_of("legacy", {}).judge_record()["official"] is False


def test_pictures_go_to_the_official_script_and_its_marks_come_back(tmp_path, capsys):
    folder, results = tmp_path / "data", tmp_path / "Results"
    folder.mkdir(), results.mkdir()
    (folder / "cultural_common_sense.json").write_text(json.dumps([entry(2), entry(1)]))
    (folder / "natural_science.json").write_text(json.dumps([entry(701)]))
    out = tmp_path / "s"
    run = ["--on", "wise", "--prompts", str(folder), "--out", str(out), "--export", str(tmp_path / "pictures")]
    assert main(["evaluate", "constant", *run]) == 0
    assert "wise needs a judge of its pictures: give --judge" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["1.png", "2.png", "701.png"]
    marks = {"consistency": 2.0, "realism": 1.0, "aesthetic_quality": 0.0}
    rows = [{"prompt_id": 1, "Subcategory": "Art", **marks},
            {"prompt_id": 2, "Subcategory": "Art", **dict.fromkeys(marks, 999)}]  # fmt: skip
    (results / "a_scores_results.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (results / "b_scores_results.jsonl").write_text(json.dumps({"prompt_id": 701, "Subcategory": "State", **marks}))
    assert main(["evaluate", str(out), "--phase", "score", "--judge", str(results)]) == 0
    (found,) = read_scores(out / "scores.json")
    assert found.overall.value == pytest.approx((0.4 * 0.8 / 2 + 0.1 * 0.8) / 0.5)
    assert found.details["missing"]["count"] == 1  # no mark was given
    assert "not comparable with published ones" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("{}", "a JSON array of prompts is expected, got dict"),
        ([1], "entry 0: a JSON object is expected, got int"),
        ([entry(0)], "entry 0: prompt_id must be a whole number from 1 to 1000, got 0"),
        ([entry(1, Explanation="")], "entry 0: Explanation must be a text, got ''"),
        ([entry(1), entry(1)], "entry 1: prompt_id 1 stands twice"),
        ([], "holds no prompts"),
    ],
)
def test_mistakes_in_prompts_are_named(tmp_path, content, message):
    file = tmp_path / "p.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_knowledge(file)


def test_mistakes_in_marks_are_named(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text('{"judge": "gpt-4o-2024-05-13"}\n{"prompt_id": 1, "consistency": 1}')
    with pytest.raises(ValueError, match=r"line 2: prompt_id, consistency, realism, aesthetic_quality must be numbers"):
        read_marks(file)
    with pytest.raises(ValueError, match="wise needs its prompts: give --prompts"):
        build_task("wise", TaskOptions())
    with pytest.raises(FileNotFoundError, match="Give --prompts a JSON file of WISE"):
        read_knowledge(tmp_path / "none.json")


def test_the_published_prompts(test_data):
    task = build_task("wise", TaskOptions(prompts=str(test_data / "prompts" / "wise" / "final_data.json")))
    counted = {name: sum(item.category == name for item in task.prompts) for name in RANGES}
    assert counted == {"culture": 400, "time": 167, "space": 133, "biology": 100, "physics": 100, "chemistry": 100}
    assert [place.file for place in task.places().values()] == [f"{number}.png" for number in range(1, 1001)]
