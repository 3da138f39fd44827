"""Packing: what is read back is what was packed, byte for byte and every time the same."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.example import ImageIn, ImageOut, Text, load_pixels
from diptych.data.images import decode_image
from diptych.data.pack import pack, write_shards
from diptych.data.records import Columns
from diptych.data.sources.blob_npz import BlobNpz, PackRecord
from diptych.data.sources.conversation import ConversationSource
from diptych.data.sources.folder import FolderSource
from diptych.data.sources.protocol import NoUsableRecords
from diptych.data.sources.webdataset import WebDatasetSource
from diptych.data.stream import read_once

RNG = np.random.default_rng(0)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def image_folder(folder: Path, num_images: int = 7) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_images):
        pixels = RNG.integers(0, 256, (5 + number, 9, 3), dtype=np.uint8)
        kind, suffix = [("PNG", "png"), ("JPEG", "jpg"), ("BMP", "bmp")][number % 3]
        (folder / f"{number}.{suffix}").write_bytes(encode(pixels, kind))
        (folder / f"{number}.txt").write_text(f"Bild {number}: grün & 漢字", encoding="utf-8")
    return folder


def blob_npz(path: Path, images: list[bytes]) -> None:
    offsets = np.cumsum([0] + [len(data) for data in images]).astype(np.int64)
    np.savez(path, data=np.frombuffer(b"".join(images), dtype=np.uint8), offset=offsets)


def emoji_folder(folder: Path) -> Path:
    """The layout of the emoji set with five emoji in two families and two splits."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, pairs = [], []
    for number in range(5):
        split = "test" if number == 4 else "train"
        row = {"key": f"1f60{number}", "char": chr(0x1F600 + number), "name": f"face {number}", "split": split}
        row |= {"keywords": ["face", f"kind {number}"], "noto": number, "fluent3d": number if number < 3 else None}
        rows.append(row)
    for source, target, split in ((0, 1, "train"), (1, 2, "train")):
        pair = {"kind": "gender", "src": ["noto", f"1f60{source}"], "dst": ["fluent3d", f"1f60{target}"]}
        pairs.append(pair | {"instruction": f"turn {source} into {target}", "split": split})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "edit_pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    for style, count in (("noto", 5), ("fluent3d", 3)):
        images = [encode(RNG.integers(0, 256, (6, 6, 4), dtype=np.uint8), "WEBP") for _ in range(count)]
        blob_npz(folder / f"{style}_128.npz", images)
    return folder


def read(out_dir: Path, tmp_path: Path, **changes: object) -> list[object]:
    config = WebDatasetSource(urls=(str(out_dir),), cache_dir=str(tmp_path / "cache"), **changes)  # type: ignore
    return list(read_once(config.build()))


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_folder_comes_back_with_equal_pixels_and_texts(tmp_path):
    folder = image_folder(tmp_path / "set")
    report = pack("records", folder, tmp_path / "out", max_records=3)
    assert report.shards == {"shard-000000.tar": 3, "shard-000001.tar": 3, "shard-000002.tar": 1}
    assert "7 records of text_to_image in 3 shards" in report.to_text()
    before = list(read_once(FolderSource(path=str(folder)).build()))
    after = read(tmp_path / "out", tmp_path)
    assert len(before) == len(after) == 7
    for old, new in zip(before, after, strict=True):
        assert old.parts[0] == new.parts[0]
        assert np.array_equal(old.parts[1].image.pixels, new.parts[1].image.pixels)
    manifest = json.loads((tmp_path / "out" / "pack.json").read_text())
    assert manifest["num_records"] == 7 and manifest["shards"] == report.shards


def test_the_same_input_gives_the_same_bytes(tmp_path):
    folder = image_folder(tmp_path / "set")
    pack("records", folder, tmp_path / "a")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    pack("records", folder, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert set(digest(tmp_path / "a")) == {"shard-000000.tar", "pack.json"}


def test_sound_images_keep_their_encoding(tmp_path):
    folder = image_folder(tmp_path / "set", 3)
    pack("records", folder, tmp_path / "out")
    reader = WebDatasetSource(urls=(str(tmp_path / "out"),), cache_dir=str(tmp_path / "cache")).build()
    assert reader.fields(0).values["image"] == (folder / "0.png").read_bytes()
    assert reader.fields(1).values["image"] == (folder / "1.jpg").read_bytes()
    assert reader.fields(2).values["image"].startswith(b"\x89PNG")  # was BMP, which shards do not hold


def test_shards_are_limited_by_bytes(tmp_path):
    records = [PackRecord(f"{number}", {"txt": b"x" * 100}) for number in range(5)]
    assert [count for _, count in write_shards(records, tmp_path, max_bytes=250)] == [2, 2, 1]
    huge = [PackRecord("a", {"txt": b"x" * 1000}), PackRecord("b", {"txt": b"y"})]
    assert [count for _, count in write_shards(huge, tmp_path, max_bytes=250)] == [1, 1]
    for keys in (["a.b"], ["a", "a"], [""], ["a/b"]):
        with pytest.raises(ValueError, match="keys of records must be new and without dots and slashes"):
            list(write_shards([PackRecord(key, {"txt": b""}) for key in keys], tmp_path))


def test_broken_records_are_left_out_and_named(tmp_path):
    folder = image_folder(tmp_path / "set", 4)
    (folder / "0.txt").unlink()
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:300])
    report = pack("records", folder, tmp_path / "out")
    assert report.num_records == 2
    assert report.bad == {"missing text": ["0.png"], "truncated image": ["1.jpg image"]}
    assert "left out: 1 missing text (0.png)" in report.to_text()
    assert len(read(tmp_path / "out", tmp_path)) == 2


def test_a_pack_is_whole_or_not_there(tmp_path, monkeypatch):
    folder = image_folder(tmp_path / "set", 4)
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(NoUsableRecords, match=r"nothing to pack into .*out: no usable record .*4 missing text"):
        pack("records", folder, tmp_path / "out")
    image_folder(folder, 4)

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("diptych.data.pack._add_record", full_disk)
        with pytest.raises(OSError, match="No space left"):
            pack("records", folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    pack("records", folder, tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"out is not empty: give a new folder, or delete the earlier pack"):
        pack("records", folder, tmp_path / "out")


def test_conversations_are_packed_with_their_images(tmp_path):
    folder = image_folder(tmp_path / "set", 3)
    turns = [{"from": "human", "value": "<image> <image>\nSame?"}, {"from": "gpt", "value": "No."}]
    (folder / "chat.jsonl").write_text(json.dumps({"images": ["0.png", "2.bmp"], "conversations": turns}))
    pack("records", folder / "chat.jsonl", tmp_path / "out")
    old = ConversationSource(path=str(folder / "chat.jsonl")).build().example(0, 0)
    new = read(tmp_path / "out", tmp_path, task="interleaved")[0]
    assert [type(part) for part in old.parts] == [type(part) for part in new.parts]
    assert [part for part in old.parts if isinstance(part, Text)] == [p for p in new.parts if isinstance(p, Text)]
    for a, b in zip(old.parts, new.parts, strict=True):
        if isinstance(a, ImageIn):
            assert np.array_equal(load_pixels(a.image), load_pixels(b.image))


def test_questions_metadata_and_several_captions_survive(tmp_path):
    folder = image_folder(tmp_path / "set", 1)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": ["one", "uno"]}))
    pack("records", folder, tmp_path / "out")
    source = WebDatasetSource(urls=(str(tmp_path / "out"),), cache_dir=str(tmp_path / "cache")).build()
    assert [source.example(0, epoch).parts[0].text for epoch in (0, 1)] == ["one", "uno"]


def test_emoji_set(tmp_path):
    folder = emoji_folder(tmp_path / "emoji")
    noto = BlobNpz(folder / "noto_128.npz")
    report = pack("emoji", folder, tmp_path / "train")
    assert report.num_records == 4 + 3
    examples = read(tmp_path / "train", tmp_path)
    assert [example.parts[0].text for example in examples[:2]] == ["face 0, flat emoji", "face 1, flat emoji"]
    assert examples[-1].parts[0].text == "face 2, 3D emoji"
    assert np.array_equal(examples[1].parts[1].image.pixels, decode_image(noto.image(1)))
    assert examples[-1].metadata["style"] == "fluent3d" and examples[-1].metadata["key"] == "1f602"
    pack("emoji", folder, tmp_path / "test", "test", styles=("noto",), caption="keywords")
    assert [example.parts[0].text for example in read(tmp_path / "test", tmp_path)] == ["face, kind 4"]
    with pytest.raises(ValueError, match=r"captions\.jsonl has no split 'dev': choose one of test, train"):
        pack("emoji", folder, tmp_path / "dev", "dev")


def test_emoji_edits(tmp_path):
    folder = emoji_folder(tmp_path / "emoji")
    assert pack("emoji_edit", folder, tmp_path / "out").num_records == 2
    example = read(tmp_path / "out", tmp_path, task="image_edit")[0]
    assert example.parts[1] == Text("turn 0 into 1") and isinstance(example.parts[2], ImageOut)
    assert np.array_equal(example.parts[0].image.pixels, decode_image(BlobNpz(folder / "noto_128.npz").image(0)))
    assert np.array_equal(example.parts[2].image.pixels, decode_image(BlobNpz(folder / "fluent3d_128.npz").image(1)))
    assert example.metadata["kind"] == "gender"
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    rows[2]["split"] = "test"
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"the pair 1f601 -> 1f602 crosses the splits"):
        pack("emoji_edit", folder, tmp_path / "leak")
    assert not (tmp_path / "leak").exists()


def nlvr_folder(folder: Path) -> Path:
    folder.mkdir()
    blob_npz(folder / "nlvr.npz", [encode(np.full((2, 8, 3), number, dtype=np.uint8)) for number in range(12)])
    rows = [
        {"split": "train", "id": "7-0", "sentence": "There is a box.", "label": True, "image": 0},
        {"split": "test", "id": "8-0", "sentence": "There is no box.", "label": False, "image": 6},
    ]
    (folder / "nlvr.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_nlvr(tmp_path):
    folder = nlvr_folder(tmp_path / "nlvr")
    assert pack("nlvr", folder, tmp_path / "out", "test").num_records == 6
    columns = Columns(question=("json.question",))
    examples = read(tmp_path / "out", tmp_path, task="image_to_text", columns=columns)
    assert [example.parts[0].image.pixels[0, 0, 0] for example in examples] == [6, 7, 8, 9, 10, 11]
    assert {example.parts[1:] for example in examples} == {(Text("There is no box."), Text("false", "assistant", True))}
    assert examples[2].metadata == {
        "question": "There is no box.", "answer": "false", "label": False, "id": "8-0", "order": 2}  # fmt: skip
    assert pack("nlvr", folder, tmp_path / "one", "train", num_orders=1).num_records == 1


def eurosat_folder(folder: Path) -> Path:
    """Three classes with two training images each, but the last with one; one test image of the second."""
    folder.mkdir()
    images = [encode(np.full((4, 4, 3), 20 * number, dtype=np.uint8)) for number in range(6)]
    blob_npz(folder / "plain.npz", images)
    with np.load(folder / "plain.npz") as arrays:
        blob = dict(arrays)
    np.savez(
        folder / "eurosat_rgb64.npz",
        **blob,
        label=np.array([0, 0, 1, 1, 1, 2], np.uint8),
        split=np.array([0, 0, 0, 1, 0, 0], np.uint8),
    )
    names = ["Forest", "River", "SeaLake"]
    about = {"classes": names, "captions": {name: f"a photo of {name}" for name in names}}
    (folder / "classes.json").write_text(json.dumps(about | {"split": {"0": "train", "1": "test"}}))
    return folder


def test_eurosat_comes_with_its_classes_in_turn(tmp_path):
    folder = eurosat_folder(tmp_path / "eurosat")
    assert pack("eurosat", folder, tmp_path / "train", "train").num_records == 5
    examples = read(tmp_path / "train", tmp_path)
    assert [example.metadata["label"] for example in examples] == [0, 1, 2, 0, 1]
    assert [example.metadata["row"] for example in examples] == [0, 2, 5, 1, 4]
    assert [example.parts[1].image.pixels[0, 0, 0] for example in examples] == [0, 40, 100, 20, 80]
    assert examples[1].parts[0] == Text("a photo of River")
    assert pack("eurosat", folder, tmp_path / "test", "test").num_records == 1
    with pytest.raises(ValueError, match=r"has no split 'val': choose one of train, test"):
        pack("eurosat", folder, tmp_path / "val", "val")


def test_blob_files_are_checked(tmp_path):
    np.savez(tmp_path / "a.npz", data=np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"a\.npz must hold the arrays data and offset, it has data"):
        BlobNpz(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", data=np.zeros(3, np.uint8), offset=np.array([0, 2]))
    with pytest.raises(ValueError, match="offset must end at the length of data"):
        BlobNpz(tmp_path / "a.npz")


def real_images() -> Path:
    if "DIPTYCH_TEST_DATA" not in os.environ:
        pytest.skip("DIPTYCH_TEST_DATA is not set")
    return Path(os.environ["DIPTYCH_TEST_DATA"]) / "images"


def test_the_real_emoji(tmp_path):
    """Counts and splits of the real files, and images of both styles read back."""
    folder = real_images() / "emoji"
    assert pack("emoji", folder, tmp_path / "emoji", "test").num_records == 774
    reader = WebDatasetSource(urls=(str(tmp_path / "emoji"),), cache_dir=str(tmp_path / "cache")).build()
    examples = [reader.example(index, 0) for index in range(0, 774, 40)]
    assert {example.metadata["style"] for example in examples} == {"noto", "fluent3d"}
    assert {example.metadata["split"] for example in examples} == {"test"}
    assert {example.parts[1].image.pixels.shape for example in examples} == {(128, 128, 3)}
    assert pack("emoji_edit", folder, tmp_path / "edit", "val", edit_kinds=("gender",)).num_records == 96


def test_the_real_nlvr(tmp_path):
    assert pack("nlvr", real_images() / "nlvr", tmp_path / "nlvr", "test", num_orders=1).num_records == 989
    config = WebDatasetSource(urls=(str(tmp_path / "nlvr"),), task="image_to_text", cache_dir=str(tmp_path / "cache"))
    answers = [fields.values["text"] for fields in map(config.build().fields, range(989))]
    assert answers.count("true") / len(answers) == pytest.approx(0.553, abs=5e-4)
