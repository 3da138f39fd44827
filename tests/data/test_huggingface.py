"""Parquet and arrow files and saved data sets, with broken cells."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data.example import ImageIn, Text
from diptych.data.records import Columns
from diptych.data.sources.huggingface import HuggingFaceReader, HuggingFaceSource
from diptych.data.sources.protocol import BadRecord, NoUsableRecords
from diptych.data.stream import read_once

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), number, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


def saved_dataset(num_rows: int = 6) -> Any:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {
        "image": [{"bytes": picture(number), "path": None} for number in range(num_rows)],
        "text": [f"number {number}" for number in range(num_rows)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def captions(config: HuggingFaceSource) -> list[str]:
    return [example.parts[0].text for example in read_once(config.build())]


EXPECTED = [f"number {number}" for number in range(6)]


def test_parquet_file_and_folder_with_splits(tmp_path):
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    saved_dataset().to_parquet(str(folder / "train-00000-of-00001.parquet"))
    saved_dataset(2).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    assert captions(HuggingFaceSource(path=str(folder / "train-00000-of-00001.parquet"))) == EXPECTED
    assert captions(HuggingFaceSource(path=str(tmp_path / "set"))) == EXPECTED
    assert captions(HuggingFaceSource(path=str(tmp_path / "set"), split="test")) == EXPECTED[:2]
    assert captions(HuggingFaceSource(path=str(tmp_path / "set"), split="train[2:4]")) == EXPECTED[2:4]


def test_saved_data_sets_and_arrow_files(tmp_path):
    saved_dataset().save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved_dataset(), "val": saved_dataset(3)}).save_to_disk(str(tmp_path / "more"))
    assert captions(HuggingFaceSource(path=str(tmp_path / "one"))) == EXPECTED
    assert captions(HuggingFaceSource(path=str(tmp_path / "more"), split="val")) == EXPECTED[:3]
    with pytest.raises(ValueError, match=r"split must be one of train, val, got 'test'"):
        HuggingFaceSource(path=str(tmp_path / "more"), split="test").build()
    arrow = next((tmp_path / "one").glob("*.arrow"))
    assert captions(HuggingFaceSource(path=str(arrow))) == EXPECTED


def test_a_hub_id_is_a_data_set_of_the_hub(tmp_path):
    """Here of one that was downloaded before, since the suite has no network."""
    saved_dataset(3).to_parquet(str(tmp_path / "pets" / "train.parquet"))
    cache = tmp_path / "hf_cache"
    datasets.load_dataset(str(tmp_path / "pets"), split="train", cache_dir=str(cache))
    (made,) = (file.parent for file in cache.rglob("dataset_info.json"))
    shutil.copytree(made, cache / "someone___pets" / "default" / "0.0.0" / ("0" * 40))
    assert captions(HuggingFaceSource(path="someone/pets")) == EXPECTED[:3]
    with pytest.raises(ConnectionError, match="someone/else"):
        HuggingFaceSource(path="someone/else").build()


def test_parquet_that_is_none_is_named(tmp_path):
    saved_dataset().to_parquet(str(tmp_path / "whole.parquet"))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-9])
    (tmp_path / "page.parquet").write_bytes(b"<html>")
    for name, message in {"cut": "is cut off", "page": "is no parquet file"}.items():
        with pytest.raises(ValueError, match=rf"{name}\.parquet {message}: .*Download or write it again"):
            HuggingFaceSource(path=str(tmp_path / f"{name}.parquet")).build()
    with pytest.raises(ValueError, match=r"cut\.parquet is cut off"):
        HuggingFaceSource(path=str(tmp_path)).build()


def test_pixels_and_tasks(tmp_path):
    path = tmp_path / "a.parquet"
    table = {"image": [picture(3)], "target_image": [{"bytes": picture(4), "path": "x.png"}], "caption": ["why"]}
    parquet.write_table(pyarrow.table(table | {"q": ["what?"]}), path)
    edit = HuggingFaceSource(path=str(path), task="image_edit").build().example(0, 0)
    assert [part.image.pixels[0, 0, 0] for part in (edit.parts[0], edit.parts[2])] == [3, 4] and edit.parts[1] == Text(
        "why"
    )
    columns = Columns(text=("caption",), question=("q",), metadata=("caption",))
    example = HuggingFaceSource(path=str(path), task="image_to_text", columns=columns).build().example(0, 0)
    assert isinstance(example.parts[0], ImageIn)
    assert example.parts[1:] == (Text("what?"), Text("why", "assistant", True))
    assert example.metadata == {"caption": "why"}


def test_conversations_with_a_list_of_images(tmp_path):
    path = tmp_path / "chat.parquet"
    turns = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "The second."}]},
    ]
    images = [{"bytes": picture(number), "path": None} for number in (1,)]
    parquet.write_table(pyarrow.table({"messages": [turns], "images": [images]}), path)
    example = HuggingFaceSource(path=str(path), task="interleaved").build().example(0, 0)
    assert example.parts[0].image.pixels[0, 0, 0] == 1
    assert example.parts[1:] == (Text("Which?"), Text("The second.", "assistant", True))


def test_broken_rows_are_named(tmp_path):
    path = tmp_path / "bad.parquet"
    images = [picture(0), picture(1)[:40], b"<html>", None, picture(4), picture(5), picture(6)]
    texts = [b"fine", b"cut", b"page", b"none", b"caf\xe9", None, b" "]
    offsets = np.cumsum([0] + [len(text or b"") for text in texts]).astype(np.int32)
    valid = sum(1 << number for number, text in enumerate(texts) if text is not None)
    column = pyarrow.StringArray.from_buffers(
        len(texts),
        pyarrow.py_buffer(offsets.tobytes()),
        pyarrow.py_buffer(b"".join(text or b"" for text in texts)),
        pyarrow.py_buffer(bytes([valid])),
        1,
    )
    cells = pyarrow.array([{"bytes": data, "path": None} for data in images])
    parquet.write_table(pyarrow.table({"image": cells, "text": column}), path)
    reader = HuggingFaceSource(path=str(path)).build()
    assert [example.parts[0].text for example in read_once(reader)] == ["fine"]
    reasons = []
    for index in range(1, 7):
        with pytest.raises(BadRecord) as caught:
            reader.example(index, 0)
        assert f"bad.parquet[train]#{index}" in caught.value.name
        reasons.append(caught.value.reason)
    assert reasons == ["truncated image", "not an image", "missing image", "not UTF-8", "missing text", "empty text"]


def test_images_by_path(tmp_path):
    (tmp_path / "x.png").write_bytes(picture(9))
    paths = [str(tmp_path / "x.png"), "/nowhere.png"]
    parquet.write_table(pyarrow.table({"image": paths, "text": ["a", "b"]}), tmp_path / "paths.parquet")
    reader = HuggingFaceSource(path=str(tmp_path / "paths.parquet")).build()
    assert reader.example(0, 0).parts[1].image.pixels[0, 0, 0] == 9
    with pytest.raises(BadRecord, match="missing file"):
        reader.example(1, 0)


def test_paths_without_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'/nowhere/x\.parquet' does not exist"):
        HuggingFaceSource(path="/nowhere/x.parquet").build()
    with pytest.raises(FileNotFoundError, match=r"holds no \.parquet or \.arrow file"):
        HuggingFaceSource(path=str(tmp_path)).build()
    with pytest.raises(NoUsableRecords, match=r"no record in split 'train' of 'nothing'"):
        HuggingFaceReader(HuggingFaceSource(path="nothing"), saved_dataset(0))
