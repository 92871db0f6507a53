"""The frame around every page: name, navigation, colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash
import dash_mantine_components as dmc
from dash import dcc, html

from headscope.app.page import Page
from headscope.report.palette import DARK, LIGHT

THEME: dict[str, Any] = {
    "fontFamily": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    "fontFamilyMonospace": "ui-monospace, 'SF Mono', 'Cascadia Mono', Menlo, Consolas, monospace",
    "primaryColor": "ink",
    "primaryShade": {"light": 7, "dark": 3},
    "defaultRadius": 3,
    "fontSizes": {"xs": "11px", "sm": "13px", "md": "14px", "lg": "16px", "xl": "20px"},
    "headings": {"fontWeight": "600", "sizes": {"h1": {"fontSize": "20px"}, "h2": {"fontSize": "15px"}}},
    "colors": {
        # Ten shades between the accents of dark and light paper.
        "ink": [
            "#eaf2fb", "#cfe1f4", "#a9caec", DARK["accent"], "#5f9cd8", "#4585c4", "#2f70ae", LIGHT["accent"],
            "#184d7d", "#103a60",
        ],
    },
}  # fmt: skip


def shell(pages: Sequence[Page]) -> dmc.MantineProvider:
    """Return the frame with the place for a page in it."""
    links = [
        dcc.Link(page.name, href=page.path, className="nav-link", id={"nav": page.path}, title=page.about)
        for page in pages
    ]
    header = html.Header(
        [
            html.A("Skip to content", href="#content", className="skip"),
            dcc.Link("headscope", href="/", className="brand"),
            html.Nav(links, className="nav", **{"aria-label": "Pages"}),
            html.Div(id="header-note", className="header-note", **{"aria-live": "polite"}),
            dmc.ColorSchemeToggle(
                id="colour-scheme",
                lightIcon="☀",
                darkIcon="☾",
                variant="subtle",
                size="md",
                **{"aria-label": "Light or dark"},
            ),
        ],
        className="header",
    )
    return dmc.MantineProvider(
        [header, html.Main(dash.page_container, id="content", className="content", tabIndex="-1")],
        theme=THEME,
        defaultColorScheme="auto",
    )
