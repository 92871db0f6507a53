"""The tab of head sets, and what its buttons do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ALL, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from headscope.app.components import ranking_sets as sets
from headscope.app.components.heads import head_sets, listed
from headscope.app.components.ranking_files import read
from headscope.app.components.trouble import notice, said, told
from headscope.errors import HeadscopeError

if TYPE_CHECKING:
    from dash import Dash

    from headscope.app.desk import Desk


def sets_tab(desk: Desk, current: str | None) -> html.Div:
    """Return the tab; ``current`` is the file of the set that is shown."""
    known = head_sets(desk)
    if current not in known:
        current = next(iter(known), None)
    combine = html.Fieldset(
        [
            html.Legend("Combine"),
            html.Div(
                [
                    dmc.Select(id="rank-set-other", label="With", placeholder="Another set", data=[], size="xs",
                               searchable=True, clearable=True),
                    dmc.SegmentedControl(
                        id="rank-set-way",
                        value="union",
                        data=[{"value": way, "label": f"{text} {sets.SIGNS[way]}"} for way, text in sets.WAYS.items()],
                        size="xs",
                        **{"aria-label": "How the sets are combined"},
                    ),
                ],
                className="set-combine",
            ),
            html.P(id="rank-set-shared", className="small", role="status"),
            html.Div(
                [
                    dmc.TextInput(id="rank-set-combined", placeholder="Name of the new set", size="xs",
                                  **{"aria-label": "Name of the combined set"}),
                    dmc.Button("Save combination", id="rank-set-combine", size="compact-sm", variant="default"),
                ],
                className="set-line",
            ),
        ]
    )  # fmt: skip
    manage = html.Div(
        [
            dmc.Button("Pick these heads", id="rank-set-load", size="compact-sm"),
            dmc.TextInput(id="rank-set-name", size="xs", **{"aria-label": "New name"}),
            html.Button("Rename", id="rank-set-rename", type="button", className="quiet"),
            html.Button("Delete", id="rank-set-delete", type="button", className="quiet"),
        ],
        className="set-line",
    )
    return html.Div(
        [
            dcc.Store(id="rank-set", data=current),
            dcc.Store(id="rank-sets-changed"),
            dcc.Store(id="rank-set-deleted"),
            html.Nav(id="rank-sets", className="ranking-list", **{"aria-label": "Head sets"}),
            html.Div(
                [
                    html.Div(id="rank-set-said", **{"aria-live": "polite"}),
                    html.Button("Undo", id="rank-set-undo", type="button", className="quiet", hidden=True),
                    html.Div(
                        [html.Div(id="rank-set-card", className="set-about"), manage, combine],
                        id="rank-set-body",
                        hidden=current is None,
                        className="set-body",
                    ),
                ],
                className="set-card",
            ),
        ],
        className="sets-tab",
    )


def sets_callbacks(app: Dash, desk: Desk) -> None:
    """Register what the tab does, and what saves picked heads."""

    @app.callback(
        Output("rank-sets", "children"),
        Output("rank-set-card", "children"),
        Output("rank-set-body", "hidden"),
        Output("rank-set-name", "value"),
        Output("rank-set-other", "data"),
        Input("rank-set", "data"),
        Input("rank-sets-changed", "data"),
        Input("rank-tab", "value"),
    )  # type: ignore[untyped-decorator]
    def drawn(current: str | None, _changed: Any, tab: str) -> Any:
        if tab != "sets":
            raise PreventUpdate
        known = head_sets(desk)
        made = sets.items(desk, current)
        if current is None:
            return made, None, True, "", []
        try:
            about = sets.card(desk, current)
        except HeadscopeError as error:
            return made, notice(said(error)), False, "", []
        others = [{"value": file, "label": name} for file, name in known.items() if file != current]
        return made, about, False, known.get(current, ""), others

    @app.callback(Output("rank-set", "data"), Input({"head-set": ALL}, "n_clicks"), prevent_initial_call=True)  # type: ignore[untyped-decorator]
    def chosen(clicks: list[int | None]) -> Any:
        if not any(clicks) or not isinstance(ctx.triggered_id, dict):
            raise PreventUpdate
        return ctx.triggered_id["head-set"]

    @app.callback(
        Output("rank-set", "data", allow_duplicate=True),
        Output("rank-sets-changed", "data"),
        Output("rank-save-name", "value"),
        Output("rank-save-said", "children"),
        Input("rank-save", "n_clicks"),
        State("rank-save-name", "value"),
        State("rank-heads", "data"),
        State("rank-file", "data"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def saved(_clicks: int, name: str | None, heads: list[str], file: str | None) -> Any:
        if not file:
            raise PreventUpdate
        try:
            scores = read(desk, file)
            pairs = [(int(layer), int(head)) for layer, _, head in (one.partition(".") for one in heads or ())]
            made = sets.save(desk, name or "", pairs, scores, source=source(scores, pairs, file))
        except HeadscopeError as error:
            return no_update, no_update, no_update, notice(said(error))
        return made, time.time(), "", notice(f"Saved as {made}: see Head sets.", kind="note")

    @app.callback(
        Output("rank-set", "data", allow_duplicate=True),
        Output("rank-sets-changed", "data", allow_duplicate=True),
        Output("rank-set-deleted", "data"),
        Output("rank-set-undo", "hidden"),
        Output("rank-set-said", "children"),
        Input("rank-set-rename", "n_clicks"),
        Input("rank-set-delete", "n_clicks"),
        Input("rank-set-undo", "n_clicks"),
        Input("rank-set-combine", "n_clicks"),
        State("rank-set", "data"),
        State("rank-set-name", "value"),
        State("rank-set-deleted", "data"),
        State("rank-set-other", "value"),
        State("rank-set-way", "value"),
        State("rank-set-combined", "value"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def changed(_rename: Any, _delete: Any, _undo: Any, _combine: Any, current: str | None, name: str | None,
                deleted: str | None, other: str | None, way: str, combined: str | None) -> Any:  # fmt: skip
        asked, now = ctx.triggered_id, time.time()
        try:
            if asked == "rank-set-undo" and deleted:
                sets.restore(desk, deleted)
                return deleted, now, None, True, notice("Brought back.", kind="note")
            if current is None:
                raise PreventUpdate
            if asked == "rank-set-delete":
                sets.delete(desk, current)
                left = next(iter(head_sets(desk)), None)
                return left, now, current, False, notice(f"Deleted {current}.", kind="note")
            if asked == "rank-set-rename":
                return sets.rename(desk, current, name or ""), now, None, True, notice("Renamed.", kind="note")
            if not other:
                raise PreventUpdate
            made = sets.keep(desk, sets.combined(desk, current, other, way, combined or ""))
            return made, now, None, True, notice(f"Saved as {made}.", kind="note")
        except HeadscopeError as error:
            return no_update, no_update, no_update, no_update, notice(said(error))

    @app.callback(
        Output("rank-set-shared", "children"),
        Output("rank-set-combine", "disabled"),
        Input("rank-set", "data"),
        Input("rank-set-other", "value"),
        Input("rank-set-way", "value"),
        Input("rank-sets-changed", "data"),
    )  # type: ignore[untyped-decorator]
    def compared(current: str | None, other: str | None, way: str, _changed: Any) -> Any:
        if not current or not other or current == other:
            return "", True
        try:
            a, b = sets.load(desk, current), sets.load(desk, other)
            made = sets.combined(desk, current, other, way)
            return [sets.shared(a, b), html.Br(), f"Together: {listed(made.heads)}."], not made.heads
        except HeadscopeError as error:
            return notice(said(error), kind="warning"), True

    @app.callback(
        Output("rank-ask", "data"),
        Output("rank-tab", "value", allow_duplicate=True),
        Output("rank-set-said", "children", allow_duplicate=True),
        Input("rank-set-load", "n_clicks"),
        State("rank-set", "data"),
        State("rank-file", "data"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    @told(2)
    def loaded(_clicks: int, current: str | None, file: str | None) -> Any:
        if not current or not file:
            raise PreventUpdate
        found = sets.load(desk, current)
        sets.of_ranking(found, read(desk, file))
        return {"heads": [f"{layer}.{head}" for layer, head in found.heads], "at": time.time()}, "heads"


def source(scores: Any, heads: list[tuple[int, int]], file: str) -> str:
    """Say how heads were picked from a ranking, where that can be told from which they are."""
    chosen = set(heads)
    if chosen == set(scores.selected):
        return f"{file}, all that pass"
    if chosen == set(scores.top(max(1, len(heads)))):
        return f"{file}, top {len(heads)}"
    return f"{file}, picked"
