"""Rank: which heads do what; rankings opened, made, compared, and picked from."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from headscope.app.components import ranking_compare, ranking_details, ranking_form, ranking_table
from headscope.app.components.figure import figure, figure_callbacks, figure_data
from headscope.app.components.ranking_files import Ranking, rankings, read
from headscope.app.components.ranking_making import making_callbacks
from headscope.app.components.ranking_sets_tab import sets_callbacks, sets_tab
from headscope.app.components.ranking_sides import sides_callbacks
from headscope.app.components.ranking_upload import SUFFIXES, receive
from headscope.app.components.trouble import notice, said, told
from headscope.app.page import Page
from headscope.errors import HeadscopeError
from headscope.report.figures import head_map
from headscope.report.numbers import plural
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
            _sidebar(),
            html.Div(
                [
                    html.Div(id="rank-head", className="rank-head"),
                    html.Div(id="rank-error", **{"aria-live": "assertive"}),
                    dmc.Tabs(
                        [
                            dmc.TabsList([dmc.TabsTab(label, value=name) for name, label in TABS.items()]),
                            dmc.TabsPanel(_heads(number, colour), value="heads", className="rank-panel heads-panel"),
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


def _sidebar() -> html.Aside:
    return html.Aside(
        [
            html.Div(
                [
                    html.H2("Rankings"),
                    dcc.Upload(
                        html.Button("Upload", type="button", className="quiet"),
                        id="rank-upload",
                        multiple=True,
                        accept=",".join(SUFFIXES),
                        className="upload",
                    ),
                ],
                className="aside-head",
            ),
            dmc.TextInput(
                id="rank-filter",
                placeholder="Filter by probe, model or name",
                size="xs",
                debounce=200,
                persistence=True,
                persistence_type="session",
                **{"aria-label": "Filter rankings"},
            ),
            html.Div(id="rank-upload-said", **{"aria-live": "assertive"}),
            html.Nav(id="rank-list", className="ranking-list", **{"aria-label": "Rankings"}),
        ],
        className="rank-aside",
    )


def _heads(k: int, colour: str) -> list[Any]:
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
            html.Button("Copy as notebook cell", type="button", className="quiet", **{"data-copy": "rank-cell"}),
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
    _picking(app)
    sides_callbacks(app, desk)
    making_callbacks(app, desk)
    sets_callbacks(app, desk)
    ranking_details.routes(app, desk)


def _opening(app: Dash, desk: Desk) -> None:
    """Register the list of rankings, and what opening one shows."""

    @app.callback(
        Output("rank-list", "children"),
        Input("rank-filter", "value"),
        Input("rank-file", "data"),
        Input("rank-done", "data"),
        Input("rank-uploaded", "data"),
    )  # type: ignore[untyped-decorator]
    def listed(text: str | None, file: str | None, _done: Any, _uploaded: Any) -> Any:
        return listing(rankings(desk), text or "", file)

    app.clientside_callback(
        ClientsideFunction("headscope_rank", "open_ranking"),
        Output("rank-file", "data"),
        Input({"ranking": ALL}, "n_clicks"),
        Input("rank-done", "data"),
        Input("rank-uploaded", "data"),
        State("rank-file", "data"),
        prevent_initial_call=True,
    )

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
            return html.P(_NOTHING, className="headline"), [], None, None, [], [], [], "score"
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

    @app.callback(
        Output("rank-uploaded", "data"),
        Output("rank-upload", "contents"),
        Output("rank-upload-said", "children"),
        Input("rank-upload", "contents"),
        State("rank-upload", "filename"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def uploaded(contents: list[str] | None, names: list[str] | None) -> Any:
        if not contents:
            raise PreventUpdate
        try:
            file = receive(desk, contents, names or [])
        except HeadscopeError as error:
            return no_update, None, notice(said(error))
        if file.startswith("heads/"):
            return no_update, None, notice(f"{file} is a head set: see Head sets.", kind="note")
        return file, None, None


def _picking(app: Dash) -> None:
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


_NOTHING = "No ranking is in the workspace yet. Make one, or upload a file of scores."


def listing(known: Sequence[Ranking], text: str, file: str | None) -> list[Any]:
    """Return rankings as buttons, those that hold all words of ``text``; the open one is marked."""
    words = text.lower().split()
    made = []
    for one in known:
        if not all(word in f"{one.probe} {one.model} {one.file}".lower() for word in words):
            continue
        n = f"n {one.n}" if one.n is not None else ""
        when = _when(one.created)
        made.append(
            html.Button(
                [
                    html.Span(one.probe, className="ranking-name"),
                    html.Span(f"{one.selected} of {one.heads}", className="ranking-count", title="heads that pass"),
                    html.Span(html.Span(" · ".join(part for part in (one.model, n) if part)), className="ranking-line"),
                    html.Span([html.Span(one.label), html.Time(when)], className="ranking-line"),
                ],
                id={"ranking": one.file},
                type="button",
                title=one.file,
                className="ranking-item open" if one.file == file else "ranking-item",
                **({"aria-current": "true"} if one.file == file else {}),
            )
        )
    if made:
        return made
    text = f"None of {plural(len(known), 'ranking')} matches." if known else _NOTHING
    return [html.P(text, className="soft small")]


def _when(created: str) -> str:
    """Return day and time, short; the year only where it is another one."""
    try:
        at = datetime.fromisoformat(created).astimezone()
    except ValueError:
        return ""
    return at.strftime("%d %b %H:%M" if at.year == datetime.now().astimezone().year else "%d %b %Y").lstrip("0")


PAGE = Page("/rank", "Rank", 2, "Which heads do what, with intervals and controls", layout, callbacks)
