"""Conversations with pictures by path, in both spellings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data.example import ImageIn, ImageOut, Text
from diptych.data.sources.conversation import ConversationSource
from diptych.data.sources.protocol import BadRecord, NoUsableRecords


def write(folder: Path, rows: list[Any], name: str = "chat.jsonl") -> str:
    for number in range(3):
        path = folder / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 5, 3), number, dtype=np.uint8)).save(path)
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


HUMAN_GPT = {
    "id": "a",
    "image": "pictures/1.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "One."}],
}
ROLE_CONTENT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "pictures/2.png"},
                {"type": "image_url", "image_url": {"url": "pictures/0.png"}},
                {"type": "text", "text": "Which is brighter?"},
            ],
        },
        {"role": "assistant", "content": "The first."},
    ]
}
DRAWING = {
    "images": ["pictures/0.png", "pictures/2.png"],
    "conversations": [
        {"from": "human", "value": "Make <image> brighter."},
        {"from": "gpt", "value": "<image>"},
    ],
}


@pytest.mark.parametrize("name", ["chat.jsonl", "chat.json"])
def test_both_spellings(tmp_path, name):
    reader = ConversationSource(path=write(tmp_path, [HUMAN_GPT, ROLE_CONTENT, DRAWING], name)).build()
    assert len(reader) == 3
    first, second, third = (reader.example(index, 0) for index in range(3))
    assert isinstance(first.parts[0], ImageIn) and first.parts[0].image.pixels[0, 0, 0] == 1
    assert first.parts[1:] == (Text("What?"), Text("One.", "assistant", True))
    assert second.parts[0] == Text("Be brief.", "system")
    assert [part.image.pixels[0, 0, 0] for part in second.parts[1:3]] == [2, 0]
    assert second.parts[3:] == (Text("Which is brighter?"), Text("The first.", "assistant", True))
    assert (
        isinstance(third.parts[3], ImageOut) and third.parts[3].is_target and third.parts[3].image.pixels[0, 0, 0] == 2
    )


def test_pictures_may_lie_elsewhere(tmp_path):
    path = write(tmp_path, [HUMAN_GPT])
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "pictures").rename(moved / "pictures")
    with pytest.raises(BadRecord, match=r"chat\.jsonl:1: missing file \(pictures/1\.png"):
        ConversationSource(path=path).build().example(0, 0)
    assert ConversationSource(path=path, image_folder=str(moved)).build().example(0, 0).parts[1] == Text("What?")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (HUMAN_GPT | {"image": "pictures/7.png"}, "missing file"),
        (HUMAN_GPT | {"image": ["pictures/1.png", "pictures/2.png"]}, "image placeholder mismatch"),
        (HUMAN_GPT | {"image": 5}, "wrong type"),
        (HUMAN_GPT | {"image": "bad\0path"}, "missing file"),
        (HUMAN_GPT | {"conversations": "hello"}, "wrong type"),
        (HUMAN_GPT | {"conversations": [{"from": "alien", "value": "x"}]}, "unknown role"),
        ({"image": "pictures/1.png"}, "missing conversation"),
        ('{"conversations": [', "broken JSON"),
        ("[]", "wrong type"),
    ],
)
def test_broken_conversations_are_named(tmp_path, row, reason):
    reader = ConversationSource(path=write(tmp_path, [HUMAN_GPT, row])).build()
    assert reader.example(0, 0).key == "00000000"
    with pytest.raises(BadRecord) as caught:
        reader.example(1, 0)
    assert caught.value.reason == reason and caught.value.name.startswith("chat.jsonl:2")


def test_files_without_records(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a \.json or \.jsonl file, got '/nowhere\.json'"):
        ConversationSource(path="/nowhere.json").build()
    with pytest.raises(NoUsableRecords, match=r"no record in .*chat\.jsonl"):
        ConversationSource(path=write(tmp_path, [])).build()
