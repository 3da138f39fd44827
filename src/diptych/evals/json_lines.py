"""Files that people write: JSON lines, where a mistake is named with its line, and folders of prompts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line that is not empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object, or the file is no UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}).") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: this is no JSON ({error}).") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: a JSON object is expected, got {type(record).__name__}.")
        yield number, record


def prompt_files(folder: str | Path) -> list[Path]:
    """The files of a folder that can hold prompts, by name; what lies deeper is none of them."""
    return sorted(path for path in Path(folder).iterdir() if path.suffix in (".txt", ".json", ".jsonl"))
