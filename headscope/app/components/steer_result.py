"""What came of a run, a sweep or a task: shown, copied as code, kept as an edit, explored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from headscope.app import steering
from headscope.app.components import continuations, steer_examples, sweep, sweep_task
from headscope.app.components.copy import copied, copy_button
from headscope.app.components.trouble import notice, said, told
from headscope.errors import RequestError

if TYPE_CHECKING:
    from dash import Dash

    from headscope.app.desk import Desk

EMPTY = {
    "texts": "Run, and the model writes on twice: as it is, and under the edit. Each text is then scored in both "
    "states.",
    "sweep": "Each value writes its own text. The neutral value is always among them: there, nothing may change.",
    "task": "The method at each value on items of a task, beside the untouched model and at neutral strength. A sweep "
    "that was stopped goes on where it was.",
}


def shown(desk: Desk, result: dict[str, Any] | None, kind: str) -> Any:
    """Return a result, or what to do where there is none."""
    document = steering.found(desk, result["name"], kind) if result else None
    if document is None:
        text = html.P(EMPTY[kind], className="soft steer-empty")
        return [text, steer_examples.starters()] if kind == "texts" else text
    code = [] if kind == "texts" else [_code(kind, document)]
    made = {"texts": continuations.shown, "sweep": sweep.shown, "task": sweep_task.shown}[kind](document)
    return [*code, made]


def _code(kind: str, document: dict[str, Any]) -> html.Div:
    """Return the line above a sweep: what was swept, and the button that copies the Python."""
    target, trial = f"steer-{kind}-python", document.get("trial")
    on = f"{trial['n']} {trial['split']} items of {trial['task']}" if trial else ""
    told = continuations.summary(document["methods"], document.get("prompt_tokens"), on)
    button = copy_button(target, "Copy as notebook cell", title="Python that does the same")
    return html.Div(
        [html.Span(told, className="run-text", title=told), copied(target, document["python"]), button],
        className="steer-copy",
    )


def head(desk: Desk, result: dict[str, Any] | None) -> list[Any]:
    """Return the line above the results: what ran, and what can be done with it."""
    document = steering.found(desk, result["name"], "texts") if result else None
    if document is None:
        return []
    told = continuations.summary(document["methods"], document["prompt_tokens"])
    return [
        html.Div(
            [
                html.Strong(document["asked"]["recipe"]["model"]),
                html.Span(told, className="run-text", title=told),
                html.Span("settings changed", id="steer-stale", className="steer-stale", hidden=True),
            ],
            className="steer-what",
            **{"data-result": result["name"] if result else ""},
        ),
        html.Div(
            [
                _saving(steering.default_name(document, result["name"] if result else "")),
                _copying(document),
                html.Button(
                    "Explore under it",
                    id="steer-explore",
                    type="button",
                    className="bar-button",
                    title="Attention of this prompt and text under the edit; saves the edit first",
                ),
            ],
            className="run-actions",
        ),
    ]


def _copying(document: dict[str, Any]) -> html.Div:
    texts = {"python": document["python"], "cell": document["cell"], "command": document["command"] or ""}
    buttons = [
        copy_button("steer-python", "Python", title="A script that does the same and prints both texts"),
        copy_button("steer-cell", "Notebook cell", title="Python that makes this view in a notebook"),
        copy_button("steer-command", "Command line", title="headscope steer … that does the same")
        if document["command"]
        else html.P(document["no_command"], className="small soft"),
        copy_button("", "Link to this page", title="The address: prompt, settings and results"),
    ]
    kept = [copied(f"steer-{part}", text) for part, text in texts.items()]
    menu = html.Details(
        [html.Summary("Copy"), html.Div(buttons, className="menu-list steer-copies")], className="menu", role="group"
    )
    return html.Div([menu, *kept])


def _saving(name: str) -> html.Details:
    inside = html.Div(
        [
            dmc.TextInput(id="steer-keep-name", label="Save the edit in edits/ as", value=name, size="sm"),
            dmc.Button("Save", id="steer-keep", size="sm", variant="default"),
            html.Div(id="steer-keep-said", **{"aria-live": "polite"}),
            dcc.Store(id="steer-refused"),
        ],
        className="menu-list prompt-save",
    )
    return html.Details([html.Summary("Save edit"), inside], className="menu")


def keeping_callbacks(app: Dash, desk: Desk) -> None:
    """Register what saves the edit, and what goes to Explore under it."""

    @app.callback(
        Output("steer-keep-said", "children"),
        Output("steer-refused", "data"),
        Input("steer-keep", "n_clicks"),
        Input("steer-keep-name", "n_submit"),
        State("steer-keep-name", "value"),
        State("steer-texts", "data"),
        State("steer-refused", "data"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def save(clicks: Any, entered: Any, wanted: str | None, result: dict[str, Any] | None, refused: str | None) -> Any:
        if not (clicks or entered) or not result:
            raise PreventUpdate
        wanted = (wanted or "").strip()
        try:
            file = steering.keep_edit(desk, result["name"], wanted, replace=wanted == refused)
            address = steering.explored(desk, result["name"], file)
        except RequestError as error:
            # Asking for the same name again is the answer that it may be replaced.
            return notice(str(error), kind="warning"), wanted
        except Exception as error:  # noqa: BLE001 - whatever it is, the page must go on and say so
            return notice(said(error)), None
        link = dcc.Link("Explore under it", href=address)
        return html.Div(["Saved as ", html.Code(file), ". ", link], className="notice notice-note", role="status"), None

    @app.callback(
        Output("steer-went", "data"),
        Output("steer-texts-error", "children", allow_duplicate=True),
        Input("steer-explore", "n_clicks"),
        State("steer-texts", "data"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    @told(1)
    def explore(clicks: Any, result: dict[str, Any] | None) -> Any:
        if not clicks or not result:
            raise PreventUpdate
        document = steering.found(desk, result["name"], "texts")
        if document is None:
            raise RequestError("This run is not kept any more: run it again.")
        file = steering.keep_edit(desk, result["name"], steering.default_name(document, result["name"]), replace=True)
        return steering.explored(desk, result["name"], file)

    app.clientside_callback(ClientsideFunction("headscope_steer", "go"), Input("steer-went", "data"))
