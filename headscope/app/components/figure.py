"""Plotly figures of a page: in the colours of light or dark paper, and out of the page as PNG, SVG, HTML or CSV.

A page gives the figure of ``headscope.report`` to ``Output(figure_data(name), "data")``. The browser draws it in the
colours of the scheme that is on, and again when that changes; the server is not asked. ``Input(name, "clickData")``
and the like are those of the ``dcc.Graph`` called ``name``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dash import ClientsideFunction, Input, Output, State, dcc, html
from flask import Blueprint, Response, request

from headscope.errors import DataError
from headscope.report.palette import dark_of

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from dash import Dash

Id = str | dict[str, Any]

_KINDS = {
    "png": "Picture in twice the resolution of the screen",
    "svg": "Vector drawing",
    "html": "One file that opens offline",
    "csv": "The numbers behind the figure",
}
_BUTTONS = [["zoom2d", "pan2d", "resetScale2d"]]


def figure(
    name: Id,
    drawn: go.Figure | None = None,
    *,
    caption: str = "",
    file: str = "figure",
    label: str = "",
    kinds: tuple[str, ...] = ("png", "svg", "html", "csv"),
    class_name: str = "",
) -> html.Figure:
    """Return a figure with its caption and the buttons that export it; hidden while there is nothing to draw.

    Parameters
    ----------
    name
        Id of the ``dcc.Graph``: text, or a mapping for figures whose number is not known beforehand.
    drawn
        What it shows at first.
    caption
        One sentence below; ``Output(f"{name}-caption", "children")`` changes that of a figure whose id is text.
    file
        Name of exported files, without their ending.
    label
        What a screen reader calls it; the caption by default.
    kinds
        Which exports there are.
    """
    exports = [
        html.Button(
            kind.upper(),
            type="button",
            className="figure-export",
            title=_KINDS[kind],
            **{"data-export": kind, "aria-label": f"Save as {kind.upper()}: {_KINDS[kind]}"},
        )
        for kind in kinds
    ]
    graph = dcc.Graph(
        id=name,
        figure={"data": [], "layout": {}},
        config={"responsive": True, "displaylogo": False, "modeBarButtons": _BUTTONS, "displayModeBar": "hover"},
        className="figure-graph",
    )
    return html.Figure(
        [
            dcc.Store(id=figure_data(name), data=None if drawn is None else drawn.to_plotly_json()),
            dcc.Store(id=_part(name, "dark"), data=dark_of()),
            graph,
            html.Figcaption(
                [
                    html.Span(caption, id=_part(name, "caption")),
                    html.Span(exports, className="figure-exports", role="group", **{"aria-label": "Save the figure"}),
                ]
            ),
        ],
        id=_part(name, "frame"),
        className=f"figure {class_name}".strip(),
        hidden=drawn is None,
        **{"data-file": file, "aria-label": label or caption or "Figure"},
    )


def figure_data(name: Id) -> Id:
    """Return the id of the store that holds the figure called ``name``: what a callback writes, or None."""
    return _part(name, "figure")


def figure_callbacks(
    app: Dash, name: Id, *, draw: ClientsideFunction | None = None, also: tuple[Input, ...] = ()
) -> None:
    """Register what draws the figure called ``name``, and what exports any figure.

    Parameters
    ----------
    name
        As given to ``figure``; ``{"figure": …, "index": MATCH}`` for many.
    draw, also
        A function of one's own that draws, given (figure, scheme, values of ``also``, dark partners, id); it begins
        with ``headscope_figure.draw`` and returns what that returns: the figure, whether there is none, its style.
    """
    app.clientside_callback(
        draw or ClientsideFunction("headscope_figure", "draw"),
        Output(name, "figure"),
        Output(_part(name, "frame"), "hidden"),
        Output(name, "style"),
        Input(figure_data(name), "data"),
        Input("colour-scheme", "computedColorScheme"),
        *also,
        State(_part(name, "dark"), "data"),
        State(name, "id"),
    )
    if _routes.name not in app.server.blueprints:
        app.server.register_blueprint(_routes)


def _part(name: Id, part: str) -> Id:
    return f"{name}-{part}" if isinstance(name, str) else {**name, "part": part}


_routes = Blueprint("headscope-figure", __name__)


@_routes.post("/figure/page")
def _page() -> Response:
    """Return a figure that a page shows as one HTML file."""
    asked: Any = request.get_json(silent=True)
    try:
        text = as_page(asked["figure"], str(asked.get("title") or ""), str(asked.get("caption") or ""))
    except (DataError, TypeError, KeyError, AttributeError) as error:
        return Response(f"That is no figure: {error}", 400, mimetype="text/plain")
    headers = {"Content-Disposition": "attachment; filename=figure.html", "Cache-Control": "no-store"}
    return Response(text, mimetype="text/html", headers=headers)


def as_page(drawn: dict[str, Any], title: str, caption: str) -> str:
    """Return one HTML file that holds a figure and opens offline.

    Raises
    ------
    DataError
        If ``drawn`` is not a plotly figure.
    """
    import plotly.graph_objects as go

    from headscope.report.blocks import Page, Part, Picture, Section
    from headscope.report.html import render

    try:
        made = go.Figure({"data": drawn["data"], "layout": drawn["layout"]})
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"Plotly does not take it ({str(error)[:200]}).") from error
    if made.layout.height is None:
        made.update_layout(height=480)
    heading = title or "Figure"
    section = Section("figure", "", (Picture(made, caption),))
    return render(Page(title=heading, subtitle="", parts=(Part("p1", heading, "", (section,)),)))
