"""Judges that look at pictures: what they answer, what is done where they do not, and who they were."""

import json

import numpy as np
import pytest

from diptych.evals.compare_scores import read_judged
from diptych.evals.judges import (
    Answer,
    ContenderJudge,
    Query,
    StoredAnswers,
    ask_all,
    read_answers,
    sum_of_forms,
    write_answers,
    yes_or_no,
)
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.produce import plan, produce
from diptych.evals.protocol import Failure
from diptych.evals.references import Reference
from diptych.evals.scene_judge import SceneJudge, answer_about
from diptych.evals.score import score
from diptych.evals.tasks.dpg_scenes import dense_scenes
from diptych.scenes.draw import draw
from diptych.scenes.scene import Scene, SceneObject

SCENE = Scene(
    (
        SceneObject("circle", "red", "large", 0.25, 0.5),
        SceneObject("square", "blue", "small", 0.8, 0.15),
        SceneObject("circle", "green", "small", 0.8, 0.8),
    ),
    "white",
)
PICTURE = draw(SCENE, (64, 64))


class Scripted:
    """A contender that says what it is told to, in order; an exception among it is raised."""

    name, capabilities, image_size = "scripted", ("image_to_text",), (64, 64)

    def __init__(self, *said):
        self.said, self.asked = list(said), []

    def identity(self):
        return {"fingerprint": "abc"}

    def settings(self, kind, given):
        return dict(given)

    def draw(self, requests):
        raise AssertionError

    def write(self, requests):
        self.asked += [request.parts[1].text for request in requests]
        outputs = [self.said.pop(0) if self.said else "yes" for _ in requests]
        if any(isinstance(output, Exception) for output in outputs):
            raise next(output for output in outputs if isinstance(output, Exception))
        return outputs


class Tokens(Scripted):
    def first_tokens(self, requests):
        return [{"two": 0.5, " two": 0.2, "2": 0.1, "three": 0.1} for _ in requests]


class Likelihoods(Scripted):
    capabilities = ("image_to_text", "log_likelihood")

    def log_likelihood(self, requests):
        return [tuple(np.log(0.1 * (1 + place)) for place in range(len(request.choices))) for request in requests]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is there a circle?", "yes"), ("Is there a red circle?", "yes"), ("Is there a blue circle?", "no"),
        ("Is there a large red circle?", "yes"), ("Is there a small red circle?", "no"), ("Is there an object?", "yes"),
        ("Is there a blue square in the top right?", "yes"), ("Is there a blue square on the left?", "no"),
        ("How many circles are there?", "2"), ("How many small objects are there?", "2"),
        ("Are there two circles?", "yes"), ("Are there three circles?", "no"), ("Are there three objects?", "yes"),
        ("Is the red circle left of the blue square?", "yes"), ("Is the red circle above the blue square?", "no"),
        ("Is the blue square above the green circle?", "yes"), ("Is the background white?", "yes"),
        ("Is the background black?", "no"), ("What is it?", None), ("Is there a dog?", None),
    ],
)  # fmt: skip
def test_the_scene_judge_answers_from_the_picture(question, answer):
    assert answer_about(SCENE, question) == answer
    (found,) = SceneJudge().ask([Query("a#1", PICTURE, question)])
    if answer is None:
        assert found == Failure(f"the scene parser does not understand {question!r}")
    else:
        assert found == Answer(answer)


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", True), ("Yes, there is.", True), ("NO.", False), ("No", False), ("maybe yes", None), ("", None),
     ("nothing", None)],
)  # fmt: skip
def test_the_first_word_says_yes_or_no(text, value):
    assert yes_or_no(text) is value


def test_probabilities_are_summed_over_spellings():
    forms = ("two", "Two", " two", " Two", "2", " 2")
    assert sum_of_forms({"two": 0.5, " two": 0.2, "2": 0.1, "three": 0.1}, forms) == pytest.approx(0.8)
    query = Query("a#1", PICTURE, "How many circles are there? Answer in one word.", forms)
    assert ContenderJudge(Tokens()).ask([query])[0].probability == pytest.approx(0.8)
    # Without tokens the log-likelihoods of the different spellings: two, Two, 2.
    assert ContenderJudge(Likelihoods()).ask([query])[0].probability == pytest.approx(0.6)
    with pytest.raises(ValueError, match="scripted tells no probabilities, which this benchmark needs of its judge"):
        ContenderJudge(Scripted()).ask([query])


def test_what_cannot_see_is_no_judge():
    blind = Scripted()
    blind.capabilities = ("text",)
    with pytest.raises(ValueError, match="--judge: scripted cannot judge pictures: it can do text"):
        ContenderJudge(blind)
    assert ContenderJudge(Scripted()).record() == {"name": "scripted", "revision": "abc"}


@pytest.fixture
def made(tmp_path):
    """Two prompts, one picture each, all right."""
    task, folder = dense_scenes(num_per_category=2, samples=1), EvaluationFolder(tmp_path / "run")
    contender = Reference("oracle", task)
    planned = plan(task, contender)
    produce(folder, task, contender, planned)
    return folder, {item.request.id: item.key for item in planned}


def judged(made, contender, **options):
    folder, keys = made
    task = dense_scenes(num_per_category=2, samples=1, examiner=ContenderJudge(contender))
    return score(folder, task, keys, "oracle", **options)


def test_a_picture_that_was_not_judged_counts_as_wrong_and_is_asked_again(made):
    second = list(made[1])[1]
    number = len(dense_scenes(num_per_category=2, samples=1).prompts[0].propositions)
    late = Failure("the server did not answer in 300 s, 4 times")
    for said, reason in (
        (["yes"] * number + ["I would rather not say"], "the judge was to say yes or no to 'Is there"),
        ([late], "the judge gave no answer: the server did not answer in 300 s"),  # the first has its verdict already
    ):
        result = judged(made, Scripted(*said))
        assert list(result.missing) == [second] and result.missing[second].startswith(reason)
        assert result.table.overall.value == 0.5
        assert result.table.details["missing"] == {"count": 1, "counted_as": "wrong", "score_without_them": 1.0}
    with pytest.raises(ValueError, match=r"1 of 2 samples are missing, such as .*the judge was to say yes or no"):
        judged(made, Scripted("hm"), missing="refuse")
    again = Scripted()
    assert judged(made, again).table.overall.value == 1.0
    # Only what had no verdict is asked again: the first picture was judged before.
    assert len(again.asked) == len(dense_scenes(num_per_category=2, samples=1).prompts[1].propositions)


def test_a_judge_that_goes_down_stops_the_judging_and_what_it_said_is_kept(made, monkeypatch):
    number = len(dense_scenes(num_per_category=2, samples=1).prompts[0].propositions)
    broken = Scripted(*["yes"] * number, OSError("the server cannot be reached"))
    monkeypatch.setattr("diptych.evals.score.BATCH", 1)
    with pytest.raises(OSError, match="cannot be reached"):
        judged(made, broken)
    again = Scripted()
    assert judged(made, again).table.overall.value == 1.0 and len(again.asked) < 2 * number


def test_the_judge_is_recorded_and_verdicts_of_two_are_kept_apart(made):
    no, yes = judged(made, Scripted(*["no"] * 99)), judged(made, other := Scripted())
    assert no.table.overall.value == yes.table.overall.value == 0  # one judge, by name and revision: its word counts
    assert not other.asked
    renamed = Scripted()
    renamed.identity = lambda: {"fingerprint": "def"}
    result = judged(made, renamed)
    assert result.table.overall.value == 1.0
    assert result.judge["judge"] == {"name": "scripted", "revision": "def"} and result.judge["official"] is False


def test_runs_with_different_judges_are_not_compared(tmp_path, capsys):
    from diptych.cli.main import main

    run = ["evaluate", "oracle", "--on", "dpg", "--num-per-category", "2", "--samples", "1", "--splits", "test"]
    assert main([*run, "--out", str(tmp_path / "a")]) == 0
    judged_by = read_judged(tmp_path / "a")["dense-prompts"].judge
    assert judged_by["judge"] == {"name": "scene parser", "revision": "1"}
    prompts = dense_scenes(num_per_category=2, samples=1).prompts
    said = {f"{prompt.id}/0000#{item.id}": Answer("Yes.") for prompt in prompts for item in prompt.propositions}
    write_answers(tmp_path / "said.jsonl", {"judge": "a person", "revision": "1"}, said)
    assert main([*run, "--out", str(tmp_path / "b"), "--judge", str(tmp_path / "said.jsonl")]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "dense-prompts: the runs have different judges" in told and '"a person"' in told
    assert main([*run, "--out", str(tmp_path / "b"), "--judge", "scenes", "--verdicts", "x"]) == 2
    assert "give --judge or --verdicts, not both" in capsys.readouterr().err


def test_answers_are_written_and_read(tmp_path):
    said = {"a/0000#1": Answer("yes"), "a/0000#2": Answer(probability=0.25), "a/0000#3": Answer("Two", 0.5)}
    write_answers(tmp_path / "said.jsonl", {"judge": "someone", "revision": "7"}, said)
    found = read_answers(tmp_path / "said.jsonl")
    assert dict(found.by_id) == said and found.record() == {"name": "someone", "revision": "7"}
    queries = [Query("a/0000#1", PICTURE, "?"), Query("a/0000#2", PICTURE, "?", ("yes",)),
               Query("a/0000#1", PICTURE, "?", ("yes",)), Query("b#1", PICTURE, "?")]  # fmt: skip
    assert found.ask(queries) == [
        Answer("yes"),
        Answer(probability=0.25),
        Failure("the answer of someone to a/0000#1 has no probability"),
        Failure("the answers of someone lack b#1"),
    ]
    with pytest.raises(ValueError, match="two questions to the judge have one id"):
        ask_all(StoredAnswers(said, "someone"), [queries[0], queries[0]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"answer": "yes"}, r"line 2: which question is it\? Give \"id\""),
        ({"id": "a#2"}, 'line 2: there is neither an "answer" nor a "probability"'),
        ({"id": "a#2", "answer": 1}, "line 2: answer must be a text, got 1"),
        ({"id": "a#2", "probability": 1.5}, "line 2: probability must be a number from 0 to 1, got 1.5"),
        ({"id": "a#1", "answer": "no"}, "line 2: line 1 answers the same question, a#1"),
    ],
)
def test_a_mistake_in_answers_is_named_with_its_line(tmp_path, line, message):
    path = tmp_path / "said.jsonl"
    path.write_text(json.dumps({"id": "a#1", "answer": "yes"}) + "\n" + json.dumps(line))
    with pytest.raises(ValueError, match=message):
        read_answers(path)
