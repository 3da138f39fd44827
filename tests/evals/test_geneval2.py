"""GenEval 2: Soft-TIFA by hand, the spellings of an answer, and the files that its script reads and writes."""

import json

import numpy as np
import pytest

from diptych.cli.main import main
from diptych.evals.judges import Answer, StoredAnswers
from diptych.evals.protocol import Failure
from diptych.evals.scores_file import read_scores
from diptych.evals.tasks import TaskOptions, build_task
from diptych.evals.tasks.geneval2 import (
    answer_forms,
    arithmetic_mean,
    geneval2_task,
    geometric_mean,
    read_atom_scores,
    read_atoms,
)

ROWS = [
    {
        "prompt": "two red dogs",
        "atom_count": 3,
        "vqa_list": [["How many dogs are in the image?", "two"], ["Are the dogs red?", "Yes"], ["Any dogs?", "Yes"]],
        "skills": ["count", "attribute", "object"],
    },
    {"prompt": "a cat", "atom_count": 4, "vqa_list": [["Is there a cat?", "Yes"]], "skills": ["object"]},
]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "geneval2_data.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_spellings_of_an_answer():
    assert set(answer_forms("Yes")) == {"yes", "Yes", " yes", " Yes"}
    assert set(answer_forms("two")) == {"two", "Two", "2", " two", " Two", " 2"}
    assert set(answer_forms("ten")) == {"ten", "Ten", "10", " ten", " Ten", " 10"}


def test_means_of_atoms():
    assert arithmetic_mean([0.5, 0.5, 1.0]) == pytest.approx(2 / 3)
    assert geometric_mean([0.5, 0.5, 1.0]) == pytest.approx(0.25 ** (1 / 3))
    assert geometric_mean([0.9] * 4) == pytest.approx(0.9)
    assert geometric_mean([1.0, 0.0]) < 1e-100  # one atom that fails takes the prompt with it
    assert geometric_mean([0.0]) >= 0


def judged(prompts, probabilities):
    answers = {name: Answer(probability=value) for name, value in probabilities.items()}
    task = geneval2_task(prompts, examiner=StoredAnswers(answers, "someone", "1"))
    requests = task.requests()
    found = task.judge(requests, [np.zeros((4, 4, 3), np.uint8)] * len(requests))
    return task, dict(zip([request.id for request in requests], found, strict=True))


def test_prompts_by_the_geometric_and_skills_by_the_arithmetic_mean(prompts):
    task, verdicts = judged(prompts, {"0000#0": 0.25, "0000#1": 1.0, "0000#2": 0.5, "0001#0": 0.8})
    table = task.table(verdicts, "mine")
    assert table.overall.value == pytest.approx((0.125 ** (1 / 3) + 0.8) / 2)
    assert {name: score.value for name, score in table.categories.items()} == pytest.approx(
        {"GM, 3 atoms": 0.5, "GM, 4 atoms": 0.8, "AM, attribute": 1.0, "AM, count": 0.25, "AM, object": 0.65,
         "AM": (1.75 / 3 + 0.8) / 2}
    )  # fmt: skip
    assert task.table({**verdicts, "0001": None}, "mine").overall.value == pytest.approx(0.25)
    assert task.judge_record()["official"] is False


def test_a_question_without_a_probability_leaves_its_picture_unjudged(prompts):
    _, verdicts = judged(prompts, {"0000#0": 0.25, "0000#1": 1.0, "0001#0": 0.8})
    assert verdicts["0000"] == Failure("the answers of someone lack 0000#2") and verdicts["0001"] == {"atoms": [0.8]}


def test_pictures_go_to_the_official_script_and_its_scores_come_back(prompts, tmp_path, capsys):
    out, pictures = tmp_path / "s", tmp_path / "pictures"
    run = ["--on", "geneval2", "--prompts", str(prompts), "--out", str(out), "--export", str(pictures)]
    assert main(["evaluate", "constant", *run]) == 0
    assert "geneval2 needs a judge that tells probabilities" in " ".join(capsys.readouterr().err.split())
    paths = json.loads((pictures / "image_paths.json").read_text())
    assert paths == {"two red dogs": "images/0000.png", "a cat": "images/0001.png"}
    assert all((pictures / path).is_file() for path in paths.values())
    (tmp_path / "score_lists.json").write_text("[[0.25, 1.0, 0.5], [0.8]]")
    assert main(["evaluate", str(out), "--phase", "score", "--verdicts", str(tmp_path / "score_lists.json")]) == 0
    (found,) = read_scores(out / "scores.json")
    assert found.overall.value == pytest.approx(0.65) and found.details["judge"]["official"] is True
    assert main(["evaluate", f"pictures:{pictures}", *run[:4], "--out", str(tmp_path / "t"), "--phase", "produce"]) == 0
    same = [{path.name for path in (tmp_path / name / "files").rglob("*.png")} for name in "st"]
    assert same[0] == same[1]
    capsys.readouterr()
    (tmp_path / "score_lists.json").write_text("[[0.25, 1.0], [0.8]]")
    assert main(["evaluate", str(out), "--phase", "score", "--verdicts", str(tmp_path / "score_lists.json")]) == 2
    assert "prompt 0 has 3 questions and 2 scores" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "line 1: prompt must be a text"),
        ({"atom_count": "3"}, "line 1: atom_count must be a whole number of at least 1, got '3'"),
        ({"vqa_list": [["a"]]}, r"line 1: vqa_list must be a list of \[question, answer\]"),
        ({"skills": ["count"]}, "line 1: skills must be a list of 3 names, one a question"),
        ({"prompt": "a cat"}, "line 2: the same prompt stands in line 1"),
    ],
)
def test_a_mistake_in_the_prompts_is_named_with_its_line(tmp_path, change, message):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, [{**ROWS[0], **change}, ROWS[1]])))
    with pytest.raises(ValueError, match=message):
        read_atoms(path)


def test_mistakes_in_scores_are_named(tmp_path):
    path = tmp_path / "scores.json"
    for text, message in (
        ("{", "is no JSON"), ("{}", "a list of scores of each prompt is expected, got dict"),
        ("[[0.5], [2]]", r"entry 1: numbers from 0 to 1 are expected, got \[2\]"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_atom_scores(path)
    with pytest.raises(ValueError, match=r"geneval2 needs its prompts: give --prompts geneval2_data\.jsonl"):
        build_task("geneval2", TaskOptions())
