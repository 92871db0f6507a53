"""Figures of one parameter of a method over a range of values."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from headscope.errors import DataError
from headscope.report.palette import LIGHT
from headscope.report.style import finish

WIDE = 12.0
"""Largest value over smallest from which an axis is logarithmic."""

_GAINS = {
    "gain": ("text written at this value", "accent", "solid"),
    "target_gain": ("target text", "warm", "solid"),
    "base_gain": ("text written without the edit", "grey", "dot"),
}
_SHARES = {
    "accuracy": ("accuracy", "accent"),
    "valid": ("valid answers", "gold"),
    "accuracy_among_valid": ("accuracy among valid", "good"),
    "constrained": ("constrained to candidates", "warm"),
}


def continuation_curve(table: pd.DataFrame, field: str) -> go.Figure:
    """Draw gains of texts and the shift of the first token over the values of a parameter.

    Parameters
    ----------
    table
        Of ``headscope.interventions.sweep_continuations``.
    field
        What the values are of.
    """
    rows = _ordered(table)
    figure = go.Figure()
    for column, (name, colour, dash) in _GAINS.items():
        if column in rows:
            _line(figure, rows, column, name, LIGHT[colour], dash=dash, axis="y", unit="nats")
    _line(figure, rows, "kl", "KL of the first token", LIGHT["good"], axis="y2", unit="nats")
    figure.add_hline(y=0, line={"color": LIGHT["line"], "width": 1}, layer="below")
    _x(figure, rows, field)
    figure.update_layout(
        yaxis={"title": {"text": "gain, nats"}, "domain": [0.36, 1]},
        yaxis2={"title": {"text": "KL, nats"}, "domain": [0, 0.26], "rangemode": "tozero", "anchor": "x"},
        xaxis={"anchor": "y2"},
        hovermode="x unified",
    )
    return _under_legend(finish(figure, "", 374))


def task_curve(table: pd.DataFrame, field: str) -> go.Figure:
    """Draw what a task's answers are worth over the values of a parameter, with the untouched model as lines.

    Parameters
    ----------
    table
        Rows of an evaluation with a column ``value`` (NaN for the untouched model) and ``neutral``.
    field
        What the values are of.
    """
    base = table[table["kind"] == "base"].iloc[0]
    rows = _ordered(table[table["kind"] != "base"])
    figure = go.Figure()
    shown = 0
    for column, (name, colour) in _SHARES.items():
        if column not in rows or not rows[column].notna().any():
            continue
        bounds = (f"{column}_low", f"{column}_high") if f"{column}_low" in rows else None
        _line(figure, _beside(rows, shown), column, name, LIGHT[colour], axis="y", bounds=bounds)
        shown += 1
        if base[column] == base[column]:
            figure.add_hline(
                y=float(base[column]), line={"color": LIGHT[colour], "width": 1, "dash": "dot"}, opacity=0.7
            )
    _x(figure, rows, field)
    figure.update_yaxes(title_text="share of items, 95 % interval", range=[-0.02, 1.02])
    return _under_legend(finish(figure, "", 344))


def _under_legend(figure: go.Figure) -> go.Figure:
    """Leave a line between legend and plot: there the neutral value is named."""
    figure.update_layout(legend_y=1.0, legend_yref="container", legend_yanchor="top", margin_t=50)
    return figure


def _beside(rows: pd.DataFrame, place: int) -> pd.DataFrame:
    """Move values a little to the right, so that intervals of several lines stand beside each other."""
    values = [float(value) for value in rows["value"]]
    if logarithmic(values):
        return rows.assign(value=[value * (max(values) / min(values)) ** (0.006 * place) for value in values])
    return rows.assign(value=[value + 0.006 * place * (max(values) - min(values)) for value in values])


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[table["value"].notna()].sort_values("value")
    if rows.empty:
        raise DataError("There is nothing to draw: no row has a value.")
    return rows


def _line(
    figure: go.Figure,
    rows: pd.DataFrame,
    column: str,
    name: str,
    colour: str,
    *,
    axis: str,
    dash: str = "solid",
    unit: str = "",
    bounds: tuple[str, str] | None = None,
) -> None:
    error: Mapping[str, Any] | None = None
    value = rows[column].astype(float)
    if bounds is not None and rows[bounds[0]].notna().any():
        error = {
            "array": (rows[bounds[1]].astype(float) - value).fillna(0).clip(lower=0),
            "arrayminus": (value - rows[bounds[0]].astype(float)).fillna(0).clip(lower=0),
            "color": colour,
            "thickness": 1.2,
            "width": 0,
        }
    figure.add_scatter(
        x=rows["value"],
        y=value,
        name=html.escape(name),
        mode="lines+markers",
        line={"color": colour, "width": 1.8, "dash": dash},
        marker={"size": 7, "color": [LIGHT["paper"] if calm else colour for calm in rows["neutral"]],
                "line": {"color": colour, "width": 1.6}},
        error_y=error,
        yaxis=axis,
        hovertemplate="%{y:.3f} " + unit,
    )  # fmt: skip


def _x(figure: go.Figure, rows: pd.DataFrame, field: str) -> None:
    values = [float(value) for value in rows["value"]]
    log = logarithmic(values)
    figure.update_xaxes(title_text=html.escape(field), type="log" if log else "linear", zeroline=False)
    if len(values) <= 12:
        figure.update_xaxes(tickvals=values, ticktext=[f"{value:g}" for value in values])
    for value in rows.loc[rows["neutral"], "value"]:
        line = {"color": LIGHT["soft"], "width": 1, "dash": "dot"}
        figure.add_shape(type="line", x0=value, x1=value, y0=0, y1=1, yref="paper", line=line, layer="below")
        # Shapes stand at values of an axis, annotations at its logarithms.
        figure.add_annotation(
            x=math.log10(value) if log else float(value),
            y=1,
            yref="paper",
            text="neutral",
            showarrow=False,
            yanchor="bottom",
            font={"size": 11, "color": LIGHT["soft"]},
        )


def logarithmic(values: Sequence[float]) -> bool:
    """Whether values are told apart better on a logarithmic axis.

    >>> logarithmic([0.01, 0.1, 1]), logarithmic([0, 0.1, 1]), logarithmic([1, 2, 3])
    (True, False, False)
    """
    return min(values) > 0 and max(values) / min(values) >= WIDE
