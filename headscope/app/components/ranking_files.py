"""Rankings among the files of the workspace: which there are, read once each."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headscope.errors import DataError, HeadscopeError
from headscope.probes.scores import HeadScores

if TYPE_CHECKING:
    from headscope.app.desk import Desk

SUFFIXES = (".parquet", ".json", ".csv")
PREFERRED = {suffix: place for place, suffix in enumerate(SUFFIXES)}
KEPT = 64
"""Rankings that stay read."""


@dataclass(frozen=True)
class Ranking:
    """What a list says of a ranking.

    Parameters
    ----------
    file
        Path inside the workspace.
    probe, model, created
        As in its provenance; empty where it does not say.
    n
        Samples that the probe saw.
    heads, selected
        Heads ranked, and those that pass the probe's rule.
    shape
        Layers and heads per layer.
    """

    file: str
    probe: str
    model: str
    n: int | None
    heads: int
    selected: int
    shape: tuple[int, int]
    created: str

    @property
    def label(self) -> str:
        """The file without what is said of it already: what tells rankings apart."""
        return self.file.rpartition(".")[0].removeprefix("rankings/").removesuffix(f"/{self.probe}")


def rankings(desk: Desk) -> list[Ranking]:
    """Return the rankings of the workspace, newest first; other files are passed over.

    A ranking that was written in several formats is listed once, by the one that holds most.
    """
    best: dict[str, str] = {}
    for file in desk.workspace.files(*SUFFIXES):
        stem, _, suffix = file.rpartition(".")
        if suffix == "json" and stem.endswith(".csv.meta"):
            continue
        if stem not in best or PREFERRED[f".{suffix}"] < PREFERRED[f".{best[stem].rpartition('.')[2]}"]:
            best[stem] = file
    found = [ranking for file in best.values() if (ranking := _told(desk, file)) is not None]
    return sorted(found, key=lambda ranking: ranking.created, reverse=True)


def read(desk: Desk, file: str) -> HeadScores:
    """Return the scores of a file; those read before come from memory as long as the file is the same.

    Raises
    ------
    RequestError
        If there is no such file in the workspace.
    DataError
        If it holds no scores, or was altered.
    """
    path = desk.workspace.existing(file, SUFFIXES)
    stat = path.stat()
    key = str(path), stat.st_mtime_ns, stat.st_size
    found = _KEPT.get(key)
    if found is None:
        try:
            found = HeadScores.load(path)
        except DataError as error:
            _KEPT.put(key, error)
            raise
        _KEPT.put(key, found)
    if isinstance(found, DataError):
        raise found
    return found


def described(file: str, scores: HeadScores) -> Ranking:
    """Return what a list says of scores."""
    source = scores.provenance
    n: Any = source.get("data", {}).get("n")
    return Ranking(
        file=file,
        probe=scores.probe,
        model=str(source.get("model", {}).get("name") or ""),
        n=int(n) if isinstance(n, int) else None,
        heads=len(scores),
        selected=len(scores.selected),
        shape=scores.shape,
        created=str(source.get("created") or ""),
    )


def _told(desk: Desk, file: str) -> Ranking | None:
    try:
        return described(file, read(desk, file))
    except HeadscopeError:  # another kind of file, or one that is gone by now
        return None


class _Kept:
    """Files read lately, scores and errors alike, by path, time and size."""

    def __init__(self, limit: int) -> None:
        self._found: OrderedDict[tuple[str, int, int], HeadScores | DataError] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int, int]) -> HeadScores | DataError | None:
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
            return found

    def put(self, key: tuple[str, int, int], found: HeadScores | DataError) -> None:
        with self._lock:
            self._found[key] = found
            while len(self._found) > self._limit:
                self._found.popitem(last=False)


_KEPT = _Kept(KEPT)
