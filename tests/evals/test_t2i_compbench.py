"""T2I-CompBench: its rules by hand, what each kind of judge can judge, and the files of its scripts."""

import json

import numpy as np
import pytest

from diptych.cli.main import main
from diptych.evals.judges import Answer, StoredAnswers
from diptych.evals.scores_file import read_scores
from diptych.evals.tasks import TaskOptions, build_task
from diptych.evals.tasks.geneval import StoredDetections
from diptych.evals.tasks.t2i_compbench import CompBench, CompPrompt, compbench_task, read_comp_results, read_prompts
from diptych.evals.tasks.t2i_rules import (
    attribute_score,
    counted_objects,
    numeracy_score,
    overlap,
    position_score,
    simple_chunks,
    spatial_score,
    spatial_words,
    three_in_one,
)
from diptych.scenes.rules import Detection

LEFT, RIGHT, FAR = (0.0, 0.0, 100.0, 100.0), (200.0, 0.0, 300.0, 100.0), (800.0, 600.0, 900.0, 700.0)


def test_attributes_are_a_product_of_at_most_eight():
    assert simple_chunks("a green bench and a blue bowl") == ["a green bench", "a blue bowl"]
    assert attribute_score([0.5, 0.4]) == pytest.approx(0.2) and attribute_score([]) == 1.0
    assert attribute_score([0.5] * 9) == pytest.approx(0.5**8)


@pytest.mark.parametrize(
    ("relation", "first", "second", "value"),
    [
        ("on the left of", LEFT, RIGHT, 1.0), ("on the right of", LEFT, RIGHT, 0.0),
        ("on the right of", RIGHT, LEFT, 1.0), ("on the top of", LEFT, RIGHT, 0.0),
        ("on the top of", LEFT, (0.0, 200.0, 100.0, 300.0), 1.0),
        ("on the bottom of", LEFT, (0.0, 200.0, 100.0, 300.0), 0.0),
        ("on the bottom of", (0.0, 200.0, 100.0, 300.0), LEFT, 1.0),
        ("on the left of", LEFT, FAR, 1.0), ("on the top of", LEFT, FAR, 0.0),  # further along x than along y
        ("next to", LEFT, RIGHT, 1.0),  # on one axis they are close
        ("near", LEFT, FAR, 150 / 800),
        ("on the left of", LEFT, (50.0, 0.0, 150.0, 100.0), 0.1 / (1 / 3)),  # they overlap by a third
        ("on top of", LEFT, (0.0, 200.0, 100.0, 300.0), 0.0),  # known, and never scored
    ],
)  # fmt: skip
def test_positions(relation, first, second, value):
    assert position_score(relation, first, second) == pytest.approx(value)


def test_spatial_scores_below_a_half_are_nothing():
    assert overlap(LEFT, (50.0, 0.0, 150.0, 100.0)) == pytest.approx(1 / 3)
    words = ("giraffe", "on the left of", "lamp")
    both = [Detection("giraffe", 0.8, LEFT), Detection("lamp", 0.6, RIGHT)]
    assert spatial_score(*words, both) == pytest.approx(0.2 + 0.15 + 0.5)
    assert spatial_score("giraffe", "on the right of", "lamp", both) == 0.0  # 0.35
    assert spatial_score(*words, both[:1]) == 0.0
    # The most confident one of a class counts, wherever it is.
    assert spatial_score(*words, [*both, Detection("giraffe", 0.9, FAR)]) == 0.0
    person = [Detection("person", 1.0, LEFT), Detection("frog", 1.0, RIGHT)]
    assert spatial_score("girl", "on the left of", "frog", person) == 1.0
    assert spatial_words("a giraffe next to a lamp") == ("giraffe", "next to", "lamp")
    assert spatial_words("a girl on the top of a frog") == ("girl", "on the top of", "frog")
    assert spatial_words("a dog in front of a desk") is None


def test_counting():
    assert counted_objects("two boys") == [(2, "boy")]
    assert counted_objects("three sea lions, one turtle and two knives") == [
        (3, "sea lion"), (1, "turtle"), (2, "knife")
    ]  # fmt: skip
    boxes = [(x, 0.0, x + 90.0, 90.0) for x in (0.0, 100.0, 200.0)]
    dogs = [Detection("dog", 0.9 - 0.1 * place, box) for place, box in enumerate(boxes)]
    assert numeracy_score([(3, "dog")], dogs) == 1.0 and numeracy_score([(2, "dog")], dogs) == 0.5
    assert numeracy_score([(2, "cat")], dogs) == 0.0
    # A find of nine tenths of another one is the same, however large that is.
    inside = [*dogs, Detection("dog", 0.2, (10.0, 10.0, 40.0, 40.0))]
    assert numeracy_score([(3, "dog")], inside) == 1.0
    both = [*dogs, Detection("person", 0.9, (300.0, 0.0, 390.0, 90.0))]
    assert numeracy_score([(3, "dog"), (1, "boy")], both) == 1.0
    assert numeracy_score([(3, "dog"), (2, "boy")], both) == 0.75
    assert numeracy_score([(3, "dog"), (2, "cat")], both) == 0.5
    hot = [Detection("hot dog", 0.9, boxes[0])]
    assert numeracy_score([(1, "dog")], hot) == 1.0  # a class that holds the word, where none is called so
    with pytest.raises(ValueError, match="the prompt names no number"):
        numeracy_score([], dogs)


def test_three_in_one():
    assert three_in_one(0.4, 0.8, 0.2, "spatial") == pytest.approx(0.6)
    assert three_in_one(0.4, 0.8, 0.2, "action") == pytest.approx(0.3)
    assert three_in_one(0.4, 0.8, 0.3, "") == pytest.approx(0.5)


PROMPTS = {
    "color": "a green bench and a blue bowl",
    "spatial": "a giraffe on the left of a lamp",
    "numeracy": "two dogs",
    "complex": "The red hat was on top of the brown coat rack.",
}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "dataset"
    made.mkdir()
    for category, prompt in PROMPTS.items():
        (made / f"{category}_val.txt").write_text(prompt + "\n")
    (made / "color_train.txt").write_text("a red car\n")
    return made


def verdicts_of(task):
    requests = task.requests()
    found = []
    for request in requests:  # one at a time, as judging may go on anywhere
        found += task.judge([request], [np.zeros((4, 4, 3), np.uint8)])
    return dict(zip([request.id for request in requests], found, strict=True))


def test_each_judge_judges_what_it_can_and_the_rest_is_said(folder):
    said = {f"color/{number:06d}#{chunk}": Answer(probability=value)
            for number, own in enumerate(((0.5, 0.4), (1.0, 1.0))) for chunk, value in enumerate(own)}  # fmt: skip
    seen = compbench_task(folder, examiner=StoredAnswers(said, "someone", "1"), samples=2)
    table = seen.table(verdicts_of(seen), "mine")
    assert {name: score.value for name, score in table.categories.items()} == {"color": pytest.approx(0.6)}
    assert (
        "Not judged: shape, texture, spatial, 3d_spatial, numeracy, non_spatial, complex."
        in (table.details["overall_is"])
    )
    boxes = {"spatial/000000": [Detection("giraffe", 1.0, LEFT), Detection("lamp", 1.0, RIGHT)],
             "numeracy/000000": [Detection("dog", 0.9, LEFT)]}  # fmt: skip
    found = compbench_task(folder, examiner=StoredDetections(boxes, "a detector", "2"), samples=1)
    table = found.table(verdicts_of(found), "mine")
    assert {name: score.value for name, score in table.categories.items()} == {"spatial": 1.0, "numeracy": 0.5}
    assert table.overall.value == 0.75 and found.judge_record()["official"] is False
    alone = CompBench(prompts=(CompPrompt("complex", 0, "p"),), examiner=StoredAnswers(said, "someone", "1"))
    assert alone.unready() == "t2i-compbench: the judge given can judge none of complex"


def test_pictures_go_to_the_official_scripts_and_their_scores_come_back(folder, tmp_path, capsys):
    out, pictures = tmp_path / "s", tmp_path / "pictures"
    run = ["--on", "t2i-compbench", "--prompts", str(folder), "--samples", "2", "--out", str(out)]
    assert main(["evaluate", "constant", *run, "--export", str(pictures)]) == 0
    assert "t2i-compbench needs a judge: give --judge (color, shape, texture)" in " ".join(
        capsys.readouterr().err.split()
    )
    made = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.png"))
    assert len(made) == 8 and made[0] == f"color/samples/{PROMPTS['color']}_000000.png"
    assert all(name.rsplit("/", 1)[1].split("_")[0] in PROMPTS.values() for name in made)
    results = {"color/annotation_blip": ["0.5000", "0.2500"], "spatial/labels/annotation_obj_detection_2d": [0.8, 0],
               "complex/annotation_blip": [0.4, 0.4], "complex/labels/annotation_obj_detection_2d": [0.8, 0.0],
               "complex/annotation_clip": [0.3, 0.3]}  # fmt: skip
    for name, answers in results.items():
        (pictures / name).mkdir(parents=True)
        entries = [{"question_id": number, "answer": answer} for number, answer in enumerate(answers)]
        (pictures / name / "vqa_result.json").write_text(json.dumps(entries[::-1]))
    with pytest.raises(FileNotFoundError, match=r"complex_val\.txt is missing: it says what complex prompts hold"):
        read_comp_results(pictures)
    (pictures / "complex_val.txt").write_text(PROMPTS["complex"])
    (pictures / "complex_val_spatial.txt").write_text(PROMPTS["complex"].lower())
    (pictures / "complex_val_action.txt").write_text("")
    assert main(["evaluate", str(out), "--phase", "score", "--verdicts", str(pictures)]) == 0
    (found,) = read_scores(out / "scores.json")
    assert {name: score.value for name, score in found.categories.items()} == pytest.approx(
        {"color": 0.375, "spatial": 0.4, "complex": (0.6 + 0.2) / 2}
    )
    assert "3d_spatial, numeracy" in found.details["overall_is"].partition("Not judged")[2].replace(
        "shape, texture, ", ""
    )
    capsys.readouterr()
    (pictures / "color/annotation_blip/vqa_result.json").write_text('[{"question_id": 0, "answer": 1}]')
    assert main(["evaluate", str(out), "--phase", "score", "--verdicts", str(pictures)]) == 2
    assert "hold 1 scores of color, this run 2 pictures" in " ".join(capsys.readouterr().err.split())


def test_names_from_which_the_prompt_would_not_come_back_are_refused():
    for prompt in ("a_b", "a/b", "x" * 250):
        task = CompBench(prompts=(CompPrompt("color", 0, prompt),))
        with pytest.raises(ValueError, match="is no file name from which the official scripts would read the prompt"):
            task.places()


def test_mistakes_are_named(folder, tmp_path):
    (folder / "sizes_val.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"the name must be <category>_val\.txt with one of color, shape"):
        read_prompts(folder / "sizes_val.txt")
    (folder / "color_val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"color_val\.txt holds no prompts"):
        read_prompts(folder)
    with pytest.raises(FileNotFoundError, match=r"There is no .*none with <category>_val\.txt"):
        read_prompts(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no <category>/…/vqa_result\.json"):
        read_comp_results(folder)
    with pytest.raises(ValueError, match="t2i-compbench needs its prompts"):
        build_task("t2i-compbench", TaskOptions())
    place = tmp_path / "r" / "color" / "annotation_blip"
    place.mkdir(parents=True)
    for content, message in (([{"question_id": 1, "answer": 1}], "question_id must be 0 to 0, each once"),
                             ([{"id": 1}], "a list of question_id and answer is expected")):  # fmt: skip
        (place / "vqa_result.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_comp_results(tmp_path / "r")


def test_the_published_prompts(test_data):
    task = build_task("t2i-compbench", TaskOptions(prompts=str(test_data / "prompts" / "t2i_compbench")))
    counted = {}
    for item in task.prompts:
        counted[item.category] = counted.get(item.category, 0) + 1
    assert counted == dict.fromkeys(counted, 300) and len(counted) == 8
    assert len(task.places()) == 24_000
    spatial = [spatial_words(item.prompt) for item in task.prompts if item.category == "spatial"]
    assert all(spatial)
    wanted = [counted_objects(item.prompt) for item in task.prompts if item.category == "numeracy"]
    assert all(wanted)
    colors = [simple_chunks(item.prompt) for item in task.prompts if item.category == "color"]
    assert all(1 <= len(chunks) <= 8 for chunks in colors)
