"""Figures of head scores: pure functions from results to plotly figures, in one style.

All figures are drawn on transparent paper in the colours of ``palette``; widths follow the container.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from headscope.errors import DataError
from headscope.report.agreement import heads_of, labels
from headscope.report.grids import by_factor as by_factor
from headscope.report.grids import factors_of as factors_of
from headscope.report.grids import head_grid as head_grid
from headscope.report.grids import matrix as matrix
from headscope.report.numbers import head_name, interval, number, p_value, percent
from headscope.report.palette import DIVERGING_LIGHT, LIGHT, ramp
from headscope.report.style import finish

if TYPE_CHECKING:
    from headscope.probes.scores import HeadScores

ALWAYS = 0.9
"""A head that is active in at least this share of contexts counts as always active."""
_ROW = 21


def head_map(scores: HeadScores, column: str = "score", *, title: str | None = None) -> go.Figure:
    """Map of all heads: layers from left to right, heads from top to bottom, selected heads outlined.

    Parameters
    ----------
    scores
        Result of a probe.
    column
        Numeric column of the table to colour by.
    title
        Heading; by default the probe and the model.
    """
    grid = scores.map(column)
    layers, heads = grid.shape
    hover = np.full(grid.shape, "", dtype=object)
    for row in scores.table.to_dict("records"):
        hover[row["layer"], row["head"]] = _hover(row, column)
    figure = go.Figure(
        go.Heatmap(
            z=grid.T,
            x=np.arange(layers),
            y=np.arange(heads),
            coloraxis="coloraxis",
            text=hover.T,
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            name=html.escape(column),
        )
    )
    _outline(figure, scores.selected)
    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low < 0:
        bound = max(-low, high)
        figure.update_layout(coloraxis={"colorscale": ramp(DIVERGING_LIGHT), "cmin": -bound, "cmax": bound})
    else:
        figure.update_layout(coloraxis={"cmin": 0.0, "cmax": high or 1.0})
    plain = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(title_text="layer", dtick=_tick(layers), range=[-0.55, layers - 0.45], **plain)
    figure.update_yaxes(title_text="head", dtick=_tick(heads), range=[heads - 0.4, -0.6], **plain)
    height = min(760, max(150, heads * _ROW + 70))
    return finish(figure, _heading(scores) if title is None else title, height)


def ranked_intervals(scores: HeadScores, top: int = 25, *, title: str | None = None) -> go.Figure:
    """Forest plot of the best heads: score, 95 % interval, and the null mean of each.

    Parameters
    ----------
    scores
        Result of a probe.
    top
        Heads to show.
    title
        Heading; by default the probe and the model.
    """
    best = scores.ranked().dropna(subset=["score"]).head(top)
    names = [head_name(layer, head) for layer, head in zip(best["layer"], best["head"], strict=True)]
    figure = go.Figure()
    for chosen, colour, name in ((True, LIGHT["accent"], "selected"), (False, LIGHT["grey"], "not selected")):
        part = best[best["selected"] == chosen]
        if part.empty:
            continue
        labels_ = [head_name(layer, head) for layer, head in zip(part["layer"], part["head"], strict=True)]
        figure.add_scatter(
            x=part["score"],
            y=labels_,
            mode="markers",
            name=name,
            marker={"size": 8, "color": colour, "symbol": "circle" if chosen else "circle-open"},
            error_x={
                "array": (part["ci_high"] - part["score"]).fillna(0).clip(lower=0),
                "arrayminus": (part["score"] - part["ci_low"]).fillna(0).clip(lower=0),
                "color": colour,
                "thickness": 1.5,
                "width": 0,
            },
            text=[_hover(row, "score") for row in part.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
        )
    if best["null_mean"].notna().any():
        figure.add_scatter(
            x=best["null_mean"],
            y=names,
            mode="markers",
            name="null",
            marker={"symbol": "line-ns-open", "size": 10, "color": LIGHT["warm"], "line": {"width": 2}},
            hovertemplate="null %{x:.3g}<extra></extra>",
        )
    threshold = scores.provenance.get("parameters", {}).get("threshold")
    if isinstance(threshold, (int, float)) and not isinstance(threshold, bool):
        figure.add_vline(x=float(threshold), line={"color": LIGHT["soft"], "width": 1, "dash": "dot"})
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], dtick=1, range=[-0.7, len(names) - 0.3])
    figure.update_xaxes(title_text="score, 95 % interval", zeroline=True)
    return finish(figure, _heading(scores) if title is None else title, 90 + 19 * max(1, len(best)))


def dose_response(dose: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Effect of removing the k best heads beside removing as many control heads.

    Parameters
    ----------
    dose
        Rows of ``verify`` for one metric and one ablation: k, kind ("top", "control" and whatever else), replicate,
        value. The band spans the 5 % and 95 % quantiles of the controls; every control is a dot.
    title
        Heading.
    """
    if dose.empty:
        raise DataError("There is no dose-response to draw: the table has no row.")
    figure = go.Figure()
    metric = html.escape(str(dose["metric"].iloc[0])) if "metric" in dose else "value"
    control = dose[dose["kind"] == "control"].dropna(subset=["value"])
    baseline = dose[~dose["kind"].isin(["top", "control"])].dropna(subset=["value"])
    if not control.empty:
        by_k = control.groupby("k")["value"]
        middle, low, high = by_k.mean(), by_k.quantile(0.05), by_k.quantile(0.95)
        count = by_k.size()
        edge = {"mode": "lines", "line": {"width": 0, "color": LIGHT["band"]}, "hoverinfo": "skip"}
        figure.add_scatter(x=high.index, y=high, showlegend=False, **edge)
        figure.add_scatter(x=low.index, y=low, fill="tonexty", fillcolor=LIGHT["band"], name="controls, 5–95 %", **edge)
        figure.add_scatter(
            x=control["k"],
            y=control["value"],
            mode="markers",
            name="each control",
            marker={"size": 5, "color": LIGHT["grey"], "symbol": "circle-open"},
            hovertemplate="k = %{x}<br>control %{y:.3g}<extra></extra>",
        )
        figure.add_scatter(
            x=middle.index,
            y=middle,
            customdata=count,
            mode="lines",
            name="mean of controls",
            line={"color": LIGHT["grey"], "width": 2, "dash": "dash"},
            hovertemplate="k = %{x}<br>mean of %{customdata} controls %{y:.3g}<extra></extra>",
        )
    top = dose[dose["kind"] == "top"].dropna(subset=["value"]).sort_values("k")
    error = None
    if {"ci_low", "ci_high"} <= set(dose.columns):
        error = {
            "array": (top["ci_high"] - top["value"]).fillna(0).clip(lower=0),
            "arrayminus": (top["value"] - top["ci_low"]).fillna(0).clip(lower=0),
            "thickness": 1.2,
            "width": 0,
        }
    figure.add_scatter(
        x=top["k"],
        y=top["value"],
        error_y=error,
        mode="lines+markers",
        name="best heads removed" if error is None else "best heads removed, 95 % interval",
        line={"color": LIGHT["warm"], "width": 2.5},
        marker={"size": 8},
        hovertemplate="k = %{x}<br>best heads removed %{y:.3g}<extra></extra>",
    )
    if not baseline.empty:
        level = float(baseline["value"].mean())
        figure.add_hline(
            y=level,
            line={"color": LIGHT["soft"], "width": 1, "dash": "dot"},
            annotation={"text": "all heads", "font": {"size": 11, "color": LIGHT["soft"]}, "x": 1, "xanchor": "right"},
        )
    ks = sorted({int(k) for k in dose["k"] if k > 0})
    figure.update_xaxes(title_text="heads removed (k)", tickvals=ks if len(ks) <= 12 else None, showgrid=False)
    figure.update_yaxes(title_text=metric, rangemode="tozero")
    return finish(figure, title, 340)


def activation(frame: pd.DataFrame, *, always: float = ALWAYS, top: int = 60, title: str = "") -> go.Figure:
    """Share of contexts in which each head is active, most active first.

    Parameters
    ----------
    frame
        Columns layer, head, active (0 to 1).
    always
        Share from which a head counts as always active.
    top
        Heads to show.
    title
        Heading.
    """
    order = frame[frame["active"] > 0].sort_values(["active", "layer", "head"], ascending=[False, True, True])
    shown = order.head(top).reset_index(drop=True)
    shown["name"] = [head_name(layer, head) for layer, head in zip(shown["layer"], shown["head"], strict=True)]
    steady = shown["active"] >= always
    figure = go.Figure()
    groups = ((steady, "always active", LIGHT["accent"]), (~steady, "by context", LIGHT["gold"]))
    for mask, name, colour in groups:
        part = shown[mask]
        if not part.empty:
            figure.add_bar(
                x=part["name"],
                y=part["active"],
                name=name,
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate="%{x}: active in %{y:.1%} of contexts<extra></extra>",
            )
    figure.add_hline(y=always, line={"color": LIGHT["soft"], "width": 1, "dash": "dot"})
    figure.update_xaxes(title_text="head", showgrid=False, tickangle=-90, tickfont={"size": 10})
    figure.update_yaxes(title_text="share of contexts", range=[0, 1.02], tickformat=".0%")
    figure.update_layout(bargap=0.25)
    return finish(figure, title, 330)


def layer_profile(frame: pd.DataFrame, columns: Sequence[str], *, title: str = "") -> go.Figure:
    """Ratios by layer on a logarithmic axis, such as residual peaks, with intervals where the table has them.

    Parameters
    ----------
    frame
        Column layer, and for each of ``columns`` (``"peak_ratio"``) its values and optionally its bounds
        (``"peak_low"``, ``"peak_high"``).
    columns
        Columns to draw.
    title
        Heading.
    """
    figure = go.Figure()
    for column, colour, dash in zip(columns, ("accent", "warm", "gold"), ("solid", "dash", "dot"), strict=False):
        stem = column.removesuffix("_ratio")
        error = None
        if {f"{stem}_low", f"{stem}_high"} <= set(frame.columns):
            error = {
                "array": (frame[f"{stem}_high"] - frame[column]).fillna(0).clip(lower=0),
                "arrayminus": (frame[column] - frame[f"{stem}_low"]).fillna(0).clip(lower=0),
                "thickness": 1,
                "width": 0,
            }
        figure.add_scatter(
            x=frame["layer"],
            y=frame[column],
            error_y=error,
            mode="lines+markers",
            name=html.escape(column.replace("_", " ")),
            line={"color": LIGHT[colour], "width": 2, "dash": dash},
            marker={"size": 6},
            hovertemplate=f"layer %{{x}}<br>{html.escape(stem)} × %{{y:.3g}}<extra></extra>",
        )
    figure.update_xaxes(title_text="layer", dtick=_tick(len(frame)), showgrid=False)
    figure.update_yaxes(title_text="first token ÷ others", type="log", exponentformat="power")
    return finish(figure, title, 320)


def agreement_scatter(
    a: HeadScores, b: HeadScores, *, names: Sequence[str] | None = None, title: str = ""
) -> go.Figure:
    """Scores of the same heads under two rankings, one dot per head, coloured by who selected it.

    Raises
    ------
    DataError
        If the two have different heads.
    """
    if heads_of(a) != heads_of(b):
        raise DataError("A scatter needs the same heads in both rankings; use compare for models of different shape.")
    first, second = map(html.escape, labels([a, b]) if names is None else names)
    chosen_a, chosen_b = (s.table["selected"].to_numpy(dtype=bool) for s in (a, b))
    heads = np.array([head_name(layer, head) for layer, head in heads_of(a)])
    x, y = (s.table["score"].to_numpy(dtype=np.float64) for s in (a, b))
    figure = go.Figure()
    groups = (
        (~chosen_a & ~chosen_b, "neither", "grey", "circle-open"),
        (chosen_a & ~chosen_b, f"only {first}", "accent", "square"),
        (~chosen_a & chosen_b, f"only {second}", "gold", "diamond"),
        (chosen_a & chosen_b, "both", "warm", "circle"),
    )
    for mask, name, colour, symbol in groups:
        if mask.any():
            figure.add_scatter(
                x=x[mask],
                y=y[mask],
                text=heads[mask],
                mode="markers",
                name=f"{name} ({mask.sum()})",
                marker={"size": 7, "color": LIGHT[colour], "symbol": symbol, "opacity": 0.85},
                hovertemplate=f"%{{text}}<br>{first} %{{x:.3g}}<br>{second} %{{y:.3g}}<extra></extra>",
            )
    figure.update_xaxes(title_text=first)
    figure.update_yaxes(title_text=second)
    return finish(figure, title, 380)


def depth_profile(profile: pd.DataFrame, *, names: Sequence[str], title: str = "") -> go.Figure:
    """Mean score over relative depth of two models, on an axis each: scores need not share a unit."""
    figure = go.Figure()
    for side, name, colour, dash in zip("ab", names, ("accent", "warm"), ("solid", "dash"), strict=True):
        label = html.escape(name)
        figure.add_scatter(
            x=profile["depth"],
            y=profile[f"mean_{side}"],
            customdata=profile[f"selected_{side}"],
            mode="lines+markers",
            name=label,
            line={"color": LIGHT[colour], "width": 2, "dash": dash},
            hovertemplate=f"{label}<br>depth %{{x:.0%}}<br>mean score %{{y:.3g}}<br>"
            "%{customdata:.1%} selected<extra></extra>",
        )
    figure.update_xaxes(
        title_text="depth (first layer 0 %, last 100 %)", range=[0, 1], tickformat=".0%", showgrid=False
    )
    figure.update_yaxes(title_text="mean score of the heads", rangemode="tozero")
    return finish(figure, title, 320)


def _outline(figure: go.Figure, heads: Sequence[tuple[int, int]]) -> None:
    """Draw the border of a set of cells, as one line with gaps: it scales with the axes, unlike a marker."""
    chosen = set(heads)
    x: list[float | None] = []
    y: list[float | None] = []
    for layer, head in heads:
        left, right, top, bottom = layer - 0.5, layer + 0.5, head - 0.5, head + 0.5
        edges = (
            ((layer - 1, head), (left, left), (top, bottom)),
            ((layer + 1, head), (right, right), (top, bottom)),
            ((layer, head - 1), (left, right), (top, top)),
            ((layer, head + 1), (left, right), (bottom, bottom)),
        )
        # An edge between two chosen cells is no border.
        for neighbour, across, down in edges:
            if neighbour not in chosen:
                x += [*across, None]
                y += [*down, None]
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": LIGHT["warm"], "width": 2},
            hoverinfo="skip",
            name="selected",
            showlegend=False,
        )


def _hover(row: dict[Any, Any], column: str) -> str:
    lines = [f"<b>{head_name(row['layer'], row['head'])}</b>{' · selected' if row['selected'] else ''}"]
    bounds = interval(row["ci_low"], row["ci_high"])
    if column != "score":
        lines.append(f"{html.escape(column)} {number(row[column])}")
    lines.append(f"score {number(row['score'])} {bounds}".strip())
    if np.isfinite(row["null_mean"]):
        lines.append(f"null {number(row['null_mean'])}")
    if np.isfinite(row["p_value"]):
        lines.append(f"p {p_value(row['p_value'])}")
    lines.append(f"n = {number(int(row['n']))}")
    return "<br>".join(lines)


def _heading(scores: HeadScores) -> str:
    model = scores.provenance.get("model", {}).get("name")
    share = percent(len(scores.selected) / len(scores.table))
    text = f"{scores.probe} · {model}" if model else scores.probe
    return html.escape(f"{text}: {len(scores.selected)} of {len(scores.table)} heads selected ({share})")


def _tick(count: int) -> int:
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if count / step <= 32)
