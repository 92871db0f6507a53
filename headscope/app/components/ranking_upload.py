"""Rankings and head sets that a browser sends: checked whole before they enter the workspace."""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.app.components.heads import FOLDER
from headscope.errors import DataError, RequestError
from headscope.probes.head_sets import HeadSet, is_head_set
from headscope.probes.scores import HeadScores

if TYPE_CHECKING:
    from headscope.app.desk import Desk

UPLOADS = "uploads"
SUFFIXES = (".parquet", ".json", ".csv")
MOST_CELLS = 20_000_000
"""Numbers that a table may unfold to: a small file can hold a very large table."""
MOST_HEADS = 1_000_000
"""Heads that a model may have: maps are drawn of all of them, whatever the table holds."""


def receive(desk: Desk, contents: Sequence[str], names: Sequence[str]) -> str:
    """Take files that were sent together and return the one to open.

    Several are those of one CSV: ``x.csv`` and ``x.csv.meta.json``.

    Raises
    ------
    RequestError
        If there is nothing, too much, or another kind of file.
    DataError
        If a file is not a ranking, nor a head set, or was altered.
    """
    if not contents:
        raise RequestError("No file arrived.")
    if len(contents) > 2 or len(contents) != len(names):
        raise RequestError("Send one ranking at a time: a .parquet, a .json, or a .csv with its .csv.meta.json.")
    inbox = desk.workspace.path(f".app/inbox/{uuid.uuid4().hex}")
    inbox.mkdir(parents=True)
    try:
        paths = [_put(desk, inbox, content, name) for content, name in zip(contents, names, strict=True)]
        main = min(paths, key=lambda path: path.name.endswith(".csv.meta.json"))
        if main.name.endswith(".csv.meta.json"):
            raise RequestError("That is what stands beside a .csv: send both files together.")
        if is_head_set(main):
            HeadSet.load(main)
            return _moved(desk, [main], FOLDER)
        _bounded(main)
        layers, heads = HeadScores.load(main).shape
        if layers * heads > MOST_HEADS:
            raise RequestError(f"{main.name} says that its model has {layers} layers × {heads} heads: no model has.")
        return _moved(desk, sorted(paths, key=lambda path: path != main), UPLOADS)
    except DataError as error:
        # The path of the inbox would tell nobody anything.
        raise DataError(str(error).replace(f"{inbox}/", "")) from error
    finally:
        shutil.rmtree(inbox, ignore_errors=True)


def _put(desk: Desk, inbox: Path, content: str, name: str) -> Path:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name.replace("\\", "/")).name).strip("-.")[-80:]
    if not plain.endswith(SUFFIXES) or plain in SUFFIXES:
        raise RequestError(f"{name[:80]!r} is none of the files that can be opened here: {', '.join(SUFFIXES)}.")
    try:
        data = base64.b64decode(content.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise RequestError(f"{name[:80]!r} did not arrive whole: send it again.") from error
    if len(data) > desk.settings.upload_bytes:
        raise RequestError(
            f"{name[:80]!r} has {len(data) / 1e6:.1f} MB; this server takes {desk.settings.upload_bytes / 1e6:.1f}. "
            f"Copy it into the workspace {desk.workspace.root} instead."
        )
    path = inbox / plain
    path.write_bytes(data)
    return path


def _bounded(path: Path) -> None:
    if path.suffix != ".parquet":
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        facts = pq.read_metadata(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as a Parquet file ({str(error)[:100]}).") from error
    if facts.num_rows * max(1, facts.num_columns) > MOST_CELLS:
        raise RequestError(f"{path.name} unfolds to {facts.num_rows} rows: no ranking is that long.")


def _moved(desk: Desk, paths: Sequence[Path], folder: str) -> str:
    main = paths[0]
    stem, number = main.name.removesuffix(main.suffix), 1
    while True:
        # A file that is there is never replaced.
        name = stem if number == 1 else f"{stem}-{number}"
        target = desk.workspace.path(f"{folder}/{name}{main.suffix}")
        if not target.exists():
            break
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in reversed(paths):
        path.replace(target.with_name(target.name + path.name.removeprefix(main.name)))
    return f"{folder}/{target.name}"
