"""Files of head scores: Parquet that carries everything, JSON, and CSV with its metadata beside it.

Equal scores give equal bytes, except for the time stamp ``created`` in the provenance. Every file carries a hash
of its content without that time stamp, so that damage is noticed and two runs can be compared at a glance.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from headscope.errors import DataError, OutputError
from headscope.files import atomic, canonical_json, write_text

if TYPE_CHECKING:
    from headscope.probes.scores import HeadScores

FORMAT = "headscope.scores/1"
_KEY, _DETAIL = b"headscope", b"headscope.details."


def content_hash(scores: HeadScores) -> str:
    """SHA-256 over table, details and provenance, without the time stamp."""
    digest = hashlib.sha256()
    provenance = {key: value for key, value in scores.provenance.items() if key != "created"}
    digest.update(canonical_json([FORMAT, scores.probe, provenance]).encode())
    for name, frame in [("", scores.table), *sorted(scores.details.items())]:
        digest.update(canonical_json([name, len(frame), [[c, str(frame[c].dtype)] for c in frame.columns]]).encode())
        for column in frame.columns:
            if frame[column].dtype.kind in "ifb":
                # One bit pattern for every NaN: formats without NaN write null and read back the usual one.
                values = frame[column].to_numpy()
                digest.update(np.where(values != values, np.nan, values).astype(values.dtype).tobytes())
            else:
                digest.update(canonical_json(_plain(frame[column])).encode())
    return digest.hexdigest()


def save(scores: HeadScores, path: Path) -> Path:
    """Write ``scores`` in the format that the suffix of ``path`` names."""
    writers = {".parquet": _save_parquet, ".json": _save_json, ".csv": _save_csv}
    if path.suffix not in writers:
        raise OutputError(f"Cannot tell the format of {path}: end the name in {', '.join(writers)}.")
    writers[path.suffix](scores, path)
    return path


def load(path: Path) -> HeadScores:
    """Read scores and check them against the hash that they were written with."""
    from headscope.probes.scores import HeadScores

    readers = {".parquet": _load_parquet, ".json": _load_json, ".csv": _load_csv}
    if path.suffix not in readers:
        raise DataError(f"Cannot tell the format of {path}: head scores end in {', '.join(readers)}.")
    if not path.is_file():
        raise DataError(f"There is no file {path}. Give the path of saved head scores.")
    try:
        header, table, details = readers[path.suffix](path)
        scores = HeadScores(table=table, probe=header["probe"], provenance=header["provenance"], details=details)
        intact = header["content"] == content_hash(scores)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        # pyarrow's errors are ValueError and OSError; what a cut or foreign file lacks shows as the others.
        raise DataError(
            f"{path} cannot be read as head scores ({type(error).__name__}: {str(error)[:200]}). "
            "It is cut short, altered, or another kind of file: write it again from its run."
        ) from error
    if not intact:
        raise DataError(f"{path} was altered since it was saved: its hash does not match. Write it again from its run.")
    return scores


def _header(scores: HeadScores) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "probe": scores.probe,
        "content": content_hash(scores),
        "provenance": dict(scores.provenance),
    }


def _checked(header: Any) -> dict[str, Any]:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise ValueError(f"format is {found!r}, expected {FORMAT!r}")
    return header


def _parquet_bytes(frame: pd.DataFrame, metadata: Mapping[bytes, bytes]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    sink = io.BytesIO()
    # The Arrow schema would repeat the metadata, time stamp included, in base64.
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", store_schema=False, write_page_checksum=True
    ) as writer:
        writer.write_table(table)
        if metadata:
            writer.add_key_value_metadata(dict(metadata))
    return sink.getvalue()


def _parquet_frame(source: bytes) -> tuple[dict[bytes, bytes], pd.DataFrame]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(source), page_checksum_verification=True)
    table = file.read()
    columns = {name: table.column(name).to_pandas() for name in table.column_names}
    frame = pd.DataFrame(columns, columns=table.column_names)
    texts = [field.name for field in table.schema if not pa.types.is_primitive(field.type)]
    return file.metadata.metadata or {}, frame.astype(dict.fromkeys(texts, "str"))


def _save_parquet(scores: HeadScores, path: Path) -> None:
    metadata = {_KEY: canonical_json(_header(scores)).encode()}
    for name, frame in sorted(scores.details.items()):
        metadata[_DETAIL + name.encode()] = base64.b64encode(_parquet_bytes(frame, {}))
    data = _parquet_bytes(scores.table, metadata)
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def _load_parquet(path: Path) -> tuple[dict[str, Any], pd.DataFrame, dict[str, pd.DataFrame]]:
    metadata, frame = _parquet_frame(path.read_bytes())
    header = _checked(json.loads(metadata.get(_KEY, b"null")))
    details = {
        key.removeprefix(_DETAIL).decode(): _parquet_frame(base64.b64decode(value, validate=True))[1]
        for key, value in sorted(metadata.items())
        if key.startswith(_DETAIL)
    }
    return header, frame, details


def _plain(column: pd.Series[Any]) -> list[Any]:
    return [None if value is None or value != value else value for value in column.tolist()]


def _pack(frame: pd.DataFrame) -> dict[str, Any]:
    return {
        "columns": {name: str(frame[name].dtype) for name in frame.columns},
        "data": {name: _plain(frame[name]) for name in frame.columns},
    }


def _unpack(packed: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(packed["data"][name], dtype=kind) for name, kind in packed["columns"].items()})


def _document(scores: HeadScores) -> dict[str, Any]:
    return {**_header(scores), "details": {name: _pack(frame) for name, frame in sorted(scores.details.items())}}


def _save_json(scores: HeadScores, path: Path) -> None:
    document = {**_document(scores), "table": _pack(scores.table)}
    write_text(path, json.dumps(document, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False) + "\n")


def _load_json(path: Path) -> tuple[dict[str, Any], pd.DataFrame, dict[str, pd.DataFrame]]:
    document = _checked(json.loads(path.read_text(encoding="utf-8")))
    details = {name: _unpack(packed) for name, packed in document["details"].items()}
    return document, _unpack(document["table"]), details


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".meta.json")


def _save_csv(scores: HeadScores, path: Path) -> None:
    meta = {**_document(scores), "columns": {name: str(scores.table[name].dtype) for name in scores.table.columns}}
    with atomic(path) as temporary:
        scores.table.to_csv(temporary, index=False, lineterminator="\n")
        write_text(_sidecar(path), json.dumps(meta, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _load_csv(path: Path) -> tuple[dict[str, Any], pd.DataFrame, dict[str, pd.DataFrame]]:
    sidecar = _sidecar(path)
    if not sidecar.is_file():
        raise ValueError(f"{sidecar.name} is missing beside it")
    meta = _checked(json.loads(sidecar.read_text(encoding="utf-8")))
    table = pd.read_csv(path, float_precision="round_trip", dtype=meta["columns"], keep_default_na=True)
    details = {name: _unpack(packed) for name, packed in meta["details"].items()}
    return meta, table[list(meta["columns"])], details
