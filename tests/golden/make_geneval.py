"""Makes ``geneval.json.gz``: verdicts of GenEval's own scorer on drawn detections.

Run as ``python -m tests.golden.make_geneval SCORER PROMPTS`` from the root of this repository, where SCORER is
``evaluation/evaluate_images.py`` of djghosh13/geneval (MIT licence; at af4902f) and PROMPTS its
``prompts/evaluation_metadata.jsonl``. Of the scorer only ``evaluate_image`` and what it calls is run, with detections
in place of the detector and their colours in place of CLIP; mmdet and open_clip are not needed. The stored file was
made with numpy 2.4.6 on a CPU.

Each case holds a program, the detections (float32 values, classes the prompt speaks of and others, many of them at the
edges of the rules: whole pixels, confidences at the thresholds, more than sixteen of a class), and the official
``correct``, ``reason`` and ``details``. Confidences of one class differ: numpy sorts equal ones as the processor likes.
"""

import ast
import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent
NUM_CASES = 500
CONFIDENCES = (0.2, 0.3, 0.30000004, 0.31, 0.6, 0.9, 0.90000004, 0.95, 0.99)
FUNCTIONS = ("compute_iou", "relative_position", "evaluate", "evaluate_image")


def official(path, picture):
    """The scorer's functions with its default thresholds, and a detector and a colour classifier that hand out."""
    tree = ast.parse(Path(path).read_text())
    chosen = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS]
    assert len(chosen) == len(FUNCTIONS)
    given = {}
    scope = {
        "np": np, "json": json, "Image": SimpleNamespace(open=lambda _: picture),
        "ImageOps": SimpleNamespace(exif_transpose=lambda image: image),
        "COLORS": ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"],
        "THRESHOLD": 0.3, "COUNTING_THRESHOLD": 0.9, "MAX_OBJECTS": 16, "NMS_THRESHOLD": 1.0,
        "POSITION_THRESHOLD": 0.1, "object_detector": None,
        "inference_detector": lambda *_: (given["boxes"], given["marks"]),
        "color_classification": lambda _, objects, name: [mark for _, mark in objects],
    }  # fmt: skip
    exec(compile(ast.Module(chosen, []), str(path), "exec"), scope)

    def judge(program, by_class, colors):
        scope["classnames"] = list(by_class)
        given["boxes"] = [np.array(boxes, np.float32).reshape(-1, 5) for boxes in by_class.values()]
        given["marks"] = [colors[name] for name in by_class]
        return scope["evaluate_image"]("00000/samples/0000.png", program)

    return judge


def draw_box(rng, size):
    """Whole pixels half of the time, so that offsets meet the thresholds exactly."""
    x, y = rng.uniform(0, 400, 2)
    width, height = rng.choice(size, 2)
    values = [x, y, x + width, y + height]
    return [float(round(value / 4) * 4) for value in values] if rng.random() < 0.5 else [float(v) for v in values]


def draw_case(rng, program):
    """Boxes with confidences, and colours, by class."""
    by_class, colors = {}, {}
    for clause in program["include"]:
        number = int(
            rng.choice([clause["count"], clause["count"] + 1, clause["count"] - 1, 20], p=[0.6, 0.2, 0.1, 0.1])
        )
        wanted = clause.get("color")
        boxes = [[*draw_box(rng, [20, 40, 80, 120]), float(rng.choice(CONFIDENCES[3:]))] for _ in range(number)]
        for box in boxes:
            if rng.random() < 0.25:
                box[4] = float(rng.choice(CONFIDENCES))
        used = set()
        for box in boxes:
            while box[4] in used:
                box[4] = float(np.float32(rng.uniform(0.2, 1.0)))
            used.add(box[4])
        by_class[clause["class"]] = boxes
        colors[clause["class"]] = [
            wanted if wanted and rng.random() < 0.8 else str(rng.choice(["red", "blue", "black"])) for _ in boxes
        ]
        if "position" in clause and rng.random() < 0.7:
            move(rng, by_class, program, clause)
    by_class["zebra crossing"] = [[*draw_box(rng, [20, 80]), 0.99]]
    colors["zebra crossing"] = ["white"]
    return by_class, colors


def move(rng, by_class, program, clause):
    """Puts the boxes of a clause about where they should be."""
    target = by_class[program["include"][clause["position"][1]]["class"]]
    if not target:
        return
    x0, y0, x1, y1, _ = target[0]
    dx, dy = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[clause["position"][0]]
    for box in by_class[clause["class"]]:
        far, aside = rng.choice([8, 16, 40, 100]), rng.choice([-48, -16, 0, 0, 16, 48])
        width, height = box[2] - box[0], box[3] - box[1]
        x = (x0 + x1) / 2 + dx * far + (aside if dx == 0 else 0)
        y = (y0 + y1) / 2 + dy * far + (aside if dy == 0 else 0)
        box[:4] = [float(v) for v in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)]


def main(scorer, prompts):
    rng = np.random.default_rng(0)
    programs = [json.loads(line) for line in Path(prompts).read_text().splitlines()]
    judge = official(scorer, Image.new("RGB", (512, 512)))
    cases = []
    for _ in range(NUM_CASES):
        program = programs[int(rng.integers(len(programs)))]
        by_class, colors = draw_case(rng, program)
        result = judge(program, by_class, colors)
        boxes = {name: np.array(own, np.float32).reshape(-1, 5).tolist() for name, own in by_class.items()}
        cases.append(
            {
                "program": program, "boxes": boxes, "colors": colors, "correct": bool(result["correct"]),
                "reason": result["reason"], "details": json.loads(result["details"]),
            }
        )  # fmt: skip
    text = json.dumps(cases, separators=(",", ":"))
    (FOLDER / "geneval.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
