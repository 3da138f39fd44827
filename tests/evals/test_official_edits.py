"""The published files of Do-Undo Bench and GSI-Bench: read, drawn, exported for their scorers, and judged by these."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.data.example import load_pixels
from diptych.evals.scores_file import read_scores
from diptych.evals.tasks.doundo_official import read_annotations
from diptych.evals.tasks.gsi_official import operation_of, read_queries
from diptych.evals.tasks.official_results import read_results

ACTIONS = ("P03_22_1", "P03_22_2")


def picture(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((18, 32, 3), shade, np.uint8)).save(path)


def annotation(name, start, stop, **fields):
    """A row with the fields of the published file, read_annotations' worst spelling of a prompt among them."""
    return {
        "narration_id": name, "participant_id": "P03", "video_id": "P03_22", "start_frame": start, "stop_frame": stop,
        "narration": "open drawer", "verb_class": 3, "noun_class": 8,
        "forward_prompt": "['Open the drawer.']", "reverse_prompt": "Close the drawer.", **fields,
    }  # fmt: skip


@pytest.fixture
def kitchen(tmp_path):
    """Annotations of two actions with their frames."""
    for frame in (7, 9, 11, 13):
        picture(tmp_path / f"frames/P03/rgb_frames/P03_22/frame_{frame:010d}.jpg", frame * 10)
    rows = [annotation(ACTIONS[0], 7, 9), annotation(ACTIONS[1], "11", 13)]
    (tmp_path / "annotations_test.json").write_text(json.dumps(rows))
    return tmp_path


def query(prompt, **fields):
    box, matrix = [0.0] * 7, [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]
    return {
        "prompt": prompt, "target": "chair", "original_bbox_3d": box, "new_bbox_3d": box,
        "camera_intrinsics": matrix, "rotation_matrix": matrix, "new_rotation_matrix": matrix, **fields,
    }  # fmt: skip


@pytest.fixture
def room(tmp_path):
    """Two pictures of a room with three instructions."""
    folder = tmp_path / "fine_dataset"
    picture(folder / "room1_frame_000010.jpg", 40)
    picture(folder / "room2.png", 80)
    for name, prompt in (
        (
            "room1_frame_000010_edit_0",
            "Move the chair 20 centimeters to the left, while keeping other objects unchanged.",
        ),
        ("room1_frame_000010_edit_1", "Please rotate the chair 30 degrees clockwise along its vertical axis."),
        ("room2_edit_0", "Remove the chair from the scene."),
    ):
        (folder / f"{name}.json").write_text(json.dumps(query(prompt)))
    return tmp_path


def run(*words):
    return main(["evaluate", *map(str, words)])


def fails(capsys, *words):
    assert run(*words) == 2
    return " ".join(capsys.readouterr().err.split())


def spatial_results(folder, marks=(8, 10, "none")):
    folder.mkdir(exist_ok=True)
    keys = ("room1_frame_000010_0", "room1_frame_000010_1", "room2_0")
    numbers = {"compliance": (1, 0, 1), "edit_score": (0.5, 0.25, 1.0), "lpips": (0.1, 0.2, 0.3)}
    names = {"compliance": "instruction-compliance", "edit_score": "spatial-accuracy", "lpips": "edit-locality"}
    for field, values in numbers.items():
        entries = {
            key: {"operation": operation, field: value, **({"ssim": 0.5, "mse": 1.0} if field == "lpips" else {})}
            for key, operation, value in zip(keys, ("move", "rotate", "remove"), values, strict=True)
        }
        (folder / f"{names[field]}_eval_results.json").write_text(json.dumps(entries))
    said = [
        {"meta": {"index": f"{name}.png"}, "prediction": f'||V^=^V||\n{{"score": {mark}, "reasoning": ""}}\n||V^=^V||'}
        for name, mark in zip(
            ("room1_frame_000010_edit_0", "room1_frame_000010_edit_1", "room2_edit_0"), marks, strict=True
        )
    ]
    (folder / "predictions_infer_fine.json").write_text(json.dumps(said))
    return folder


def test_annotations_are_read_as_the_official_code_reads_them(kitchen):
    first, second = read_annotations(kitchen / "annotations_test.json")
    assert first.forward_prompt == "Open the drawer." and first.reverse_prompt == "Close the drawer."
    assert first.start == "P03/rgb_frames/P03_22/frame_0000000007.jpg"
    assert second.end == "P03/rgb_frames/P03_22/frame_0000000013.jpg"


def test_actions_are_drawn_exported_and_judged_by_the_official_table(kitchen, capsys):
    out, given = kitchen / "s", ["--prompts", kitchen / "annotations_test.json", "--images", kitchen / "frames"]
    words = ["--on", "do-undo-official", "--out", out, "--export", kitchen / "pictures"]
    assert run("oracle", *given, *words) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "Not judged: do-undo-official is judged by the official eval.py: write its pictures with --export" in told
    made = {str(path.relative_to(kitchen / "pictures")) for path in (kitchen / "pictures").rglob("*.png")}
    assert made == {f"{place}{name}_rev.png" for name in ACTIONS for place in ("", "from-generated/")} | {
        f"{name}_fwd.png" for name in ACTIONS
    }
    with Image.open(kitchen / "pictures" / f"{ACTIONS[0]}_fwd.png") as drawn:
        assert abs(int(np.asarray(drawn).mean()) - 90) <= 2  # the frame in which the drawer is open
    table = kitchen / "metrics.csv"
    columns = ("dino_score_f", "dino_score_r", "clip_score_f", "epe_fwd", "epe_rev", "fwd_verb_correct",
               "fwd_noun_correct", "rev_verb_correct", "rev_noun_correct")  # fmt: skip
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["action_id", "narration", *columns])
        writer.writerow([ACTIONS[0], "open drawer", 0.8, 0.6, 0.25, 100.0, 50.0, 1, 0, "", ""])
        writer.writerow([ACTIONS[1], "open drawer", 0.9, 0.7, 0.35, 120.0, 70.0, 0, 0, "", ""])
    assert run(out, "--phase", "score", "--verdicts", table) == 0
    (found,) = read_scores(out / "scores.json")
    values = {name: score.value for name, score in found.categories.items()}
    assert values == pytest.approx({"DINO-F": 0.85, "CLIP": 0.3, "A-F": 0.5, "N-F": 0.0, "DINO-R": 0.65})
    assert found.overall.value == pytest.approx(0.75)
    assert found.details["flow_errors_in_pixels"] == {"EPE-F": 110.0, "EPE-R": 60.0}
    table.write_text("\n".join(table.read_text().splitlines()[:2]))
    assert f"the results of Do-Undo Bench eval.py lack {ACTIONS[1]}" in fails(
        capsys, out, "--phase", "score", "--verdicts", table
    )


def test_the_frame_that_is_undone_is_the_true_one_or_the_one_that_was_made(kitchen):
    from diptych.evals.tasks import TaskOptions, build_task

    options = TaskOptions(prompts=str(kitchen / "annotations_test.json"), images=str(kitchen / "frames"))
    requests = {request.id: request for request in build_task("do-undo-official", options).requests()}
    shown = load_pixels(requests[f"{ACTIONS[0]}/rev"].parts[0].image)
    assert abs(int(shown.mean()) - 90) <= 2
    assert requests[f"{ACTIONS[0]}/rev-generated"].parts[0].id == f"{ACTIONS[0]}/fwd"
    assert len({request.seed for request in requests.values()}) == 6


def test_instructions_are_drawn_exported_and_judged_by_the_official_results(room, capsys):
    out = room / "s"
    words = ["--images", room / "fine_dataset", "--on", "gsi-official", "--out", out, "--export", room / "pictures"]
    assert run("copy-input", *words) == 0
    assert "gsi-official is judged by the official scorer" in capsys.readouterr().err
    assert {path.name for path in (room / "pictures").iterdir()} == {
        "room1_frame_000010_edit_0.png", "room1_frame_000010_edit_1.png", "room2_edit_0.png"
    }  # fmt: skip
    assert run(out, "--phase", "score", "--verdicts", spatial_results(room / "results")) == 0
    (found,) = read_scores(out / "scores.json")
    values = {name: score.value for name, score in found.categories.items()}
    # The move counts; the rotation did not comply; the removal has no mark, which is 0 and takes everything away.
    assert values["instruction compliance"] == pytest.approx(1 / 3)
    assert values["spatial accuracy"] == pytest.approx((0.5 + 0.25) / 3)
    assert values["edit locality"] == pytest.approx(0.9 / 3) and values["appearance consistency"] == pytest.approx(
        0.8 / 3
    )
    assert found.overall.value == pytest.approx((1 / 3 + 0.25 + 0.3 + 0.8 / 3) / 4)
    assert values["edit locality, ungated"] == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert values["appearance consistency, ungated"] == pytest.approx(1.8 / 3)
    assert values["rotate"] == pytest.approx(0.25 / 4) and values["remove"] == 0
    assert found.overall.num_groups == 2  # pictures


@pytest.mark.parametrize(
    ("prompt", "operation"),
    [("Move the cup 5 cm.", "move"), ("please push the cup", "move"), ("Make the cup 2 times larger", "scale"),
     ("Turn the camera 10 degrees", "view"), ("Move it 5 cm to the camera", "move"), ("Spin it", "rotate"),
     ("Paint the cup", "")],
)  # fmt: skip
def test_operations_are_told_apart_by_the_first_word(prompt, operation):
    assert operation_of(prompt) == operation


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"annotations\.json is no JSON"),
        ("{}", r"annotations\.json: a JSON array of annotations is expected, got dict"),
        ([1], r"annotations\.json, row 0: a JSON object is expected, got int"),
        ([annotation("a", 1, 2, reverse_prompt="")], r"row 0: reverse_prompt must be a text, got ''"),
        ([annotation("a", 1, "x")], r"row 0: stop_frame must be a whole number, got 'x'"),
        ([annotation("a", 1, 2, video_id=None)], r"row 0: video_id must be a name, got None"),
        ([annotation("a/b", 1, 2)], r"row 0: narration_id must be a name without a slash, got 'a/b'"),
        ([annotation("a", 1, 2)] * 2, r"row 1: narration_id 'a' stands twice\. Remove one"),
    ],
)
def test_mistakes_in_annotations_are_named(tmp_path, content, message):
    file = tmp_path / "annotations.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_annotations(file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "Paint it."}, r"room2_edit_0\.json: prompt must begin with one of move, shift, .*got 'Paint it\.'"),
        ({"target": 3}, r"room2_edit_0\.json: target must be a text, got 3"),
        ({"original_bbox_3d": [1, 2]}, r"room2_edit_0\.json: original_bbox_3d must hold 7 numbers, got \[1, 2\]"),
        ({"camera_intrinsics": 5}, r"camera_intrinsics must hold 3 x 3 numbers, got 5"),
        ({"prompt": "Scale it", "new_bbox_3d": None}, r"new_bbox_3d must hold 7 numbers, got None"),
    ],
)
def test_mistakes_in_instructions_are_named(room, fields, message):
    (room / "fine_dataset" / "room2_edit_0.json").write_text(
        json.dumps(query("Remove it", **fields) if "prompt" not in fields else {**query("x"), **fields})
    )
    with pytest.raises(ValueError, match=message):
        read_queries(room / "fine_dataset")


def test_what_is_not_there_is_said(kitchen, room, capsys, tmp_path):
    on = ["oracle", "--out", tmp_path / "n", "--on"]
    assert "do-undo-official needs its annotations and frames: give --prompts" in fails(capsys, *on, "do-undo-official")
    assert "gsi-official needs its pictures and instructions: give --images" in fails(capsys, *on, "gsi-official")
    given = ["--prompts", kitchen / "annotations_test.json", "--images", kitchen]
    told = fails(capsys, *on, "do-undo-official", *given)
    assert f"{ACTIONS[0]}: there is no frame {kitchen}/P03/rgb_frames" in told and "Give --images the folder" in told
    assert "holds no <img_id>_edit_<query_id>.json" in fails(
        capsys, *on, "gsi-official", "--images", kitchen / "frames"
    )
    assert "There is no folder" in fails(capsys, *on, "gsi-official", "--images", tmp_path / "nowhere")
    (room / "fine_dataset" / "room2.png").unlink()
    assert "there is no source room2.jpg or .png beside it" in fails(
        capsys, *on, "gsi-official", "--images", room / "fine_dataset"
    )


def test_mistakes_in_results_are_named(room, tmp_path):
    folder = spatial_results(room / "results")
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        read_results(tmp_path / "nothing.csv")
    (folder / "predictions_infer_fine.json").rename(folder / "other.json")
    with pytest.raises(FileNotFoundError, match=r"lacks predictions\*\.json\. Run GSI-Bench's eval\.py"):
        read_results(folder)
    spatial_results(folder, marks=(11, 1, 1))
    with pytest.raises(ValueError, match=r"predictions_infer_fine\.json, entry 0: the score must be 0 to 10, got 11"):
        read_results(folder)
    spatial_results(folder)
    file = folder / "edit-locality_eval_results.json"
    file.write_text(file.read_text().replace("0.1", '"low"'))
    with pytest.raises(
        ValueError, match=r"edit-locality_eval_results\.json, 'room1_.*': lpips must be a number, got 'low'"
    ):
        read_results(folder)
    table = tmp_path / "m.csv"
    table.write_text("action_id,dino_score_f\na,1\n")
    with pytest.raises(ValueError, match=r"m\.csv, line 1: columns dino_score_r, .* are missing\. Give the CSV"):
        read_results(table)


def test_an_instruction_finds_its_picture(room):
    first = read_queries(room / "fine_dataset")[0]
    assert (first.name, first.operation, first.target) == ("room1_frame_000010_edit_0", "move", "chair")
    assert first.picture.endswith("room1_frame_000010.jpg")
