"""Explore: a prompt, and its attention from the whole model down to one pair of tokens."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import dash_mantine_components as dmc
from dash import ClientsideFunction, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from headscope.app.api import RANKING
from headscope.app.cell import cell
from headscope.app.components.heads import head_sets
from headscope.app.components.prompt import prompt_callbacks, prompt_form, starters
from headscope.app.components.ranking_files import rankings, read
from headscope.app.components.trouble import notice, told
from headscope.app.components.work import job, teller, working
from headscope.app.page import Page
from headscope.app.runs import Gone, Recipe
from headscope.errors import HeadscopeError
from headscope.probes.head_sets import HeadSet
from headscope.report.numbers import plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from dash import Dash

    from headscope.app.desk import Desk
    from headscope.report.view import View

MORE = 16
"""Tokens that *Write on* adds."""

_TOOK: WeakKeyDictionary[Desk, dict[str, float]] = WeakKeyDictionary()

MOST_RANKINGS = 40
"""Rankings, and head sets, in the viewer's menu; the newest."""

LEAST = 0.005
"""Next tokens less likely are not named."""

_ACTIONS = (
    ("change", "Edit prompt", "Change the prompt and run it again"),
    ("more", f"Write {MORE} more", "Let the model write on behind this prompt"),
    ("share", "Copy link", "A link to this view, as it is now"),
    ("cell", "Copy cell", "Copy as notebook cell: Python that makes this view"),
)


def layout(desk: Desk, run: str | None = None, **query: Any) -> html.Div:
    """Return the page; ``run`` is in the address once something was run."""
    begin: dict[str, Any] = {"run": run, "state": "none"}
    fields: dict[str, Any] = {}
    trouble, line = None, None
    if run:
        try:
            recipe = Recipe.load(desk.workspace, run)
            fields = fields_of(recipe)
            begin["state"] = "gone"
            with contextlib.suppress(Gone):
                # Shown at once: what is kept needs no job.
                begin["data"], line = shown(desk, recipe, desk.runs.get(run), "run")
                begin["state"] = "kept"
        except HeadscopeError as error:
            trouble = notice(str(error), title="This run cannot be shown. ")
            begin = {"run": None, "state": "unknown"}
    action = html.Div(
        [
            dmc.Button("Run", id="explore-go", fullWidth=True, size="sm", className="run-button"),
            html.Div([html.Kbd("Ctrl"), " ", html.Kbd("Enter")], className="run-keys", **{"aria-hidden": "true"}),
        ],
        className="run-box",
    )
    base = run if begin["run"] else ""
    return html.Div(
        [
            html.H1("Explore", className="unseen"),
            dcc.Store(id="explore-begin", data=begin),
            dcc.Store(id="explore-ask"),
            dcc.Store(id="explore-began"),
            dcc.Store(id="explore-run"),
            html.Div(
                [
                    _bar(line),
                    html.Div(
                        prompt_form(desk, "explore", base=base or "", action=action, **fields),
                        id="explore-prompt",
                        className="explore-prompt",
                        hidden=begin["state"] == "kept",
                    ),
                    working("explore-look"),
                    html.Div(trouble, id="explore-error", **{"aria-live": "assertive"}),
                    starters("explore"),
                ],
                className="explore-top",
            ),
            html.Div(id="explore-view", className="explore-view"),
        ],
        className="page explore",
    )


def _bar(line: list[Any] | None) -> html.Div:
    buttons = [
        html.Button(label, id=f"explore-{key}", className="bar-button", title=about, type="button")
        for key, label, about in _ACTIONS
    ]
    steer = dcc.Link("Open in Steer", href="/steer", id="explore-steer", className="bar-button")
    return html.Div(
        [
            html.Div(line, id="explore-what", className="run-what", **{"aria-live": "polite"}),
            html.Div([*buttons, steer], className="run-actions"),
            html.Span(id="explore-done", className="run-done", role="status"),
        ],
        id="explore-line",
        className="run-bar",
        hidden=line is None,
    )


def fields_of(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as a form takes it."""
    return {
        "model": recipe.model,
        "text": recipe.text,
        "chat": recipe.chat,
        "system": recipe.system,
        "regions": [list(region) for region in recipe.regions],
        "new_tokens": recipe.new_tokens,
        "edit": recipe.edit,
    }


def callbacks(app: Dash, desk: Desk) -> None:
    """Register what the page does."""
    prompt_callbacks(app, desk, "explore")

    @app.callback(
        Output("explore-run", "data"),
        Output("explore-what", "children"),
        Output("explore-error", "children"),
        Input("explore-ask", "data"),
        **job("explore-look", "explore-go"),
    )  # type: ignore[untyped-decorator]
    @told(2)
    def look(set_progress: Any, asked: dict[str, Any] | None) -> Any:
        if not asked or (asked.get("only_kept") and asked.get("run") not in desk.runs):
            raise PreventUpdate
        tell = teller(set_progress)
        recipe = asked_for(desk, asked)
        kept, began = recipe.id in desk.runs, time.monotonic()
        view = desk.look(recipe, tell if "recipe" in asked else _again(tell))
        if not kept:
            _took(desk)[recipe.id] = time.monotonic() - began
        return shown(desk, recipe, view, "recipe" if "recipe" in asked else "run")

    def act(function: str, *wanted: Any, output: Any = None) -> None:
        app.clientside_callback(
            ClientsideFunction("headscope_explore", function),
            *([output] if output is not None else []),
            *wanted,
            prevent_initial_call=function != "start",
        )

    # A callback without an output is not called when the page begins.
    act("start", Input("explore-begin", "data"), output=Output("explore-began", "data"))
    act("ran", Input("explore-run", "data"))
    act("run", Input("explore-go", "n_clicks"), State("explore-recipe", "data"))
    for key, *_ in _ACTIONS:
        act(key, Input(f"explore-{key}", "n_clicks"))


def _took(desk: Desk) -> dict[str, float]:
    """Return how long runs took, by their names."""
    known = _TOOK.setdefault(desk, {})
    while len(known) > 1000:
        known.pop(next(iter(known)))
    return known


def asked_for(desk: Desk, asked: dict[str, Any]) -> Recipe:
    """Return the recipe that a page asks to see.

    Raises
    ------
    RequestError
        If there is none.
    """
    return Recipe.load(desk.workspace, str(asked["run"])) if "run" in asked else Recipe.read(asked.get("recipe"))


def _again(tell: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    return lambda task, done, total: tell(f"Making this view again · {task}", done, total)


def shown(desk: Desk, recipe: Recipe, view: View, by: str) -> tuple[dict[str, Any], list[Any]]:
    """Return what the page keeps about a run, and the line that sums it up."""
    meta = view.meta()
    data = {
        "run": recipe.id,
        "recipe": fields_of(recipe),
        "length": meta["length"],
        "ended": meta["length"] - meta["prompt_length"] < recipe.new_tokens,
        "by": by,
        "cell": cell(recipe, view, root=desk.settings.workspace),
        "stats": ranked(desk, meta["heads"]),
        "sets": named(desk, meta["heads"]),
        "at": time.time(),
    }
    return data, summary(recipe, meta, view.nbytes, _took(desk).get(recipe.id))


def ranked(desk: Desk, heads: list[int]) -> list[dict[str, Any]]:
    """Return the rankings of the workspace for so many heads per layer, as statistics of the viewer's menu."""
    fitting = [ranking for ranking in rankings(desk) if ranking.shape == (len(heads), max(heads))]
    out = []
    for ranking in fitting[:MOST_RANKINGS]:
        scores = read(desk, ranking.file).table["score"]
        about = f"Scores of the probe {ranking.probe}" + (f" on {ranking.model}" if ranking.model else "")
        low, high = min(0.0, float(scores.min())), float(scores.max())
        named = {"name": f"{RANKING}{ranking.file}", "label": ranking.label, "unit": "", "about": about}
        out.append({**named, "low": low, "high": high if high > low else low + 1.0})
    return out


def named(desk: Desk, heads: list[int]) -> list[dict[str, Any]]:
    """Return the head sets of the workspace for so many heads per layer, as statistics that are one or nothing."""
    shape = (len(heads), max(heads))
    out = []
    for file, label in list(head_sets(desk).items())[:MOST_RANKINGS]:
        try:
            found = HeadSet.load(desk.workspace.path(file))
        except HeadscopeError:
            continue  # gone by now
        inside = all(layer < len(heads) and head < heads[layer] for layer, head in found.heads)
        if inside and found.shape in (None, shape):
            about = f"Heads of the set {label}" + (f", from {found.source}" if found.source else "")
            stat = {
                "name": f"set:{file}",
                "label": f"Head set: {label}",
                "unit": "",
                "low": 0,
                "high": 1,
                "about": about,
            }
            out.append({**stat, "heads": [list(pair) for pair in found.heads]})
    return out


def summary(recipe: Recipe, meta: dict[str, Any], nbytes: int, seconds: float | None) -> list[Any]:
    """Return the line that stands for a prompt once it has run."""
    length, prompt = int(meta["length"]), int(meta["prompt_length"])
    facts = [f"{prompt:,} tokens" + (f" + {length - prompt:,} written" if length > prompt else "")]
    if recipe.new_tokens > length - prompt:
        facts[0] += ", then it ended"
    if recipe.chat:
        facts.append("chat + system" if recipe.system else "chat")
    if marked := len({name for name, _, _ in recipe.regions}):
        facts.append(plural(marked, "region"))
    if seconds is not None:
        facts.append(f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min")
    facts.append(f"{nbytes / 1e6:,.0f} MB")
    words = " ".join(recipe.text.split())
    parts: list[Any] = [
        html.Strong(str(meta.get("model") or recipe.model), className="run-model"),
        html.Span(
            words if len(words) < 200 else f"{words[:120]} … {words[-60:]}", className="run-text", title=words[:600]
        ),
        html.Span(" · ".join(facts), className="run-facts"),
    ]
    if recipe.edit:
        parts.append(html.Span(f"under {recipe.edit}", className="run-edit", title="The model ran under this edit"))
    if following := meta.get("next"):
        likely = [
            f"{_visible(one['token'])} {one['probability']:.0%}" for one in following if one["probability"] >= LEAST
        ]
        parts.append(html.Span(["next ", *_spaced(likely)], className="run-next", title="The likeliest next tokens"))
    return parts


def _visible(token: str) -> str:
    return token.replace("\n", "⏎").replace(" ", "␣", 1) if token.strip() != token or not token else token


def _spaced(items: list[str]) -> list[Any]:
    return [html.Span(item, className="run-token") for item in items]


PAGE = Page(
    "/explore",
    "Explore",
    1,
    "Attention of one prompt, from the whole model down to one pair of tokens",
    layout,
    callbacks,
)
