"""Where one begins: models, recent runs, the tour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dash import html

from headscope.app.page import Page

if TYPE_CHECKING:
    from dash import Dash

    from headscope.app.desk import Desk


def layout(desk: Desk, **query: Any) -> html.Div:
    """Return the page."""
    return html.Div([html.H1("headscope")], className="page")


def callbacks(app: Dash, desk: Desk) -> None:
    """Register nothing yet."""


PAGE = Page("/", "Home", 0, "Models, recent runs and the tour", layout, callbacks)
