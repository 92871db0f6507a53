"""What a report is made of: pages of parts, sections and blocks, without a word about how they look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headscope.report.numbers import MISSING, fixed, head_name, number, p_value
from headscope.report.tokens import Reading, visible

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Cell:
    """One cell of a table: what is read, and what it is sorted by."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Picture:
    """A figure with its caption.

    ``table`` names the table that a click on a head filters; a ``half`` stands beside another where there is room.
    """

    kind: ClassVar[str] = "picture"
    figure: Figure
    caption: str
    table: str = ""
    half: bool = False


@dataclass(frozen=True)
class Table:
    """A table; ``numeric`` says which columns are numbers; ``folded`` is shown on demand."""

    kind: ClassVar[str] = "table"
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    left_out: int = 0
    folded: bool = False


@dataclass(frozen=True)
class Heads:
    """The ranked table of heads; each row carries where its interval is to be drawn, in per cent of the width."""

    kind: ClassVar[str] = "heads"
    id: str
    columns: tuple[str, ...]
    rows: tuple[HeadRow, ...]
    threshold: float | None = None


@dataclass(frozen=True)
class HeadRow:
    """One head: its cells, and the marks of its little interval plot."""

    name: str
    selected: bool
    cells: tuple[Cell, ...]
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Readings:
    """Attention rows written over their tokens."""

    kind: ClassVar[str] = "readings"
    readings: tuple[Reading, ...]
    left_out: int = 0


@dataclass(frozen=True)
class Claims:
    """Published claims and what was found here: claim, answer, evidence, verdict, tone of each."""

    kind: ClassVar[str] = "claims"
    rows: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Facts:
    """Names with values, values as text."""

    kind: ClassVar[str] = "facts"
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Chips:
    """A named list of short labels, such as heads."""

    kind: ClassVar[str] = "chips"
    label: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Something to type."""

    kind: ClassVar[str] = "code"
    label: str
    text: str


@dataclass(frozen=True)
class Tiles:
    """A few numbers that say the most: value, what it is."""

    kind: ClassVar[str] = "tiles"
    rows: tuple[tuple[str, str], ...]


Block = Text | Picture | Table | Heads | Readings | Claims | Facts | Chips | Code | Tiles


@dataclass(frozen=True)
class Section:
    """A heading with blocks under it."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Part:
    """One probe, or one comparison: a headline and its sections."""

    id: str
    title: str
    headline: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    parts: tuple[Part, ...]
    opening: tuple[Section, ...] = ()


def table(frame: pd.DataFrame, caption: str, limit: int = 200, *, folded: bool = False) -> Table:
    """Turn any frame into a table block of at most ``limit`` rows.

    Whole numbers are written in full, others with three significant digits; columns of shares line up.
    A layer and a head make one name.
    """
    shown = frame.head(limit)
    columns: dict[str, tuple[bool, list[Cell]]] = {}
    for name in map(str, frame.columns):
        number_like = frame[name].dtype.kind in "iuf"
        columns[name] = (number_like, column(shown[name]))
    if {"layer", "head"} <= set(columns) and columns["layer"][0] and columns["head"][0]:
        pairs = zip(shown["layer"].tolist(), shown["head"].tolist(), strict=True)
        columns["head"] = (False, [Cell(head_name(a, b), float(a * 10_000 + b)) for a, b in pairs])
        del columns["layer"]
    rows = tuple(zip(*(cells for _, cells in columns.values()), strict=True))
    headings = tuple({"p_value": "p", "q_value": "q"}.get(name, name.replace("_", " ")) for name in columns)
    return Table(headings, tuple(n for n, _ in columns.values()), rows, caption, max(0, len(frame) - limit), folded)


def column(values: pd.Series[Any]) -> list[Cell]:
    """Write a whole column; shares that are not round get three decimals each, so that they line up."""
    name = str(values.name)
    if values.dtype.kind == "f" and not name.endswith("_value"):
        known = values.dropna()
        if len(known) and known.abs().max() <= 1 and not (known == known.round(2)).all():
            return [score_cell(value) for value in values.tolist()]
    return [cell(value, name) for value in values.tolist()]


def cell(value: Any, name: str = "") -> Cell:
    """Write one value the way its column asks for."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value != value:
        return Cell(MISSING, None)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", float(value))
    if isinstance(value, int):
        # Indices are names, not amounts: no thousands separator.
        return Cell(str(value) if name in ("layer", "head", "dimension", "key", "query") else number(value), value)
    if isinstance(value, float):
        if name in ("p_value", "q_value"):
            return Cell(p_value(value), value)
        return Cell(number(int(value)) if value.is_integer() and abs(value) >= 10 else number(value), value)
    return Cell(visible(value) if "token" in name else str(value), str(value))


def score_cell(value: float) -> Cell:
    """Write a score with three decimals, so that a column of them lines up."""
    return Cell(fixed(value), None if value != value else float(value))
