"""A folder of images with sidecar texts or one table of metadata."""

import dataclasses
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data import sources
from diptych.data.example import ImageIn, ImageOut, Text
from diptych.data.records import Columns
from diptych.data.sources.folder import FolderReader, FolderSource
from diptych.data.sources.json_lines import JsonLines
from diptych.data.sources.protocol import BadRecord, NoUsableRecords
from diptych.data.stream import read_once


def save_picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), number, dtype=np.uint8)).save(path)


def sidecar_folder(folder: Path) -> Path:
    for number, name in enumerate(["b.png", "a.png", "deep/er/c.bmp"]):
        save_picture(folder / name, number)
        (folder / name).with_suffix(".txt").write_text(f"picture {name}", encoding="utf-8")
    (folder / "notes.md").write_text("no image")
    (folder / "._b.png").write_bytes(b"rubbish of a file system")
    return folder


def reason_at(reader: FolderReader, index: int) -> BadRecord:
    with pytest.raises(BadRecord) as caught:
        reader.example(index, 0)
    return caught.value


def test_sidecar_texts(tmp_path):
    reader = FolderSource(path=str(sidecar_folder(tmp_path / "set"))).build()
    examples = list(read_once(reader))
    assert [example.key for example in examples] == ["a.png", "b.png", "deep/er/c.bmp"]
    assert [example.parts[0] for example in examples] == [Text(f"picture {example.key}") for example in examples]
    assert [example.parts[1].image.pixels[0, 0, 0] for example in examples] == [1, 0, 2]
    assert all(isinstance(example.parts[1], ImageOut) for example in examples)
    assert pickle.loads(pickle.dumps(reader)).example(2, 0).key == "deep/er/c.bmp"
    captioning = FolderSource(path=reader.config.path, task="image_to_text", prompt="Say it.").build().example(0, 0)
    assert isinstance(captioning.parts[0], ImageIn)
    assert captioning.parts[1:] == (Text("Say it."), Text("picture a.png", "assistant", True))


def test_broken_sidecars_and_images(tmp_path):
    folder = sidecar_folder(tmp_path / "set")
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_bytes(b"\xff\xfe")
    (folder / "deep/er/c.bmp").write_bytes(b"not a picture")
    save_picture(folder / "d.jpg", 9)
    (folder / "d.txt").write_text("  ")
    reader = FolderSource(path=str(folder)).build()
    found = [(error.name, error.reason) for error in (reason_at(reader, index) for index in range(4))]
    assert found == [
        ("a.png", "missing text"),
        ("b.png", "not UTF-8"),
        ("d.jpg", "empty text"),
        ("deep/er/c.bmp image", "not an image"),
    ]


def test_metadata_table(tmp_path):
    for number in range(4):
        save_picture(tmp_path / "images" / f"{number}.png", number)
    rows = [
        {"file_name": "images/0.png", "text": "zero", "target_file_name": "images/1.png"},
        {"file_name": "images/9.png", "text": "not there"},
        {"file_name": "images/2.png", "caption": "zwei"},
        {"text": "no picture"},
        {"file_name": ["images/1.png"], "text": "a list"},
    ]
    lines = [json.dumps(row).encode() for row in rows] + [b'{"file_name": ', b"[1]", b'{"text": "\xff"}', b"", b" "]
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join(lines))
    reader = FolderSource(path=str(tmp_path)).build()
    assert len(reader) == 8
    assert [example.parts[0].text for example in read_once(reader)] == ["zero", "zwei"]
    assert [(reason_at(reader, index).reason, reason_at(reader, index).name) for index in (1, 3, 4, 5, 6, 7)] == [
        ("missing file", "metadata.jsonl:2"),
        ("missing image", "metadata.jsonl:4"),
        ("wrong type", "metadata.jsonl:5"),
        ("broken JSON", "metadata.jsonl:6"),
        ("wrong type", "metadata.jsonl:7"),
        ("not UTF-8", "metadata.jsonl:8"),
    ]
    edit = FolderSource(path=str(tmp_path), task="image_edit").build().example(0, 0)
    assert [part.image.pixels[0, 0, 0] for part in (edit.parts[0], edit.parts[2])] == [0, 1]
    assert edit.parts[1] == Text("zero") and edit.parts[2].is_target


def test_folders_without_records(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"FolderSource\.path must be a folder, got '/nowhere'"):
        FolderSource(path="/nowhere").build()
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(NoUsableRecords, match=r"no record in .* needs images \(\.jpg, .*\) or a metadata\.jsonl"):
        FolderSource(path=str(tmp_path)).build()


def test_json_lines_and_lists(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"a": 1}\r\n\n{"a": 2}')
    rows = JsonLines(lines)
    assert [rows.row(index) for index in range(len(rows))] == [{"a": 1}, {"a": 2}]
    listed = tmp_path / "a.json"
    listed.write_text('[{"a": 1}, 5]')
    assert len(JsonLines(listed)) == 2 and JsonLines(listed).row(0) == {"a": 1}
    with pytest.raises(BadRecord, match=r"a\.json:2: wrong type \(a record must be an object, got int\)"):
        JsonLines(listed).row(1)
    listed.write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"a\.json must hold a list of records, got dict"):
        JsonLines(listed)
    listed.write_text("[1, ")
    with pytest.raises(ValueError, match=r"a\.json cannot be read: broken JSON"):
        JsonLines(listed)


def test_images_are_encoded_only_once(tmp_path):
    """The raw columns hold the bytes of the file, so that a pack keeps them."""
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), "teal").save(buffer, "WEBP")
    (tmp_path / "x.webp").write_bytes(buffer.getvalue())
    (tmp_path / "x.txt").write_text("teal")
    assert FolderSource(path=str(tmp_path)).build().fields(0).values == {"image": buffer.getvalue(), "text": "teal"}


def test_configs_are_plain_data_and_importable_from_the_package():
    assert len(sources.__all__) == 5
    for name in sources.__all__:
        config_class = getattr(sources, name)
        assert dataclasses.is_dataclass(config_class) and isinstance(config_class, type)
        assert callable(config_class.build) and config_class.__module__.startswith("diptych.data.sources.")
    config = FolderSource(path="x", columns=Columns(text=("title",)))
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    again = {key: tuple(value) for key, value in plain.pop("columns").items()}
    assert FolderSource(**plain, columns=Columns(**again)) == config


def test_columns_that_are_not_named_are_the_usual_ones(tmp_path):
    save_picture(tmp_path / "a.png", 3)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "title": "named", "text": "usual"}))
    example = FolderSource(path=str(tmp_path), columns=Columns(text=("title",))).build().example(0, 0)
    assert example.parts[0] == Text("named") and example.parts[1].image.pixels[0, 0, 0] == 3


def test_images_lists_each_sound_image_once(tmp_path):
    for name, number in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        save_picture(tmp_path / name, number)
        (tmp_path / name).with_suffix(".txt").write_text(name)
    (tmp_path / "d.png").write_bytes(b"no image")
    (tmp_path / "d.txt").write_text("broken")
    save_picture(tmp_path / "e.png", 5)  # without a text it is no record
    reader = FolderSource(path=str(tmp_path)).build()
    images = list(reader.images())
    assert [image.pixels[0, 0, 0] for image in images] == [1, 2]
    assert {image.key for image in images} == {example.parts[1].image.key for example in read_once(reader)}
