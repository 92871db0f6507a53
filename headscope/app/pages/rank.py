"""Rank: which heads do what; rankings opened, made, compared, and picked from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Input, Output, State, dcc, html

from headscope.app.components import ranking_compare, ranking_details, ranking_form, ranking_list, ranking_table
from headscope.app.components.figure import figure_callbacks, figure_data
from headscope.app.components.ranking_files import Ranking, rankings, read
from headscope.app.components.ranking_heads_tab import heads_tab, picking_callbacks
from headscope.app.components.ranking_making import making_callbacks
from headscope.app.components.ranking_sets_tab import sets_callbacks, sets_tab
from headscope.app.components.ranking_sides import sides_callbacks
from headscope.app.components.trouble import told
from headscope.app.page import Page
from headscope.errors import HeadscopeError
from headscope.report.figures import head_map
from headscope.report.words import headline, rule, title_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dash import Dash

    from headscope.app.desk import Desk

TABS = {
    "heads": "Heads",
    "compare": "Compare",
    "sets": "Head sets",
    "details": "Details",
    "new": "New ranking",
}
K = 20


def layout(
    desk: Desk,
    file: str | None = None,
    heads: str = "",
    tab: str = "heads",
    k: str = "",
    colour: str = "score",
    columns: str | None = None,
    **query: Any,
) -> html.Div:
    """Return the page as the address says it: open file, others beside it, picked heads, tab, k, colour, columns."""
    known = rankings(desk)
    if file is None and known:
        file = known[0].file
    beside = [name for name in str(query.get("with") or "").split(",") if name]
    picked = [f"{layer}.{head}" for layer, head in ranking_table.pairs(heads.split(","))]
    number = int(k) if k.isdecimal() and int(k) > 0 else K
    tab = tab if tab in TABS else "heads"
    return html.Div(
        [
            dcc.Store(id="rank-file", data=file),
            dcc.Store(id="rank-heads", data=picked),
            dcc.Store(id="rank-ask"),
            dcc.Store(id="rank-dot"),
            dcc.Store(id="rank-done"),
            dcc.Store(id="rank-uploaded"),
            dcc.Store(id="rank-columns-asked", data=columns.split(",") if columns else None),
            dcc.Store(id="rank-columns-usual"),
            dcc.Store(id="rank-defs"),
            html.H1("Rank", className="unseen"),
            ranking_list.sidebar(),
            html.Div(
                [
                    html.Div(id="rank-head", className="rank-head"),
                    html.Div(id="rank-error", **{"aria-live": "assertive"}),
                    dmc.Tabs(
                        [
                            dmc.TabsList([dmc.TabsTab(label, value=name) for name, label in TABS.items()]),
                            dmc.TabsPanel(heads_tab(number, colour), value="heads", className="rank-panel heads-panel"),
                            dmc.TabsPanel(_compare(known, beside), value="compare", className="rank-panel"),
                            dmc.TabsPanel(sets_tab(desk, query.get("set")), value="sets", className="rank-panel"),
                            dmc.TabsPanel(_details(), value="details", className="rank-panel"),
                            dmc.TabsPanel(ranking_form.form(desk), value="new", className="rank-panel"),
                        ],
                        id="rank-tab",
                        value=tab if known or tab == "sets" else "new",
                        keepMounted=True,
                        className="rank-tabs",
                    ),
                ],
                className="rank-main",
            ),
            html.Pre(id="rank-cell", hidden=True),
            html.Div(id="rank-nothing", hidden=True),
        ],
        className="page rank-page",
    )


def _compare(known: Sequence[Ranking], beside: Sequence[str]) -> list[Any]:
    return [ranking_compare.controls(known, beside), dcc.Loading(html.Div(id="rank-compared"), delay_show=300)]


def _details() -> list[Any]:
    return [
        ranking_details.report_buttons(),
        html.Div(id="rank-report-error", **{"aria-live": "assertive"}),
        html.Div(id="rank-detailed"),
    ]


def callbacks(app: Dash, desk: Desk) -> None:
    """Register everything that the page does."""
    _opening(app, desk)
    picking_callbacks(app)
    ranking_list.list_callbacks(app, desk)
    sides_callbacks(app, desk)
    making_callbacks(app, desk)
    sets_callbacks(app, desk)
    ranking_details.routes(app, desk)


def _opening(app: Dash, desk: Desk) -> None:
    """Register what opening a ranking shows."""

    @app.callback(
        Output("rank-head", "children"),
        Output("rank-table", "rowData"),
        Output("rank-defs", "data"),
        Output("rank-columns", "children"),
        Output("rank-columns", "value"),
        Output("rank-columns-usual", "data"),
        Output("rank-colour", "data"),
        Output("rank-colour", "value"),
        Output("rank-error", "children"),
        Input("rank-file", "data"),
        State("rank-columns-asked", "data"),
        State("rank-colour", "value"),
    )  # type: ignore[untyped-decorator]
    @told(8)
    def opened(file: str | None, columns: list[str] | None, colour: str) -> Any:
        if file is None:
            return html.P(ranking_list.NOTHING, className="headline"), [], None, None, [], [], [], "score"
        scores = read(desk, file)
        choices = ranking_table.choices(scores)
        names = {choice["value"] for choice in choices}
        usual = ranking_table.shown_at_first(scores)
        wanted = [name for name in columns or () if name in names] or usual
        measures = ranking_table.measures(scores)
        if colour not in {measure["value"] for measure in measures}:
            colour = "score"
        boxes = dmc.Stack([dmc.Checkbox(value=one["value"], label=one["label"], size="xs") for one in choices], gap=6)
        scored = html.Details(
            [html.Summary("How it is scored"), html.P(rule(scores), className="small")], className="menu"
        )
        head = [html.H2(title_of(scores)), scored, html.P(headline(scores), className="headline")]
        rows, defs = ranking_table.rows(scores), ranking_table.columns(scores)
        return head, rows, defs, boxes, wanted, usual, measures, colour

    app.clientside_callback(
        ClientsideFunction("headscope_rank", "show_columns"),
        Output("rank-table", "columnDefs"),
        Input("rank-defs", "data"),
        Input("rank-columns", "value"),
    )

    @app.callback(
        Output(figure_data("rank-map"), "data"),
        Input("rank-file", "data"),
        Input("rank-colour", "value"),
    )  # type: ignore[untyped-decorator]
    def mapped(file: str | None, colour: str) -> Any:
        try:
            scores = read(desk, file) if file else None
            if scores is None or len(scores) < 2:
                return None
            known = {measure["value"] for measure in ranking_table.measures(scores)}
            return head_map(scores, colour if colour in known else "score", title="")
        except HeadscopeError:
            return None  # the page says what is wrong with the file already

    figure_callbacks(
        app,
        "rank-map",
        draw=ClientsideFunction("headscope_rank", "draw_map"),
        also=(Input("rank-heads", "data"),),
    )


PAGE = Page("/rank", "Rank", 2, "Which heads do what, with intervals and controls", layout, callbacks)
