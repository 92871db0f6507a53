"""Read the variables of a CTranslate2 ``model.bin``."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from headscope.errors import WeightsError

_TYPES: dict[int, Any] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_variables(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return all variables by name; aliases point to the same array.

    Layout: version, kind of model, revision, count, and for each variable its name, rank, dimensions, type, bytes;
    then the aliases. Strings carry their length, the final zero included.

    Raises
    ------
    WeightsError
        If the file is truncated or of another layout.
    """
    data = path.read_bytes()
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(code)
        return int(value)

    def text() -> str:
        nonlocal at
        length = number("H")
        value = data[at : at + length - 1].decode()
        at += length
        return value

    try:
        version = number("I")
        if not 4 <= version <= 6:
            raise WeightsError(f"{path.name} has binary version {version}; 4 to 6 can be read.")
        text()
        number("I")
        variables: dict[str, np.ndarray[Any, Any]] = {}
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            kind, size = number("B"), number("I")
            array = np.frombuffer(data, _TYPES[kind], count=size // np.dtype(_TYPES[kind]).itemsize, offset=at)
            variables[name] = array.reshape(shape)
            at += size
        for _ in range(number("I")):
            alias = text()
            variables[alias] = variables[text()]
    except (struct.error, KeyError, ValueError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path.name} is damaged: {error!r}. Fetch it again.") from error
    return variables
