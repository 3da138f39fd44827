"""DPG-Bench: the rules of its graph, grids and tiles, what its scorer loses, and the twin by hand and as a whole."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.evals.judges import Answer, StoredAnswers
from diptych.evals.places import Place, grid_of, tile_of
from diptych.evals.protocol import Failure
from diptych.evals.scores_file import read_scores
from diptych.evals.tasks import TaskOptions, build_task
from diptych.evals.tasks.dense_graphs import (
    DensePrompt,
    Proposition,
    graph_scores,
    official_tiles,
    read_dense_prompts,
    read_graphs,
)
from diptych.evals.tasks.dpg import OFFICIAL_JUDGE, DenseGraph, read_details
from diptych.evals.tasks.dpg_scenes import dense_scenes

QUESTIONS = (
    Proposition(1, (0,), "entity - whole", "Is there a dog?"),
    Proposition(2, (1,), "attribute - color", "Is the dog brown?"),
    Proposition(3, (2,), "attribute - size", "Is the brown dog small?"),
    Proposition(4, (0,), "entity - whole", "Is there a cat?"),
    Proposition(5, (1, 4), "relation - spatial", "Is the dog left of the cat?"),
)
HEADER = ("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed",
          "tuple", "question_natural_language")  # fmt: skip


def write_csv(path, rows, header=HEADER):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def row(name, number, dependency, kind, question, text="A long prompt."):
    return (name, text, "", number, dependency, "", "", f"{kind} (thing)", question)


@pytest.fixture
def graphs(tmp_path):
    """The first prompt loses its first question, on which nothing depends; the second is whole; the third is not."""
    return write_csv(
        tmp_path / "dpg_bench.csv",
        [
            row("p1", 1, "0", "global - style", "Is it a painting?", "A dog."),
            row("p1", 2, "0", "entity - whole", "Is there a dog?", "A dog."),
            row("p2", 1, "0", "entity - whole", "Is there a cat?", "A cat, asleep."),
            row("p2", 2, "1, 3", "attribute - state", "Is the cat asleep?", "A cat, asleep."),
            row("p2", 3, "0", "entity - part", "Does it have eyes?", "A cat, asleep."),
            row("p3", 2, "1", "entity - whole", "Is there a bird?", "A bird."),
        ],
    )


@pytest.mark.parametrize(
    ("yes", "scores"),
    [
        ((1, 2, 3, 4, 5), (1, 1, 1, 1, 1)),
        ((2, 3, 4, 5), (0, 0, 0, 1, 0)),  # no dog: nothing of it counts, and zeros are handed on
        ((1, 3, 4, 5), (1, 0, 0, 1, 1)),
        ((1, 2, 3, 5), (1, 1, 1, 0, 0)),  # one of two parents is enough
        ((), (0, 0, 0, 0, 0)),
    ],
)
def test_what_depends_on_a_no_is_a_no(yes, scores):
    found = graph_scores(QUESTIONS, {item.id: item.id in yes for item in QUESTIONS})
    assert tuple(found.values()) == scores


def test_zeros_are_handed_on_in_the_order_of_the_questions_alone():
    """A question that stands before its parent sees the parent's answer, not its score."""
    backwards = (QUESTIONS[2], QUESTIONS[1], QUESTIONS[0])
    assert graph_scores(backwards, {1: False, 2: True, 3: True}) == {3: 1.0, 2: 0.0, 1: 0.0}


def coloured(*colors, side=8):
    tiles = {divmod(place, 2): np.full((side, side, 3), color, np.uint8) for place, color in enumerate(colors)}
    return tiles, grid_of(tiles, (2, 2))


def test_the_resolution_is_the_side_of_one_tile():
    tiles, grid = coloured(50, 100, 150, 200)
    assert grid.shape == (16, 16, 3)
    for place, tile in enumerate(official_tiles(grid, 8)):
        assert (tile == tiles[divmod(place, 2)]).all()
        assert (tile_of(grid, Place("a.png", divmod(place, 2), (2, 2))) == tile).all()
    assert len(official_tiles(grid, 8, pic_num=1)) == 1
    # The side of the grid in place of that of a tile: the first "tile" is the grid, the others are black.
    first, *others = official_tiles(grid, 16)
    assert (first == grid).all() and not any(tile.any() for tile in others)
    # A smaller side than was drawn: only the upper left corner is ever seen.
    assert all((tile == 50).all() for tile in official_tiles(grid, 4))
    # A larger one cuts across tiles.
    assert len(np.unique(official_tiles(grid, 12)[0])) == 4


def test_a_wrong_resolution_is_what_costs_the_score():
    """Four right pictures: all questions yes with the right side of a tile, few with another, and nothing warns of it.

    Here a picture of two tiles has two red circles and still says yes to "is there"; counts, places and what is black
    do not.
    """
    task = dense_scenes(num_per_category=6, samples=4)
    right, wrong = [], []
    for prompt in task.prompts:
        requests = [request for request in task.requests() if request.id.startswith(f"{prompt.id}/")]
        pictures = [task.reference_output("oracle", request) for request in requests]
        grid = grid_of({divmod(place, 2): picture for place, picture in enumerate(pictures)}, (2, 2))
        for side, values in ((64, right), (128, wrong)):
            verdicts = task.judge(requests, official_tiles(grid, side))
            values.append(np.mean([verdict["score"] for verdict in verdicts]))
    assert np.mean(right) == 1.0 and np.mean(wrong) < 0.4


def test_a_file_that_is_no_grid_is_said():
    picture = np.zeros((16, 20, 3), np.uint8)
    assert tile_of(picture, Place("a.png", (0, 1), (2, 2))) == Failure(
        "a.png is 20x16 pixels: no grid of 2 x 2 equal squares"
    )
    with pytest.raises(ValueError, match=r"the tiles of a grid must be squares of one side, got 10x8\. Draw with"):
        grid_of({(0, 0): np.zeros((8, 10, 3), np.uint8)}, (2, 2))
    for arguments, message in (((8, 5), "pic_num must be 1 to 4, got 5"), ((0,), "resolution must be the side of one")):
        with pytest.raises(ValueError, match=message):
            official_tiles(picture, *arguments)


def test_the_table_of_questions_is_read_as_the_official_scorer_does(graphs):
    prompts, lost = read_graphs(graphs)
    assert [(prompt.id, len(prompt.propositions)) for prompt in prompts] == [("p1", 1), ("p2", 3)]
    assert lost == {"rows_passed_over": 1, "prompts_left_out": 1}
    assert prompts[0].propositions[0].question == "Is there a dog?" and prompts[0].prompt == "A dog."
    assert prompts[1].propositions[1].parents == (1, 3)
    assert (
        prompts[1].propositions[1].category == "attribute - state" and prompts[1].propositions[1].broad == "attribute"
    )


def by_hand(samples, said):
    """A benchmark of two prompts whose judge is official and says ``said``."""
    prompts = (DensePrompt("a", "Dog and cat.", QUESTIONS), DensePrompt("b", "Dog.", QUESTIONS[:2]))
    answers = {f"{name}#{number}": Answer(text) for name, own in said.items() for number, text in own.items()}
    return DenseGraph(prompts=prompts, samples=samples, examiner=StoredAnswers(answers, OFFICIAL_JUDGE, "1"))


def verdicts_of(task):
    requests = task.requests()
    pictures = [np.zeros((4, 4, 3), np.uint8)] * len(requests)
    return dict(zip([request.id for request in requests], task.judge(requests, pictures), strict=True))


def test_means_of_pictures_then_of_prompts_and_categories_of_the_last_picture():
    yes = dict.fromkeys(range(1, 6), "yes")
    task = by_hand(2, {"a/0000": yes, "a/0001": {**yes, 1: "no"}, "b/0000": {1: "yes", 2: "no"},
                       "b/0001": {1: "Yes", 2: "yes"}})  # fmt: skip
    table = task.table(verdicts_of(task), "mine")
    # a: all five; then the cat alone. b: one of two; then "Yes" is no "yes", so nothing is left.
    assert table.overall.value == pytest.approx(((1 + 1 / 5) / 2 + (1 / 2 + 0) / 2) / 2)
    assert table.overall.num_items == 2
    # Before zeros, of the last picture: a says cat alone of 2 entities, b says no to its dog; colours are both yes.
    assert {name: score.value for name, score in table.categories.items()} == pytest.approx(
        {"attribute": 1.0, "entity": 1 / 3, "relation": 1.0}
    )
    assert table.details["categories_in_detail"]["attribute - color"] == 1.0
    assert task.judge_record()["official"] and task.judge_record()["counts_as_yes"] == "exactly 'yes'"


def test_any_other_judge_may_say_yes_in_a_sentence_and_is_not_official():
    prompts = (DensePrompt("b", "Dog.", QUESTIONS[:2]),)
    answers = StoredAnswers({"b/0000#1": Answer("Yes, there is."), "b/0000#2": Answer("no.")}, "someone", "1")
    task = DenseGraph(prompts=prompts, samples=1, examiner=answers)
    assert verdicts_of(task) == {"b/0000": {"score": 0.5, "yes": {"1": 1, "2": 0}}}
    assert task.judge_record()["official"] is False


def test_missing_pictures_count_as_wrong():
    task = by_hand(2, {name: dict.fromkeys(range(1, 6), "yes") for name in ("a/0000", "a/0001", "b/0000", "b/0001")})
    verdicts = verdicts_of(task)
    assert task.table({**verdicts, "a/0001": None}, "mine").overall.value == pytest.approx((0.5 + 1) / 2)
    without = {name: verdict for name, verdict in verdicts.items() if name != "a/0001"}
    assert task.table(without, "mine").overall.value == 1.0


def test_the_official_details_are_read_as_answers(tmp_path, graphs):
    lines = [
        f"out/{name}.png, ({left}, {top}, {left + 8}, {top + 8}), {question}, {answer}"
        for name, questions in (
            ("p1", {"Is there a dog?": "yes"}),
            ("p2", {"Is there a cat?": "yes", "Is the cat asleep?": "no", "Does it have eyes?": "yes"}),
        )
        for left, top in ((0, 0), (8, 0), (0, 8), (8, 8))
        for question, answer in questions.items()
    ]
    (tmp_path / "x_detail.txt").write_text("\n".join(lines))
    answers = read_details(tmp_path / "x_detail.txt")
    assert answers.by_id["p2/0002#Is the cat asleep?"] == Answer("no") and len(answers.by_id) == 16
    task = build_task("dpg-official", TaskOptions(prompts=str(graphs)), answers)
    assert task.table(verdicts_of(task), "mine").overall.value == pytest.approx((1 + 2 / 3) / 2)
    for line, message in (
        ("nonsense", r"line 1: 'picture, \(left, top, right, bottom\), question, answer' is expected, got 'nonsense'"),
        ("a.png, (0, 4, 8, 12), Is it?, yes", r"line 1: \(0, 4, 8, 12\) is no tile of a grid"),
    ):
        (tmp_path / "y_detail.txt").write_text(line)
        with pytest.raises(ValueError, match=message):
            read_details(tmp_path / "y_detail.txt")


def test_grids_go_to_the_official_scorer_and_come_back_as_the_same_pictures(tmp_path, graphs, capsys):
    out, pictures = tmp_path / "s", tmp_path / "pictures"
    run = ["--on", "dpg-official", "--prompts", str(graphs), "--out"]
    assert main(["evaluate", "constant", *run, str(out), "--export", str(pictures), "--phase", "all"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "8 pictures in" in told and "dpg-official needs a judge of its pictures: give --judge" in told
    assert sorted(path.name for path in pictures.iterdir()) == ["p1.png", "p2.png"]
    with Image.open(pictures / "p1.png") as grid:
        assert grid.size == (128, 128)
    (tmp_path / "said.jsonl").write_text(
        "\n".join(
            f'{{"id": "{name}/{number:04d}#{question}", "answer": "yes"}}'
            for name, questions in (("p1", (2,)), ("p2", (1, 2, 3)))
            for number in range(4)
            for question in questions
        )
    )
    judge = ["--judge", str(tmp_path / "said.jsonl")]
    assert main(["evaluate", f"pictures:{pictures}", *run, str(tmp_path / "t"), *judge]) == 0
    (found,) = read_scores(tmp_path / "t" / "scores.json")
    assert found.overall.value == 1.0 and "missing" not in found.details
    report = (tmp_path / "t" / "report.md").read_text()
    assert "This is not the official judge: the score is not comparable with published ones." in report
    first, second = ({path.name for path in (tmp_path / run / "files").rglob("*.png")} for run in ("s", "t"))
    assert first == second  # the same bytes, by their address
    # A grid of another shape is said, and counts as missing.
    buffer = io.BytesIO()
    Image.new("RGB", (100, 128)).save(buffer, "PNG")
    (pictures / "p2.png").write_bytes(buffer.getvalue())
    assert main(["evaluate", f"pictures:{pictures}", *run, str(tmp_path / "u"), *judge]) == 0
    (found,) = read_scores(tmp_path / "u" / "scores.json")
    assert found.overall.value == 0.5 and found.details["missing"]["count"] == 4
    assert "p2.png is 100x128 pixels: no grid of 2 x 2 equal squares" in (tmp_path / "u" / "report.md").read_text()


def test_the_twin_oracle_above_chance_and_no_trivial_model_wins():
    task = dense_scenes(num_per_category=15, samples=1)
    assert len(task.prompts[0].propositions) >= 10
    scores = {table.contender: table.overall.value for table in task.references()}
    assert scores["oracle"] == 1.0
    assert 0.05 < scores["chance"] < 0.3 and scores["constant"] < 0.15 and scores["copy-input"] < 0.15
    with pytest.raises(ValueError, match="dpg-official has no oracle"):
        by_hand(1, {}).reference_output("oracle", task.requests()[0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a", "x", "0", "e", "q")], r"line 2: proposition_id must be a whole number, got 'x'"),
        ([row("a", 1, "0;1", "e", "q")], r"line 2: dependency must be whole numbers with commas between, got '0;1'"),
        ([row("a", 1, "0", "e", " ")], "line 2: question_natural_language is missing"),
        ([row("", 1, "0", "e", "q")], "line 2: item_id is missing"),
        ([row("a", 1, "0", "e", "q")] * 3, "line 4: proposition 1 of a stands twice"),
        ([row("a", n, "0", "e", "q", "") for n in (1, 2)], "a has no text"),
        ([row("a", 1, "0", "e", "q")], "holds no prompts that can be scored"),
    ],
)
def test_a_mistake_in_the_questions_is_named_with_its_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_graphs(write_csv(tmp_path / "g.csv", rows))


def test_files_that_are_not_what_they_should_be_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"line 1: columns text, proposition_id, .* are missing\. Give dpg_bench\.csv"):
        read_graphs(write_csv(tmp_path / "g.csv", [], ("item_id",)))
    with pytest.raises(FileNotFoundError, match=r"There is no file .*Give --prompts dpg_bench\.csv"):
        read_graphs(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"dpg-official needs its prompts and questions: give --prompts"):
        build_task("dpg-official", TaskOptions())
    lines = tmp_path / "p.jsonl"
    for text, message in (
        ('{"id": "a"}', "line 1: prompt must be a text, got None"),
        ('{"id": "a", "prompt": "p"}\n{"id": "a", "prompt": "q"}', "line 2: the id 'a' stands twice"),
    ):
        lines.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_dense_prompts(lines)
    task = DenseGraph(prompts=(DensePrompt("a", "b", QUESTIONS),), samples=5)
    with pytest.raises(ValueError, match="the official grid has room for 4 pictures a prompt, not 5"):
        task.places()


def test_the_published_prompts(test_data):
    path = test_data / "prompts" / "dpg" / "dpg_prompts.jsonl"
    task = build_task("dpg-official", TaskOptions(prompts=str(path)))
    assert len(task.prompts) == 1065 and len(task.requests()) == 4260
    places = task.places()
    assert len({place.file for place in places.values()}) == 1065
    assert all(place.file.split(".")[0] == name.rpartition("/")[0] for name, place in places.items())
    assert task.unready().startswith("dpg-official has prompts without questions: give --prompts dpg_bench.csv")
