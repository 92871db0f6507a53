"""The form that starts a ranking, and what is unfinished or at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import dcc, html

from headscope.app.components.copy import copy_button
from headscope.app.components.ranking_work import ABLATIONS, WORKS, unfinished
from headscope.app.components.work import working
from headscope.probes.registry import PROBES
from headscope.probes.removal import SEMANTICS
from headscope.report.words import QUESTIONS, TITLES

if TYPE_CHECKING:
    from headscope.app.desk import Desk

FIELDS = (
    "model", "probes", "n", "lengths", "length", "teacher", "seed", "verify", "ablation", "controls", "k", "trials",
    "name",
)  # fmt: skip
"""Fields of the form; each has the id ``rank-run-`` and its name."""
CHECKED = ("teacher", "verify", "fresh")


def field(name: str) -> str:
    """Return the id of a field."""
    return f"rank-run-{name}"


def prop(name: str) -> str:
    """Return the property that holds a field's value."""
    return "checked" if name in CHECKED else "value"


def form(desk: Desk) -> html.Div:
    """Return the form, its progress, and what is unfinished."""
    start = html.Div(
        [
            dmc.Button("Rank heads", id="rank-run-go", size="sm"),
            html.P(id="rank-run-load", className="soft small", role="status"),
            copy_button("rank-run-command", "Copy command line", look="quiet"),
            html.Code(id="rank-run-command", hidden=True),
        ],
        className="run-start",
    )
    return html.Div(
        [
            html.H2("New ranking", className="unseen"),
            html.Div(works(desk), id="rank-works"),
            html.Div(
                [html.Div([part], className="run-column") for part in (_what(desk), _data())]
                + [html.Div([_removal(), _where()], className="run-column")],
                className="run-columns",
            ),
            html.Div(
                [start, working("rank-run"), html.Div(id="rank-run-error", **{"aria-live": "assertive"})],
                className="run-foot",
            ),
            dcc.Interval(id="rank-works-tick", interval=1000, disabled=not WORKS.of(desk)),
            dcc.Store(id="rank-resume"),
        ],
        className="run-form",
    )


def works(desk: Desk) -> list[Any]:
    """Return what is at work, and what was begun and is not finished."""
    made: list[Any] = []
    for work in WORKS.of(desk):
        stop = html.Button("Stop", type="button", id={"work-stop": work.asked.name}, className="quiet")
        bar = dmc.Progress(value=100 * work.share, size="xs", **{"aria-label": f"Progress of {work.asked.name}"})
        made.append(
            html.Li([html.Div([html.Strong(work.asked.name), stop]), html.Span(work.text, className="soft"), bar])
        )
    for wanted in unfinished(desk):
        resume = html.Button("Go on", type="button", id={"work-resume": wanted.name}, className="quiet")
        text = f"{wanted.model} · {', '.join(wanted.plan.probes)}"
        made.append(html.Li([html.Div([html.Strong(wanted.name), resume]), html.Span(text, className="soft")]))
    if not made:
        return []
    return [html.H3("Not finished"), html.Ul(made, className="works")]


def _what(desk: Desk) -> html.Fieldset:
    names = desk.names()
    model = (
        dmc.Autocomplete(id=field("model"), label="Model", value=names[0], data=names, size="xs")
        if desk.settings.any_model
        else dmc.Select(
            id=field("model"),
            label="Model",
            value=names[0],
            data=names,
            allowDeselect=False,
            size="xs",
            persistence=True,
            persistence_type="session",
        )
    )
    probes = dmc.CheckboxGroup(
        [
            dmc.Checkbox(value=name, label=TITLES[name], description=f"Heads that {QUESTIONS[name]}", size="xs")
            for name in PROBES
        ],
        id=field("probes"),
        label="Probes",
        description="Probes on the same data share its runs.",
        value=["induction"],
        size="xs",
        persistence=True,
        persistence_type="session",
        className="run-probes",
    )
    return html.Fieldset([html.Legend("What"), model, probes])


def _data() -> html.Fieldset:
    return html.Fieldset(
        [
            html.Legend("Data"),
            html.Div(
                [
                    _number("n", "Samples", "by kind", "Of each kind of data", least=1),
                    _number("length", "Text length", "by kind", "Tokens of a text or block", least=8),
                ],
                className="run-row",
            ),
            _text("lengths", "Context lengths", "by model", "Of retrieval, in tokens, such as 512, 2048"),
            html.Div(
                [
                    _number("seed", "Seed", "0", "Of data, bootstrap and controls", least=0),
                    dmc.Switch(
                        id=field("teacher"),
                        label="Feed the true answers",
                        description="Of retrieval: for models that do not answer",
                        size="xs",
                        persistence=True,
                        persistence_type="session",
                    ),
                ],
                className="run-row",
            ),
        ]
    )


def _removal() -> html.Fieldset:
    return html.Fieldset(
        [
            html.Legend("Removing heads"),
            dmc.Switch(
                id=field("verify"),
                label="Remove the best heads and measure",
                description="Beside as many other heads of the same layers. Takes most of the time.",
                checked=True,
                size="xs",
                persistence=True,
                persistence_type="session",
            ),
            html.Div(
                [
                    dmc.Select(
                        id=field("ablation"),
                        label="A removed head’s output becomes",
                        value="mean",
                        data=[{"value": name, "label": _meaning(name)} for name in ABLATIONS],
                        allowDeselect=False,
                        size="xs",
                        persistence=True,
                        persistence_type="session",
                    ),
                    _text("k", "Heads to remove", "up to all that pass", "Such as 1, 5, 20"),
                    html.Div(
                        [
                            _number("controls", "Control sets", "20", "Other heads, removed beside", least=1),
                            _number("trials", "Trials", "8", "Samples of a measurement", least=2),
                        ],
                        className="run-row",
                    ),
                ],
                id="rank-run-removal",
                className="run-removal",
            ),
        ]
    )


def _where() -> html.Fieldset:
    return html.Fieldset(
        [
            html.Legend("Where"),
            _text("name", "Name", "made from the settings", "Folder under rankings/ in the workspace"),
            dmc.Switch(
                id=field("fresh"),
                label="Start over",
                description="Discard what an earlier run of this name finished; otherwise it goes on there",
                size="xs",
            ),
        ]
    )


def _meaning(name: str) -> str:
    short = {"mean": "its mean", "zero": "zero", "resample": "one of another position", "mask": "no look at the region"}
    assert name in SEMANTICS
    return f"{name}: {short[name]}"


def _number(name: str, label: str, placeholder: str, about: str, *, least: int) -> dmc.NumberInput:
    return dmc.NumberInput(
        id=field(name),
        label=label,
        description=about,
        placeholder=placeholder,
        min=least,
        allowDecimal=False,
        hideControls=True,
        size="xs",
        persistence=True,
        persistence_type="session",
        debounce=300,
    )


def _text(name: str, label: str, placeholder: str, about: str) -> dmc.TextInput:
    return dmc.TextInput(
        id=field(name),
        label=label,
        description=about,
        placeholder=placeholder,
        size="xs",
        persistence=True,
        persistence_type="session",
        debounce=300,
    )
