"""The table of a ranking: one row per head, its interval drawn, sorted and filtered in the browser."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import dash_ag_grid as dag
import pandas as pd

from headscope.probes.scores import COLUMNS
from headscope.report.numbers import head_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headscope.probes.scores import HeadScores

COMMON = {
    "score": "score",
    "interval": "95 % interval",
    "n": "n",
    "null_mean": "null",
    "p_value": "p",
    "selected": "passes",
}
"""Columns of every ranking that can be hidden, with their headings; the probe's own follow."""
NUMBER, P_VALUE = {"function": "headscopeNumber(params)"}, {"function": "headscopeP(params)"}
"""How values are written; the functions are in ``assets/40-rank.js``."""
HIDDEN = ("n", "ci_low", "ci_high")
"""Columns that are hidden at first."""
ABOUT = {
    "score": "What the probe measures",
    "interval": "Score (dot), its 95 % interval (bar) and the mean score of the same head on its null (stroke)",
    "n": "Samples that count for this head",
    "null_mean": "Mean score of the same head on its null",
    "p_value": "Probability of such a score under the null",
    "selected": "Whether the head passes the probe's rule",
}


def grid(name: str) -> dag.AgGrid:
    """Return an empty table of heads with id ``name``; rows are selected by mouse, Shift, Ctrl and Space."""
    return dag.AgGrid(
        id=name,
        rowData=[],
        columnDefs=[],
        getRowId="params.data.id",
        defaultColDef={
            "sortable": True,
            "resizable": True,
            "filter": "agNumberColumnFilter",
            "sortingOrder": ["desc", "asc", None],
            "minWidth": 82,
            "flex": 1,
            "suppressHeaderMenuButton": True,
        },
        dashGridOptions={
            "theme": {"function": "headscopeTheme(themeQuartz)"},
            "rowSelection": {
                "mode": "multiRow",
                "checkboxes": True,
                "headerCheckbox": True,
                "selectAll": "filtered",
                "enableClickSelection": True,
                "enableSelectionWithoutKeys": True,
            },
            "selectionColumnDef": {"width": 40, "minWidth": 40, "maxWidth": 40, "pinned": "left", "resizable": False},
            "animateRows": False,
            "suppressCellFocus": False,
            "rowBuffer": 12,
            "tooltipShowDelay": 600,
            "localeText": {"noRowsToShow": "No head matches"},
        },
        persistence=True,
        persistence_type="session",
        persisted_props=["filterModel"],
        className="heads-table",
        style={"height": "100%", "width": "100%"},
    )


def rows(scores: HeadScores) -> list[dict[str, Any]]:
    """Return one row per head, best first; what is not a number is None."""
    found = []
    ranked = scores.ranked()
    own = own_columns(scores)
    for rank, row in enumerate(ranked.to_dict("records"), start=1):
        layer, head = int(row["layer"]), int(row["head"])
        made: dict[str, Any] = {"id": f"{layer}.{head}", "rank": rank, "name": head_name(layer, head)}
        made |= {"layer": layer, "head": head, "selected": int(bool(row["selected"])), "n": int(row["n"])}
        for column in ("score", "ci_low", "ci_high", "null_mean", "p_value", *own):
            made[column] = plain(row[column])
        found.append(made)
    return found


def own_columns(scores: HeadScores) -> list[str]:
    """Return the columns that the probe adds to the common ones."""
    return [str(name) for name in scores.table.columns if name not in COLUMNS]


def columns(scores: HeadScores) -> list[dict[str, Any]]:
    """Return the definitions of the columns: what is drawn, how it is sorted, filtered and written."""
    low, high = bounds(scores.table)
    found: list[dict[str, Any]] = [
        {
            "field": "rank",
            "headerName": "#",
            "headerTooltip": "Rank by score",
            "width": 62,
            "minWidth": 62,
            "flex": 0,
            "sortingOrder": ["asc", "desc", None],
            "cellClass": "soft",
        },
        {
            "field": "name",
            "headerName": "head",
            "filter": "agTextColumnFilter",
            "comparator": {"function": "headscopeByPlace"},
            "getQuickFilterText": {"function": "headscopeFind(params)"},
            "sortingOrder": ["asc", "desc", None],
            "width": 92,
            "flex": 0,
            "cellClass": "head-name",
        },
        {
            "field": "layer",
            "headerName": "layer",
            "width": 76,
            "minWidth": 76,
            "flex": 0,
            "sortingOrder": ["asc", "desc", None],
        },
        {"field": "head", "headerName": "in layer", "hide": True, "width": 84, "flex": 0},
        {
            "field": "score",
            "headerName": "score",
            "sort": "desc",
            "width": 92,
            "flex": 0,
            "valueFormatter": NUMBER,
            "cellClass": "head-score",
        },
        {
            "colId": "interval",
            "field": "score",
            "headerName": COMMON["interval"],
            "cellRenderer": "HeadscopeInterval",
            "cellRendererParams": {"low": low, "high": high},
            "sortable": False,
            "filter": False,
            "minWidth": 150,
            "flex": 3,
        },
        {"field": "ci_low", "headerName": "from", "hide": True, "valueFormatter": NUMBER},
        {"field": "ci_high", "headerName": "to", "hide": True, "valueFormatter": NUMBER},
        {"field": "null_mean", "headerName": COMMON["null_mean"], "valueFormatter": NUMBER},
        {
            "field": "p_value",
            "headerName": COMMON["p_value"],
            "sortingOrder": ["asc", "desc", None],
            "valueFormatter": P_VALUE,
        },
        {"field": "n", "headerName": "n"},
        {
            "field": "selected",
            "headerName": COMMON["selected"],
            "width": 92,
            "flex": 0,
            "valueFormatter": {"function": "headscopeYes(params)"},
            "cellClassRules": {"head-passes": "params.value == 1"},
        },
    ]  # fmt: skip
    for column in own_columns(scores):
        made: dict[str, Any] = {"field": column, "headerName": heading(column)}
        kind = scores.table[column].dtype
        made["minWidth"] = max(82, 34 + 8 * len(made["headerName"]))
        if not pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind):
            made["filter"] = "agTextColumnFilter"
        elif column.endswith("_value"):
            made["valueFormatter"] = P_VALUE
            made["sortingOrder"] = ["asc", "desc", None]
        else:
            made["valueFormatter"] = NUMBER
        found.append(made)
    for made in found:
        name = made.setdefault("colId", made["field"])
        made.setdefault("headerTooltip", ABOUT.get(name, heading(name)))
        if name != "name":
            # Searching is for heads: a number of some other column would be found by chance.
            made.setdefault("getQuickFilterText", {"function": "headscopeNothing(params)"})
        if made.get("filter") != "agTextColumnFilter" and name not in ("interval", "name"):
            made["type"] = "rightAligned"
    return found


def choices(scores: HeadScores) -> list[dict[str, str]]:
    """Return the columns that can be shown or hidden."""
    names = {**COMMON, "ci_low": "interval, from", "ci_high": "interval, to"}
    names |= {column: heading(column) for column in own_columns(scores)}
    return [{"value": name, "label": label} for name, label in names.items()]


def shown_at_first(scores: HeadScores) -> list[str]:
    """Return the columns that are shown as long as nobody chose."""
    hidden = {*HIDDEN, *(name for name in ("null_mean", "p_value") if not scores.table[name].notna().any())}
    own = own_columns(scores)
    return [*(name for name in COMMON if name not in hidden), *own[:2]]


def measures(scores: HeadScores) -> list[dict[str, str]]:
    """Return the numeric columns that the map can be coloured by."""
    numeric = [name for name in ("score", "null_mean", "p_value", "n", *own_columns(scores)) if _drawn(scores, name)]
    return [{"value": name, "label": COMMON.get(name, heading(name))} for name in numeric]


def heading(column: str) -> str:
    """Return the words of a column's name."""
    return {"p_value": "p", "q_value": "q"}.get(column, column.replace("_", " "))


def bounds(table: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of the axis on which intervals are drawn."""
    values = table[["score", "ci_low", "ci_high", "null_mean"]].to_numpy(dtype=float).ravel()
    finite = [float(value) for value in values if math.isfinite(value)]
    low, high = (min(0.0, *finite), max(finite)) if finite else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def plain(value: Any) -> Any:
    """Return a value that JSON can hold; None where there is no number."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


def _drawn(scores: HeadScores, name: str) -> bool:
    column = scores.table[name]
    return bool(pd.api.types.is_numeric_dtype(column) and column.notna().any())


def pairs(heads: Sequence[str] | None) -> list[tuple[int, int]]:
    """Return heads such as ``"18.6"`` as pairs; what is none is left out."""
    return [(int(layer), int(head)) for layer, _, head in (one.partition(".") for one in heads or () if _is_head(one))]


def _is_head(text: str) -> bool:
    layer, _, head = text.partition(".")
    return layer.isdecimal() and head.isdecimal()
