"""Named sets of heads: picked once, used by pages, Python and the command line alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import DataError, OutputError, RequestError
from headscope.files import write_text
from headscope.probes.provenance import now

if TYPE_CHECKING:
    from headscope.probes.scores import HeadScores

FORMAT = "headscope.heads/1"
Head = tuple[int, int]


@dataclass(frozen=True)
class HeadSet:
    """Heads under a name.

    Parameters
    ----------
    name
        What the set is called.
    heads
        Pairs of layer and head, in the order in which they were picked (best first, from a ranking); one that comes
        twice is kept once.
    model
        Name of the model that they are heads of.
    fingerprint
        Hash of the model's weights. With it, other weights are refused.
    shape
        Layers and heads per layer of the model.
    source
        Where the heads come from, such as ``"retrieval.parquet, top 20"``.
    note
        Whatever should be remembered.
    created
        UTC time; now by default.

    Raises
    ------
    DataError
        If a head is not a pair of numbers from 0, or the model has no such head.
    """

    name: str
    heads: tuple[Head, ...]
    model: str | None = None
    fingerprint: str | None = None
    shape: tuple[int, int] | None = None
    source: str = ""
    note: str = ""
    created: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", _pairs(self.heads, self.name))
        if self.shape is not None:
            layers, heads = self.shape
            object.__setattr__(self, "shape", (int(layers), int(heads)))
            wrong = next((pair for pair in self.heads if pair[0] >= layers or pair[1] >= heads), None)
            if wrong is not None:
                raise DataError(
                    f"The head set {self.name!r} holds head {wrong}, and its model has {layers} layers × {heads} heads."
                )
        if not self.created:
            object.__setattr__(self, "created", now())

    def __len__(self) -> int:
        return len(self.heads)

    def __contains__(self, head: object) -> bool:
        return head in self.heads

    @classmethod
    def of(
        cls, name: str, scores: HeadScores, heads: Iterable[Head] | None = None, *, source: str = "", note: str = ""
    ) -> HeadSet:
        """Return a set of heads of the model that ``scores`` rank; by default those that the probe selects."""
        model = scores.provenance.get("model", {})
        return cls(
            name=name,
            heads=tuple(scores.selected if heads is None else heads),
            model=model.get("name"),
            fingerprint=model.get("fingerprint"),
            shape=scores.shape,
            source=source or scores.probe,
            note=note,
        )

    def union(self, other: HeadSet, name: str = "") -> HeadSet:
        """Return the heads of either set.

        Raises
        ------
        RequestError
            If the two are heads of different models; so do ``intersection`` and ``difference``.
        """
        return self._combined(other, (*self.heads, *other.heads), name, "∪")

    def intersection(self, other: HeadSet, name: str = "") -> HeadSet:
        """Return the heads of both sets."""
        return self._combined(other, (pair for pair in self.heads if pair in other), name, "∩")

    def difference(self, other: HeadSet, name: str = "") -> HeadSet:
        """Return the heads of this set that the other does not hold."""
        return self._combined(other, (pair for pair in self.heads if pair not in other), name, "∖")

    def check(self, model: Any) -> None:
        """Refuse another model.

        Raises
        ------
        RequestError
            If the weights differ from those that the heads were picked in.
        """
        if self.fingerprint is not None and self.fingerprint != model.fingerprint:
            raise RequestError(
                f"The head set {self.name!r} holds heads of {self.model!r}, whose weights differ from those of "
                f"{model.name!r}."
            )

    def save(self, path: str | Path) -> Path:
        """Write to a ``.json`` file, whole or not at all.

        Raises
        ------
        OutputError
            If the name ends otherwise, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise OutputError(f"A head set is written as JSON: end the name {str(path)!r} in .json.")
        document = {
            "format": FORMAT,
            "name": self.name,
            "model": {"name": self.model, "fingerprint": self.fingerprint, "shape": self.shape},
            "source": self.source,
            "note": self.note,
            "created": self.created,
            "heads": [list(pair) for pair in self.heads],
        }
        return write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> HeadSet:
        """Read what ``save`` wrote.

        Raises
        ------
        DataError
            If the file is missing or not a head set.
        """
        path = Path(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise ValueError(f"format is not {FORMAT!r}")
            model = document.get("model") or {}
            return cls(
                name=str(document["name"]),
                heads=tuple(document["heads"]),
                model=model.get("name"),
                fingerprint=model.get("fingerprint"),
                shape=tuple(model["shape"]) if model.get("shape") else None,
                source=str(document.get("source", "")),
                note=str(document.get("note", "")),
                created=str(document.get("created", "")),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} cannot be read as a head set ({type(error).__name__}: {str(error)[:200]}). "
                "Save it again from its ranking."
            ) from error

    def _combined(self, other: HeadSet, heads: Iterable[Head], name: str, sign: str) -> HeadSet:
        prints = {self.fingerprint, other.fingerprint} - {None}
        shapes = {self.shape, other.shape} - {None}
        if len(prints) > 1 or len(shapes) > 1:
            raise RequestError(
                f"{self.name!r} holds heads of {self.model!r} and {other.name!r} those of {other.model!r}, which has "
                "other weights: only sets of one model can be combined."
            )
        known = self if self.fingerprint or self.shape else other
        text = f"{self.name} {sign} {other.name}"
        return replace(known, name=name or text, heads=tuple(heads), source=text, note="", created="")


def is_head_set(path: str | Path) -> bool:
    """Tell whether a file is a head set, without raising."""
    path = Path(path)
    if path.suffix != ".json":
        return False
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, Mapping) and document.get("format") == FORMAT


def read_heads(path: str | Path, model: Any, top: int | None = None) -> tuple[Head, ...]:
    """Return the heads that a file names: a head set, or scores.

    Parameters
    ----------
    model
        Whose heads they must be.
    top
        The first ``top`` of a set, the best ``top`` of scores; by default the whole set, and what the scores select.

    Raises
    ------
    DataError
        If the file is neither.
    RequestError
        If it is of another model, or names no head.
    """
    if top is not None and top < 1:
        raise RequestError(f"The {top} first heads of {path}: ask for at least one.")
    if is_head_set(path):
        found = HeadSet.load(path)
        found.check(model)
        if not found.heads:
            raise RequestError(f"The head set {found.name!r} in {path} is empty.")
        model.sites.check_heads(found.heads)
        return found.heads[:top]
    from headscope.probes.scores import HeadScores

    scores = HeadScores.load(path)
    made_for = scores.provenance.get("model", {})
    if made_for.get("fingerprint", model.fingerprint) != model.fingerprint:
        raise RequestError(
            f"{path} ranks the heads of {made_for.get('name')!r}, whose weights differ from those of {model.name!r}."
        )
    chosen = scores.selected if top is None else scores.top(top)
    if not chosen:
        raise RequestError(f"{path} selects no head: say how many of the best to take with --top.")
    return tuple(chosen)


def _pairs(heads: Iterable[Any], name: str) -> tuple[Head, ...]:
    found: list[Head] = []
    for head in heads:
        if not isinstance(head, (tuple, list)) or len(head) != 2 or any(_number(part) is None for part in head):
            raise DataError(f"The head set {name!r} holds {head!r}, which is no pair of layer and head.")
        found.append((int(head[0]), int(head[1])))
    return tuple(dict.fromkeys(found))


def _number(value: Any) -> int | None:
    try:
        return int(value) if int(value) == value and value >= 0 and not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None
