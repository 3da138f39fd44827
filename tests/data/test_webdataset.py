"""WebDataset shards: local and remote, whole and damaged."""

import gzip
import io
import json
import logging
import os
import pickle
import shutil
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.example import ImageIn, ImageOut, Text
from diptych.data.records import Columns
from diptych.data.sources.protocol import BadRecord, NoUsableRecords, ShardedSource, Source
from diptych.data.sources.shard_files import ShardUnreachable, expand_braces, expand_shards
from diptych.data.sources.tar_index import split_name
from diptych.data.sources.webdataset import LocalShards, RemoteShards, WebDatasetSource
from diptych.data.stream import MixtureStream, read_once


def picture(number: int, kind: str = "PNG") -> bytes:
    pixels = np.full((6, 8, 3), (number % 256, number // 256, 7), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_captioned(folder: Path, counts: tuple[int, ...] = (5, 3, 4)) -> Path:
    folder.mkdir(exist_ok=True)
    first = 0
    for shard, count in enumerate(counts):
        files = []
        for number in range(first, first + count):
            files += [(f"{number:04d}.png", picture(number)), (f"{number:04d}.txt", f"number {number}".encode())]
        write_tar(folder / f"part-{shard:03d}.tar", files)
        first += count
    return folder


def source(tmp_path: Path, *urls: str | Path, **changes: object) -> LocalShards | RemoteShards:
    config = WebDatasetSource(urls=tuple(map(str, urls)), cache_dir=str(tmp_path / "cache"), **changes)  # type: ignore
    return config.build()


def captions(reader: Source) -> list[str]:
    return [example.parts[0].text for example in read_once(reader)]


def reason_at(reader: Source, index: int) -> BadRecord:
    with pytest.raises(BadRecord) as caught:
        reader.example(index, 0)
    return caught.value


EXPECTED = [f"number {number}" for number in range(12)]


@pytest.mark.parametrize("pattern", ["", "part-*.tar", "part-{000..002}.tar", "part-00{0,1,2}.tar", "part-{0..2}.tar"])
def test_folders_globs_and_braces_name_the_same_shards(tmp_path, pattern):
    folder = write_captioned(tmp_path / "shards")
    if pattern == "part-{0..2}.tar":
        for number in range(3):
            (folder / f"part-00{number}.tar").rename(folder / f"part-{number}.tar")
    reader = source(tmp_path, folder / pattern)
    assert isinstance(reader, LocalShards) and not isinstance(reader, ShardedSource)
    assert captions(reader) == EXPECTED
    example = reader.example(7, 0)
    assert isinstance(example.parts[1], ImageOut) and example.parts[1].image.pixels[0, 0].tolist() == [7, 0, 7]
    assert example.key.endswith(".tar/0007")


def test_braces():
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand_braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert expand_braces("{3..1}") == ["3", "2", "1"]
    assert expand_braces("plain{}.tar") == ["plain{}.tar"]
    assert expand_shards(["pipe:cat x{0..1}.tar"]) == ["pipe:cat x0.tar", "pipe:cat x1.tar"]
    assert expand_shards(["s3://b/{a,b}.tar"]) == ["s3://b/a.tar", "s3://b/b.tar"]
    with pytest.raises(FileNotFoundError, match=r"no shard matches '/nowhere/\*\.tar': give a tar file"):
        expand_shards(["/nowhere/*.tar"])


def test_names_of_files_in_a_shard():
    assert split_name("./a/b.c/0001.source.PNG") == ("a/b.c/0001", "source.png")
    assert split_name("0001.txt") == ("0001", "txt")
    for name in (".hidden.jpg", "__index__.json", "README", "folder/"):
        assert split_name(name) is None


def test_the_index_is_kept_and_renewed_when_the_shard_changes(tmp_path, monkeypatch):
    folder = write_captioned(tmp_path / "shards")
    assert captions(source(tmp_path, folder)) == EXPECTED
    assert len(list((tmp_path / "cache" / "index").iterdir())) == 3
    with monkeypatch.context() as patched:
        patched.setattr("diptych.data.sources.tar_index.scan_tar", None)  # a second scan would fail
        assert captions(source(tmp_path, folder)) == EXPECTED
    write_tar(folder / "part-001.tar", [("x.png", picture(1)), ("x.txt", b"new")])
    assert captions(source(tmp_path, folder)) == [*EXPECTED[:5], "new", *EXPECTED[8:]]
    for file in (tmp_path / "cache" / "index").iterdir():
        file.write_bytes(b"broken")
    assert captions(source(tmp_path, folder)) == [*EXPECTED[:5], "new", *EXPECTED[8:]]


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path, caplog):
    folder = write_captioned(tmp_path / "shards")
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        reader = WebDatasetSource(urls=(str(folder),), cache_dir=str(tmp_path / "file")).build()
    assert captions(reader) == EXPECTED
    assert "cannot be kept" in caplog.text


def test_columns_of_all_tasks(tmp_path):
    about = {"question": "How many?", "conversations": [
        {"from": "human", "value": "<image> and <image>"}, {"from": "gpt", "value": "yes"}]}  # fmt: skip
    path = write_tar(
        tmp_path / "all.tar",
        [
            ("a.jpg", picture(1, "JPEG")),
            ("a.txt", b"three"),
            ("a.json", json.dumps(about).encode()),
            ("a.source.webp", picture(2, "WEBP")),
            ("a.target.PNG", picture(3)),
            ("a.10.png", picture(10)),
            ("a.9.png", picture(9)),
        ],
    )
    first = source(tmp_path, path, task="image_to_text", prompt="What?").example(0, 0)
    assert first.parts[1:] == (Text("What?"), Text("three", "assistant", True))
    assert first.metadata["question"] == "How many?"
    with_question = Columns(question=("json.question",), image=("9.png",))
    second = source(tmp_path, path, task="image_to_text", columns=with_question).example(0, 0)
    assert isinstance(second.parts[0], ImageIn) and second.parts[0].image.pixels[0, 0].tolist() == [9, 0, 7]
    assert second.parts[1] == Text("How many?")
    edits = source(tmp_path, path, task="image_edit")
    third = edits.example(0, 0)
    assert [image.key for image in edits.images()] == [third.parts[0].image.key, third.parts[2].image.key]
    assert third.parts[2].image.pixels[0, 0].tolist() == [3, 0, 7] and third.parts[1] == Text("three")
    fourth = source(tmp_path, path, task="interleaved").example(0, 0)
    assert [part.image.pixels[0, 0, 0] for part in fourth.parts if isinstance(part, ImageIn)] == [9, 10]


def test_broken_records_are_named(tmp_path):
    good = picture(1)
    path = write_tar(
        tmp_path / "bad.tar",
        [
            ("0.png", good), ("0.txt", b"fine"),
            ("1.png", good[: len(good) // 2]), ("1.txt", b"cut"),
            ("2.png", good),
            ("3.txt", b"no image"),
            ("4.png", good), ("4.txt", b"caf\xe9"),
            ("5.png", good), ("5.json", b"{"),
            ("6.png", b"<html>"), ("6.txt", b"page"),
            ("7.png", good), ("7.png", good), ("7.txt", b"twice"),
            ("8.png", good), ("8.json", b'{"caption": 3}'),
            ("9.png", b""), ("9.txt", b"empty"),
            ("10.png", good), ("10.txt", b"fine too"),
        ],
    )  # fmt: skip
    reader = source(tmp_path, path)
    assert captions(reader) == ["fine", "fine too"]
    reasons = {index: reason_at(reader, index) for index in range(1, 10)}
    assert {index: error.reason for index, error in reasons.items()} == {
        1: "truncated image",
        2: "missing text",
        3: "missing image",
        4: "not UTF-8",
        5: "broken JSON",
        6: "not an image",
        7: "duplicate file",
        8: "wrong type",
        9: "empty image",
    }
    assert all(error.name.startswith(f"bad.tar/{index}") for index, error in reasons.items())
    stream = MixtureStream({"bad": reader}, {"bad": 1.0}, seed=0, batch_size=11, max_bad_fraction=0.9)
    assert [len(batch) for batch in islice(iter(stream), 2)] == [2, 2]
    assert sum(stream.num_bad["bad"].values()) == 18 and len(stream.num_bad["bad"]) == 9


def test_a_damaged_shard_gives_what_is_whole_and_counts_as_broken(tmp_path):
    folder = write_captioned(tmp_path / "shards")
    path = folder / "part-001.tar"
    data = path.read_bytes()
    path.write_bytes(data[: 512 * 5 + 100])  # in the middle of the third file
    reader = source(tmp_path, folder)
    assert captions(reader) == [*EXPECTED[:6], *EXPECTED[8:]]
    reasons = [reason_at(reader, index).reason for index in range(len(reader)) if index in (6, 7)]
    assert "truncated shard" in reasons
    assert reason_at(reader, 7).name.startswith("part-001.tar")


def test_a_shard_without_an_end_mark_or_with_rubbish_is_reported(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.png", picture(1)), ("a.txt", b"one")])
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + bytes(-len(data) % 512))
    error = reason_at(source(tmp_path, path), 1)
    assert (error.reason, error.name) == ("truncated shard", "x.tar#1") and "without an end mark" in error.detail
    path.write_bytes(data + bytes(-len(data) % 512) + b"rubbish " * 200)
    assert "no readable header at byte 2048" in reason_at(source(tmp_path, path), 1).detail
    path.write_bytes(b"this is no tar at all " * 60)
    assert reason_at(source(tmp_path, path), 0).reason == "truncated shard"


def test_files_of_other_extensions_are_named_with_those_that_are_looked_for(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [("0.png", picture(1)), ("0.caption", b"one"), ("1.tiff", b"?"), ("1.txt", b"?")]
    )
    reader = source(tmp_path, path)
    first, second = (reason_at(reader, index) for index in range(2))
    assert (first.reason, first.name) == ("missing text", "a.tar/0")
    assert first.detail == "looked for txt or json.text or json.caption, the record has png, caption"
    assert second.reason == "missing image" and second.detail.startswith("looked for jpg")
    assert second.detail.endswith("the record has tiff, txt")


def test_shards_without_records(tmp_path):
    path = write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(NoUsableRecords, match=r"no record in 1 shards of .*empty\.tar"):
        source(tmp_path, path)
    with pytest.raises(ValueError, match=r"urls must be a tuple with at least one pattern, got \(\)"):
        WebDatasetSource(urls=())
    with pytest.raises(ValueError, match=r"shuffle_window >= 1"):
        WebDatasetSource(urls=("x.tar",), shuffle_window=0)


def test_a_reader_can_be_sent_to_another_process(tmp_path):
    reader = source(tmp_path, write_captioned(tmp_path / "shards"))
    expected = captions(reader)
    copy = pickle.loads(pickle.dumps(reader))
    assert len(pickle.dumps(reader)) < 5000 and captions(copy) == expected


@pytest.mark.process
def test_workers_read_the_same_from_shared_files(tmp_path):
    reader = source(tmp_path, write_captioned(tmp_path / "shards", (20, 20)))
    captions(reader)  # files are open before the workers are started

    def read(num_workers: int) -> list[list[str]]:
        stream = MixtureStream({"a": reader}, {"a": 1.0}, seed=1, batch_size=8, num_workers=num_workers)
        return [[example.parts[0].text for example in batch] for batch in islice(iter(stream), 10)]

    assert read(2) == read(0)


def urls_of(folder: Path, scheme: str) -> list[str]:
    if scheme == "pipe":
        return [f"pipe:cat {folder}/part-{{000..002}}.tar"]
    if scheme == "file":
        return [f"file://{folder}/part-{{000..002}}.tar"]
    for path in sorted(folder.glob("*.tar")):
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    return [str(folder / "*.tar.gz")]


@pytest.mark.parametrize("scheme", ["pipe", "file", "gzip"])
def test_shards_elsewhere_are_copied_once(tmp_path, scheme):
    folder = write_captioned(tmp_path / "shards")
    urls = urls_of(folder, scheme)
    reader = source(tmp_path, *urls, shuffle_window=4)
    assert isinstance(reader, ShardedSource)
    assert reader.shard_sizes == [5, 3, 4] and reader.shuffle_window == 4
    assert captions(reader) == EXPECTED
    shutil.rmtree(folder)
    if scheme != "gzip":  # paths are looked up again
        assert captions(source(tmp_path, *urls)) == EXPECTED
    stream = MixtureStream({"a": reader}, {"a": 1.0}, seed=1, batch_size=4)
    order = [example.parts[0].text for batch in islice(iter(stream), 3) for example in batch]
    assert sorted(order) == sorted(EXPECTED) and order != EXPECTED


def test_the_cache_of_remote_shards_is_limited(tmp_path):
    folder = write_captioned(tmp_path / "shards", (5, 5, 5, 5))
    one = (folder / "part-000.tar").stat().st_size
    reader = source(tmp_path, f"file://{folder}/part-{{000..003}}.tar", cache_gigabytes=2.5 * one / 1e9)
    for index in (0, 5, 10, 15, 0, 19, 7):
        assert reader.example(index, 0).parts[0].text == f"number {index}"
        kept = sum(file.stat().st_size for file in (tmp_path / "cache" / "shards").glob("*.tar"))
        assert kept <= 2.5 * one


def test_training_can_begin_before_all_shards_were_read(tmp_path, caplog):
    folder = write_captioned(tmp_path / "shards", (4, 5, 3))
    url = f"file://{folder}/part-{{000..002}}.tar"
    reader = source(tmp_path, url, examples_per_shard=4)
    assert len(reader) == 12 and not (tmp_path / "cache").exists()
    assert reader.example(1, 0).parts[0].text == "number 1"
    assert len(list((tmp_path / "cache" / "shards").glob("*.tar"))) == 1
    assert reader.example(7, 0).parts[0].text == "number 7"
    assert "has 5 records, only the first 4 are read: raise examples_per_shard" in caplog.text
    error = reason_at(reader, 11)
    assert (error.reason, error.name, error.detail) == ("missing record", "part-002.tar#3", "it has 3")


@pytest.mark.parametrize("url", ["pipe:head -c 600 {path}; exit 7", "file:///nowhere/{path}"])
def test_a_shard_that_cannot_be_read_stops_the_run(tmp_path, monkeypatch, url):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    path = write_captioned(tmp_path / "shards") / "part-000.tar"
    with pytest.raises(ShardUnreachable, match=r"could not be read .* attempts.*then resume the run"):
        source(tmp_path, url.format(path=path))
    assert not list((tmp_path / "cache" / "shards").glob("*.tar"))
    assert not list((tmp_path / "cache" / "shards").glob("*.part"))


def test_many_shards_do_not_exhaust_open_files(tmp_path):
    reader = source(tmp_path, write_captioned(tmp_path / "shards", (1,) * 80))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert len(captions(reader)) == 80
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 64
