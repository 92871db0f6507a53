"""The one style of all figures."""

from __future__ import annotations

import plotly.graph_objects as go

from headscope.report.palette import LIGHT, RAMP_LIGHT, ramp

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def template() -> go.layout.Template:
    """Return the style that all figures share."""
    axis = {
        "gridcolor": LIGHT["line"],
        "linecolor": LIGHT["grey"],
        "zerolinecolor": LIGHT["line"],
        "tickcolor": LIGHT["grey"],
        "ticks": "outside",
        "ticklen": 3,
        "title": {"standoff": 8, "font": {"size": 12, "color": LIGHT["soft"]}},
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "font": {"family": _FONT, "size": 12, "color": LIGHT["ink"]},
            "title": {"font": {"size": 14}, "x": 0, "xref": "paper", "xanchor": "left"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": [LIGHT[name] for name in ("accent", "warm", "gold", "good", "grey", "bad")],
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 48, "r": 12, "t": 40, "b": 44},
            "hoverlabel": {
                "bgcolor": LIGHT["panel"],
                "bordercolor": LIGHT["grey"],
                "font": {"color": LIGHT["ink"], "family": _FONT, "size": 12},
                "align": "left",
            },
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
            "coloraxis": {
                "colorscale": ramp(RAMP_LIGHT),
                "colorbar": {"thickness": 10, "outlinewidth": 0, "ticklen": 3, "xpad": 6, "tickfont": {"size": 11}},
            },
            "hovermode": "closest",
        }
    )


def finish(figure: go.Figure, title: str, height: int) -> go.Figure:
    """Give a figure the shared style, its heading and its height; the width is the container's."""
    figure.update_layout(template=template(), height=height, autosize=True, title_text=title or None)
    if not title:
        legend = any(trace.type != "heatmap" and trace.showlegend is not False for trace in figure.data)
        figure.update_layout(margin_t=34 if legend else 10)
    return figure
