"""What the check of a data set says."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.check import check_path, difference_hash, script_of
from diptych.data.pack import pack
from diptych.data.sources.conversation import ConversationSource
from diptych.data.sources.detect import detect_source
from diptych.data.sources.folder import FolderSource
from diptych.data.sources.protocol import NoUsableRecords
from diptych.data.sources.webdataset import WebDatasetSource


def noise(seed: int, height: int = 20, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def save(folder: Path, name: str, data: bytes, text: str | bytes | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    if text is not None:
        (folder / name).with_suffix(".txt").write_bytes(text.encode() if isinstance(text, str) else text)


def mixed_folder(folder: Path) -> Path:
    smooth = np.tile(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], (20, 1, 3))
    save(folder, "a.png", encode(noise(0)), "one two three")
    save(folder, "b.png", encode(noise(0)), "a red cat")
    save(folder, "c.jpg", encode(smooth, "JPEG"), "ein grüner Hund")
    save(folder, "d.png", encode(smooth), "赤い猫")
    save(folder, "e.png", encode(noise(4, 40, 20)), "a red cat")
    save(folder, "f.png", encode(noise(5))[:300], "cut")
    save(folder, "g.png", b"<html>", "page")
    save(folder, "h.png", encode(noise(6)), None)
    save(folder, "i.png", encode(noise(7)), b"caf\xe9")
    save(folder, "j.png", encode(noise(8, 400, 400)), "too large")
    return folder


def test_report_of_a_mixed_folder(tmp_path):
    report = check_path(str(mixed_folder(tmp_path / "set")), max_pixels=100_000)
    assert (report.format, report.task) == ("FolderSource", "text_to_image")
    assert (report.num_records, report.num_checked, report.num_usable) == (10, 10, 5)
    assert {reason: len(names) for reason, names in report.bad.items()} == {
        "truncated image": 1,
        "not an image": 1,
        "missing text": 1,
        "not UTF-8": 1,
        "decompression bomb": 1,
    }
    assert report.bad["truncated image"][0].startswith("f.png image: ")
    assert report.num_images == 5 and report.image_formats == {"png": 4, "jpg": 1}
    assert report.sizes == {"20x20": 2, "40x20": 2, "20x40": 1}
    assert report.widths == (20, 20, 20, 40, 40) and report.heights == (20, 20, 20, 40, 40)
    assert report.aspect_ratios == {"0.5 - 0.75": 1, "0.95 - 1.05": 2, "2.0 - 4.0": 2}
    assert report.words == (1, 1, 3, 3, 3) and report.characters == (3, 3, 9, 15, 15)
    assert report.scripts == {"latin": 4, "cjk": 1}
    assert report.same_image.groups == (("a.png", "b.png"),) and report.same_image.num_extra == 1
    assert report.similar_image.groups == (("c.jpg", "d.png"),)
    assert report.same_text.groups == (("b.png", "e.png"),)
    text = report.to_text()
    for wanted in (
        "records      10, checked 10, usable 5 (50.00%)",
        "1 truncated image",
        "h.png",
        "width      min 20  5 % 20  median 20  95 % 40  max 40",
        "20x20 2 (40.0%)",
        "1 duplicates, such as a.png = b.png",
        "latin 4 (80.0%)",
    ):
        assert wanted in text
    values = json.loads(json.dumps(report.to_dict()))
    assert values["num_usable"] == 5 and values["same_image"]["groups"] == [["a.png", "b.png"]]


def test_a_sample_is_spread_over_the_set(tmp_path):
    for number in range(30):
        save(tmp_path / "set", f"{number:02d}.png", encode(noise(number)), f"number {number}")
    report = check_path(str(tmp_path / "set"), limit=10)
    assert (report.num_records, report.num_checked, report.num_usable) == (30, 10, 10)


def test_zero_usable_records(tmp_path):
    save(tmp_path / "set", "a.png", b"<html>", "page")
    save(tmp_path / "set", "b.png", encode(noise(0)), None)
    with pytest.raises(
        NoUsableRecords, match=r"none of 2 records can be used \(1 not an image, 1 missing text\); the first: a\.png"
    ):
        check_path(str(tmp_path / "set"))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    for number in range(3):
        save(tmp_path / "set", f"{number}.png", encode(noise(number)), f"number {number}")
    pack("records", tmp_path / "set", tmp_path / "tars")
    return tmp_path / "tars"


def test_formats_are_found_out(tmp_path, packed, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    chat = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "Hello <image>"}, {"role": "assistant", "content": "Hi there"}]
    chat.write_text(json.dumps({"messages": turns, "image": "set/0.png"}))
    assert isinstance(detect_source(str(packed)), WebDatasetSource)
    assert isinstance(detect_source(str(packed / "*.tar")), WebDatasetSource)
    assert isinstance(detect_source(str(chat)), ConversationSource)
    assert isinstance(detect_source(str(tmp_path / "set")), FolderSource)
    report = check_path(str(chat))
    assert report.task == "interleaved" and report.num_images == 1 and report.num_texts == 2
    assert report.words == (1, 1, 1, 2, 2)
    assert check_path(str(packed)).num_usable == 3
    (tmp_path / "set" / "metadata.jsonl").write_text(
        json.dumps({"file_name": "0.png", "target_file_name": "1.png", "text": "invert"})
    )
    edits = check_path(str(tmp_path / "set"))
    assert edits.task == "image_edit" and edits.num_images == 2
    offsets = np.array([0, len(encode(noise(0)))], dtype=np.int64)
    np.savez(tmp_path / "x.npz", data=np.frombuffer(encode(noise(0)), np.uint8), offset=offsets)
    images = check_path(str(tmp_path / "x.npz"))
    assert (images.task, images.num_images, images.num_texts) == ("images only", 1, 0)
    assert "texts" not in images.to_text()


def test_parquet(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()
    cells = [encode(noise(number)) for number in range(2)]
    parquet.write_table(pyarrow.table({"image": cells, "caption": ["a", "b"]}), tmp_path / "a.parquet")
    report = check_path(str(tmp_path / "a.parquet"))
    assert (report.format, report.num_usable) == ("HuggingFaceSource", 2)


def test_unknown_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'/nowhere' does not exist: give a tar, a folder"):
        check_path("/nowhere")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.md' is of no known format: give a tar"):
        check_path(str(tmp_path / "notes.md"))
    with pytest.raises(ValueError, match=r"holds no tar, no parquet or arrow file, no metadata\.jsonl and no images"):
        check_path(str(tmp_path))


def test_difference_hash_sees_through_size_and_compression():
    gradient = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, ::-1, None], (64, 1, 3))
    smaller = np.asarray(Image.fromarray(gradient).resize((24, 24)))
    assert difference_hash(gradient) == difference_hash(smaller) == 2**64 - 1
    assert difference_hash(np.full((9, 9, 3), 77, np.uint8)) is None
    assert difference_hash(noise(1, 64, 64)) != difference_hash(noise(2, 64, 64))


def test_scripts():
    texts = ("hello", "привет, world", "こんにちは", "漢字", "مرحبا", "12 + 3", "")
    assert [script_of(text) for text in texts] == ["latin", "cyrillic", "hiragana", "cjk", "arabic", "none", "none"]
