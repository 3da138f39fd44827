"""Run folders as reports: what is there is shown, what is missing or cut off does no harm."""

import json
from pathlib import Path

import numpy as np
import pytest

from diptych.data.picture_files import save_contact_sheet, save_png
from diptych.evals.report import write_report
from diptych.evals.run_folder import MAX_FRAMES, format_duration, report_data_from_run
from diptych.evals.scores_file import headlines_of, read_scores, score_boards, write_scores
from diptych.scenes.draw import draw
from diptych.scenes.scene import Scene, SceneObject
from diptych.scenes.scores import score_table

STAGES = {"understanding": 40, "generation": 100}
CAPTIONS = ["a red circle", "a blue <square>"]


def _picture(color: str) -> np.ndarray:
    return draw(Scene((SceneObject("circle", color, "large", 0.5, 0.5),)), 64)


def make_run(folder: Path) -> Path:
    """A run folder as the training loop writes it."""
    folder.mkdir()
    stages = {name: {"num_steps": steps, "batch_size": 16} for name, steps in STAGES.items()}
    (folder / "recipe.json").write_text(json.dumps({"format_version": 1, "name": "blip3o:tiny", "stages": stages}))
    session = {
        "started": "2025-01-03T14:05:09+0100",
        "command": ["diptych", "train", "blip3o:tiny", "--seed", "3"],
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "commit": None,
        "hardware": {"cpu_cores": 2, "gpus": [], "device": "cpu"},
    }
    (folder / "environment.json").write_text(json.dumps({"sessions": [session, {**session, "command": ["resumed"]}]}))
    parts = [
        {
            "name": "encoder",
            "module": "ViT",
            "parameters": 1000,
            "dtypes": ["float32"],
            "stages": dict.fromkeys(STAGES, False),
        },
        {
            "name": "denoiser",
            "module": "Dit",
            "parameters": 2345,
            "dtypes": ["float32"],
            "stages": {"generation": True},
        },
    ]
    (folder / "manifest.json").write_text(json.dumps({"recipe": "blip3o:tiny", "parts": parts}))
    lines, step = [], 0
    for stage, num_steps in STAGES.items():
        for stage_step in range(10, num_steps + 1, 10):
            step += 10
            line = {"event": "train", "step": step, "stage": stage, "stage_step": stage_step, "time": step * 2.5}
            line |= {"loss": 1 / step, "loss/text": 1 / step, "examples_per_second": 300.0, "lr": 1e-3}
            if stage == "generation":
                line |= {
                    "loss/flow": 2 / step,
                    "loss/flow/sigma 0.00-0.50": 1 / step,
                    "loss/flow/sigma 0.50-1.00": None,
                }
            lines.append(line)
        lines.append({"event": "scores", "step": step, "stage": stage, "time": step * 2.5, "score/twin": step / 200})
        lines.append({"event": "stage_end", "step": step, "stage": stage, "time": step * 2.5})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"event": "train", "step": 9')
    for line in lines:
        if line["event"] == "train":
            path = folder / "samples" / f"{line['step']:06d}-{line['stage']}.png"
            facts = {"stage": line["stage"], "step": line["step"]}
            save_contact_sheet(path, [_picture("red"), _picture("blue")], CAPTIONS, metadata=facts)
    (folder / "checkpoints").mkdir()
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_a_finished_run(run: Path):
    data = report_data_from_run(run)
    assert data.title == "blip3o:tiny"
    assert data.command == "diptych train blip3o:tiny --seed 3"
    assert data.created == "Friday 3 January 2025, 14:05"
    assert data.environment == {"python": "3.11.2", "torch": "2.13.0", "cpu cores": "2", "device": "cpu"}
    assert data.summary == "140 steps in 2 stages: understanding, then generation."
    assert [(card.text, card.detail) for card in data.headlines] == [("5 min 50 s", "2,240 examples")]
    assert [(part.name, part.num_trainable, part.trained_in) for part in data.parts] == [
        ("encoder", 0, ""),
        ("denoiser", 2345, "generation"),
    ]
    assert [file.path for file in data.files] == [
        "recipe.json", "environment.json", "manifest.json", "metrics.jsonl", "samples", "checkpoints",
    ]  # fmt: skip


def test_the_charts_of_a_run(run: Path):
    charts = {chart.title: chart for chart in report_data_from_run(run).charts}
    assert list(charts) == [
        "understanding: losses",
        "generation: losses",
        "generation: flow by noise level",
        "Scores during the run",
        "Speed",
    ]
    assert [line.name for line in charts["generation: losses"].lines] == ["text", "flow"]
    text = charts["generation: losses"].lines[0]
    assert text.x == tuple(range(10, 101, 10)) and text.y[0] == 1 / 50
    levels = charts["generation: flow by noise level"]
    assert [(line.name, len(line.x)) for line in levels.lines] == [("σ 0.00–0.50", 10), ("σ 0.50–1.00", 0)]
    assert charts["Speed"].marks == ((10, "understanding"), (50, "generation"))
    assert charts["Scores during the run"].lines[0].y == (40 / 200, 140 / 200)


def test_what_a_method_counts_beside_its_losses_has_a_chart(run: Path):
    """FD-loss's loss stays where it is; its distances tell the progress."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines()
    for number, text in enumerate(lines[:-1]):  # the last one is cut off
        line = json.loads(text)
        if line["event"] == "train" and line["stage"] == "generation":
            lines[number] = json.dumps(line | {"fd/scenes": 9.0, "fd/pixels": 4.0, "fd_error/scenes": 1e-5})
    file.write_text("\n".join(lines))
    charts = {chart.title: chart for chart in report_data_from_run(run).charts}
    assert [line.name for line in charts["generation: fd"].lines] == ["scenes", "pixels"]
    assert charts["generation: fd"].lines[0].y == (9.0,) * 10
    assert "generation: fd_error" in charts and "understanding: fd" not in charts


def test_sample_grids_become_strips(run: Path):
    strips = {strip.title: strip for strip in report_data_from_run(run).filmstrips}
    assert set(strips) == set(STAGES)
    generation = strips["generation"]
    assert generation.captions == tuple(CAPTIONS)
    assert len(generation.frames) == MAX_FRAMES
    assert (generation.frames[0].label, generation.frames[-1].label) == ("step 50", "step 140")
    assert np.array_equal(np.asarray(generation.frames[3].images[1]), _picture("blue"))


def test_grids_of_another_making_are_shown_whole(run: Path):
    for name in ("other/step-20.png", "000040-other.png"):
        save_png(_picture("red"), run / "samples" / name)
    strips = {strip.title: strip for strip in report_data_from_run(run).filmstrips}
    assert strips["other"].captions == ()
    assert [frame.label for frame in strips["other"].frames] == ["step 20", "step 40"]


def test_scores_come_in_with_intervals(run: Path):
    tables = [
        score_table("geneval-twin", name, ["counting"] * 20 + ["color_attr"] * 20, [value] * 30 + [1.0 - value] * 10)
        for name, value in (("chance", 0.0), ("mine", 1.0))
    ]
    write_scores(tables, run / "scores.json", {"model": "mine"})
    assert read_scores(run / "scores.json") == tables
    data = report_data_from_run(run)
    (board,) = data.score_boards
    assert (board.systems, board.references) == (("mine", "chance"), ("chance",))
    assert [(row.name, row.is_total) for row in board.rows] == [
        ("counting", False),
        ("attribute binding", False),
        ("overall", True),
    ]
    overall = tables[1].overall
    shown = board.rows[2].scores["mine"]
    assert (shown.value, shown.low, shown.high, shown.count) == (0.75, overall.low, overall.high, 40)
    assert [card.label for card in data.headlines] == ["GenEval twin", "Training time"]
    assert headlines_of(tables, {"geneval-twin": 0.6})[0].goal == 0.6


def test_a_benchmark_with_one_category_has_no_total():
    (board,) = score_boards([score_table("Editing", "mine", ["all"] * 5, [1.0] * 5)])
    assert [row.name for row in board.rows] == ["all"]


@pytest.mark.parametrize(
    "missing", ["recipe.json", "environment.json", "manifest.json", "metrics.jsonl", "samples", "checkpoints"]
)
def test_anything_may_be_missing(run: Path, missing: str):
    (run / missing).rename(run.parent / "elsewhere")
    path = write_report(run)
    assert path == run / "report.html"
    assert "a blue &lt;square&gt;" in path.read_text() or missing == "samples"


def test_a_run_that_was_killed_at_once(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text('{"name": "x"}')
    (folder / "metrics.jsonl").write_text("")
    assert "<h1>x</h1>" in write_report(folder).read_text()


def test_what_is_no_run_folder_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"There is no run folder .*nowhere"):
        report_data_from_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is no run folder: it has neither recipe\.json nor metrics\.jsonl"):
        report_data_from_run(tmp_path)
    (run / "recipe.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"recipe\.json is damaged"):
        report_data_from_run(run)


def test_scores_that_cannot_be_read_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="There are no scores at"):
        read_scores(tmp_path / "scores.json")
    for content in ("{", "[]", "{}", '{"format_version": 99, "tables": []}', '{"format_version": 1, "tables": [{}]}'):
        (tmp_path / "scores.json").write_text(content)
        with pytest.raises(ValueError, match=r"scores\.json cannot be read as scores"):
            read_scores(tmp_path / "scores.json")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (460.2, "7 min 40 s"), (11_100.0, "3 h 05 min")]
)
def test_format_duration(seconds: float, text: str):
    assert format_duration(seconds) == text
