"""Choosing heads on a page: all, typed, a saved head set, or the best of a ranking."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Input, Output, dcc, html

from headscope.app.components.trouble import notice, said
from headscope.errors import HeadscopeError, RequestError
from headscope.probes.head_sets import HeadSet, is_head_set
from headscope.report.numbers import head_name, plural

if TYPE_CHECKING:
    from dash import Dash

    from headscope.app.desk import Desk

FOLDER = "heads"
"""Where head sets lie in the workspace."""
SCORES = (".parquet", ".json", ".csv")
KINDS = {"all": "All", "typed": "Listed", "set": "Head set", "top": "Ranking"}
NAMED = 8
"""Heads that a summary names."""

_PARTS = re.compile(r"[,\s]+")
_TYPED = re.compile(r"L?\d+(?:-\d+)?[.H](?:\d+|\*)", re.IGNORECASE)


def heads_picker(desk: Desk, name: str, *, label: str = "Heads", **initial: Any) -> html.Fieldset:
    """Return controls that choose heads; ``dcc.Store(id=f"{name}-heads")`` holds what is chosen.

    Parameters
    ----------
    name
        Prefix of all ids.
    label
        What the heads are called on the page.
    **initial
        kind, text, file and top, as the store holds them; all heads by default.
    """
    data = chosen(initial)
    kind, file = data["kind"], data["file"]
    sets, rankings = head_sets(desk), ranking_files(desk)
    return html.Fieldset(
        [
            html.Legend(label),
            dcc.Store(id=f"{name}-heads", data=data),
            dmc.SegmentedControl(
                id=f"{name}-heads-kind",
                value=kind,
                data=[{"value": value, "label": text} for value, text in KINDS.items()],
                size="xs",
                fullWidth=True,
                **{"aria-label": f"{label}: how they are chosen"},
            ),
            html.Div(
                dmc.TextInput(
                    id=f"{name}-heads-text",
                    label="Layer.head, separated by commas",
                    placeholder="18.6, 23.2, 5.*, 8-20.*",
                    value=data["text"],
                    size="xs",
                    debounce=300,
                ),
                id=f"{name}-heads-typed",
                hidden=kind != "typed",
            ),
            html.Div(
                dmc.Select(
                    id=f"{name}-heads-set",
                    label="Saved set",
                    placeholder="Choose a set" if sets else "None saved yet: pick heads on Rank",
                    value=file if kind == "set" else None,
                    data=_options(sets, file if kind == "set" else None),
                    searchable=True,
                    size="xs",
                    nothingFoundMessage="No such set",
                ),
                id=f"{name}-heads-sets",
                hidden=kind != "set",
            ),
            html.Div(
                [
                    dmc.Select(
                        id=f"{name}-heads-file",
                        label="Ranking",
                        placeholder="Choose a ranking" if rankings else "None yet: run one on Rank",
                        value=file if kind == "top" else None,
                        data=_options({file: file for file in rankings}, file if kind == "top" else None),
                        searchable=True,
                        size="xs",
                        nothingFoundMessage="No such ranking",
                    ),
                    dmc.NumberInput(
                        id=f"{name}-heads-top",
                        label="Best",
                        placeholder="all that pass",
                        value=data["top"] if data["top"] is not None else "",
                        min=1,
                        allowDecimal=False,
                        allowNegative=False,
                        size="xs",
                        debounce=300,
                    ),
                ],
                id=f"{name}-heads-ranking",
                className="heads-ranking",
                hidden=kind != "top",
            ),
            html.Div(_summary(desk, data), id=f"{name}-heads-said", className="soft small", role="status"),
        ],
        className="heads-picker",
    )


def heads_callbacks(app: Dash, desk: Desk, name: str) -> None:
    """Register what keeps the store of ``heads_picker(desk, name)`` and says what it holds."""
    app.clientside_callback(
        ClientsideFunction("headscope_heads", "choose"),
        Output(f"{name}-heads", "data"),
        Output(f"{name}-heads-typed", "hidden"),
        Output(f"{name}-heads-sets", "hidden"),
        Output(f"{name}-heads-ranking", "hidden"),
        Input(f"{name}-heads-kind", "value"),
        Input(f"{name}-heads-text", "value"),
        Input(f"{name}-heads-set", "value"),
        Input(f"{name}-heads-file", "value"),
        Input(f"{name}-heads-top", "value"),
    )

    @app.callback(Output(f"{name}-heads-said", "children"), Input(f"{name}-heads", "data"), prevent_initial_call=True)  # type: ignore[untyped-decorator]
    def describe(data: Any) -> Any:
        return _summary(desk, data)

    @app.callback(
        Output(f"{name}-heads-set", "data"),
        Output(f"{name}-heads-file", "data"),
        Input(f"{name}-heads-kind", "value"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def refresh(_kind: Any) -> Any:
        # Another tab may have saved one meanwhile.
        return _options(head_sets(desk)), _options({file: file for file in ranking_files(desk)})


def chosen(data: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a store of heads holds, whole, whatever it lacks."""
    data = data or {}
    kind = str(data.get("kind") or "all")
    top = data.get("top")
    return {
        "kind": kind if kind in KINDS else "all",
        "text": str(data.get("text") or ""),
        "file": data.get("file") or None,
        "top": int(str(top)) if str(top).isdecimal() else None,
    }


def resolve_heads(desk: Desk, model: Any, data: Mapping[str, Any] | None) -> tuple[tuple[int, int], ...] | str:
    """Return the chosen heads as pairs, or ``"all"``.

    Raises
    ------
    RequestError
        If nothing is chosen, the model has no such head, or a file is of another model.
    DataError
        If a file is neither a head set nor scores.
    """
    from headscope.commands.methods import heads_of
    from headscope.probes.head_sets import read_heads

    data = chosen(data)
    if data["kind"] == "all":
        return "all"
    if data["kind"] == "typed":
        text = data["text"].strip()
        _typed(text)
        found: Any = heads_of(text, model)
        return found if isinstance(found, str) else tuple(found)
    if not data["file"]:
        raise RequestError(f"Choose a {'head set' if data['kind'] == 'set' else 'ranking'} first.")
    path = desk.workspace.existing(data["file"], SCORES)
    return read_heads(path, model, data["top"] if data["kind"] == "top" else None)


def heads_argument(desk: Desk, data: Mapping[str, Any] | None) -> list[str]:
    """Return the same choice in the words of the command line, such as ``["--heads", "runs/heads/a.json"]``."""
    data = chosen(data)
    if data["kind"] == "all":
        return ["--heads", "all"]
    if data["kind"] == "typed":
        return ["--heads", ",".join(part for part in _PARTS.split(data["text"]) if part)]
    if not data["file"]:
        return []
    top = ["--top", str(data["top"])] if data["kind"] == "top" and data["top"] is not None else []
    return ["--heads", str(desk.workspace.root / data["file"]), *top]


def head_sets(desk: Desk) -> dict[str, str]:
    """Return the names of the saved sets by file, newest first."""
    found = {}
    for file in desk.workspace.files(".json", under=FOLDER):
        if is_head_set(desk.workspace.path(file)):
            found[file] = file.removeprefix(f"{FOLDER}/").removesuffix(".json")
    return found


def ranking_files(desk: Desk) -> list[str]:
    """Return the files of the workspace that hold scores, newest first."""
    from headscope.app.components.ranking_files import rankings

    return [found.file for found in rankings(desk)]


def describe_heads(desk: Desk, data: Mapping[str, Any] | None) -> str:
    """Say what is chosen, as far as it can be told without the model.

    Raises
    ------
    HeadscopeError
        If it cannot be meant.
    """
    data = chosen(data)
    if data["kind"] == "all":
        return "All heads of the model."
    if data["kind"] == "typed":
        parts = _typed(data["text"].strip())
        plain = all("-" not in part and "*" not in part for part in parts)
        return f"{plural(len(set(parts)), 'head')}." if plain else "Heads of whole layers are counted in the model."
    if not data["file"]:
        return ""
    path = desk.workspace.existing(data["file"], SCORES)
    if data["kind"] == "set":
        found = HeadSet.load(path)
        return listed(found.heads) + (f" of {found.model}." if found.model else ".")
    from headscope.probes.scores import HeadScores

    scores = HeadScores.load(path)
    heads = scores.selected if data["top"] is None else scores.top(data["top"])
    if not heads:
        raise RequestError("No head of this ranking passes its rule: say how many of the best to take.")
    return listed(heads) + f" of {scores.provenance.get('model', {}).get('name') or 'an unnamed model'}."


def listed(heads: Any) -> str:
    """Write how many heads there are, and the first of them."""
    names = [head_name(*pair) for pair in heads]
    more = " …" if len(names) > NAMED else ""
    return f"{plural(len(names), 'head')}: {', '.join(names[:NAMED])}{more}" if names else "no head"


def _typed(text: str) -> list[str]:
    parts = [part for part in _PARTS.split(text) if part]
    wrong = next((part for part in parts if not _TYPED.fullmatch(part)), None)
    if wrong is not None:
        raise RequestError(f"{wrong!r} is no head: write layer.head, such as 18.6, L18H6, 5.* or 8-20.*.")
    if not parts:
        raise RequestError("No head is listed: write some, such as 18.6, 23.2.")
    return parts


def _summary(desk: Desk, data: Any) -> Any:
    try:
        if chosen(data)["kind"] == "typed" and not chosen(data)["text"].strip():
            return ""
        return describe_heads(desk, data)
    except HeadscopeError as error:
        return notice(said(error), kind="warning")


def _options(files: Mapping[str, str], value: str | None = None) -> list[dict[str, str]]:
    # What the address names is shown even if its file is gone: the summary says so.
    known = {**({value: value} if value and value not in files else {}), **files}
    return [{"value": file, "label": label} for file, label in known.items()]
