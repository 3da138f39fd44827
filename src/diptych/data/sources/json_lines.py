"""JSON Lines files by line number: only the places of the lines are kept, a line is parsed when it is read."""

from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.records import decode_json
from diptych.data.sources.protocol import BadRecord


class JsonLines:
    """The objects of a ``.jsonl`` file (one a line, blank lines are skipped) or of a ``.json`` file that holds a list.

    Raises:
        ValueError: a ``.json`` file that is broken or holds no list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[Any] | None = None
        if path.suffix.lower() == ".json":
            try:
                rows = decode_json(path.read_bytes(), str(path))
            except BadRecord as error:
                raise ValueError(f"{path} cannot be read: {error.reason} ({error.detail}).") from error
            if not isinstance(rows, list):
                raise ValueError(
                    f"{path} must hold a list of records, got {type(rows).__name__}. Or use a .jsonl file."
                )
            self._rows = rows
            return
        starts, ends, position = [], [], 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    starts.append(position)
                    ends.append(position + len(line))
                position += len(line)
        self._spans = np.array([starts, ends], dtype=np.int64).T

    def __len__(self) -> int:
        return len(self._spans) if self._rows is None else len(self._rows)

    def name(self, index: int) -> str:
        """Names a record in messages."""
        return f"{self.path.name}:{index + 1}"

    def row(self, index: int) -> dict[str, Any]:
        """The object at ``index``; record numbers count from 0, names from 1.

        Raises:
            BadRecord: "broken JSON", "not UTF-8" or "wrong type".
        """
        if self._rows is None:
            start, end = (int(place) for place in self._spans[index])
            with self.path.open("rb") as file:
                file.seek(start)
                value = decode_json(file.read(end - start), self.name(index))
        else:
            value = self._rows[index]
        if not isinstance(value, dict):
            raise BadRecord("wrong type", self.name(index), f"a record must be an object, got {type(value).__name__}")
        return value
