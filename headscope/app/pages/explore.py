"""Explore: a prompt, and its attention from the whole model down to one pair of tokens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from headscope.app.api import RANKING
from headscope.app.cell import cell
from headscope.app.components.prompt import prompt_callbacks, prompt_form, starters
from headscope.app.components.ranking_files import rankings, read
from headscope.app.components.trouble import notice, told
from headscope.app.components.work import job, teller, working
from headscope.app.page import Page
from headscope.app.reading import Readers
from headscope.app.runs import Recipe
from headscope.errors import HeadscopeError
from headscope.report.numbers import plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from dash import Dash

    from headscope.app.desk import Desk
    from headscope.report.view import View

MORE = 16
"""Tokens that *Write on* adds."""

MOST_RANKINGS = 40
"""Rankings in the viewer's menu, the newest."""

_ACTIONS = (
    ("edit", "Edit prompt", "Change the prompt and run it again"),
    ("more", f"Write {MORE} more", "Let the model write on behind this prompt"),
    ("share", "Copy link", "A link to this view, as it is now"),
    ("cell", "Copy cell", "Copy as notebook cell: Python that makes this view"),
)


def layout(desk: Desk, run: str | None = None, **query: Any) -> html.Div:
    """Return the page; ``run`` is in the address once something was run."""
    begin: dict[str, Any] = {"run": run, "state": "none"}
    fields: dict[str, Any] = {}
    trouble = None
    if run:
        try:
            recipe = Recipe.load(desk.workspace, run)
            fields = fields_of(recipe)
            begin["state"] = "kept" if run in desk.runs else "gone"
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
                    _bar(),
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


def _bar() -> html.Div:
    buttons = [
        html.Button(label, id=f"explore-{key}", className="bar-button", title=about, type="button")
        for key, label, about in _ACTIONS
    ]
    steer = dcc.Link("Open in Steer", href="/steer", id="explore-steer", className="bar-button")
    return html.Div(
        [
            html.Div(id="explore-what", className="run-what", **{"aria-live": "polite"}),
            html.Div([*buttons, steer], className="run-actions"),
            html.Span(id="explore-done", className="run-done", role="status"),
        ],
        id="explore-line",
        className="run-bar",
        hidden=True,
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
    readers = Readers(desk)
    prompt_callbacks(app, desk, "explore", readers)
    seconds: dict[str, float] = {}

    @app.callback(
        Output("explore-run", "data"),
        Output("explore-what", "children"),
        Output("explore-error", "children"),
        Input("explore-ask", "data"),
        **job("explore-look", "explore-go"),
    )  # type: ignore[untyped-decorator]
    @told(2)
    def look(set_progress: Any, asked: dict[str, Any] | None) -> Any:
        if not asked:
            raise PreventUpdate
        tell = teller(set_progress)
        recipe, run = asked_for(desk, asked)
        kept = run in desk.runs
        if not kept and asked.get("only_kept"):
            raise PreventUpdate
        began = time.monotonic()
        view = desk.look(recipe, tell if "recipe" in asked else _again(tell))
        if not kept:
            seconds[run] = time.monotonic() - began
            while len(seconds) > 1000:
                seconds.pop(next(iter(seconds)))
        return shown(desk, readers, recipe, view, seconds.get(run), "recipe" if "recipe" in asked else "run")

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


def asked_for(desk: Desk, asked: dict[str, Any]) -> tuple[Recipe, str]:
    """Return the recipe that a page asks to see, and its run.

    Raises
    ------
    RequestError
        If there is none.
    """
    if "run" in asked:
        recipe = Recipe.load(desk.workspace, str(asked["run"]))
        return recipe, str(asked["run"])
    recipe = Recipe.read(asked.get("recipe"))
    return recipe, recipe.id


def _again(tell: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    return lambda task, done, total: tell(f"Making this view again · {task}", done, total)


def shown(
    desk: Desk, readers: Readers, recipe: Recipe, view: View, seconds: float | None, by: str
) -> tuple[dict[str, Any], list[Any]]:
    """Return what the page keeps about a run, and the line that sums it up."""
    meta = view.meta()
    data = {
        "run": recipe.id,
        "recipe": fields_of(recipe),
        "by": by,
        "cell": cell(recipe, view, root=desk.settings.workspace),
        "rankings": ranked(desk, meta["heads"]),
        "room": _room(readers, recipe, meta["length"]),
        "at": time.time(),
    }
    return data, summary(recipe, meta, view.nbytes, seconds)


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


def _room(readers: Readers, recipe: Recipe, length: int) -> int:
    """How many more tokens the model may write."""
    reader = readers.at_hand(recipe.model)
    limit = None if reader is None else reader.spec.n_ctx
    return MORE if limit is None else max(0, limit - length)


def summary(recipe: Recipe, meta: dict[str, Any], nbytes: int, seconds: float | None) -> list[Any]:
    """Return the line that stands for a prompt once it has run."""
    length, prompt = int(meta["length"]), int(meta["prompt_length"])
    facts = [f"{prompt:,} tokens" + (f" + {length - prompt:,} written" if length > prompt else "")]
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
        html.Span(words if len(words) < 200 else f"{words[:120]} … {words[-60:]}", className="run-text", title=None),
        html.Span(" · ".join(facts), className="run-facts"),
    ]
    if recipe.edit:
        parts.append(html.Span(f"under {recipe.edit}", className="run-edit", title="The model ran under this edit"))
    if following := meta.get("next"):
        likely = [f"{_visible(str(text))} {share:.0%}" for text, share in following[:5]]
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
