"""Shards: finished pieces of a run on disk, so that a killed run goes on where it stopped.

A run folder holds ``run.json``, the identity of what is computed, and one file per finished piece under ``shards/``.
A shard is written whole or not at all, carries the hash of its content and that of the run's identity, and holds
JSON and plain arrays only: reading one never executes anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headscope.errors import CheckpointError, DataError
from headscope.files import atomic, canonical_json, sha256_text, write_text
from headscope.probes.base import Observation, jsonable

FORMAT = "headscope.run/1"
_MAGIC = b"headscope.shard/1\n"
_SUFFIX = ".shard"
_STALE_SECONDS = 600


@dataclass(frozen=True)
class Shard:
    """What one file holds: JSON-able facts and arrays by name."""

    meta: Mapping[str, Any]
    arrays: Observation


@dataclass(frozen=True)
class Store:
    """The shards of one run. Made by ``Store.open``."""

    folder: Path
    identity: str

    @classmethod
    def open(cls, folder: str | Path, identity: Mapping[str, Any], *, fresh: bool = False) -> Store:
        """Begin a run in ``folder``, or go on with the run of the same identity.

        Parameters
        ----------
        identity
            JSON-able: everything that a shard's content depends on.
        fresh
            Discard the shards of any earlier run in this folder first. Other files stay.

        Raises
        ------
        CheckpointError
            If the folder belongs to another run; the message lists what differs.
        OutputError
            If the folder cannot be written.
        """
        folder, wanted = Path(folder), jsonable(identity)
        store = cls(folder, sha256_text(canonical_json(wanted)))
        record = folder / "run.json"
        if fresh:
            store.clear()
        if record.exists():
            _same_run(folder, _recorded(record), wanted)
        else:
            document = {"format": FORMAT, "identity": wanted}
            write_text(record, json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        store._sweep()
        return store

    def path(self, group: str, name: str) -> Path:
        """File of the piece ``name`` of ``group``."""
        return self.folder / "shards" / group / f"{name}{_SUFFIX}"

    def write(self, group: str, name: str, meta: Mapping[str, Any], arrays: Observation) -> None:
        """Store one finished piece, whole or not at all."""
        with atomic(self.path(group, name)) as temporary:
            temporary.write_bytes(pack(Shard({"run": self.identity, **jsonable(meta)}, arrays)))

    def read(self, group: str, name: str) -> Shard | None:
        """Return a finished piece, or None if there is none yet.

        Raises
        ------
        CheckpointError
            If the file is damaged or belongs to another run.
        """
        path = self.path(group, name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"The shard {path} cannot be read: {error.strerror or error}.") from error
        try:
            shard = unpack(data)
        except ValueError as error:
            raise CheckpointError(
                f"The shard {path} is corrupt: {error}. Delete that file to compute it again, "
                "or start over with --fresh (fresh=True)."
            ) from error
        if shard.meta.get("run") != self.identity:
            raise CheckpointError(
                f"The shard {path} belongs to another run. Delete that file, choose another folder, "
                "or start over with --fresh (fresh=True)."
            )
        return shard

    def clear(self) -> None:
        """Remove ``run.json`` and all shards, and nothing else."""
        shards = self.folder / "shards"
        for path in [*shards.rglob(f"*{_SUFFIX}"), *shards.rglob(f".*{_SUFFIX}.*.part"), self.folder / "run.json"]:
            path.unlink(missing_ok=True)
        for path in sorted((p for p in shards.rglob("*") if p.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # holds a file of somebody else
                path.rmdir()

    def _sweep(self) -> None:
        """Remove what a killed process left half-written; younger files may be another worker's."""
        for path in (self.folder / "shards").rglob(f".*{_SUFFIX}.*.part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


def pack(shard: Shard) -> bytes:
    """Bytes of a shard: magic line, SHA-256 of the rest, one line of JSON, arrays one after the other."""
    arrays, blocks = [], []
    for name, value in sorted(shard.arrays.items()):
        array = np.ascontiguousarray(value)
        if array.dtype.kind not in "fiubU":
            raise DataError(f"Observation {name!r} has type {array.dtype}: only numbers, booleans and text are stored.")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        arrays.append([name, array.dtype.str, list(np.shape(value))])
        blocks.append(array.tobytes())
    body = canonical_json({"meta": shard.meta, "arrays": arrays}).encode() + b"\n" + b"".join(blocks)
    return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unpack(data: bytes) -> Shard:
    """Read what ``pack`` made; ValueError says what is wrong with anything else."""
    if not data.startswith(_MAGIC):
        raise ValueError("it does not begin like a shard")
    start = len(_MAGIC) + 65
    if len(data) < start or hashlib.sha256(data[start:]).hexdigest().encode() + b"\n" != data[len(_MAGIC) : start]:
        raise ValueError("its content does not match its hash")
    end = data.index(b"\n", start)
    header = json.loads(data[start:end])
    arrays, offset = {}, end + 1
    for name, kind, shape in header["arrays"]:
        dtype, count = np.dtype(kind), int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(data, dtype=dtype, count=count, offset=offset) if count else np.empty(0, dtype)
        arrays[name] = flat.reshape(shape).copy()
        offset += count * dtype.itemsize
    return Shard(header["meta"], arrays)


def _recorded(path: Path) -> Any:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}")
        return document["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not the record of a run that this version can go on with ({error}). "
            "Choose another folder, or start over with --fresh (fresh=True)."
        ) from error


def _same_run(folder: Path, recorded: Any, wanted: Any) -> None:
    before, now = dict(_leaves(recorded)), dict(_leaves(wanted))
    differing = [name for name in sorted({*before, *now}) if before.get(name, _ABSENT) != now.get(name, _ABSENT)]
    if differing:
        lines = [f"  {name}: {_shown(before, name)} there, {_shown(now, name)} now" for name in differing]
        raise CheckpointError(
            f"{folder} belongs to another run:\n" + "\n".join(lines) + "\n"
            "Choose another folder, or discard its shards with --fresh (fresh=True)."
        )


_ABSENT = object()


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{name}.{key}" if name else str(key))]
    return [(name, canonical_json(value))]


def _shown(leaves: Mapping[str, Any], name: str) -> str:
    text = str(leaves.get(name, "absent"))
    return text if len(text) <= 60 else text[:57] + "…"
