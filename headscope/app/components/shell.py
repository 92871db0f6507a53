"""The frame around every page: name, navigation, colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dash
import dash_mantine_components as dmc
from dash import dcc, html

from headscope.app.page import Page
from headscope.report.palette import DARK, LIGHT

if TYPE_CHECKING:
    from headscope.app.desk import Desk
    from headscope.app.settings import Settings

THEME: dict[str, Any] = {
    "fontFamily": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    "fontFamilyMonospace": "ui-monospace, 'SF Mono', 'Cascadia Mono', Menlo, Consolas, monospace",
    "primaryColor": "ink",
    "primaryShade": {"light": 7, "dark": 3},
    "defaultRadius": 3,
    "fontSizes": {"xs": "11px", "sm": "13px", "md": "14px", "lg": "16px", "xl": "20px"},
    "spacing": {"xs": "6px", "sm": "10px", "md": "14px", "lg": "20px", "xl": "32px"},
    "headings": {"fontWeight": "600", "sizes": {"h1": {"fontSize": "20px"}, "h2": {"fontSize": "15px"}}},
    "cursorType": "pointer",
    "respectReducedMotion": True,
    "colors": {
        # Ten shades between the accents of dark and light paper.
        "ink": [
            "#eaf2fb", "#cfe1f4", "#a9caec", DARK["accent"], "#5f9cd8", "#4585c4", "#2f70ae", LIGHT["accent"],
            "#184d7d", "#103a60",
        ],
        # Mantine's own greys are bluish; ours lean to the paper. Text, then soft text, edges, panel, paper.
        "dark": [
            DARK["ink"], "#c9c8c5", DARK["soft"], DARK["grey"], "#4a5059", DARK["line"], DARK["panel"], DARK["paper"],
            "#0f1114", "#0a0b0d",
        ],
        "gray": [
            "#f7f5f0", LIGHT["wash"], "#e8e5dd", LIGHT["line"], "#c4c1b9", LIGHT["grey"], LIGHT["soft"], "#464b52",
            "#2f3338", LIGHT["ink"],
        ],
    },
}  # fmt: skip


def shell(desk: Desk, pages: Sequence[Page]) -> dmc.MantineProvider:
    """Return the frame with the place for a page in it."""
    links = [
        dcc.Link(page.name, href=page.path, className="nav-link", id={"nav": page.path}, title=page.about)
        for page in pages
    ]
    header = html.Header(
        [
            html.A("Skip to content", href="#content", className="skip"),
            dcc.Link(
                [html.Span(className="mark", **{"aria-hidden": "true"}), "headscope"], href="/", className="brand"
            ),
            html.Nav(links, className="nav", **{"aria-label": "Pages"}),
            html.Div(_machine(desk.settings), id="header-note", className="header-note", **{"aria-live": "polite"}),
            dmc.ColorSchemeToggle(
                id="colour-scheme",
                lightIcon=html.Span(className="icon icon-sun"),
                darkIcon=html.Span(className="icon icon-moon"),
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


def _machine(settings: Settings) -> str:
    """Return the model that pages begin with, and what it works on."""
    return " · ".join(part for part in (Path(settings.model).name, settings.device, settings.dtype) if part)
