"""The rankings of the workspace beside the page: found by words, opened, uploaded."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from headscope.app.components.ranking_files import Ranking, rankings
from headscope.app.components.ranking_upload import SUFFIXES, receive
from headscope.app.components.trouble import notice, said
from headscope.errors import HeadscopeError
from headscope.report.numbers import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dash import Dash

    from headscope.app.desk import Desk

NOTHING = "No ranking is in the workspace yet. Make one, or upload a file of scores."


def sidebar() -> html.Aside:
    """Return the list with its filter and its upload; callbacks fill it."""
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


def list_callbacks(app: Dash, desk: Desk) -> None:
    """Register what lists, opens and uploads rankings."""

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
    text = f"None of {plural(len(known), 'ranking')} matches." if known else NOTHING
    return [html.P(text, className="soft small")]


def _when(created: str) -> str:
    """Return day and time, short; the year only where it is another one."""
    try:
        at = datetime.fromisoformat(created).astimezone()
    except ValueError:
        return ""
    return at.strftime("%d %b %H:%M" if at.year == datetime.now().astimezone().year else "%d %b %Y").lstrip("0")
