"""The heads of a ranking: map and table, and the heads that are picked from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Input, Output, State, html

from headscope.app.components import ranking_table
from headscope.app.components.copy import copy_button
from headscope.app.components.figure import figure

if TYPE_CHECKING:
    from dash import Dash


def heads_tab(k: int, colour: str) -> list[Any]:
    """Return the tab: tools, map, what is picked, table."""
    tools = html.Div(
        [
            dmc.TextInput(
                id="rank-search", placeholder="Find L18H6", size="xs", debounce=120, **{"aria-label": "Find a head"}
            ),
            dmc.Switch(
                id="rank-only",
                label="only those that pass",
                size="xs",
                persistence=True,
                persistence_type="session",
            ),
            html.Details(
                [
                    html.Summary("Columns"),
                    dmc.CheckboxGroup(
                        dmc.Stack([], gap=4), id="rank-columns", value=[], size="xs", **{"aria-label": "Columns"}
                    ),
                ],
                className="menu",
            ),
            dmc.Select(
                id="rank-colour",
                value=colour,
                data=[{"value": colour, "label": colour}],
                allowDeselect=False,
                size="xs",
                leftSection=html.Span("map", className="soft small"),
                leftSectionWidth=42,
                comboboxProps={"width": "max-content"},
                **{"aria-label": "Colour of the map"},
            ),
            html.A(
                "Show in Explore",
                id="rank-explore",
                href="/explore",
                className="quiet end",
                title="The run that was shown there last, coloured by this ranking",
                **{"data-explore": ""},
            ),
            copy_button("rank-cell", "Copy as notebook cell", look="quiet"),
        ],
        className="rank-tools",
    )
    pick = html.Div(
        [
            html.Strong(id="rank-count", role="status"),
            html.Span(id="rank-names", className="rank-names soft"),
            html.Span(
                [
                    html.Button("Best", id="rank-top", type="button", className="quiet"),
                    dmc.NumberInput(
                        id="rank-k", value=k, min=1, max=100000, size="xs", hideControls=True, allowDecimal=False,
                        **{"aria-label": "How many of the best heads"},
                    ),
                ],
                className="pick-best",
            ),
            html.Button("All that pass", id="rank-passing", type="button", className="quiet"),
            html.Button("Clear", id="rank-clear", type="button", className="quiet"),
            html.Span(
                [
                    dmc.TextInput(
                        id="rank-save-name", placeholder="Name of a set", size="xs",
                        **{"aria-label": "Name of the head set"},
                    ),
                    dmc.Button("Save as head set", id="rank-save", size="compact-sm", variant="filled"),
                ],
                className="pick-save",
            ),
        ],
        className="rank-pick",
    )  # fmt: skip
    return [
        tools,
        html.Div(
            [
                html.Div(
                    [
                        figure(
                            "rank-map",
                            caption="Every cell is a head. Outlined: passes the rule. Dot: picked; click to pick.",
                            file="heads",
                            label="Map of all heads, layers by heads",
                        ),
                        html.Div(id="rank-elsewhere"),
                    ],
                    className="rank-above",
                ),
                html.Div(
                    [pick, html.Div(id="rank-save-said", **{"aria-live": "polite"}),
                     html.Div(ranking_table.grid("rank-table"), className="rank-grid")],
                    className="rank-below",
                ),
            ],
            className="rank-split",
        ),
    ]  # fmt: skip


def picking_callbacks(app: Dash) -> None:
    """Register what picks heads, and what the address and the page say of it; all in the browser."""
    app.clientside_callback(
        ClientsideFunction("headscope_rank", "pick"),
        Output("rank-heads", "data"),
        Output("rank-table", "selectedRows"),
        Output("rank-table", "scrollTo"),
        Output("rank-map", "clickData"),
        Input("rank-table", "selectedRows"),
        Input("rank-map", "clickData"),
        Input("rank-dot", "data"),
        Input("rank-top", "n_clicks"),
        Input("rank-passing", "n_clicks"),
        Input("rank-clear", "n_clicks"),
        Input("rank-ask", "data"),
        Input("rank-table", "rowData"),
        State("rank-heads", "data"),
        State("rank-k", "value"),
    )
    app.clientside_callback(
        ClientsideFunction("headscope_rank", "picked"),
        Output("rank-count", "children"),
        Output("rank-names", "children"),
        Output("rank-clear", "disabled"),
        Output("rank-save", "disabled"),
        Output("rank-save-said", "children", allow_duplicate=True),
        Input("rank-heads", "data"),
        prevent_initial_call="initial_duplicate",
    )
    app.clientside_callback(
        ClientsideFunction("headscope_rank", "explore"),
        Output("rank-explore", "href"),
        Input("rank-heads", "data"),
        Input("rank-file", "data"),
        Input("rank-table", "rowData"),
    )
    app.clientside_callback(
        ClientsideFunction("headscope_rank", "search"),
        Output("rank-table", "dashGridOptions"),
        Output("rank-table", "filterModel"),
        Input("rank-search", "value"),
        Input("rank-only", "checked"),
        State("rank-table", "dashGridOptions"),
        State("rank-table", "filterModel"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("headscope_rank", "about_open"), Output("rank-head", "hidden"), Input("rank-tab", "value")
    )
    app.clientside_callback(
        ClientsideFunction("headscope_rank", "address"),
        Output("rank-nothing", "children"),
        Input("rank-file", "data"),
        Input("rank-with", "value"),
        Input("rank-heads", "data"),
        Input("rank-tab", "value"),
        Input("rank-k", "value"),
        Input("rank-colour", "value"),
        Input("rank-columns", "value"),
        Input("rank-set", "data"),
        State("rank-columns-usual", "data"),
    )
