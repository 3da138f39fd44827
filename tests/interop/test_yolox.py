"""YOLOX as a detector: geometry in closed form, and on photographs where its weights are there."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.interop.yolox import COLOR_RGB, box_color, decode, keep_apart, letterbox, load_yolox
from diptych.scenes.rules import COLOR_ORDER


def test_letterbox_keeps_the_shape_and_fills_right_and_below():
    square = letterbox(np.full((20, 40, 3), 200, np.uint8), 64)
    assert square.shape == (64, 64, 3)
    assert (square[:32] == 200).all() and (square[32:] == 114).all()
    assert (letterbox(np.full((40, 20, 3), 200, np.uint8), 64)[:, 32:] == 114).all()


def test_boxes_are_decoded_cell_by_cell():
    raw = torch.zeros(8 * 8 + 4 * 4 + 2 * 2, 7)
    raw[8 + 2] = torch.tensor([0.5, 0.25, np.log(2), np.log(4), 0.5, 0.8, 0.1])  # row 1, column 2 of stride 8
    raw[64 + 5] = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0])  # row 1, column 1 of stride 16
    boxes, scores = decode(raw, 64)
    assert boxes[10].tolist() == pytest.approx([20 - 8, 10 - 16, 20 + 8, 10 + 16])
    assert scores[10].tolist() == pytest.approx([0.4, 0.05])
    assert boxes[69].tolist() == pytest.approx([8, 8, 24, 24]) and scores[69].tolist() == [0.0, 1.0]


def test_of_overlapping_boxes_the_best_stays():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4], [20, 20, 30, 30], [5, 5, 5, 5.0]])
    assert keep_apart(boxes, torch.tensor([0.5, 0.9, 0.4, 0.3, 0.1])) == [1, 2, 3, 4]


def test_colors_are_those_of_the_middle_of_a_box():
    assert tuple(COLOR_RGB) == COLOR_ORDER
    for name, color in COLOR_RGB.items():
        image = np.full((40, 40, 3), 128, np.uint8)
        image[15:25, 15:25] = color
        assert box_color(image, (10.0, 10.0, 30.0, 30.0)) == name
    assert box_color(image, (39.9, 39.9, 40.0, 40.0)) in COLOR_RGB  # a box of no pixel


def test_files_that_are_no_detector(test_data, tmp_path):
    source = test_data / "models" / "detector"
    for name in ("yolox_nano.graph.json", "yolox_nano.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=r"classes\.json is missing: it names the classes of yolox_nano"):
        load_yolox(tmp_path / "yolox_nano.graph.json")
    (tmp_path / "classes.json").write_text(json.dumps({"coco": []}))
    with pytest.raises(ValueError, match='holds no list "geneval" of class names'):
        load_yolox(tmp_path / "yolox_nano.graph.json")
    with pytest.raises(ValueError, match="is no YOLOX: it has the outputs"):
        load_yolox(test_data / "models" / "imagenet" / "squeezenet_v1_1.graph.json")


def test_objects_in_photographs(test_data):
    """Pictures of the Kodak set by their numbers: motorcycles, a boat, an aeroplane, two parrots."""
    detector = load_yolox(test_data / "models" / "detector" / "yolox_nano.graph.json")
    file = np.load(test_data / "images" / "kodak" / "kodak24.npz")
    stored = SimpleNamespace(data=file["data"], offset=file["offset"])
    for number, name, count in ((5, "motorcycle", 3), (11, "boat", 1), (20, "airplane", 1), (23, "bird", 2)):
        content = stored.data[stored.offset[number - 1] : stored.offset[number]].tobytes()
        image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        (found,) = detector.detect(["picture"], [image])
        own = [item for item in found if item.name == name and item.confidence > 0.3]
        assert len(own) >= count
        for item in own:
            assert 0 <= item.box[0] < item.box[2] <= image.shape[1] and 0 <= item.box[1] < item.box[3] <= image.shape[0]
    record = detector.record()
    assert record["name"] == "yolox_nano" and record["official"] is False
