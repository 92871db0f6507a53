"""Choosing a method: the form that its class asks for, or the file that holds what was trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from headscope.app.components.copy import copied, copy_button
from headscope.app.components.heads import heads_callbacks, heads_picker
from headscope.app.components.method_asked import SAVED, EditFile, edit_files, how_to_make
from headscope.app.components.method_fields import NEEDED, VALUED, Field, about, fields_of, takes_heads
from headscope.interventions.registry import METHODS

if TYPE_CHECKING:
    from dash import Dash

    from headscope.app.desk import Desk

ANY = {"part": "method-field", "form": ALL, "field": ALL}


def method_form(desk: Desk, name: str, given: Mapping[str, Any]) -> html.Div:
    """Return the form; ``given`` is what an address says, see ``method_asked.from_query``.

    The stores ``NAME-fields`` (values by method, as the controls hold them), ``NAME-heads`` and ``NAME-edit-file`` (of
    the form that is open), and the values of ``NAME-method`` and ``NAME-before`` hold what is chosen; ``NAME-wrong``
    takes messages by field.
    """
    method = str(given["method"])
    kept = {method: raw(method, given["fields"]) if method in VALUED else {"file": given.get("file")}}
    return html.Div(
        [
            dcc.Store(id=f"{name}-fields", data=kept),
            dcc.Store(id=f"{name}-defaults", data={one: _defaults(one) for one in VALUED}),
            dcc.Store(id=f"{name}-wrong"),
            dcc.Store(id=f"{name}-edit-file", data=given.get("file")),
            dmc.Select(
                id=f"{name}-method",
                label="Method",
                value=method,
                data=_choices(),
                allowDeselect=False,
                searchable=True,
                nothingFoundMessage="No such method",
                size="sm",
                maxDropdownHeight=420,
            ),
            html.Div(about_of(method), id=f"{name}-about", className="method-about"),
            html.Div(form_of(desk, name, method, kept.get(method, {}), given.get("file")), id=f"{name}-form-box"),
            html.Fieldset(
                heads_picker(desk, name, **_heads(given)),
                id=f"{name}-heads-box",
                disabled=not _chooses(method),
                className="method-heads",
            ),
            html.Div(id=f"{name}-heads-wrong", className="method-wrong", role="alert"),
            _before(desk, name, given.get("before")),
        ],
        className="method",
    )


def _chooses(method: str) -> bool:
    return method in VALUED and takes_heads(method)


def _heads(given: Mapping[str, Any]) -> dict[str, Any]:
    # All heads are what most methods want; removing all of them is what nobody wants.
    heads = dict(given["heads"])
    return {**heads, "kind": "typed"} if given["method"] == "ablation" and heads.get("kind") == "all" else heads


def _choices() -> list[dict[str, Any]]:
    def item(name: str) -> dict[str, str]:
        return {"value": name, "label": f"{about(name).label}"}

    return [
        {"group": "Made from values", "items": [item(name) for name in METHODS if name in VALUED]},
        {"group": "Trained, opened from a file", "items": [item(name) for name in METHODS if name not in VALUED]},
        {"group": "Kept", "items": [{"value": SAVED, "label": "A saved edit"}]},
    ]


def about_of(method: str) -> list[Any]:
    """Return what a method does in a line, and on demand in full with its paper and its page."""
    if method == SAVED:
        return [html.P("What was saved here, or by the command line, in force as it is.")]
    told = about(method)
    paper: list[Any] = []
    if told.paper:
        link = html.A(told.paper, href=f"https://arxiv.org/abs/{told.arxiv}", target="_blank", rel="noreferrer")
        paper = [html.P(link if told.arxiv else told.paper, className="small")]
    return [
        html.P(told.line),
        html.Details(
            [
                html.Summary(told.title),
                *(html.P(part) for part in re.split(r"\n\s*\n", told.text)),
                *paper,
                html.P(["Documentation: ", html.Code(f"docs/interventions/{method}.md")], className="small soft"),
            ],
            className="method-more",
        ),
    ]


# -- fields ----------------------------------------------------------------------------------------------------------


def form_of(desk: Desk, name: str, method: str, kept: Mapping[str, Any], file: str | None) -> list[Any]:
    """Return the controls of a method: its fields, or the choice of a file."""
    if method not in VALUED:
        return _file(desk, name, method, file)
    known = fields_of(method)
    usual = [_control(name, method, field, kept.get(field.name)) for field in known if not field.rare]
    rare = [_control(name, method, field, kept.get(field.name)) for field in known if field.rare]
    changed = any(kept.get(field.name) not in (None, "", field.default) for field in known if field.rare)
    more = html.Details(
        [html.Summary("Seldom needed"), html.Div(rare, className="method-fields")],
        open=changed,
        className="method-rare",
    )
    return [html.Div(usual, className="method-fields"), *([more] if rare else [])]


def raw(method: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """Return fields as their controls hold them, from text."""
    found: dict[str, Any] = {}
    for field in fields_of(method):
        if (text := fields.get(field.name)) is not None:
            found[field.name] = value_of(field, text)
    return found


def _defaults(method: str) -> dict[str, Any]:
    return {field.name: value_of(field, field.default) for field in fields_of(method) if field.default}


def value_of(field: Field, text: str) -> Any:
    """Return what a control shows for a text; a text that is no such value is shown as it is."""
    if field.kind in ("keys", "names"):
        return [part for part in text.split(",") if part]
    if field.kind in ("number", "whole"):
        try:
            return int(text) if field.kind == "whole" else float(text)
        except ValueError:
            return text
    return text


def _control(form: str, method: str, field: Field, value: Any) -> html.Div:
    given = value if value is not None else value_of(field, field.default) if field.default else None
    common: dict[str, Any] = {
        "id": {"part": "method-field", "form": method, "field": field.name},
        "label": field.name,
        "description": field.about,
        "size": "xs",
    }
    wide = field.kind in ("keys", "names", "region")
    return html.Div(
        # What the class says of a field stands beside it when it is pointed at or typed into, and is read out with it.
        dmc.Tooltip(
            _input(field, given, common),
            label=field.about,
            multiline=True,
            w=300,
            position="right-start",
            events={"hover": True, "focus": True, "touch": False},
            openDelay=350,
            boxWrapperProps={"w": "100%"},
            transitionProps={"duration": 0},
        ),
        className="method-field wide" if wide else "method-field",
    )


def _input(field: Field, value: Any, common: dict[str, Any]) -> Any:
    if field.kind in ("number", "whole"):
        return dmc.NumberInput(
            **common,
            value="" if value is None else value,
            placeholder=field.placeholder or field.default,
            step=field.step,
            min=0,
            allowDecimal=field.kind == "number",
        )
    if field.kind == "choice":
        options = [{"value": one, "label": one} for one in field.options]
        if not field.default:
            options.insert(0, {"value": "", "label": "the model's own"})
        return dmc.Select(**common, value=value or field.default, data=options, allowDeselect=False)
    if field.kind in ("keys", "names"):
        return dmc.TagsInput(
            **common,
            value=value or [],
            data=[],
            placeholder=_prompting(field) if not value else "",
            splitChars=[",", " "],
            clearable=True,
            acceptValueOnBlur=True,
        )
    if field.kind == "region":
        return dmc.Select(**common, value=value, data=[], placeholder="Choose a region", clearable=True)
    return dmc.TextInput(**common, value=value or "", placeholder=field.placeholder)


def _prompting(field: Field) -> str:
    if field.placeholder:
        return field.placeholder
    if field.name in NEEDED:
        return "Choose regions, in any order" if field.kind == "names" else "Choose a region"
    return ""


# -- files -----------------------------------------------------------------------------------------------------------


def _file(desk: Desk, name: str, method: str, file: str | None) -> list[Any]:
    files = edit_files(desk, method)
    known = [one.file for one in files]
    options = [{"value": one.file, "label": _labelled(one)} for one in files]
    if file and file not in known and method == SAVED:
        options.insert(0, {"value": file, "label": file})
    chosen = file if file in {option["value"] for option in options} else None
    select = dmc.Select(
        id={"part": "method-field", "form": method, "field": "file"},
        label="Edit file of the workspace",
        data=options,
        value=chosen,
        placeholder="Choose a file" if options else "None yet",
        searchable=True,
        nothingFoundMessage="No such file",
        size="xs",
    )
    if method == SAVED:
        text = "Save writes the edit of a run to edits/ in the workspace; so does headscope steer … --out FILE."
        return [select, html.P(text, className="small soft")]
    text, code = how_to_make(method, desk.settings.workspace)
    target = f"{name}-make"
    return [
        select,
        html.P(text, className="small soft"),
        html.Div([html.Code(code), copied(target, code), copy_button(target, "Copy")], className="method-make"),
    ]


def _labelled(one: EditFile) -> str:
    return f"{one.label} ({', '.join(dict.fromkeys(one.kinds))}; {one.model})"


def _before(desk: Desk, name: str, file: str | None) -> html.Details:
    files = edit_files(desk)
    options = [{"value": one.file, "label": _labelled(one)} for one in files]
    if file and file not in {one.file for one in files}:
        options.insert(0, {"value": file, "label": file})
    return html.Details(
        [
            html.Summary("On top of another edit"),
            dmc.Select(
                id=f"{name}-before",
                label="Saved edit that stays in force, in both texts’ steered state",
                data=options,
                value=file,
                placeholder="none" if options else "None is saved yet",
                clearable=True,
                size="xs",
            ),
        ],
        open=bool(file),
        className="method-rare",
    )


# -- callbacks -------------------------------------------------------------------------------------------------------


def method_callbacks(app: Dash, desk: Desk, name: str) -> None:
    """Register what the form does."""
    heads_callbacks(app, desk, name)

    @app.callback(
        Output(f"{name}-form-box", "children"),
        Output(f"{name}-about", "children"),
        Output(f"{name}-heads-box", "disabled"),
        Input(f"{name}-method", "value"),
        State(f"{name}-fields", "data"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def choose(method: str | None, fields: dict[str, Any] | None) -> Any:
        if method not in METHODS and method != SAVED:
            raise PreventUpdate
        kept = dict((fields or {}).get(method) or {})
        return form_of(desk, name, method, kept, kept.get("file")), about_of(method), not _chooses(method)

    app.clientside_callback(
        ClientsideFunction("headscope_steer", "keep"),
        Output(f"{name}-fields", "data"),
        Output(f"{name}-edit-file", "data"),
        Input(ANY, "value"),
        State(ANY, "id"),
        State(f"{name}-fields", "data"),
        State(f"{name}-edit-file", "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("headscope_steer", "regions"),
        Output(ANY, "data"),
        Output(ANY, "value"),
        Input(f"{name}-recipe", "data"),
        Input(f"{name}-form-box", "children"),
        State(ANY, "id"),
        State(ANY, "value"),
        State(ANY, "data"),
    )
    app.clientside_callback(
        ClientsideFunction("headscope_steer", "wrong"),
        Output(ANY, "error"),
        Output(f"{name}-heads-wrong", "children"),
        Input(f"{name}-wrong", "data"),
        Input(ANY, "value"),
        Input(f"{name}-heads", "data"),
        State(ANY, "id"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("headscope_steer", "heads_kind"),
        Output(f"{name}-heads-kind", "value"),
        Input(f"{name}-method", "value"),
        State(f"{name}-heads-kind", "value"),
        prevent_initial_call=True,
    )
