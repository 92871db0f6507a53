"""Steer: a method in force on a prompt, beside the model as it is; its strength swept; the edit kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from headscope.app import steering, steering_sweeps
from headscope.app.components import method_asked, steer_examples, sweep, sweep_task
from headscope.app.components.figure import figure_callbacks
from headscope.app.components.method import method_callbacks, method_form
from headscope.app.components.method_asked import GENERAL, Asked
from headscope.app.components.method_fields import NEEDED
from headscope.app.components.prompt import prompt_callbacks, prompt_form
from headscope.app.components.steer_result import head, keeping_callbacks, shown
from headscope.app.components.trouble import notice, said, told
from headscope.app.components.work import job, teller, working
from headscope.app.page import Page
from headscope.app.pages.explore import fields_of
from headscope.app.runs import Recipe
from headscope.app.steering_sweeps import Range, Trial
from headscope.errors import HeadscopeError, RequestError

if TYPE_CHECKING:
    from dash import Dash

    from headscope.app.desk import Desk

NEW_TOKENS = 40
TABS = {"texts": "Texts", "sweep": "Strength on this prompt", "task": "On a task"}
KINDS = {"texts": "steer-texts", "sweep": "steer-swept", "task": "steer-judged"}
"""What can be asked for, and the stores that hold the names of results; addresses have those without ``steer-``."""


def layout(desk: Desk, run: str | None = None, **query: Any) -> html.Div:
    """Return the page as the address says it: prompt (``run``), method and its values, tab, sweep, and results."""
    example = str(query.pop("example", "") or "")
    query = {**steer_examples.query(example), **query}
    given = method_asked.from_query(query)
    fields, trouble = _prompt(desk, run)
    fields |= steer_examples.fields(example)
    if fields.get("edit") and "method" not in query and not given["file"]:
        # A run under an edit goes on under it.
        given |= {"method": method_asked.SAVED, "file": fields["edit"]}
    fields["edit"] = None
    results = {kind: _result(desk, query.get(store.removeprefix("steer-")), kind) for kind, store in KINDS.items()}
    tab = query.get("tab") if query.get("tab") in TABS else "texts"
    return html.Div(
        [
            *(dcc.Store(id=store, data=results[kind]) for kind, store in KINDS.items()),
            *(
                dcc.Store(id=f"steer-{part}")
                for part in ("want", "ask-texts", "ask-sweep", "ask-task", "addressed", "went")
            ),
            html.H1("Steer", className="unseen"),
            html.Aside(
                [
                    html.Div(
                        [
                            trouble,
                            # What the tab remembers gives way to an example, as to another run.
                            prompt_form(desk, "steer", base=run or example, edits=False, **fields),
                            method_form(desk, "steer", given),
                        ],
                        className="steer-scroll",
                    ),
                    html.Div(
                        [
                            html.Div(id="steer-texts-error", **{"aria-live": "assertive"}),
                            working("steer-run"),
                            html.Div(
                                [
                                    dmc.Button("Run", id="steer-go", size="sm", className="run-button", fullWidth=True),
                                    html.Div(
                                        [html.Kbd("Ctrl"), " ", html.Kbd("Enter")],
                                        className="run-keys",
                                        **{"aria-hidden": "true"},
                                    ),
                                ],
                                className="steer-run-line",
                            ),
                        ],
                        className="steer-foot",
                    ),
                ],
                className="steer-side",
                **{"aria-label": "Prompt and method"},
            ),
            html.Section(_main(desk, given, query, results, str(tab)), className="steer-main"),
        ],
        className="page steer",
    )


def _prompt(desk: Desk, run: str | None) -> tuple[dict[str, Any], Any]:
    """Return the fields of the prompt's form, and what went wrong with an address, if anything."""
    if not run:
        return {"new_tokens": NEW_TOKENS}, None
    try:
        recipe = Recipe.load(desk.workspace, run)
    except HeadscopeError as error:
        return {"new_tokens": NEW_TOKENS}, notice(str(error), title="This prompt is not kept. ")
    fields = fields_of(recipe)
    return {**fields, "new_tokens": recipe.new_tokens or NEW_TOKENS}, None


def _result(desk: Desk, name: Any, kind: str) -> dict[str, Any] | None:
    document = steering.found(desk, str(name) if name else None, kind)
    return None if document is None else answer(str(name), document)


def answer(name: str, document: dict[str, Any], signature: str | None = None) -> dict[str, Any]:
    """Return what the page keeps of a result: its name, its run, and what the settings were."""
    return {"name": name, "run": document["run"], "signature": signature or document.get("signature", "")}


def _main(desk: Desk, given: dict[str, Any], query: dict[str, Any], results: dict[str, Any], tab: str) -> list[Any]:
    texts, swept, judged = (results[kind] for kind in KINDS)
    numbers = html.Div(
        sweep.settings(desk, "steer", given["method"], given["file"], query),
        id="steer-sweep-box",
        className="steer-numbers",
        hidden=tab == "texts",
    )
    target, trial = sweep.target_box("steer", str(query.get("target") or "")), sweep_task.settings("steer", query)
    return [
        html.Div(head(desk, texts), id="steer-head", className="steer-head"),
        dmc.Tabs(
            [
                dmc.TabsList([dmc.TabsTab(label, value=name) for name, label in TABS.items()]),
                numbers,
                _panel("texts", shown(desk, texts, "texts")),
                _panel("sweep", shown(desk, swept, "sweep"), target, "Sweep"),
                _panel("task", shown(desk, judged, "task"), trial, "Measure"),
            ],
            id="steer-tab",
            value=tab,
            keepMounted=True,
            className="steer-tabs",
        ),
    ]


def _panel(kind: str, children: Any, settings: Any = None, button: str = "") -> dmc.TabsPanel:
    start: list[Any] = []
    if button:
        start = [
            html.Div([settings, dmc.Button(button, id=f"steer-{kind}-go", size="xs")], className="steer-start"),
            working(f"steer-{kind}-work"),
            html.Div(id=f"steer-{kind}-error", **{"aria-live": "assertive"}),
        ]
    found = html.Div(children, id=f"steer-{kind}-found", className="steer-found")
    return dmc.TabsPanel([*start, found], value=kind, className="steer-panel")


# -- callbacks -------------------------------------------------------------------------------------------------------


def callbacks(app: Dash, desk: Desk) -> None:
    """Register what the page does."""
    prompt_callbacks(app, desk, "steer")
    method_callbacks(app, desk, "steer")
    figure_callbacks(app, sweep.FIGURE)
    figure_callbacks(app, sweep_task.FIGURE)
    _wanting(app, desk)
    _working(app, desk)
    keeping_callbacks(app, desk)
    _address(app, desk)


def _wanting(app: Dash, desk: Desk) -> None:
    """Register the buttons, and the look at what they ask for before a job begins."""
    app.clientside_callback(
        ClientsideFunction("headscope_steer", "want"),
        Output("steer-want", "data"),
        Input("steer-go", "n_clicks"),
        Input("steer-sweep-go", "n_clicks"),
        Input("steer-task-go", "n_clicks"),
        State("steer-recipe", "data"),
        State("steer-method", "value"),
        State("steer-fields", "data"),
        State("steer-heads", "data"),
        State("steer-before", "value"),
        State("steer-sweep-field", "value"),
        State("steer-sweep-values", "value"),
        State("steer-target", "value"),
        *(State(f"steer-task-{part}", "value") for part in ("task", "n", "split", "controls", "seed")),
        State("steer-task-drift", "checked"),
        State("steer-defaults", "data"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("steer-wrong", "data"),
        *(Output(f"steer-ask-{kind}", "data") for kind in KINDS),
        *(Output(f"steer-{kind}-error", "children", allow_duplicate=True) for kind in KINDS),
        Input("steer-want", "data"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def look(want: dict[str, Any] | None) -> Any:
        if not want or want.get("kind") not in KINDS:
            raise PreventUpdate
        kind = str(want["kind"])
        try:
            found = faults(desk, want)
        except HeadscopeError as error:
            found = {GENERAL: str(error)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the page must go on and say so
            found = {GENERAL: said(error)}
        asks = [want if one == kind and not found else no_update for one in KINDS]
        return found, *asks, *(_told(found) if one == kind else no_update for one in KINDS)


def faults(desk: Desk, want: dict[str, Any]) -> dict[str, str]:
    """Return what is wrong with what a page wants, by field.

    Raises
    ------
    HeadscopeError
        If it is no request at all.
    """
    kind, asked = want["kind"], Asked.read(want.get("asked"))
    found = dict(method_asked.wrong(desk, asked, prompt=kind != "task"))
    if kind == "task":
        # The task's own region takes the place of those that were chosen.
        found = {name: text for name, text in found.items() if name not in NEEDED}
        Trial.read(want.get("trial") or {})
    if kind != "texts" and (want.get("range") or {}).get("field"):
        Range.read(want["range"])
    elif kind == "sweep":
        raise RequestError("This method has no number to vary: change its values and run it again.")
    return found


def _told(found: dict[str, str]) -> Any:
    """Return what is said beside the button; fields may be out of sight."""
    if not found:
        return None
    return notice(" ".join(text if name in (GENERAL, "prompt") else f"{name}: {text}" for name, text in found.items()))


def _working(app: Dash, desk: Desk) -> None:
    """Register the jobs, and what shows their results."""

    def register(kind: str, name: str, button: str, work: Any) -> None:
        @app.callback(
            Output(KINDS[kind], "data"),
            Output(f"steer-{kind}-error", "children"),
            Input(f"steer-ask-{kind}", "data"),
            **job(name, button),
        )  # type: ignore[untyped-decorator]
        @told(1)
        def run(set_progress: Any, want: dict[str, Any] | None) -> Any:
            if not want:
                raise PreventUpdate
            made = work(Asked.read(want["asked"]), want, teller(set_progress))
            signature = str(want.get("signature") or "")
            steering.sign(desk, made, signature)
            document = steering.found(desk, made)
            if document is None:
                raise RequestError("The result could not be kept: look whether the disk of the workspace is full.")
            return answer(made, document, signature)

        outputs = [Output("steer-head", "children")] if kind == "texts" else []

        @app.callback(
            Output(f"steer-{kind}-found", "children"), *outputs, Input(KINDS[kind], "data"), prevent_initial_call=True
        )  # type: ignore[untyped-decorator]
        def show(result: dict[str, Any] | None) -> Any:
            made = shown(desk, result, kind)
            return (made, head(desk, result)) if outputs else made

    register("texts", "steer-run", "steer-go", lambda asked, want, tell: steering.compare(desk, asked, tell))
    register(
        "sweep",
        "steer-sweep-work",
        "steer-sweep-go",
        lambda asked, want, tell: steering_sweeps.sweep(desk, asked, Range.read(want["range"]), tell),
    )
    register(
        "task",
        "steer-task-work",
        "steer-task-go",
        lambda asked, want, tell: steering_sweeps.judge(
            desk,
            asked,
            Range.read(want["range"]) if want["range"].get("field") else None,
            Trial.read(want["trial"]),
            tell,
        ),
    )

    @app.callback(
        Output("steer-sweep-box", "children"),
        Input("steer-method", "value"),
        Input("steer-edit-file", "data"),
        State("steer-sweep-field", "value"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def vary(method: str, file: str | None, field: str | None) -> Any:
        known = [one["value"] for one in sweep.choices(desk, method, file)]
        if field in known or (field is None and not known):
            raise PreventUpdate
        return sweep.settings(desk, "steer", method, file, {})


def _address(app: Dash, desk: Desk) -> None:
    """Register what keeps the address, the tabs and the note on changed settings in step."""
    app.clientside_callback(
        ClientsideFunction("headscope_steer", "address"),
        Output("steer-addressed", "data"),
        Input("steer-recipe", "data"),
        Input("steer-method", "value"),
        Input("steer-fields", "data"),
        Input("steer-heads", "data"),
        Input("steer-before", "value"),
        Input("steer-tab", "value"),
        Input("steer-sweep-field", "value"),
        Input("steer-sweep-values", "value"),
        Input("steer-target", "value"),
        *(Input(f"steer-task-{part}", "value") for part in ("task", "n", "split", "controls", "seed")),
        Input("steer-task-drift", "checked"),
        *(Input(store, "data") for store in KINDS.values()),
        State("steer-defaults", "data"),
    )
    app.clientside_callback(
        ClientsideFunction("headscope_steer", "tab"),
        Output("steer-sweep-box", "hidden"),
        Input("steer-tab", "value"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("headscope_steer", "to_texts"),
        Output("steer-tab", "value"),
        Input("steer-ask-texts", "data"),
        prevent_initial_call=True,
    )
    # A callback without an output is not called when the page begins.
    app.clientside_callback(ClientsideFunction("headscope_steer", "arrived"), Input("steer-texts-found", "children"))
    app.clientside_callback(
        ClientsideFunction("headscope_steer", "fill"),
        Output("steer-sweep-values", "value"),
        Input("steer-range-fill", "n_clicks"),
        *(State(f"steer-range-{part}", "value") for part in ("low", "high", "count", "scale")),
        prevent_initial_call=True,
    )


PAGE = Page(
    "/steer", "Steer", 3, "What a method does to a text, token by token, and how strong it should be", layout, callbacks
)
