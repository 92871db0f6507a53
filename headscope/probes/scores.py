"""The result of every head probe: one row per head, where it came from, and what else was found."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headscope.errors import DataError, HeadscopeError, nearest

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLUMNS: dict[str, str] = {
    "layer": "int64",
    "head": "int64",
    "score": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "n": "int64",
    "null_mean": "float64",
    "p_value": "float64",
    "selected": "bool",
}
"""Columns that every table of heads has, in this order, with their types. A probe's own columns follow."""


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Scores of all heads of a model for one probe.

    Parameters
    ----------
    table
        One row per head, sorted by layer and head; columns as in ``COLUMNS``, then the probe's own.
    probe
        Name of the probe.
    provenance
        JSON-able: probe, parameters, model, data, seed, dtype, engine, versions, machine, created, notes.
    details
        Further tables by name, such as ``by_factor``, ``dose``, ``samples``.

    Raises
    ------
    DataError
        If a column is missing or of the wrong type, or a head occurs twice.
    """

    table: pd.DataFrame
    probe: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _head_frame(self.table, self.probe))
        object.__setattr__(self, "provenance", dict(self.provenance))
        details = {name: tidy(frame, f"details[{name!r}]") for name, frame in self.details.items()}
        object.__setattr__(self, "details", details)

    def __repr__(self) -> str:
        return (
            f"HeadScores({self.probe!r}, {len(self.table)} heads, {len(self.selected)} selected, "
            f"model={self.provenance.get('model', {}).get('name')!r})"
        )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of layers and of heads per layer."""
        model = self.provenance.get("model", {})
        layers, heads = int(self.table["layer"].max()) + 1, int(self.table["head"].max()) + 1
        return max(layers, int(model.get("n_layers") or 0)), max(heads, int(model.get("n_heads") or 0))

    def ranked(self, column: str = "score") -> pd.DataFrame:
        """Return the table, highest first; ties in order of layer and head, heads without a score last."""
        self._known(column)
        return self.table.sort_values([column, "layer", "head"], ascending=[False, True, True], ignore_index=True)

    def top(self, k: int = 10, *, column: str = "score") -> list[tuple[int, int]]:
        """Return the ``k`` best heads as (layer, head), best first; all that have a score if there are fewer."""
        if k < 1:
            raise HeadscopeError(f"top({k}): ask for at least one head.")
        return _pairs(self.ranked(column).dropna(subset=[column]).head(k))

    @property
    def selected(self) -> list[tuple[int, int]]:
        """Heads that pass the probe's rule, best first."""
        ranked = self.ranked()
        return _pairs(ranked[ranked["selected"]])

    def head(self, layer: int, head: int) -> dict[str, Any]:
        """All columns of one head.

        Raises
        ------
        HeadscopeError
            If the model has no such head.
        """
        found = self.table[(self.table["layer"] == layer) & (self.table["head"] == head)]
        if found.empty:
            layers, heads = self.shape
            raise HeadscopeError(
                f"There is no head ({layer}, {head}) in the {self.probe} scores: "
                f"layers run from 0 to {layers - 1} and heads from 0 to {heads - 1}."
            )
        return {str(name): value for name, value in found.to_dict("records")[0].items()}

    def map(self, column: str = "score") -> NDArray[np.float64]:
        """One column as an array (layers, heads); NaN where there is no such head."""
        self._known(column)
        if not pd.api.types.is_numeric_dtype(self.table[column]):
            raise HeadscopeError(f"Column {column!r} of the {self.probe} scores holds text and has no map.")
        grid = np.full(self.shape, np.nan)
        grid[self.table["layer"], self.table["head"]] = self.table[column].to_numpy(dtype=np.float64)
        return grid

    def with_details(self, **details: pd.DataFrame) -> HeadScores:
        """Return a copy with further tables, such as ``dose=verify(…)``, and the notes that they carry."""
        notes = list(self.provenance.get("notes", ()))
        for frame in details.values():
            notes += [note for note in frame.attrs.get("notes", ()) if note not in notes]
        return HeadScores(self.table, self.probe, {**self.provenance, "notes": notes}, {**self.details, **details})

    def plot(self, **options: Any) -> Figure:
        """Map of all heads, layers × heads, as a plotly figure."""
        figure: Figure = importlib.import_module("headscope.report.figures").head_map(self, **options)
        return figure

    def show(
        self,
        *,
        column: str = "score",
        html: bool = False,
        height: int = 640,
        theme: Literal["auto", "light", "dark"] = "auto",
    ) -> Any:
        """Show a map of all heads and their table, sortable and with intervals, in a cell of a notebook.

        What is returned shows itself in Jupyter, VS Code and HTML exported from either; ``.save(path)`` writes it as a
        file of its own.

        Parameters
        ----------
        column
            Numeric column to colour the map by.
        html
            Return the page as text.
        height
            Height in a notebook, in pixels.
        theme
            ``"auto"`` follows the reader's system.
        """
        show_scores = importlib.import_module("headscope.report.view.widget").show_scores
        return show_scores(self, column=column, html=html, height=height, theme=theme)

    def report(self, path: str | Path, others: Sequence[HeadScores] = ()) -> Path:
        """Write one HTML file that opens offline; ``others`` are compared with this probe."""
        # The name is resolved at run time: reports read scores, and scores do not depend on reports.
        write_report = importlib.import_module("headscope.report.html").write_report
        written: Path = write_report(self, path, others=list(others))
        return written

    def save(self, path: str | Path) -> Path:
        """Write to ``.parquet``, ``.json`` or ``.csv`` (with ``.csv.meta.json`` beside it), whole or not at all."""
        from headscope.probes.formats import save

        return save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> HeadScores:
        """Read what ``save`` wrote.

        Raises
        ------
        DataError
            If the file is missing, cut short, altered, or not a table of head scores.
        """
        from headscope.probes.formats import load

        return load(Path(path))

    def _known(self, column: str) -> None:
        if column not in self.table.columns:
            raise HeadscopeError(
                f"The {self.probe} scores have no column {column!r}.{nearest(column, map(str, self.table.columns))}"
            )


def tidy(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """Copy a table; its columns become int64, float64, bool or text, and nothing else: every format keeps those."""
    columns: dict[str, pd.Series[Any]] = {}
    for name, column in frame.items():
        if pd.api.types.is_bool_dtype(column):
            columns[str(name)] = column.astype("bool")
        elif pd.api.types.is_integer_dtype(column) and not column.hasnans:
            columns[str(name)] = column.astype("int64")
        elif pd.api.types.is_numeric_dtype(column):
            columns[str(name)] = column.astype("float64")
        else:
            texts = [None if value is None or value is pd.NA or value != value else value for value in column]
            wrong = next((value for value in texts if not isinstance(value, (str, type(None)))), None)
            if wrong is not None:
                raise DataError(
                    f"Column {name!r} of {what} mixes text with {type(wrong).__name__} ({wrong!r:.60}). "
                    "Use one row per value, with numbers, booleans or text."
                )
            columns[str(name)] = pd.Series(texts, dtype="str", index=column.index)
    return pd.DataFrame(columns).reset_index(drop=True)


def _head_frame(table: pd.DataFrame, probe: str) -> pd.DataFrame:
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise DataError(f"The table of {probe} scores lacks the columns {', '.join(missing)}.")
    if table.empty:
        raise DataError(f"The table of {probe} scores has no row. Rank at least one head.")
    try:
        typed = table.astype(COLUMNS)
    except (TypeError, ValueError) as error:
        raise DataError(f"The table of {probe} scores has a column of the wrong type: {error}.") from error
    if (typed[["layer", "head"]] < 0).to_numpy().any():
        raise DataError(f"The table of {probe} scores has a negative layer or head.")
    if typed.duplicated(["layer", "head"]).any():
        twice = typed[typed.duplicated(["layer", "head"])].iloc[0]
        raise DataError(f"Head ({twice['layer']}, {twice['head']}) occurs twice in the table of {probe} scores.")
    order = [*COLUMNS, *(name for name in typed.columns if name not in COLUMNS)]
    return tidy(typed[order].sort_values(["layer", "head"]), f"the table of {probe} scores")


def _pairs(table: pd.DataFrame) -> list[tuple[int, int]]:
    return [(int(layer), int(head)) for layer, head in zip(table["layer"], table["head"], strict=True)]
