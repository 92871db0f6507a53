"""The form of a prompt: model, text with regions, template, tokens to write. Explore and Steer share it.

The text and its regions live in the browser (``assets/31-prompt-editor.js``), where they follow every key; the store
``NAME-recipe`` always holds the whole form as the fields of a ``Recipe``.
"""

from __future__ import annotations

import base64
import binascii
import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from headscope.app import examples, prompts
from headscope.app.components.trouble import notice, said, told
from headscope.app.components.work import job, teller, working
from headscope.app.reading import Readers
from headscope.app.runs import Recipe
from headscope.errors import RequestError

if TYPE_CHECKING:
    from dash import Dash
    from dash.development.base_component import Component

    from headscope.app.desk import Desk

MOST_NEW = 512
"""Tokens that a page may ask a model to write."""
EDITS = "edits"
"""Folder of the workspace that holds edits."""


def prompt_form(
    desk: Desk, name: str, *, base: str = "", edits: bool = True, action: Component | None = None, **initial: Any
) -> html.Div:
    """Return the form.

    Parameters
    ----------
    name
        Begins the ids of everything in it.
    base
        What ``initial`` belongs to, such as a run: what the tab remembers is shown instead if it belongs to the same.
    edits
        Whether an edit to run under can be chosen.
    action
        What stands below the settings; a button with the id ``NAME-go`` is pressed by Ctrl+Enter in the text.
    initial
        Fields of a ``Recipe``.
    """
    defaults: dict[str, Any] = {
        "model": desk.settings.model,
        "text": "",
        "regions": [],
        "chat": False,
        "system": None,
        "new_tokens": 0,
    }
    defaults["edit"] = None
    draft = {"first": True, "base": base, "defaults": defaults, "fields": initial or None}
    given = {**defaults, **initial}
    head = [
        html.Label("Prompt", htmlFor=f"{name}-text", className="prompt-title"),
        html.Fieldset([_examples(name), _saved(desk, name), _saving(name)], id=f"{name}-opener"),
    ]
    main = [
        html.Div(head, className="prompt-head"),
        html.Div(id=f"{name}-editor", className="prompt-editor", **{"data-limit": str(desk.settings.upload_bytes)}),
        working(f"{name}-opening"),
        html.Div(id=f"{name}-said", className="prompt-said"),
    ]
    side = [*_settings(desk, name, given, edits), *([action] if action is not None else [])]
    stores = [
        dcc.Store(id=f"{name}-draft", data=draft),
        *(dcc.Store(id=f"{name}-{part}") for part in ("recipe", "counted", "again", "open", "saving", "begun")),
    ]
    return html.Div(
        [*stores, html.Div([html.Div(main, className="prompt-main"), html.Div(side, className="prompt-side")])],
        id=f"{name}-form",
        className="prompt",
    )


def _settings(desk: Desk, name: str, given: dict[str, Any], edits: bool) -> list[Component]:
    known = desk.names()
    choose = {"id": f"{name}-model", "label": "Model", "value": given["model"], "size": "sm"}
    model = (
        dmc.Autocomplete(**choose, data=known, placeholder="Name, hub id or folder", debounce=400)
        if desk.settings.any_model
        else dmc.Select(**choose, data=known, allowDeselect=False, checkIconPosition="right")
    )
    files = desk.workspace.files(".json", under=EDITS)
    return [
        model,
        html.Div(
            [
                html.Div("Send as", className="prompt-label", id=f"{name}-chat-label"),
                dmc.SegmentedControl(
                    id=f"{name}-chat",
                    data=[{"value": "plain", "label": "Plain text"}, {"value": "chat", "label": "Chat template"}],
                    value="chat" if given["chat"] else "plain",
                    size="xs",
                    fullWidth=True,
                    **{"aria-labelledby": f"{name}-chat-label"},
                ),
            ]
        ),
        html.Div(
            dmc.Textarea(
                id=f"{name}-system",
                label="System message",
                placeholder="none",
                value=given["system"] or "",
                autosize=True,
                minRows=2,
                maxRows=6,
                debounce=200,
            ),
            id=f"{name}-system-box",
            hidden=not given["chat"],
        ),
        dmc.NumberInput(
            id=f"{name}-new",
            label="Tokens to write",
            value=given["new_tokens"],
            min=0,
            max=MOST_NEW,
            clampBehavior="strict",
            allowDecimal=False,
            allowNegative=False,
            debounce=200,
        ),
        html.Div(
            dmc.Select(
                id=f"{name}-edit",
                label="Run under an edit",
                placeholder="none",
                data=[{"value": file, "label": str(PurePosixPath(file).relative_to(EDITS))} for file in files],
                value=given["edit"],
                clearable=True,
                nothingFoundMessage="The workspace has none yet: Steer saves some.",
            ),
            hidden=not edits or not (files or given["edit"]),
        ),
    ]


def _id(name: str, kind: str, key: str, length: int | None, place: str) -> dict[str, Any]:
    return {"form": name, "kind": kind, "key": key, "length": -1 if length is None else length, "place": place}


def _item(name: str, kind: str, key: str, label: str, about: str = "", length: int | None = None) -> html.Button:
    inside = [html.Span(label, className="menu-label"), html.Span(about, className="menu-about")] if about else label
    return html.Button(
        inside, id=_id(name, kind, key, length, "menu"), n_clicks=0, className="menu-item", type="button"
    )


def _menu(target: str, label: str, items: Any) -> html.Details:
    """Return a list that drops down; the scripts close it when something is chosen, or left."""
    return html.Details(
        [html.Summary(label, id=target), html.Div(items, className="menu-list")], className="menu", role="group"
    )


def _examples(name: str) -> html.Details:
    items = [
        _item(name, "example", example.key, _called(example, length), example.about, length)
        for example in examples.EXAMPLES
        for length in example.lengths or (None,)
    ]
    return _menu(f"{name}-examples", "Examples", items)


def starters(name: str) -> html.Div:
    """Return the examples once more, for a page that has nothing else to show yet."""
    rows = []
    for example in examples.EXAMPLES:
        lengths = example.lengths or (None,)
        words = [
            html.Button(
                (f"{length:,}" if length else "whole context") if example.lengths else example.label,
                id=_id(name, "example", example.key, length, "page"),
                n_clicks=0,
                className="starter",
                type="button",
                **{"aria-label": _called(example, length)},
            )
            for length in lengths
        ]
        first = [f"{example.label}: ", *words] if example.lengths else words
        rows.append(html.Li([html.Span(first, className="starter-name"), html.Span(example.about, className="soft")]))
    return html.Div([html.H2("Or begin with"), html.Ul(rows)], id=f"{name}-starters", className="starters")


def _called(example: examples.Example, length: int | None) -> str:
    if not example.lengths:
        return example.label
    return f"{example.label}, {f'{length:,} tokens' if length else 'the whole context'}"


def _saved(desk: Desk, name: str) -> html.Details:
    return _menu(f"{name}-files", "Open", html.Div(_files(desk, name), id=f"{name}-files-list"))


def _files(desk: Desk, name: str) -> list[Any]:
    items: list[Any] = [_item(name, "computer", "", "A file of this computer…", ".txt, .md or .json; or drop it here")]
    if found := prompts.saved(desk.workspace):
        items.append(html.Div("In the workspace", className="menu-title"))
        items += [_item(name, "file", file, file.removeprefix(f"{prompts.FOLDER}/")) for file in found[:50]]
    return items


def _saving(name: str) -> html.Details:
    inside = html.Div(
        [
            dmc.TextInput(id=f"{name}-save-name", label="Save in the workspace as", placeholder="name", size="sm"),
            dmc.Button("Save", id=f"{name}-save", size="sm", variant="default"),
            html.Div(id=f"{name}-save-said", **{"aria-live": "polite"}),
        ],
        className="prompt-save",
    )
    return _menu(f"{name}-saver", "Save", inside)


def prompt_callbacks(app: Dash, desk: Desk, name: str, readers: Readers | None = None) -> None:
    """Register what the form does."""
    readers = readers or Readers(desk)
    part = ClientsideFunction
    # A callback without an output is not called when the page begins.
    app.clientside_callback(
        part("headscope_prompt", "begin"), Output(f"{name}-begun", "data"), Input(f"{name}-draft", "data")
    )
    app.clientside_callback(part("headscope_prompt", "counted"), Input(f"{name}-counted", "data"))
    app.clientside_callback(
        part("headscope_prompt", "settle"),
        Output(f"{name}-system-box", "hidden"),
        *(Input(f"{name}-{field}", "value") for field in ("model", "chat", "system", "new", "edit")),
    )
    chosen = {"form": name, "kind": ALL, "key": ALL, "length": ALL, "place": ALL}
    app.clientside_callback(
        part("headscope_prompt", "choose"),
        Output(f"{name}-open", "data"),
        Input(chosen, "n_clicks"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output(f"{name}-counted", "data"),
        Input(f"{name}-recipe", "data"),
        Input(f"{name}-again", "data"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def count(recipe: dict[str, Any] | None, again: Any) -> Any:
        if not recipe:
            raise PreventUpdate
        return readers.count(Recipe.read(recipe))

    @app.callback(
        Output(f"{name}-draft", "data"),
        Output(f"{name}-said", "children"),
        Input(f"{name}-open", "data"),
        **job(f"{name}-opening", f"{name}-opener"),
    )  # type: ignore[untyped-decorator]
    @told(1)
    def fetch(set_progress: Any, asked: dict[str, Any] | None) -> Any:
        if not asked:
            raise PreventUpdate
        return {"fields": opened(readers, asked, teller(set_progress)), "at": time.time()}

    @app.callback(
        Output(f"{name}-files-list", "children"),
        Output(f"{name}-saving", "data"),
        Output(f"{name}-save-said", "children"),
        Input(f"{name}-save", "n_clicks"),
        Input(f"{name}-save-name", "n_submit"),
        State(f"{name}-save-name", "value"),
        State(f"{name}-recipe", "data"),
        State(f"{name}-saving", "data"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def save(
        clicks: int | None, entered: int | None, wanted: str | None, recipe: dict[str, Any] | None, refused: str | None
    ) -> Any:
        if not (clicks or entered):
            raise PreventUpdate
        wanted = (wanted or "").strip()
        try:
            file = prompts.save(desk.workspace, wanted, Recipe.read(recipe or {}), replace=wanted == refused)
        except RequestError as error:
            # Asking for the same name again is the answer that it may be replaced.
            return no_update, wanted, notice(str(error), kind="warning")
        except Exception as error:  # noqa: BLE001 - whatever it is, the page must go on and say so
            return no_update, None, notice(said(error))
        return _files(desk, name), None, notice(f"Saved as {file}.", kind="note")


def opened(readers: Readers, asked: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Return the fields of the recipe that a user chose to open: an example, a file of the workspace, or an upload.

    Raises
    ------
    RequestError
        If there is none, or it is no text.
    """
    desk = readers.desk
    limit = desk.settings.upload_bytes
    if key := asked.get("example"):
        tell("Making the example", 0, 1)
        model = str(asked.get("model") or desk.settings.model)
        length = asked.get("length")
        reader = readers.get(model)
        with readers.busy:
            return examples.make(reader, str(key), int(length) if length and int(length) > 0 else None)
    if file := asked.get("file"):
        return prompts.open_saved(desk.workspace, str(file), limit)
    if upload := asked.get("upload"):
        try:
            data = base64.b64decode(upload["data"], validate=True)
        except (binascii.Error, ValueError, KeyError, TypeError) as error:
            raise RequestError("The file did not arrive whole: load it again.") from error
        return prompts.read(str(upload["name"]), data, limit)
    raise RequestError("There is nothing to open.")
