"""Figures that break a score down: by properties of samples, by domain, by pair of rankings."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from headscope.errors import DataError
from headscope.report.numbers import head_name, number, signed
from headscope.report.palette import DIVERGING_LIGHT, LIGHT, on_ramp, ramp
from headscope.report.style import finish


def by_factor(frame: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Mean score by one or two properties of the sample: dots for one, a heat-map for two.

    Parameters
    ----------
    frame
        One row per cell: factor columns, score, and optionally n and further measures.
    title
        Heading.
    """
    factors = factors_of(frame)
    if not factors:
        raise DataError("There is no factor to break the score down by.")
    if len(factors) == 1:
        return _dots(frame, factors[0], title)
    across, down = factors[:2]
    table = frame.groupby([down, across], sort=True).agg(score=("score", "mean"), n=_count(frame)).reset_index()
    scores = table.pivot(index=down, columns=across, values="score")
    counts = table.pivot(index=down, columns=across, values="n")
    figure = _grid(scores, "score", counts)
    figure.update_xaxes(title_text=html.escape(across))
    figure.update_yaxes(title_text=html.escape(down))
    return finish(figure, title, 110 + 30 * len(scores))


def head_grid(frame: pd.DataFrame, across: str, value: str, *, top: int = 40, title: str = "") -> go.Figure:
    """Heat-map of heads × one text column, such as the share of active texts of each domain.

    Parameters
    ----------
    frame
        Columns layer, head, ``across`` and ``value``.
    across, value
        Column whose values stand side by side, and numeric column to colour by.
    top
        Heads to show: those whose value differs most between the columns.
    title
        Heading.
    """
    named = frame.assign(
        name=[head_name(layer, head) for layer, head in zip(frame["layer"], frame["head"], strict=True)]
    )
    grid = named.pivot_table(index="name", columns=across, values=value, aggfunc="mean", sort=False)
    spread = (grid.max(axis=1) - grid.min(axis=1)).sort_values(ascending=False, kind="stable")
    chosen = grid.loc[spread.index[:top]]
    figure = _grid(chosen, value)
    figure.update_xaxes(title_text=html.escape(across), side="top")
    figure.update_layout(coloraxis_colorbar={"lenmode": "pixels", "len": 180, "y": 1, "yanchor": "top"})
    return finish(figure, title, 110 + 20 * len(chosen))


def matrix(values: NDArray[np.float64], names: Sequence[str], *, title: str = "") -> go.Figure:
    """Square matrix of correlations, written into its cells."""
    labelled = pd.DataFrame(values, index=list(names), columns=list(names))
    figure = _grid(labelled, "correlation", diverging=True)
    return finish(figure, title, 100 + 36 * len(labelled))


def factors_of(frame: pd.DataFrame) -> list[str]:
    """Columns of a breakdown that are properties of samples, length and depth first; constant ones are left out."""
    measures = {"score", "n", "ci_low", "ci_high"}
    found = [str(name) for name in frame.columns if name not in measures]
    # Probes add measures of the cell behind the score; the factors stand before it.
    if "score" in frame.columns:
        before = list(frame.columns).index("score")
        found = [name for name in found if list(frame.columns).index(name) < before] or found
    varied = [name for name in found if frame[name].nunique() > 1] or found[:1]
    return sorted(varied, key=lambda name: ({"length": 0, "depth": 1}.get(name, 2), varied.index(name)))


def _dots(frame: pd.DataFrame, factor: str, title: str) -> go.Figure:
    table = frame.groupby(factor, sort=True).agg(score=("score", "mean"), n=_count(frame)).reset_index()
    figure = go.Figure(
        go.Scatter(
            x=_shown(table[factor]),
            y=table["score"],
            customdata=table["n"],
            mode="markers+lines",
            connectgaps=True,
            line={"color": LIGHT["accent"], "width": 1.5},
            marker={"size": 9},
            hovertemplate=f"{html.escape(factor)} %{{x}}<br>score %{{y:.3g}}<br>n = %{{customdata}}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text=html.escape(factor), type="category")
    figure.update_yaxes(title_text="mean score", rangemode="tozero")
    return finish(figure, title, 300)


def _grid(cells: pd.DataFrame, name: str, counts: pd.DataFrame | None = None, *, diverging: bool = False) -> go.Figure:
    """Heat-map of a table with its numbers in the cells, as long as there is room for them."""
    values = cells.to_numpy(dtype=np.float64)
    across, down = _shown(cells.columns), _shown(cells.index)
    finite = values[np.isfinite(values)]
    low, high = (min(0.0, float(finite.min())), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high = (-1.0, 1.0) if diverging else (low, high if high > low else low + 1.0)
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=across,
            y=down,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            customdata=None if counts is None else counts.to_numpy(),
            hovertemplate=f"%{{y}} · %{{x}}<br>{html.escape(name)} %{{z:.3g}}"
            + ("" if counts is None else "<br>n = %{customdata}")
            + "<extra></extra>",
            hoverongaps=False,
        )
    )
    if len(across) <= 14:
        # Text of the heat-map itself takes a grey that is too faint on the middle of the ramp.
        written = [(i, j) for i, j in np.ndindex(*values.shape) if np.isfinite(values[i, j])]
        figure.add_scatter(
            x=[across[j] for _, j in written],
            y=[down[i] for i, _ in written],
            text=[signed(f"{values[i, j]:.2f}") for i, j in written],
            textfont={
                "size": 11,
                "color": [on_ramp((float(values[i, j]) - low) / (high - low), diverging=diverging) for i, j in written],
            },
            mode="text",
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_layout(coloraxis={"cmin": low, "cmax": high})
    if diverging:
        figure.update_layout(coloraxis_colorscale=ramp(DIVERGING_LIGHT))
    figure.update_xaxes(type="category", showgrid=False, range=[-0.5, len(across) - 0.5])
    figure.update_yaxes(type="category", showgrid=False, range=[len(down) - 0.5, -0.5])
    return figure


def _shown(values: Any) -> list[str]:
    """Axis labels: numbers short, text escaped because plotly reads tags in it."""
    return [
        number(value) if isinstance(value, (int, float, np.number)) else html.escape(str(value))
        for value in pd.Index(values).tolist()
    ]


def _count(frame: pd.DataFrame) -> tuple[str, str]:
    return ("n", "sum") if "n" in frame.columns else ("score", "size")
