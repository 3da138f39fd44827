"""``diptych evaluate`` in two phases, as a user meets it."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from diptych.cli.main import main
from diptych.evals.manifest import EvaluationFolder, read_lines
from diptych.evals.scores_file import read_scores
from diptych.evals.tasks import TaskOptions, build_task
from diptych.evals.tasks.scene_entries import SCENE_ENTRIES
from diptych.recipes import blip3o
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save(folder)
    return folder


def run(capsys, *words):
    code = main(["evaluate", *map(str, words)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured


def fails(capsys, *words):
    assert main(["evaluate", *map(str, words)]) == 2
    return " ".join(capsys.readouterr().err.split())


SMALL = ["--num-per-category", 1, "--splits", "test"]


def test_the_list_says_what_each_task_needs(capsys):
    text = run(capsys, "--list").out
    for name in ("geneval", "questions", "editing", "multi-reference", "xtc", "geneval-official", "do-undo", "gsi",
                 "do-undo-official", "gsi-official", "dpg", "dpg-official", "wise", "wise-verified", "geneval2",
                 "t2i-compbench", "hpsv2", "hpsv3", "image-reward", "mjhq", "xtc-official"):  # fmt: skip
        assert f"\n{name} " in f"\n{text}"
    assert "--prompts annotations_test.json, --images FRAMES; --export DIR and --verdicts CSV to judge" in text
    assert "2,212 pictures, 4 a prompt (about 9 min); judged by Mask2Former Swin-S and CLIP ViT-L/14, on a GPU" in text
    assert "24,000 pictures, 10 a prompt (about 1.7 h)" in text
    assert "needs image_to_text, text_to_image" in text and "--prompts evaluation_metadata.jsonl" in text
    assert "evaluate needs a MODEL" in fails(capsys)
    for name, entry in SCENE_ENTRIES.items():  # the list's numbers are those of the tasks themselves
        kinds = Counter(request.kind for request in build_task(name, TaskOptions(num_per_category=2)).requests())
        assert 30 * kinds["image"] == entry.pictures and abs(30 * kinds["text"] - entry.answers) <= 0.2 * entry.answers


def test_a_dry_run_counts_and_makes_nothing(model, tmp_path, capsys):
    words = [model, "--on", "questions,xtc", *SMALL, "--out", tmp_path / "s"]
    lines = run(capsys, *words, "--dry-run").out.splitlines()
    assert lines[0].split() == ["task", "samples", "there", "to", "make", "about"]
    assert lines[1].split()[:4] == ["question-answering", "7", "0", "7"] and lines[1].split()[-1] == "s"
    assert list((tmp_path / "s").iterdir()) == []
    run(capsys, *words, "--phase", "produce")
    rows = run(capsys, *words, "--dry-run").out.splitlines()
    assert rows[1].split() == ["question-answering", "7", "7", "0", "0", "s"]
    assert rows[-1].split()[:2] == ["in", "all"] and rows[-1].split()[4] == "0"


def test_edits_are_done_undone_and_told_in_numbers(model, tmp_path, capsys):
    words = [model, "--on", "do-undo,gsi", *SMALL, "--rounds", 2, "--steps", 2, "--out", tmp_path]
    counts = {line.split()[0]: line.split()[1] for line in run(capsys, *words, "--dry-run").out.splitlines()}
    assert (counts["do-undo"], counts["spatial-compliance"]) == ("30", "5")  # five pictures of each of six kinds
    run(capsys, *words)
    tables = {(table.benchmark, table.contender): table for table in read_scores(tmp_path / "scores.json")}
    assert len(tables) == 2 * 5 and len(tables["do-undo", "tiny"].details["rounds"]) == 2
    report = (tmp_path / "report.html").read_text()
    assert "Do and undo" in report and "Spatial compliance" in report and "of the width" in report
    asked = json.loads((tmp_path / "run.json").read_text())["tasks"]
    assert [task["config"].get("rounds") for task in asked] == [2, None]


def test_the_phases_apart_give_what_one_call_gives_and_nothing_is_made_twice(model, tmp_path, capsys):
    words = [model, "--on", "xtc", *SMALL, "--samples", 2]
    run(capsys, *words, "--out", tmp_path / "whole")
    run(capsys, *words, "--out", tmp_path / "parts", "--phase", "produce", "--batch-size", 5)
    assert not (tmp_path / "parts" / "scores.json").exists()
    run(capsys, tmp_path / "parts", "--phase", "score")
    whole, parts = (read_scores(tmp_path / name / "scores.json") for name in ("whole", "parts"))
    assert whole == parts and {table.contender for table in whole} >= {"tiny", "oracle", "chance", "constant"}
    before = Counter(row["key"] for row in read_lines(EvaluationFolder(tmp_path / "whole").manifest))
    run(capsys, *words, "--out", tmp_path / "whole")
    again = Counter(row["key"] for row in read_lines(EvaluationFolder(tmp_path / "whole").manifest))
    assert before == again and set(again.values()) == {1}


def test_results_have_the_keys_of_lmms_eval_and_everything_that_was_decided(model, tmp_path, capsys):
    words = [model, "--on", "questions,editing", *SMALL, "--steps", 2, "--guidance", 1, "--seed", 3]
    run(capsys, *words, "--out", tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert {
        "results",
        "configs",
        "versions",
        "n-samples",
        "n-shot",
        "higher_is_better",
        "task_hashes",
        "config",
    } <= set(found)
    answers = found["results"]["question-answering"]
    assert {"score,none", "score_stderr,none", "color,none", "alias"} <= set(answers)
    assert found["n-samples"]["editing"] == {"original": 7, "effective": 7}
    config = found["configs"]["editing"]
    assert (config["seed"], config["split"]) == (3, "test")
    assert config["generation_kwargs"]["image"]["num_steps"] == 2
    assert config["generation_kwargs"]["image"]["guidance_scale"] == 1.0
    assert found["diptych"]["results"][0]["judge"]["name"] == "exact rules of the built-in world"
    assert "never hold the compositions of this split" in found["diptych"]["contamination"]["editing"]
    text = (tmp_path / "report.md").read_text()
    assert "## Editing" in text and "prompt rewriter none" in text and "| **overall** |" in text
    page = (tmp_path / "report.html").read_text()
    assert "exact rules of the built-in world" in page and "manifest.jsonl" in page


def test_a_damaged_picture_is_reported_and_made_again(model, tmp_path, capsys):
    words = [model, "--on", "editing", *SMALL, "--out", tmp_path]
    run(capsys, *words)
    picture = next((tmp_path / "files").glob("*/*.png"))
    picture.write_bytes(picture.read_bytes()[:30])
    run(capsys, tmp_path, "--phase", "score")
    text = (tmp_path / "report.md").read_text()
    assert "1 samples are missing and counted as wrong" in text and "cannot be read as a picture" in text
    message = fails(capsys, tmp_path, "--phase", "score", "--missing", "refuse")
    assert "editing: 1 of 7 samples are missing, such as test/edit/" in message
    run(capsys, *words, "--missing", "refuse")
    assert "missing" not in (tmp_path / "report.md").read_text()


def test_a_task_that_the_model_cannot_do_is_skipped_and_said(tmp_path, capsys):
    model = blip3o.tiny().model.build()
    model.connector = None  # draws, but cannot look
    model.save(tmp_path / "blind")
    printed = run(capsys, tmp_path / "blind", "--on", "geneval,questions,xtc", *SMALL, "--out", tmp_path / "s")
    assert "Skipped: questions needs a model that can do image_to_text; blind can do text" in printed.err
    tables = read_scores(tmp_path / "s" / "scores.json")
    assert {table.benchmark for table in tables} == {"geneval-twin"}
    assert "Skipped: xtc needs a model that can do image_to_text" in (tmp_path / "s" / "report.md").read_text()
    message = fails(capsys, tmp_path / "blind", "--on", "questions", "--out", tmp_path / "s")
    assert "there is nothing to measure: questions needs a model that can do image_to_text" in message


def test_references_and_pairs_are_models(model, tmp_path, capsys):
    run(capsys, "oracle", "--on", "questions,xtc", *SMALL, "--samples", 1, "--out", tmp_path / "o")
    tables = read_scores(tmp_path / "o" / "scores.json")
    assert {table.overall.value for table in tables if table.contender == "oracle"} == {1.0}
    run(capsys, "oracle", "--generator", model, "--on", "xtc", *SMALL, "--samples", 1, "--out", tmp_path / "p")
    pair = next(t for t in read_scores(tmp_path / "p" / "scores.json") if t.contender == "oracle+tiny")
    assert pair.categories["answered right"].value == 1.0


def test_official_geneval_from_prompts_to_a_score(model, tmp_path, capsys):
    prompt = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
    (tmp_path / "p.jsonl").write_text(json.dumps(prompt) + "\n")
    words = [model, "--on", "geneval-official", "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "s"]
    printed = run(capsys, *words)
    assert "Not judged: geneval-official needs a detector to judge its pictures" in printed.err
    exported = run(capsys, tmp_path / "s", "--phase", "score", "--export", tmp_path / "official")
    assert "4 pictures in" in exported.err
    assert json.loads((tmp_path / "official" / "00000" / "metadata.jsonl").read_text()) == prompt
    names = sorted(path.name for path in (tmp_path / "official" / "00000" / "samples").iterdir())
    assert names == ["0000.png", "0001.png", "0002.png", "0003.png"]
    found = [{"class": "bench", "confidence": 0.8, "box": [0, 0, 5, 5]}]
    lines = [{"id": f"00000/{k:04d}", "detections": found if k else []} for k in range(4)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(capsys, tmp_path / "s", "--phase", "score", "--detections", tmp_path / "d.jsonl")
    (table,) = read_scores(tmp_path / "s" / "scores.json")
    assert table.benchmark == "geneval" and table.overall.value == 0.75 and table.overall.num_groups == 1
    report = (tmp_path / "s" / "report.md").read_text()
    assert "This is not the official detector" in report and "BLIP3o-60k among them" in report
    assert (
        "BLIP3o-60k" in json.loads((tmp_path / "s" / "results.json").read_text())["diptych"]["contamination"]["geneval"]
    )
    (tmp_path / "d.jsonl").write_text("nothing\n")
    message = fails(capsys, tmp_path / "s", "--phase", "score", "--detections", tmp_path / "d.jsonl")
    assert "d.jsonl, line 1: this is no JSON" in message
    kept = tmp_path / "s" / "inputs" / "p.jsonl"
    assert kept.read_text() == (tmp_path / "p.jsonl").read_text()
    (tmp_path / "p.jsonl").unlink()
    (tmp_path / "s").rename(tmp_path / "elsewhere")  # judged again where the prompts are not
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(capsys, tmp_path / "elsewhere", "--phase", "score", "--detections", tmp_path / "d.jsonl")
    (tmp_path / "elsewhere").rename(tmp_path / "s")
    kept.write_text(json.dumps({**prompt, "prompt": "a bench"}) + "\n")
    assert "was produced as version 1 with" in fails(capsys, tmp_path / "s", "--phase", "score")


def test_folders_that_hold_no_evaluation(tmp_path, capsys):
    assert "holds no evaluation: run.json is missing" in fails(capsys, tmp_path, "--phase", "score")
    (tmp_path / "run.json").write_text("{")
    assert "run.json is damaged" in fails(capsys, tmp_path, "--phase", "score")
    (tmp_path / "run.json").write_text(json.dumps({"format_version": 1, "tasks": []}))
    assert "run.json is damaged (it lacks contender, about, skipped)" in fails(capsys, tmp_path, "--phase", "score")
    (tmp_path / "run.json").write_text(json.dumps({"format_version": 9}))
    assert "has format version 9; this diptych reads up to 1" in fails(capsys, tmp_path, "--phase", "score")


@pytest.mark.process
def test_several_processes_make_each_sample_once_and_the_same(model, tmp_path, capsys):
    words = [model, "--on", "questions,editing", *SMALL]
    run(capsys, *words, "--out", tmp_path / "one")
    run(capsys, *words, "--out", tmp_path / "two", "--processes", 2)
    one, two = (EvaluationFolder(tmp_path / name) for name in ("one", "two"))
    rows = Counter(row["key"] for row in read_lines(two.manifest))
    assert set(rows) == set(one.rows()) and set(rows.values()) == {1} and len(rows) == 14
    assert read_scores(tmp_path / "one" / "scores.json") == read_scores(tmp_path / "two" / "scores.json")
    judged = [record["key"] for file in (tmp_path / "two" / "verdicts").iterdir() for record in read_lines(file)]
    assert sorted(judged) == sorted(rows)  # by two processes, each sample once
    assert len(list((tmp_path / "two" / "references").iterdir())) == 2


@pytest.mark.process
def test_judging_needs_neither_the_model_nor_torch(tmp_path, capsys):
    run(capsys, "oracle", "--on", "scenes", *SMALL, "--phase", "produce", "--out", tmp_path)
    code = "import sys; sys.modules['torch'] = None; from diptych.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "evaluate", str(tmp_path), "--phase", "score"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    tables = read_scores(tmp_path / "scores.json")
    assert len([table for table in tables if table.contender == "oracle" and table.overall.value == 1.0]) == 4
