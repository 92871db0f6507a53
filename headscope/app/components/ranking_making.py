"""What starts, shows, stops and goes on with rankings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dash import ALL, Input, Output, State, ctx, no_update
from dash.exceptions import PreventUpdate

from headscope.app.components import ranking_form
from headscope.app.components.ranking_form import FIELDS, field, prop
from headscope.app.components.ranking_work import (
    FOLDER,
    PLAN,
    WORKS,
    Asked,
    asked,
    command_line,
    make,
    workload,
)
from headscope.app.components.trouble import said, told
from headscope.app.components.work import job, teller
from headscope.errors import HeadscopeError

if TYPE_CHECKING:
    from dash import Dash

    from headscope.app.desk import Desk


def making_callbacks(app: Dash, desk: Desk) -> None:
    """Register what starts, shows, stops and goes on with rankings."""
    values = [State(field(name), prop(name)) for name in FIELDS]

    @app.callback(
        Output("rank-done", "data"),
        Output("rank-tab", "value"),
        Output("rank-run-error", "children"),
        Input("rank-run-go", "n_clicks"),
        Input("rank-resume", "data"),
        State(field("fresh"), "checked"),
        *values,
        **job("rank-run", "rank-run-go"),
    )  # type: ignore[untyped-decorator]
    @told(2)
    def made(set_progress: Any, clicks: int | None, resume: Any, fresh: bool, *given: Any) -> Any:
        if resume and (not clicks or ctx.triggered_id == "rank-resume"):
            wanted, fresh = Asked.load(desk.workspace.path(f"{FOLDER}/{resume['name']}/{PLAN}")), False
        else:
            wanted = asked(desk, dict(zip(FIELDS, given, strict=True)))
        file = make(desk, wanted, teller(set_progress), fresh=bool(fresh))
        return {"file": file, "at": time.time()}, "heads"

    @app.callback(
        Output("rank-run-load", "children"),
        Output("rank-run-command", "children"),
        Output("rank-run-removal", "hidden"),
        *[Input(state.component_id, state.component_property) for state in values],
    )  # type: ignore[untyped-decorator]
    def loaded(*given: Any) -> Any:
        form = dict(zip(FIELDS, given, strict=True))
        hidden = not form["verify"]
        try:
            wanted = asked(desk, form)
            return workload(wanted.plan), command_line(wanted, desk.workspace.root), hidden
        except HeadscopeError as error:
            return said(error), "", hidden

    @app.callback(
        Output("rank-works", "children"),
        Output("rank-works-tick", "disabled"),
        Output("rank-done", "data", allow_duplicate=True),
        Input("rank-works-tick", "n_intervals"),
        Input("rank-run-error", "children"),
        Input("rank-run-cancel", "n_clicks"),
        Input({"work-stop": ALL}, "n_clicks"),
        State("rank-works-tick", "disabled"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def watched(_tick: Any, _error: Any, _cancel: Any, _stops: Any, resting: bool) -> Any:
        if isinstance(ctx.triggered_id, dict) and ctx.triggered[0]["value"]:
            for work in WORKS.of(desk):
                if work.asked.name == ctx.triggered_id["work-stop"]:
                    work.stop.set()
        idle = not WORKS.of(desk)
        # What this page waited for is over: its files are there to be listed.
        over = {"file": None, "at": time.time()} if idle and not resting else no_update
        return ranking_form.works(desk), idle, over

    @app.callback(Output("rank-resume", "data"), Input({"work-resume": ALL}, "n_clicks"), prevent_initial_call=True)  # type: ignore[untyped-decorator]
    def resumed(clicks: list[int | None]) -> Any:
        if not any(clicks) or not isinstance(ctx.triggered_id, dict):
            raise PreventUpdate
        return {"name": ctx.triggered_id["work-resume"], "at": time.time()}
