"""Where one begins: models at hand, recent runs, what is in the workspace, and the tour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Input, Output, State, ctx, dcc, html
from dash.exceptions import PreventUpdate

from headscope.app import at_hand, tour
from headscope.app.components.heads import head_sets
from headscope.app.components.ranking_files import rankings
from headscope.app.components.trouble import told
from headscope.app.components.work import job, teller, working
from headscope.app.page import Page, find_pages
from headscope.app.runs import Recent, Recipe, forget, recent
from headscope.report.numbers import number, plural

if TYPE_CHECKING:
    from dash import Dash

    from headscope.app.desk import Desk

RUNS = 12
"""Recent runs that the page lists."""
FILES = 8
"""Files of each kind that the page lists."""
WORDS = 90
"""Characters of a prompt that stand for it."""


def layout(desk: Desk, **query: Any) -> html.Div:
    """Return the page."""
    return html.Div(
        [
            html.H1("headscope", className="unseen"),
            dcc.Store(id="home-tour-run"),
            dcc.Store(id="home-removed"),
            html.Div([_begin(desk), _recent(desk)], className="home-main"),
            html.Div([_models(desk), _files(desk)], className="home-side"),
        ],
        className="page home",
    )


# -- begin ------------------------------------------------------------------------------------------------------------


def _begin(desk: Desk) -> html.Section:
    return html.Section(
        [
            html.P("Which attention heads do what, and does it matter?", className="home-lead"),
            html.Div(
                [
                    dmc.Button("Take the tour", id="home-tour", size="sm"),
                    dcc.Link("Explore a prompt", href="/explore", className="home-go"),
                    html.Span(
                        f"Five minutes on {Path(desk.settings.model).name}: from all heads of one run down to two "
                        "tokens, to a ranking, to an edit.",
                        className="soft small",
                    ),
                ],
                className="home-begin",
            ),
            working("home-run"),
            html.Div(id="home-error", **{"aria-live": "assertive"}),
        ],
        **{"aria-label": "Begin"},
    )


# -- recent runs ------------------------------------------------------------------------------------------------------


def _recent(desk: Desk) -> html.Section:
    return html.Section(
        [
            html.Div(
                [html.H2("Recent runs", id="home-runs-title"), html.Span(id="home-undo", role="status")],
                className="home-title",
            ),
            html.Div(runs_table(recent(desk.workspace, RUNS), desk.runs.__contains__), id="home-runs"),
        ],
        **{"aria-labelledby": "home-runs-title"},
    )


def runs_table(found: Sequence[Recent], kept: Any) -> Any:
    """Return the list of runs; ``kept`` tells which are in memory and open at once."""
    if not found:
        return _nothing()
    head = html.Tr(
        [
            html.Th("Prompt"),
            html.Th("Model"),
            html.Th("Tokens", className="number"),
            html.Th("When"),
            html.Th(_unseen("Do")),
        ]
    )
    return html.Table(
        [html.Thead(head), html.Tbody([_run(one, kept(one.recipe.id)) for one in found])], className="table home-table"
    )


def _nothing() -> html.Div:
    pages = [page for page in find_pages() if page.path != "/"]
    rows = [html.Tr([html.Td(dcc.Link(page.name, href=page.path)), html.Td(page.about)]) for page in pages]
    return html.Div(
        [
            html.P(
                [
                    "Nothing was run in this workspace yet. ",
                    dcc.Link("Run a prompt", href="/explore"),
                    " and it is listed here.",
                ],
                className="soft",
            ),
            html.Table(html.Tbody(rows), className="table home-pages", **{"aria-label": "Pages"}),
        ]
    )


def _run(one: Recent, kept: bool) -> html.Tr:
    recipe, run = one.recipe, one.recipe.id
    words = first_words(recipe.text)
    marks = [
        *(["chat"] if recipe.chat else []),
        *(["edited"] if recipe.edit else []),
        *dict.fromkeys(name for name, _, _ in recipe.regions),
    ]
    prompt = html.Td(
        [
            dcc.Link(words, href=f"/explore?run={run}", className="home-words"),
            *[html.Span(mark, className="home-mark") for mark in marks[:4]],
        ]
    )
    remove = html.Button(
        "×",
        id={"forget": run},
        className="home-remove",
        title="Remove from this list",
        type="button",
        **{"aria-label": f"Remove “{words[:40]}” from this list"},
    )
    return html.Tr(
        [
            prompt,
            html.Td(Path(recipe.model).name),
            html.Td(number(one.length), className="number"),
            html.Td([_ago(one.when), _dot() if kept else ""]),
            html.Td([*_steer(f"/steer?run={run}", "Steer"), remove], className="home-do"),
        ]
    )


def _steer(href: str, text: str) -> list[dcc.Link]:
    there = any(page.path == "/steer" for page in find_pages())
    return [dcc.Link(text, href=href, className="home-small")] if there else []


def first_words(text: str) -> str:
    """Return the beginning of a prompt on one line, cut at a word."""
    line = " ".join(text.split())
    if len(line) <= WORDS:
        return line
    cut = line[:WORDS].rsplit(" ", 1)[0]
    return f"{cut if len(cut) > WORDS // 2 else line[:WORDS]} …"


def _dot() -> html.Span:
    return html.Span([html.Span(className="home-dot"), _unseen("in memory")], title="In memory: opens at once")


def _unseen(text: str) -> html.Span:
    return html.Span(text, className="unseen")


def _ago(when: float) -> html.Time:
    """Return a moment that the browser words as time ago (``assets/60-home.js``)."""
    moment = datetime.fromtimestamp(when, UTC)
    text = moment.strftime("%Y-%m-%d %H:%M")
    return html.Time(text, dateTime=moment.isoformat(timespec="seconds"), title=f"{text} UTC", className="ago")


# -- models -----------------------------------------------------------------------------------------------------------


def _models(desk: Desk) -> html.Section:
    head = html.Tr(
        [
            html.Th("Model"),
            html.Th("Heads", className="number", title="Layers × heads"),
            html.Th("Context", className="number"),
            html.Th("State"),
        ]
    )
    known = at_hand.models(desk)
    rows = [model_row(found, begin=found.name == desk.settings.model) for found in known if found.allowed]
    more = (
        "Pages may load any model by its name, hub id or folder."
        if desk.settings.any_model
        else "For another, start the server with --allow and its name, hub id or folder."
    )
    absent = [found for found in known if not found.allowed]
    return html.Section(
        [
            html.Div(html.H2("Models at hand", id="home-models-title"), className="home-title"),
            html.Table([html.Thead(head), html.Tbody(rows)], className="table home-table"),
            html.P(more, className="soft small home-more"),
            *([_absent(absent)] if absent else []),
        ],
        **{"aria-labelledby": "home-models-title"},
    )


def _absent(found: Sequence[at_hand.AtHand]) -> html.Details:
    items = [
        html.Li(
            [
                html.Strong(one.name),
                html.Span(f"{one.about} · {one.licence}", className="soft"),
                html.Code(one.fetch),
            ]
        )
        for one in found
    ]
    return html.Details(
        [
            html.Summary(f"{plural(len(found), 'more model')} that a package carries, to be fetched once"),
            html.Ul(items),
        ],
        className="home-absent",
    )


def model_row(found: at_hand.AtHand, *, begin: bool = False) -> html.Tr:
    """Return what the list says of a model."""
    name = Path(found.name).name if found.name.startswith("/") else found.name
    title: list[Any] = [html.Span(name, className="home-model", title=found.name)]
    if begin:
        title.append(html.Span("default", className="home-mark", title="The server was started with it"))
    # Sizes have columns of their own.
    about = " · ".join(part for part in (found.about.partition(":")[0], found.licence) if part)
    title.append(html.Div(about, className="soft small home-about", title=found.about))
    shape = f"{found.layers} × {found.heads}" if found.layers and found.heads else number(None)
    state = html.Span(found.state or "by name", className=f"home-state is-{found.state.replace(' ', '-')}")
    return html.Tr(
        [
            html.Td(title),
            html.Td(shape, className="number"),
            html.Td(number(found.context), className="number"),
            html.Td(state),
        ]
    )


# -- files ------------------------------------------------------------------------------------------------------------


def _files(desk: Desk) -> html.Div:
    ranked = [
        _file(
            f"/rank?file={quote(one.file)}",
            f"{one.probe} · {one.label}",
            f"{one.model} · {plural(one.selected, 'head')} selected",
        )
        for one in rankings(desk)
    ]
    sets = [_file(f"/rank?tab=sets&set={quote(file)}", name) for file, name in head_sets(desk).items()]
    edits = [
        _file(f"/steer?edit={quote(file)}", file.removeprefix("edits/").removesuffix(".json"))
        for file in desk.workspace.files(".json", under="edits")
    ]
    return html.Div(
        [
            _kind("Rankings", "home-rankings", ranked, "None yet: run a probe on Rank.", "/rank"),
            _kind("Head sets", "home-sets", sets, "None yet: pick heads in a ranking.", "/rank?tab=sets"),
            _kind("Edits", "home-edits", edits, "None yet: save one on Steer.", "/steer"),
        ],
        className="home-files",
    )


def _file(href: str, name: str, about: str = "") -> html.Li:
    return html.Li([dcc.Link(name, href=href), *([html.Span(about, className="soft small")] if about else [])])


def _kind(title: str, name: str, items: list[html.Li], none: str, more: str) -> html.Section:
    left = len(items) - FILES
    shown = [html.Ul(items[:FILES])] if items else [html.P(none, className="soft small")]
    if left > 0:
        shown.append(dcc.Link(f"{left} more", href=more, className="small"))
    return html.Section([html.H2(title, id=name), *shown], **{"aria-labelledby": name})


# -- what it does -----------------------------------------------------------------------------------------------------


def callbacks(app: Dash, desk: Desk) -> None:
    """Register what the page does."""

    @app.callback(
        Output("home-tour-run", "data"),
        Output("home-error", "children"),
        Input("home-tour", "n_clicks"),
        **job("home-run", "home-tour"),
    )  # type: ignore[untyped-decorator]
    @told(1)
    def take(set_progress: Any, clicks: int | None) -> Any:
        if not clicks:
            raise PreventUpdate
        recipe = tour.recipe(desk.settings.model)
        desk.look(recipe, teller(set_progress))
        return recipe.id

    app.clientside_callback(ClientsideFunction("headscope_home", "begin"), Input("home-tour-run", "data"))

    @app.callback(
        Output("home-runs", "children"),
        Output("home-undo", "children"),
        Output("home-removed", "data"),
        Input({"forget": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    def remove(clicks: list[int | None]) -> Any:
        run = ctx.triggered_id and str(ctx.triggered_id["forget"])
        if not run or not any(clicks):
            raise PreventUpdate
        gone = next((one for one in recent(desk.workspace, RUNS) if one.recipe.id == run), None)
        if gone is None:  # another window was faster
            return _listed(desk), None, None
        forget(desk.workspace, run)
        undo = ["Removed. ", html.Button("Undo", id={"undo": run}, className="home-undo", type="button")]
        return _listed(desk), undo, {**asdict(gone.recipe), "length": gone.length}

    @app.callback(
        Output("home-runs", "children", allow_duplicate=True),
        Output("home-undo", "children", allow_duplicate=True),
        Input({"undo": ALL}, "n_clicks"),
        State("home-removed", "data"),
        prevent_initial_call=True,
    )  # type: ignore[untyped-decorator]
    @told(1)
    def undo(clicks: list[int | None], removed: dict[str, Any] | None) -> Any:
        if not any(clicks) or not removed:
            raise PreventUpdate
        length = removed.pop("length", None)
        Recipe.read(removed).save(desk.workspace, length)
        return _listed(desk)


def _listed(desk: Desk) -> Any:
    return runs_table(recent(desk.workspace, RUNS), desk.runs.__contains__)


PAGE = Page("/", "Home", 0, "Models, recent runs and the tour", layout, callbacks)
