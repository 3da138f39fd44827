"""Producing: every sample once, nothing lost, whatever is killed, deleted or damaged in between."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diptych.data.example import ImageIn, Text
from diptych.evals.manifest import EvaluationFolder, append_lines, read_lines, sample_key
from diptych.evals.produce import Planned, batches, missing, plan, produce, shares
from diptych.evals.protocol import Earlier, Failure, Request
from diptych.evals.score import score
from tests.evals.toy_harness import Formula, Retell


def run(folder, task=None, contender=None, **options):
    """Produces and returns the plan."""
    task, contender = task or Retell(), contender or Formula()
    planned = plan(task, contender)
    produce(folder, task, contender, planned, **options)
    return planned


def keys(planned):
    return {item.request.id: item.key for item in planned}


@pytest.fixture
def folder(tmp_path):
    return EvaluationFolder(tmp_path / "run")


def test_a_second_call_makes_nothing_again(folder):
    first, second = Formula(), Formula()
    planned = run(folder, contender=first)
    assert sum(map(len, first.batches)) == len(planned) == 15
    run(folder, contender=second)
    assert second.batches == []
    assert Counter(row["key"] for row in read_lines(folder.manifest)) == dict.fromkeys(keys(planned).values(), 1)


def test_a_row_says_everything_about_its_sample(folder):
    run(folder, Retell(number=1))
    drawn, said, again = folder.rows().values()
    assert (drawn.task, drawn.id, drawn.kind, drawn.seed) == ("retell", "0/drawn", "image", 0)
    assert drawn.parts == [["text", "user", "x 0", False]]
    assert said.parts == [["earlier", "0/drawn"], ["text", "user", "What is it?", False]]
    assert drawn.settings == {"steps": 20, "size": [4, 5]} and drawn.size == [4, 5]
    assert drawn.contender == "formula" and len(drawn.fingerprint) == 16 and drawn.rewriter == ""
    assert said.inputs == [drawn.sha256] and again.inputs == [said.sha256] and len(str(said.text)) == 64
    assert folder.file(drawn.sha256).name == f"{drawn.sha256}.png" and drawn.seconds >= 0 and drawn.time[:2] == "20"


def test_what_changes_the_output_changes_the_key():
    request = Request("a", "image", (Text("a circle"),), seed=1)
    base = (request, {"steps": 20, "size": [64, 64], "guidance": 4.0}, {"fingerprint": "x"})

    def key(request, settings, identity):
        return sample_key("task", request, settings, identity, {"b": "1"})

    pictures = [np.full((2, 2, 3), value, np.uint8) for value in (0, 1)]
    changed = [
        base,
        (replace(request, seed=2), *base[1:]),
        (replace(request, parts=(Text("a  circle"),)), *base[1:]),
        (replace(request, parts=(Text("a circle", role="system"),)), *base[1:]),
        *[(replace(request, parts=(ImageIn(picture), Text("a circle"))), *base[1:]) for picture in pictures],
        (replace(request, parts=(Earlier("b"),)), *base[1:]),
        (replace(request, rewriter="longer@1"), *base[1:]),
        (replace(request, kind="text"), *base[1:]),
        (replace(request, choices=("yes",)), *base[1:]),
        *[(replace(request, parts=(Text("a circle", role="assistant", is_thought=is_thought),)), *base[1:])
          for is_thought in (False, True)],
        *[(request, {**base[1], name: value}, base[2]) for name, value in
          (("steps", 21), ("size", [64, 32]), ("guidance", 3.0))],
        (*base[:2], {"fingerprint": "y"}),
    ]  # fmt: skip
    assert len({key(*one) for one in changed}) == len(changed) == 16
    assert key(*base) == key(base[0], dict(reversed(base[1].items())), base[2])


def test_other_settings_are_other_samples_in_the_same_folder(folder):
    run(folder)
    other = Formula(steps=21)
    planned = run(folder, contender=other)
    assert sum(map(len, other.batches)) == 15 and len(folder.rows()) == 30
    assert missing(folder, planned, folder.rows()) == []


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_do_not_decide_what_comes_out(folder, tmp_path, batch_size):
    run(folder)
    other = EvaluationFolder(tmp_path / "other")
    run(other, batch_size=batch_size)
    assert {k: r.sha256 for k, r in other.rows().items()} == {k: r.sha256 for k, r in folder.rows().items()}


def test_batches_hold_equal_settings_and_go_by_length():
    planned = plan(Retell(number=4), Formula())
    found = list(batches([item for item in planned if "drawn" in item.request.id], 3))
    lengths = [len(item.request.parts[0].text) for batch in found for item in batch]
    assert [len(batch) for batch in found] == [3, 1] and lengths == sorted(lengths)
    mixed = [replace(item, request=replace(item.request, settings={"steps": 5})) for item in planned[:1]]
    assert len(list(batches([*mixed, *planned[3:4]], 9))) == 2


def test_a_deleted_file_is_made_again_and_what_was_made_from_it_is_kept_if_equal(folder):
    planned = run(folder)
    row = folder.rows()[planned[0].key]
    folder.file(row.sha256).unlink()
    again = Formula()
    run(folder, contender=again)
    assert again.batches[0] == ["0/drawn"]
    assert missing(folder, planned, folder.rows()) == []
    assert folder.rows()[planned[0].key].sha256 == row.sha256


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.unlink(), "its file is gone: files/"),
        (lambda file: file.write_bytes(file.read_bytes()[:40]), "its file cannot be read as a picture: files/"),
        (lambda file: file.write_bytes(b""), "its file cannot be read as a picture: files/"),
        ("size", "its file is 9x9 pixels, 4x5 were drawn"),
        ("pixels", "its file was changed after it was drawn: files/"),
    ],
)
def test_a_damaged_file_is_missing_counted_and_named(folder, damage, reason):
    from PIL import Image

    planned = run(folder)
    file = folder.file(folder.rows()[planned[3].key].sha256)
    if callable(damage):
        damage(file)
    else:
        size = (9, 9) if damage == "size" else (5, 4)
        Image.new("RGB", size).save(file)
    result = score(folder, Retell(), keys(planned), "formula")
    assert list(result.missing) == ["1/drawn"] and reason in result.missing["1/drawn"]
    assert result.table.overall.value == 0.8
    assert result.table.details["missing"] == {"count": 1, "counted_as": "wrong", "score_without_them": 1.0}
    with pytest.raises(ValueError, match="1 of 15 samples are missing, such as 1/drawn: its file"):
        score(folder, Retell(), keys(planned), "formula", missing="refuse")
    run(folder)  # repairs it
    assert score(folder, Retell(), keys(planned), "formula").table.overall.value == 1


def test_failures_are_counted_named_and_tried_again(folder):
    class Fickle(Formula):
        def draw(self, requests):
            return [Failure("the server is busy") if r.id == "2/drawn" else self._picture(r) for r in requests]

    task, planned = Retell(), plan(Retell(), Fickle())
    assert produce(folder, task, Fickle(), planned) == 3  # the drawing, and both that build on it
    result = score(folder, task, keys(planned), "formula")
    assert result.missing["2/drawn"] == "the server is busy"
    assert result.missing["2/said"] == "it builds on 2/drawn, and it was not made"
    assert produce(folder, task, Formula(), planned) == 0
    assert score(folder, task, keys(planned), "formula").missing == {}


def test_a_picture_of_another_size_is_a_failure(folder):
    wrong = Formula(size=(8, 8))
    planned = run(folder, contender=wrong)
    with pytest.raises(ValueError, match=r"all 15 samples are missing\. it is 8x8 pixels, 4x5 were asked for"):
        score(folder, Retell(), keys(planned), "formula")


def test_plans_that_cannot_be_carried_out():
    class Twice(Retell):
        def requests(self):
            return [*super().requests(), super().requests()[0]]

    class Backwards(Retell):
        def requests(self):
            return super().requests()[::-1]

    with pytest.raises(ValueError, match="retell: the id '0/drawn' stands twice"):
        plan(Twice(), Formula())
    with pytest.raises(ValueError, match="request '4/again' builds on '4/said', which does not stand before it"):
        plan(Backwards(), Formula())


def test_shares_keep_chains_together_and_cover_everything():
    planned = plan(Retell(number=7), Formula())
    dealt = shares(planned, 3)
    assert sorted(name for one in dealt for name in one) == sorted(item.request.id for item in planned)
    assert [len({name.split("/")[0] for name in one}) for one in dealt] == [3, 2, 2]
    assert all(len([n for n in one if n.startswith(f"{i}/")]) in (0, 3) for one in dealt for i in range(7))
    assert isinstance(planned[0], Planned)


def test_rows_that_lack_something_are_none_and_what_is_not_known_is_passed_over(folder):
    planned = run(folder, Retell(number=1))
    rows = list(read_lines(folder.manifest))
    del rows[0]["sha256"]
    rows[1]["of a later version"] = True
    folder.manifest.unlink()
    append_lines(folder.manifest, rows)
    assert set(folder.rows()) == {item.key for item in planned[1:]}
    again = Formula()
    run(folder, Retell(number=1), again)
    assert again.batches[0] == ["0/drawn"] and set(folder.rows()) == {item.key for item in planned}


def test_half_a_line_is_passed_over_and_closed(tmp_path):
    file = tmp_path / "rows.jsonl"
    append_lines(file, [{"a": 1}, {"a": 2}])
    file.write_bytes(file.read_bytes()[:-4])
    assert list(read_lines(file)) == [{"a": 1}]
    append_lines(file, [{"a": 3}])
    assert list(read_lines(file)) == [{"a": 1}, {"a": 3}]


@pytest.mark.process
def test_killed_anywhere_and_resumed_no_sample_is_lost_or_made_twice(folder, tmp_path):
    count = 40
    command = [sys.executable, "-m", "tests.evals.toy_harness", str(folder.path), str(count)]
    kills = 0
    for attempt in range(30):
        process = subprocess.Popen(command, env={**os.environ}, cwd=Path(__file__).parents[2])
        lines = sum(1 for _ in read_lines(folder.manifest))
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if attempt < 3 and sum(1 for _ in read_lines(folder.manifest)) >= lines + 10 * (attempt + 1):
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.003)
        process.wait()
        if process.returncode == 0:
            break
    assert kills == 3 and process.returncode == 0
    rows = list(read_lines(folder.manifest))
    planned = run(EvaluationFolder(tmp_path / "unbroken"), Retell(number=count))
    assert Counter(row["key"] for row in rows) == dict.fromkeys(keys(planned).values(), 1)
    unbroken = EvaluationFolder(tmp_path / "unbroken").rows()
    assert {key: row.sha256 for key, row in folder.rows().items()} == {k: r.sha256 for k, r in unbroken.items()}
    assert score(folder, Retell(number=count), keys(planned), "formula").table.overall.value == 1


@pytest.mark.process
def test_killed_at_each_file_it_touches_no_sample_is_lost_or_made_twice(tmp_path):
    command = [sys.executable, "-m", "tests.evals.toy_harness", "kill-everywhere", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20  # rows, pictures, the folders of both, and the names they get when they are whole


def test_judging_goes_on_where_it_was_stopped(folder):
    planned = run(folder)
    judged = []

    class Counting(Retell):
        def judge(self, requests, outputs):
            judged.extend(request.id for request in requests)
            return super().judge(requests, outputs)

    result = score(folder, Counting(), keys(planned), "formula")
    assert len(judged) == 15 and result.num_samples == 15
    assert score(folder, Counting(), keys(planned), "formula").table == result.table and len(judged) == 15

    class Stricter(Counting):
        def judge_record(self):
            return {"name": "formula", "revision": "2"}

    score(folder, Stricter(), keys(planned), "formula")
    assert len(judged) == 30  # another judge keeps its own verdicts
    json.dumps(result.to_dict())
