"""Read the weights of an ONNX file without the onnx package: just enough of its protocol-buffer encoding."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headscope.errors import WeightsError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_KIND, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_ATTRIBUTE_TENSOR = 5
_TYPES: dict[int, Any] = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16, 11: np.float64}


@dataclass(frozen=True)
class Node:
    """One operation: its path in the exported model, its kind, what it reads and what it makes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], list[Node]]:
    """Return the tensors of a graph by name (initialisers and constants) and its nodes.

    Raises
    ------
    WeightsError
        If the file is damaged.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    nodes: list[Node] = []
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            view = memoryview(data)
            graph = next(value for field, value in _fields(view) if field == _GRAPH)
            for field, value in _fields(graph):
                if field == _INITIALIZER:
                    name, array = _tensor(value)
                    tensors[name] = array
                elif field == _NODE:
                    node, constant = _node(value)
                    nodes.append(node)
                    if constant is not None:
                        tensors[node.outputs[0]] = constant
                value.release()
            graph.release()
            view.release()
    except (StopIteration, IndexError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path.name} is not a readable ONNX file: {error!r}. Fetch it again.") from error
    return tensors, nodes


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a message; values are integers or views of bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(data):
            raise ValueError("truncated")
        yield key >> 3, data[at : at + length]
        at += length


def _tensor(data: memoryview) -> tuple[str, np.ndarray[Any, Any]]:
    dims: list[int] = []
    name, kind, raw = "", 0, b""
    for field, value in _fields(data):
        if field == _TENSOR_DIMS and isinstance(value, int):
            dims.append(value)
        elif field == _TENSOR_DIMS:
            at = 0
            while at < len(value):
                size, at = _varint(value, at)
                dims.append(size)
        elif field == _TENSOR_TYPE:
            kind = value
        elif field == _TENSOR_NAME:
            name = bytes(value).decode()
        elif field == _TENSOR_RAW:
            raw = bytes(value)
    array = np.frombuffer(raw, _TYPES[kind]) if kind in _TYPES else np.empty(0)
    return name, array.reshape(dims) if array.size == np.prod(dims, dtype=int) else array


def _node(data: memoryview) -> tuple[Node, np.ndarray[Any, Any] | None]:
    texts: dict[int, list[str]] = {}
    constant = None
    for field, value in _fields(data):
        if field in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_KIND):
            texts.setdefault(field, []).append(bytes(value).decode())
        elif field == _NODE_ATTRIBUTE:
            for inner, held in _fields(value):
                if inner == _ATTRIBUTE_TENSOR and not isinstance(held, int):
                    constant = _tensor(held)[1]
    first = {field: found[0] for field, found in texts.items()}
    node = Node(
        first.get(_NODE_NAME, ""),
        first.get(_NODE_KIND, ""),
        tuple(texts.get(_NODE_INPUT, ())),
        tuple(texts.get(_NODE_OUTPUT, ())),
    )
    return node, constant if node.kind == "Constant" else None
