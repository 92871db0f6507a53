"""What stands beside the table: comparison, the same heads elsewhere, details, report, notebook cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dash import ALL, MATCH, ClientsideFunction, Input, Output, State
from dash.exceptions import PreventUpdate

from headscope.app.components import ranking_compare, ranking_details
from headscope.app.components.figure import figure_callbacks
from headscope.app.components.ranking_cell import cell
from headscope.app.components.ranking_files import rankings
from headscope.app.components.ranking_table import pairs
from headscope.app.components.trouble import notice, said, told
from headscope.errors import HeadscopeError

if TYPE_CHECKING:
    from dash import Dash

    from headscope.app.desk import Desk


def sides_callbacks(app: Dash, desk: Desk) -> None:
    """Register comparison, details, report and notebook cell."""
    for group in (ranking_compare.GROUP, ranking_details.GROUP):
        figure_callbacks(app, {"figure": group, "index": MATCH})

    app.clientside_callback(
        ClientsideFunction("headscope_rank", "dot"),
        Output("rank-dot", "data"),
        Input({"figure": ranking_compare.GROUP, "index": ALL}, "clickData"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("rank-compared", "children"),
        Input("rank-file", "data"),
        Input("rank-with", "value"),
        Input("rank-tab", "value"),
    )  # type: ignore[untyped-decorator]
    def compared(file: str | None, beside: list[str] | None, tab: str) -> Any:
        if tab != "compare":
            raise PreventUpdate
        try:
            return ranking_compare.compared(desk, file, beside or [])
        except HeadscopeError as error:
            return notice(said(error))

    @app.callback(
        Output("rank-elsewhere", "children"),
        Input("rank-file", "data"),
        Input("rank-heads", "data"),
    )  # type: ignore[untyped-decorator]
    def others(file: str | None, heads: list[str] | None) -> Any:
        try:
            return ranking_compare.elsewhere(desk, file, pairs(heads), rankings(desk)) if file else None
        except HeadscopeError:
            return None  # the page says what is wrong with the file already

    @app.callback(
        Output("rank-with", "data"),
        Input("rank-tab", "value"),
        Input("rank-file", "data"),
        Input("rank-done", "data"),
        Input("rank-uploaded", "data"),
    )  # type: ignore[untyped-decorator]
    def choices(tab: str, file: str | None, _done: Any, _uploaded: Any) -> Any:
        if tab != "compare":
            raise PreventUpdate
        return ranking_compare.options([one for one in rankings(desk) if one.file != file])

    @app.callback(
        Output("rank-detailed", "children"),
        Output("rank-report-links", "children", allow_duplicate=True),
        Input("rank-file", "data"),
        Input("rank-tab", "value"),
        prevent_initial_call="initial_duplicate",
    )  # type: ignore[untyped-decorator]
    def detailed(file: str | None, tab: str) -> Any:
        if tab != "details":
            raise PreventUpdate
        try:
            return ranking_details.details(desk, file), None
        except HeadscopeError as error:
            return notice(said(error)), None

    @app.callback(
        Output("rank-report-links", "children"),
        Output("rank-report-error", "children"),
        Input("rank-report", "n_clicks"),
        State("rank-file", "data"),
        running=[(Output("rank-report", "loading"), True, False)],
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    @told(1)
    def reported(_clicks: int, file: str | None) -> Any:
        if not file:
            raise PreventUpdate
        return ranking_details.links(ranking_details.write(desk, file))

    @app.callback(
        Output("rank-cell", "children"),
        Input("rank-file", "data"),
        Input("rank-with", "value"),
        Input("rank-heads", "data"),
        Input("rank-tab", "value"),
        Input("rank-colour", "value"),
    )  # type: ignore[untyped-decorator]
    def copied(file: str | None, beside: list[str] | None, heads: list[str], tab: str, colour: str) -> str:
        return cell(
            desk.workspace.root, file, heads or [], beside=beside or [] if tab == "compare" else [], colour=colour
        )
