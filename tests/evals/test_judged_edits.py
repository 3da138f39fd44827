"""ImgEdit, GEdit-Bench and RISEBench: marks, caps and means by hand, their files, and a run from end to end."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from diptych.cli.judges import open_judge
from diptych.cli.main import main
from diptych.data.example import LazyImage
from diptych.evals.judges import Answer, StoredAnswers
from diptych.evals.protocol import Failure
from diptych.evals.scores_file import read_scores
from diptych.evals.tasks import gedit, imgedit, rise
from diptych.evals.tasks.judged_edits import EditItem, JudgedEdits

GREY = np.full((6, 8, 3), 128, np.uint8)


def item(name, category, **about):
    return EditItem(name, LazyImage(name, lambda: GREY), "do it", category, f"{name}.png", about)


def judged(task, said, name="someone"):
    """Verdicts of a task whose judge said ``{"<id>#<what>": text}``."""
    stored = StoredAnswers({key: Answer(text) for key, text in said.items()}, name, "1")
    task = JudgedEdits(name=task.name, items=task.items, marking=task.marking, examiner=stored)
    requests = task.requests()
    found = task.judge(requests, [GREY] * len(requests))
    return dict(zip([request.id for request in requests], found, strict=True))


def save(path, color=(128, 128, 128), size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def three(first, second, third):
    return f"Brief reasoning: fine.\nPrompt Compliance: {first}\nVisual Naturalness: {second}\nPhysical: {third}"


# ImgEdit


def test_imgedit_marks_are_read_as_the_official_script_reads_them():
    assert imgedit.marks_in(three(5, 4, 3)) == [5, 4, 3]
    assert imgedit.marks_in("Prompt Compliance: 4/5\nA: b: 3\n**Quality**: 2\nx:1") == [2]
    assert imgedit.marks_in("no marks") == []


def test_imgedit_means_and_the_cap_that_only_the_judge_is_told():
    items = (item("1", "add"), item("2", "add"), item("3", "style"))
    task = JudgedEdits(name="imgedit", items=items, marking=imgedit.ImgEditMarking())
    verdicts = judged(task, {"1#marks": three(5, 4, 4), "2#marks": three(1, 5, 5), "3#marks": three(2, 2, 2)})
    # (5 + 4 + 4) / 3 = 4.33 and 3.67 after rounding; the second is not cut to 1, as the official script does not.
    assert verdicts["1"]["value"] == pytest.approx(4.33 / 5) and verdicts["2"]["value"] == pytest.approx(3.67 / 5)
    table = task.table(verdicts, "model")
    assert table.details["published_scale"] == {"add": 4.0, "style": 2.0}
    assert table.details["published_overall"] == 3.0 and table.overall.value == pytest.approx(0.6)  # of types
    assert table.details["marks_above_the_first"] == 1
    assert table.details["overall_if_they_were_cut"] == pytest.approx(((13 / 3 + 1) / 2 + 2) / 2, abs=0.01)
    missing = task.table({**verdicts, "3": None}, "model")
    assert missing.details["published_scale"]["style"] == 0.0  # the official script passes over it


@pytest.mark.parametrize("text", ["I cannot", three(0, 1, 1), three(6, 5, 5)])
def test_imgedit_answers_in_another_form_are_no_verdict(text):
    task = JudgedEdits(name="imgedit", items=(item("1", "add"),), marking=imgedit.ImgEditMarking())
    (verdict,) = judged(task, {"1#marks": text}).values()
    assert isinstance(verdict, Failure) and "three marks from 1 to 5" in verdict.reason


@pytest.fixture
def imgedit_files(tmp_path):
    edits = {
        "10": {"id": "animal/a.jpg", "prompt": "Make it red.", "edit_type": "adjust"},
        "7": {"id": "b.jpg", "prompt": "Remove it.", "edit_type": "remove"},
    }
    folder = tmp_path / "Basic"
    folder.mkdir()
    (folder / "basic_edit.json").write_text(json.dumps(edits))
    for entry in edits.values():
        save(tmp_path / "original" / entry["id"])
    return folder, tmp_path / "original"


def test_imgedit_is_told_the_words_of_the_repository_where_they_lie_there(imgedit_files):
    folder, images = imgedit_files
    own = imgedit.imgedit_task(folder, images)
    assert not own.are_official_words and "Make it red." in own.marking.queries(own.items[0], GREY)[0].question
    (folder / "prompts.json").write_text(json.dumps(dict.fromkeys(imgedit.TYPES, "Mark <edit_prompt>!")))
    task = imgedit.imgedit_task(folder, images)
    (query,) = task.marking.queries(task.items[0], GREY)
    assert query.question == "Mark Make it red.!" and len(query.before) == 1 and len(query.parts) == 3
    assert task.marking.instructions.startswith("prompts.json@")
    (folder / "prompts.json").write_text(json.dumps({"add": "Mark"}))
    with pytest.raises(ValueError, match=r"prompts.json: 'replace' must be a text with <edit_prompt> in it"):
        imgedit.imgedit_task(folder, images)


def test_imgedit_from_pictures_to_scores(imgedit_files, tmp_path):
    """Made, exported, judged elsewhere, and read back."""
    folder, images = imgedit_files
    run, out = str(tmp_path / "run"), tmp_path / "export"
    asked = ["--on", "imgedit", "--prompts", str(folder), "--images", str(images)]
    assert main(["evaluate", "copy-input", *asked, "--out", run, "--phase", "produce"]) == 0
    assert main(["evaluate", run, "--phase", "score", "--export", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["10.png", "7.png"]
    assert np.array_equal(np.asarray(Image.open(out / "7.png")).shape, (6, 8, 3))
    answers = tmp_path / "result.json"
    answers.write_text(json.dumps({"judge": "gpt-4o", "10": three(3, 3, 3), "7": {"error": "time out"}}))
    assert main(["evaluate", run, "--phase", "score", "--judge", str(answers)]) == 0
    (table,) = read_scores(f"{run}/scores.json")
    assert table.details["published_scale"] == {"adjust": 3.0, "remove": 0.0}
    assert table.details["missing"]["count"] == 1 and table.details["judge"]["official"] is True
    said = (tmp_path / "run" / "report.md").read_text()
    assert "not the official judge" not in said
    answers.write_text(json.dumps({"10": three(3, 3, 3), "7": three(5, 5, 5)}))
    assert main(["evaluate", run, "--phase", "score", "--judge", str(answers)]) == 0
    assert "This is not the official judge" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edit_type": "paint"}, "'10': edit_type must be one of replace, add"),
        ({"prompt": ""}, "'10': prompt must be a text"),
    ],
)
def test_imgedit_mistakes_are_named(imgedit_files, change, message):
    folder, images = imgedit_files
    content = json.loads((folder / "basic_edit.json").read_text())
    content["10"].update(change)
    (folder / "basic_edit.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        imgedit.read_edits(folder / "basic_edit.json", images)
    content["10"] = {"id": "none.jpg", "prompt": "p", "edit_type": "add"}
    (folder / "basic_edit.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"'10': there is no picture .*none\.jpg"):
        imgedit.read_edits(folder / "basic_edit.json", images)


# GEdit-Bench


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ('||V^=^V||\n{"score": [8, 6], "reasoning": "x"}\n||V^=^V||', [8, 6]),
        ('Here: {"score": 7,\n"reasoning": "x"}', [7]),
        ("{score: [9, 4], reasoning: it is fine}", [9, 4]),
        ("scores are [3, 10]", [3, 10]),
        ("5", [5]),
        ("I cannot", []),
    ],
)
def test_vie_marks(text, marks):
    assert gedit.marks_in(text) == marks


def vie(*marks):
    return json.dumps({"score": list(marks)})


def test_gedit_is_the_root_of_the_lowest_marks_and_the_mean_of_groups():
    items = (
        item("a", "color_alter", is_in_intersection=True),
        item("b", "color_alter", is_in_intersection=False),
        item("c", "ps_human", is_in_intersection=True),
    )
    task = JudgedEdits(name="gedit-en", items=items, marking=gedit.VieMarking())
    said = {
        "a#SC": vie(9, 4),
        "a#PQ": vie(9, 9),
        "b#SC": vie(0, 10),
        "b#PQ": vie(10, 10),
        "c#SC": vie(8),
        "c#PQ": vie(2),
    }
    verdicts = judged(task, said)
    assert [verdicts[name]["value"] for name in "abc"] == pytest.approx([0.6, 0.0, 0.4])
    table = task.table(verdicts, "model")
    assert {name: score.value for name, score in table.categories.items()} == pytest.approx(
        {"color_alter": 0.3, "ps_human": 0.4}
    )
    assert table.overall.value == pytest.approx(0.35)
    assert table.details["published_semantics"] == pytest.approx((2 + 8) / 2)
    assert table.details["published_quality"] == pytest.approx((9.5 + 2) / 2)
    assert table.details["published_overall_of_the_intersection"] == pytest.approx((6 + 4) / 2)
    (bad,) = judged(JudgedEdits(name="g", items=items[:1], marking=task.marking), {**said, "a#PQ": "11"}).values()
    assert isinstance(bad, Failure) and "two marks from 0 to 10" in bad.reason


def test_gedit_shows_the_edited_picture_in_the_size_of_its_source():
    sc, pq = gedit.VieMarking().queries(item("a", "ps_human"), np.zeros((60, 40, 3), np.uint8))
    assert sc.image.shape == GREY.shape == pq.image.shape and len(sc.before) == 1 and pq.before == ()


@pytest.fixture
def gedit_files(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = []
    for place, (key, language) in enumerate([("k1", "en"), ("k2", "cn"), ("k3", "en")]):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 6), (place, 0, 0)).save(buffer, "PNG")
        rows.append({
            "task_type": "ps_human", "key": key, "instruction": f"edit {key}", "instruction_language": language,
            "Intersection_exist": key == "k1", "input_image": {"bytes": buffer.getvalue(), "path": None},
        })  # fmt: skip
    folder = tmp_path / "GEdit" / "data"
    folder.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet", row_group_size=2)
    return folder.parent


def test_gedit_from_parquet_to_the_layout_and_back(gedit_files, tmp_path):
    items = gedit.read_wishes(gedit_files, "en")
    assert [one.id for one in items] == ["k1", "k3"] and [one.about["is_in_intersection"] for one in items] == [1, 0]
    assert int(items[1].picture.load()[0, 0, 0]) == 2
    run, out = str(tmp_path / "run"), tmp_path / "results" / "mine"
    asked = ["--on", "gedit-en", "--images", str(gedit_files)]
    assert main(["evaluate", "copy-input", *asked, "--out", run, "--phase", "produce"]) == 0
    assert main(["evaluate", run, "--phase", "score", "--export", str(out)]) == 0
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert names == [f"fullset/ps_human/en/{name}.png" for name in ("k1", "k1_SRCIMG", "k3", "k3_SRCIMG")]
    scores = tmp_path / "gpt4o" / "eval_results_new"
    scores.mkdir(parents=True)
    with (scores / "mine_ps_human_gpt_score.csv").open("w", newline="") as file:
        fields = ["source_image", "edited_image", "instruction", "sementics_score", "quality_score",
                  "intersection_exist", "instruction_language"]  # fmt: skip
        writer = csv.writer(file)
        writer.writerow(fields)
        writer.writerow(["s", str(out / names[0]), "edit k1", 4, 9, True, "en"])
        writer.writerow(["s", str(out / names[2]), "edit k3", "9.0", 4.0, False, "en"])
    assert main(["evaluate", run, "--phase", "score", "--judge", str(scores)]) == 0
    (table,) = read_scores(f"{run}/scores.json")
    assert table.overall.value == pytest.approx(0.6) and table.details["judge"]["official"] is True
    (scores / "mine_ps_human_gpt_score.csv").write_text("edited_image,sementics_score\n")
    with pytest.raises(ValueError, match="line 1: columns quality_score, instruction_language are missing"):
        gedit.read_gedit_scores(scores)


def test_gedit_mistakes_are_named(gedit_files, tmp_path):
    with pytest.raises(FileNotFoundError, match="There are no parquet files in"):
        gedit.read_wishes(tmp_path / "none", "en")
    import pyarrow.parquet as parquet

    file = gedit_files / "data" / "train.parquet"
    parquet.write_table(parquet.read_table(file).drop_columns(["key"]), file)
    with pytest.raises(ValueError, match=r"columns key are missing\. Give the data set GEdit-Bench"):
        gedit.read_wishes(gedit_files, "en")


# RISEBench


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("Fine. **Final Score**: 4", [4]),
        ("final score: 4\nFinal Score: 2", [4]),
        ("Final Score\n**5**", [5]),
        ("Final Scores: 3", [3]),
        ("Score: 3", []),
    ],
)
def test_rise_marks(text, marks):
    assert rise.marks_in(text) == marks


def test_rise_weights_and_caps():
    marks = {"consistency": 5, "reasoning": 3, "quality": 4}
    assert rise.weighted_score(marks, "causal_reasoning", False) == pytest.approx(1.5 + 1.5 + 0.8)
    assert rise.weighted_score(marks, "causal_reasoning", True) == pytest.approx(0.8 + 2.4)
    assert rise.weighted_score(marks, "logical_reasoning", True) == pytest.approx(1.5 + 2.1)
    failed = {"consistency": 5, "reasoning": 1, "quality": 5}
    assert rise.weighted_score(failed, "causal_reasoning", False) == pytest.approx((1.5 + 0.5 + 1) / 2)
    assert rise.weighted_score({**failed, "consistency": 1, "quality": 1}, "causal_reasoning", False) == 1.0


def rise_item(name, category, is_free=False):
    return item(name, category, is_consistency_free=is_free, reference="so", reference_picture=None)


def mark(number):
    return f"Final Score: {number}"


def test_rise_is_right_in_every_respect_or_not():
    items = (
        rise_item("t", "temporal_reasoning"),
        rise_item("c", "causal_reasoning", is_free=True),
        rise_item("s", "spatial_reasoning"),
        rise_item("l", "logical_reasoning"),
    )
    task = JudgedEdits(name="rise", items=items, marking=rise.RiseMarking())
    assert [query.id for query in task.marking.queries(items[1], GREY)] == ["c#reasoning", "c#quality"]
    said = {"t#consistency": mark(5), "t#reasoning": mark(5), "t#quality": mark(5), "c#reasoning": mark(5),
            "c#quality": mark(4), "s#consistency": mark(2), "s#reasoning": mark(5), "s#quality": mark(5),
            "l#consistency": mark(1), "l#reasoning": mark(1)}  # fmt: skip
    verdicts = judged(task, said)
    assert [verdicts[name]["value"] for name in "tcsl"] == [1, 0, 0, 1]
    table = task.table(verdicts, "model")
    assert table.overall.value == 0.5 and table.categories["logical"].value == 1.0
    told = [5, 0.2 * 4 + 0.8 * 5, 0.3 * 2 + 0.5 * 5 + 0.2 * 5, 5]
    assert table.details["weighted_score"] == pytest.approx(np.mean(told))
    # One item without consistency makes the script weigh all but logic so: the third has 5 in all it then looks at.
    ran = [5, 4.8, 5, 5]
    assert table.details["weighted_score_as_the_script_computes_it"] == pytest.approx(np.mean(ran))
    assert table.details["mean_marks"] == {"consistency": 4.0, "reasoning": 5.0, "quality": pytest.approx(14 / 3)}
    missing = task.table({**verdicts, "t": None}, "model")
    assert missing.overall.value == 0.25 and missing.details["weighted_score"] == pytest.approx(np.mean(told[1:]))
    for text in ("no idea", mark(7)):
        assert isinstance(judged(task, {**said, "t#quality": text})["t"], Failure)


@pytest.fixture
def rise_files(tmp_path):
    rows = [
        {"index": "temporal_reasoning_1", "category": "temporal_reasoning", "instruction": "Later?",
         "image": "temporal_reasoning_images/1.png", "reference": "Old."},
        {"index": "spatial_reasoning_1", "category": "spatial_reasoning", "instruction": "Turn.", "image": "s.png",
         "reference_img": "r.png", "consistency_free": "1"},
        {"index": "logical_reasoning_1", "category": "logical_reasoning", "instruction": "Next?", "image": "s.png",
         "reference_txt": "A circle.", "reference_img": "r.png"},
    ]  # fmt: skip
    file = tmp_path / "data_total.json"
    file.write_text(json.dumps(rows))
    for name in ("temporal_reasoning_images/1.png", "s.png", "r.png"):
        save(tmp_path / "data" / name, (9, 9, 9) if name == "r.png" else (1, 1, 1))
    return file, tmp_path / "data"


def test_rise_from_the_official_files_and_back(rise_files, tmp_path):
    file, images = rise_files
    items = rise.read_reasoning_edits(file, images)
    assert [one.about["is_consistency_free"] for one in items] == [False, True, False]
    spatial = rise.RiseMarking().queries(items[1], GREY)
    assert int(spatial[0].before[0][0, 0, 0]) == 9  # the reference in place of the source
    assert "A circle." in rise.RiseMarking().queries(items[2], GREY)[1].question
    run, out = str(tmp_path / "run"), tmp_path / "outputs"
    asked = ["--on", "rise", "--prompts", str(file), "--images", str(images)]
    assert main(["evaluate", "copy-input", *asked, "--out", run, "--phase", "produce"]) == 0
    assert main(["evaluate", run, "--phase", "score", "--export", str(out)]) == 0
    assert (out / "images" / "temporal_reasoning" / "temporal_reasoning_1.png").is_file()
    answers = tmp_path / "answers.json"
    content = {
        "judge": rise.OFFICIAL_JUDGE,
        "temporal_reasoning_1": {"judge1": mark(5), "judge2": mark(1), "judge3": mark(5)},
        "spatial_reasoning_1": {"judge1": None, "judge2": mark(5), "judge3": mark(5)},
        "logical_reasoning_1": {"judge1": mark(1), "judge2": mark(0)},
    }
    answers.write_text(json.dumps(content))
    assert isinstance(open_judge(str(answers), "cpu", "auto"), StoredAnswers)
    assert main(["evaluate", run, "--phase", "score", "--judge", str(answers)]) == 0
    (table,) = read_scores(f"{run}/scores.json")
    assert table.overall.value == pytest.approx(1 / 3) and table.details["judge"]["official"] is True
    assert table.details["weighted_score"] == pytest.approx(np.mean([1.5, 5, (0.3 * 5 + 0.7) / 2]), abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "magic"}, "entry 0: category must be one of temporal_reasoning"),
        ({"instruction": 3}, "entry 0: instruction must be a text"),
        ({"reference": None}, "entry 0: what is expected of it"),
        ({"index": "spatial_reasoning_1"}, "entry 1: index 'spatial_reasoning_1' stands twice"),
    ],
)
def test_rise_mistakes_are_named(rise_files, change, message):
    file, images = rise_files
    rows = json.loads(file.read_text())
    rows[0].update(change)
    file.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        rise.read_reasoning_edits(file, images)


@pytest.mark.parametrize("name", ["imgedit", "gedit-en", "gedit-cn", "rise"])
def test_without_files_or_judge_the_way_out_is_named(name):
    from diptych.evals.tasks import TaskOptions, build_task

    with pytest.raises(ValueError, match=rf"{name} needs its .*give --"):
        build_task(name, TaskOptions())
    task = JudgedEdits(name=name, items=(item("a", "add"),), marking=imgedit.ImgEditMarking())
    with pytest.raises(ValueError, match=f"{name} needs a judge of its pictures: give --judge"):
        task.judge(task.requests(), [GREY])
