"""GenEval: verdicts equal to the official scorer's on stored detections; mistakes in files named by their line."""

import gzip
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.evals.manifest import EvaluationFolder
from diptych.evals.produce import plan, produce
from diptych.evals.references import Reference
from diptych.evals.score import score
from diptych.evals.tasks import TaskOptions, build_task
from diptych.evals.tasks.detections_file import read_detections, write_detections
from diptych.evals.tasks.geneval import (
    OFFICIAL_DETECTOR,
    OFFICIAL_RULES,
    geneval_task,
    judge_detections,
    official_relations,
    read_prompts,
)
from diptych.scenes.rules import GENEVAL_RULES, Detection, relations_between

CASES = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "geneval.json.gz").read_bytes()))
PROMPTS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "cat", "count": 2}],
        "exclude": [{"class": "cat", "count": 3}],
        "prompt": "a photo of two cats",
    },
    {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a photo of a red car"},
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
]


def detections(case):
    return [
        Detection(name, box[4], tuple(box[:4]), color)
        for name, boxes in case["boxes"].items()
        for box, color in zip(boxes, case["colors"][name], strict=True)
    ]


def write(path, records):
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return path


@pytest.fixture
def prompts(tmp_path):
    return write(tmp_path / "evaluation_metadata.jsonl", PROMPTS)


def test_verdicts_and_reasons_are_those_of_the_official_scorer():
    seen = Counter()
    for case in CASES:
        found = judge_detections(case["program"], detections(case))
        assert found["correct"] == case["correct"], case
        # The official one prints a set of two relations in any order.
        assert sorted(found["reason"].split()) == sorted(case["reason"].split())
        seen[case["program"]["tag"], case["correct"]] += 1
    assert len(seen) == 12 and min(seen.values()) > 5 and sum(seen.values()) == 500


def test_float32_decides_on_the_thresholds():
    """In float64 some verdicts on the same detections differ, so the official precision is part of the rules."""
    other = [judge_detections(case["program"], detections(case), GENEVAL_RULES)["correct"] for case in CASES]
    assert 0 < sum(a != case["correct"] for a, case in zip(other, CASES, strict=True)) < 20
    confidence = float(np.float32(0.3))
    assert confidence > 0.3
    bench = [Detection("bench", confidence, (0, 0, 9, 9))]
    assert not judge_detections(PROMPTS[0], bench)["correct"]
    assert judge_detections(PROMPTS[0], bench, GENEVAL_RULES)["correct"]


def test_relations_in_both_precisions_agree_off_the_thresholds():
    rng = np.random.default_rng(0)
    for _ in range(500):
        corners = rng.uniform(0, 400, (2, 2))
        boxes = [tuple(row) for row in np.hstack([corners, corners + rng.uniform(5, 200, (2, 2))]).tolist()]
        assert official_relations(*boxes, 0.1) == relations_between(*boxes)
    assert official_relations((0.0, 0.0, 9.0, 9.0), (0.0, 0.0, 9.0, 9.0), 0.1) == ()


def test_official_result_lines_are_read_and_judged_alike(tmp_path):
    chosen = CASES[:60]
    lines = [
        {
            "filename": f"out/{number:05d}/samples/0001.png",
            "details": json.dumps(case["boxes"]),
            "colors": case["colors"],
        }
        for number, case in enumerate(chosen)
    ]
    stored = read_detections(write(tmp_path / "results.jsonl", lines))
    for number, case in enumerate(chosen):
        (found,) = stored.detect([f"{number:05d}/0001"], [])
        assert judge_detections(case["program"], found)["correct"] == case["correct"]
    assert not stored.official and stored.name == "file results.jsonl" and len(stored.revision) == 16


def test_four_pictures_a_prompt_with_seeds_that_a_subset_keeps(prompts):
    whole = geneval_task(prompts, seed=42).requests()
    assert [request.seed for request in whole] == list(range(42, 58))
    assert [request.id for request in whole[:5]] == [
        "00000/0000",
        "00000/0001",
        "00000/0002",
        "00000/0003",
        "00001/0000",
    ]
    part = geneval_task(prompts, seed=42, num_per_category=1).requests()
    assert len(part) == 12
    by_id = {request.id: request for request in whole}
    assert all(by_id[request.id] == request for request in part)
    assert {request.id[:5] for request in part} == {"00000", "00001", "00002"}


def test_rewritten_prompts_are_named_and_are_other_samples(prompts, tmp_path):
    longer = [{**record, "prompt": f"A sharp photograph: {record['prompt']}."} for record in PROMPTS]
    rewritten = write(tmp_path / "longer.jsonl", longer)
    plain, told = geneval_task(prompts), geneval_task(prompts, rewritten=rewritten)
    assert told.requests()[0].parts[0].text == "A sharp photograph: a photo of a bench."
    assert told.requests()[0].rewriter.startswith("longer.jsonl@") and plain.requests()[0].rewriter == ""
    contender = Reference("constant", plain)
    assert not {p.key for p in plan(plain, contender)} & {p.key for p in plan(told, contender)}
    assert plain.config()["rewriter"] == "" != told.config()["rewriter"]
    with pytest.raises(ValueError, match=r"has 3 prompts, .* has 4: one is needed for each"):
        geneval_task(prompts, rewritten=write(tmp_path / "short.jsonl", longer[:3]))


def test_a_run_is_judged_later_from_stored_detections(prompts, tmp_path):
    task, folder = geneval_task(prompts), EvaluationFolder(tmp_path / "run")
    contender = Reference("constant", task)
    planned = plan(task, contender)
    produce(folder, task, contender, planned)
    keys = {item.request.id: item.key for item in planned}
    assert task.unready().startswith("geneval-official needs a detector")
    with pytest.raises(ValueError, match="needs a detector to judge its pictures: give --detections FILE"):
        score(folder, task, keys, "constant")
    box = (10.0, 10.0, 60.0, 60.0)
    found = {name: [Detection("bench", 0.5, box), Detection("cat", 0.95, box), Detection("cat", 0.85, box),
                    Detection("car", 0.9, box, "red")] for name in keys}  # fmt: skip
    found["00002/0003"] = [Detection("car", 0.9, box, "blue")]
    write_detections(tmp_path / "found.jsonl", {"detector": "by hand", "revision": "1", "official": False}, found)
    judged = geneval_task(prompts, detector=read_detections(tmp_path / "found.jsonl"))
    result = score(folder, judged, keys, "constant")
    # Bench yes, cow no; of the two cats one is under the threshold of counting; three of four cars are red.
    tags = {name: value.value for name, value in result.table.categories.items()}
    assert tags == {"single_object": 0.5, "counting": 0.0, "colors": 0.75}
    assert result.table.overall.value == pytest.approx(1.25 / 3)
    assert result.judge["detector"] == {"name": "by hand", "revision": "1", "official": False}
    assert result.table.details["prompts_with_a_correct_image"] == 0.5
    incomplete = {name: found[name] for name in list(found)[:3]}
    write_detections(tmp_path / "few.jsonl", {"detector": "lazy", "revision": "1", "official": False}, incomplete)
    judged = geneval_task(prompts, detector=read_detections(tmp_path / "few.jsonl"))
    with pytest.raises(ValueError, match="the detections of lazy lack 13 of 16 pictures, such as 00000/0003"):
        score(folder, judged, keys, "constant")


def test_only_the_official_detector_is_called_official(tmp_path):
    for name, official in ((OFFICIAL_DETECTOR, True), ("YOLO", False)):
        path = tmp_path / "found.jsonl"
        write_detections(path, {"detector": name, "revision": "2.x", "official": True}, {"00000/0000": []})
        assert read_detections(path).record() == {"name": name, "revision": "2.x", "official": official}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tag": "single_object", ', "line 2: this is no JSON"),
        ("[1]", "line 2: a JSON object is expected, got list"),
        ({"tag": "single_object", "include": []}, "line 2: 'prompt' is missing"),
        ({**PROMPTS[0], "tag": "sizes"}, "line 2: tag must be one of single_object, two_object, counting"),
        ({**PROMPTS[0], "prompt": " "}, "line 2: prompt must be a text, got ' '"),
        ({**PROMPTS[0], "include": {}}, "line 2: include must be a list of clauses"),
        ({**PROMPTS[0], "include": [{"count": 1}]}, r"line 2: include\[0\] needs a class"),
        ({**PROMPTS[0], "include": [{"class": "cat", "count": "1"}]}, r"include\[0\].count must be a whole number"),
        ({**PROMPTS[0], "include": [{"class": "cat", "count": 1, "position": ["left of", 0]}]}, "an earlier clause"),
        (PROMPTS[0], "line 2: the same prompt stands in line 1"),
    ],
)
def test_a_mistake_in_the_prompts_is_named_with_its_line(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path / "prompts.jsonl", [PROMPTS[0], line]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"detections": []}, "line 2: which picture is it"),
        ({"id": "00001/0000"}, 'line 2: there are neither "detections" nor'),
        ({"id": "00001/0000", "detections": {}}, "line 2: detections must be a list"),
        ({"id": "00001/0000", "detections": [{"confidence": 1}]}, "line 2, detection 0: a class is missing"),
        ({"id": "0", "detections": [{"class": "a", "confidence": "hi"}]}, "confidence must be a number, got 'hi'"),
        ({"id": "0", "detections": [{"class": "a", "confidence": 1, "box": [1, 2, 3]}]}, "box must be"),
        ({"id": "0", "detections": [{"class": "a", "confidence": 1, "color": "teal"}]}, "got 'teal'"),
        ({"id": "0", "details": "{"}, "line 2: details are no JSON"),
        ({"id": "0", "details": {"cat": [[1, 2, 3, 4]]}}, "line 2, cat 0: confidence must be a number, got None"),
        ({"id": "00000/0000", "detections": []}, "line 2: line 1 is about the same picture"),
    ],
)
def test_a_mistake_in_the_detections_is_named_with_its_line(tmp_path, line, message):
    first = {"id": "00000/0000", "detections": [{"class": "cat", "confidence": 0.9, "box": [0, 0, 1, 1]}]}
    with pytest.raises(ValueError, match=message):
        read_detections(write(tmp_path / "found.jsonl", [first, line]))


def test_without_its_prompts_the_way_out_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"geneval-official needs its prompts: give --prompts evaluation_metadata\.jsonl"
    ):
        build_task("geneval-official", TaskOptions())
    with pytest.raises(FileNotFoundError, match="There is no file"):
        build_task("geneval-official", TaskOptions(prompts=str(tmp_path / "none.jsonl")))
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(write(tmp_path / "empty.jsonl", []))


def test_the_published_prompts(test_data):
    folder = test_data / "prompts" / "geneval"
    task = geneval_task(folder / "evaluation_metadata.jsonl", rewritten=folder / "evaluation_metadata_long.jsonl")
    assert Counter(metadata["tag"] for metadata in task.prompts) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100
    }  # fmt: skip
    assert len(task.requests()) == 553 * 4 and len({request.id for request in task.requests()}) == 553 * 4
    assert task.rules == OFFICIAL_RULES


def test_the_whole_chain_on_photographs_and_pictures_composed_of_them(test_data, tmp_path):
    """Kodak's motorcycles, boat, aeroplane and parrots, alone and side by side, found by YOLOX-Nano."""
    file = np.load(test_data / "images" / "kodak" / "kodak24.npz")
    data, offset = file["data"], file["offset"]
    photos = {name: Image.open(io.BytesIO(data[offset[n - 1] : offset[n]].tobytes())).convert("RGB").resize((384, 256))
              for name, n in (("motorcycle", 5), ("boat", 11), ("airplane", 20), ("bird", 23))}  # fmt: skip

    def beside(left, right):
        canvas = Image.new("RGB", (768, 256))
        canvas.paste(photos[left], (0, 0))
        canvas.paste(photos[right], (384, 0))
        return canvas

    def include(*names, **more):
        return [{"class": name, "count": 1, **(more if index else {})} for index, name in enumerate(names)]

    left_of = {"position": ["left of", 0]}
    cases = [
        ("single_object", include("boat"), photos["boat"], True),
        ("single_object", include("bench"), photos["boat"], False),
        ("two_object", include("motorcycle", "airplane"), beside("motorcycle", "airplane"), True),
        ("two_object", include("motorcycle", "bird"), beside("motorcycle", "airplane"), False),
        ("position", include("airplane", "motorcycle", **left_of), beside("motorcycle", "airplane"), True),
        ("position", include("motorcycle", "airplane", **left_of), beside("motorcycle", "airplane"), False),
    ]
    lines = []
    for number, (tag, wanted, picture, _) in enumerate(cases):
        place = tmp_path / "pictures" / f"{number:05d}" / "samples" / "0000.png"
        place.parent.mkdir(parents=True)
        picture.save(place)
        lines.append(json.dumps({"tag": tag, "include": wanted, "prompt": f"a photo, number {number}"}))
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    detector = test_data / "models" / "detector" / "yolox_nano.graph.json"
    words = [
        "--on",
        "geneval-official",
        "--prompts",
        tmp_path / "prompts.jsonl",
        "--samples",
        1,
        "--detector",
        detector,
    ]
    run = ["evaluate", f"pictures:{tmp_path / 'pictures'}", *words, "--out", tmp_path / "out"]
    assert main([str(word) for word in run]) == 0
    units = [json.loads(line) for line in (tmp_path / "out" / "units" / "geneval.jsonl").read_text().splitlines()]
    assert {unit["id"]: bool(unit["value"]) for unit in units} == {
        f"{number:05d}/0000": right for number, (*_, right) in enumerate(cases)
    }
    assert "This is not the official detector" in (tmp_path / "out" / "report.md").read_text()
