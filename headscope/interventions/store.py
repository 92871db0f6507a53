"""Interventions as files: methods and edits in JSON, with the model that they were made for."""

from __future__ import annotations

import base64
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import CheckpointError, RequestError
from headscope.files import write_text
from headscope.interventions.base import Method
from headscope.interventions.registry import METHODS, find_method

if TYPE_CHECKING:
    from headscope.attention.edits import Edit
    from headscope.models.model import Model

FORMAT = "headscope-interventions"
VERSION = 1


def save(path: str | Path, *methods: Method | Edit, model: Model) -> Path:
    """Write methods and edits, in order, with the name and the weight hash of the model.

    Raises
    ------
    RequestError
        If there is nothing to save.
    OutputError
        If the file cannot be written; what was there is kept.
    """
    if not methods:
        raise RequestError("There is nothing to save: pass at least one method or edit.")
    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": {"name": model.name, "source": model.source, "fingerprint": model.fingerprint},
        "interventions": [encode(method) for method in methods],
    }
    write_text(Path(path), json.dumps(document, indent=1) + "\n")
    return Path(path)


def load(path: str | Path, model: Model | None = None) -> tuple[Any, ...]:
    """Read methods and edits.

    Parameters
    ----------
    model
        Refuse a file that was made for other weights.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another kind, or made for another model.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}): it may be damaged.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not hold interventions.")
    if document.get("version", 0) > VERSION:
        raise CheckpointError(f"{path} was written by a later version of headscope: update to read it.")
    try:
        made_for = document["model"]
        if model is not None and made_for["fingerprint"] != model.fingerprint:
            raise CheckpointError(
                f"{path} was made for {made_for['name']!r}, whose weights differ from those of {model.name!r}: heads "
                "and vectors of one model mean nothing in another. Make it again for this model."
            )
        return tuple(decode(found) for found in document["interventions"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def encode(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: methods and edits by type and fields, arrays as base64."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = value.name if isinstance(value, Method) else type(value).__name__
        return {"type": kind} | {f.name: encode(getattr(value, f.name)) for f in fields(value) if f.init}
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    if isinstance(value, np.ndarray):
        whole = np.ascontiguousarray(value)
        held = base64.b64encode(whole.astype(whole.dtype.newbyteorder("<")).tobytes()).decode()
        return {"array": held, "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {"items": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise RequestError(f"{type(value).__name__} cannot be stored in an intervention file.")


def decode(value: Any) -> Any:
    """Return what ``encode`` was given, lists as tuples."""
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        flat = np.frombuffer(base64.b64decode(value["array"]), dtype=np.dtype(value["dtype"]).newbyteorder("<"))
        return flat.reshape(value["shape"]).astype(value["dtype"])
    if "items" in value and "type" not in value:
        return {decode(key): decode(item) for key, item in value["items"]}
    given = {name: decode(item) for name, item in value.items() if name != "type"}
    return _class(value["type"])(**given)


def _class(kind: str) -> Any:
    if kind in METHODS:
        return find_method(kind)
    from headscope.attention import edits

    found = getattr(edits, kind, None)
    if not (isinstance(found, type) and is_dataclass(found)):
        raise CheckpointError(f"There is no method or edit {kind!r} in this version of headscope.")
    return found
