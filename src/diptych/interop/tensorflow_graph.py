"""Constants of a frozen TensorFlow graph (``.pb``), read without TensorFlow.

A ``GraphDef`` is a protocol buffer; of it only nodes, their name, their operation and the tensor of a constant are
read: graph.node = 1; node.name = 1, .op = 2, .attr = 5 (key = 1, value = 2); value.tensor = 8; tensor.dtype = 1,
.tensor_shape = 2 (dim = 2, size = 1), .tensor_content = 4, .float_val = 5.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT = 1


def read_float_constants(path: str | Path) -> dict[str, np.ndarray]:
    """Every float constant of the graph, by the name of its node.

    Raises:
        FileNotFoundError: not there.
        ValueError: no graph, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    constants = {}
    try:
        for number, node in _fields(memoryview(path.read_bytes())):
            if number == 1 and isinstance(node, memoryview):
                name, value = _constant(node)
                if value is not None:
                    constants[name] = value
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no frozen TensorFlow graph, or a damaged one ({error}).") from None
    return constants


def _constant(node: memoryview) -> tuple[str, np.ndarray | None]:
    name, operation, value = "", "", None
    for number, content in _fields(node):
        if number == 1:
            name = str(content, "utf-8")  # type: ignore[arg-type]
        elif number == 2:
            operation = str(content, "utf-8")  # type: ignore[arg-type]
        elif number == 5:
            entry = dict(_fields(content))  # type: ignore[arg-type]
            if bytes(entry.get(1, b"")) == b"value":
                value = entry.get(2)
    if operation != "Const" or value is None:
        return name, None
    tensor = dict(_fields(value)).get(8)  # type: ignore[arg-type]
    return name, None if tensor is None else _floats(tensor)  # type: ignore[arg-type]


def _floats(tensor: memoryview) -> np.ndarray | None:
    shape: list[int] = []
    content, listed = b"", b""
    for number, value in _fields(tensor):
        if number == 1 and value != _FLOAT:
            return None
        if number == 2:
            dims = [dict(_fields(dim)) for key, dim in _fields(value) if key == 2]  # type: ignore[arg-type]
            shape = [int(dim.get(1, 0)) for dim in dims]
        elif number == 4:
            content = bytes(value)
        elif number == 5:
            listed += bytes(value)
    values = np.frombuffer(content or listed, dtype="<f4")
    if len(values) == 1:  # one value stands for all
        return np.full(shape, values[0], dtype=np.float32)
    return values.reshape(shape).astype(np.float32)


def _fields(message: memoryview) -> Iterator[tuple[int, "memoryview | int"]]:
    """Numbers and contents of the fields of a message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind, length = key & 7, 0
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if position + length > len(message):
            raise ValueError("it ends too early")
        yield key >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
        shift += 7
