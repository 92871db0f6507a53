"""A method, or a sweep of its strength, on a task: what to measure, and what the harness found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import html

from headscope.app.components.figure import figure
from headscope.app.components.ranking_details import links
from headscope.app.components.sweep import frame
from headscope.data.tasks import SPLITS, TASKS
from headscope.errors import DataError
from headscope.report.numbers import MISSING, number, p_value, signed
from headscope.report.strength import task_curve

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FIGURE = "steer-task-figure"


def settings(name: str, given: Mapping[str, Any]) -> html.Div:
    """Return the controls: which task, how many items, of which split, how many controls."""
    task = str(given.get("task") or "instruction")

    def whole(part: str, label: str, value: int, most: int, least: int) -> dmc.NumberInput:
        text = str(given.get(part) or "")
        return dmc.NumberInput(
            id=f"{name}-task-{part}",
            label=label,
            value=int(text) if text.isdecimal() else value,
            min=least,
            max=most,
            allowDecimal=False,
            allowNegative=False,
            size="xs",
        )

    return html.Div(
        [
            dmc.Select(
                id=f"{name}-task-task",
                label="Task",
                value=task if task in TASKS else "instruction",
                data=[{"value": one, "label": one} for one in TASKS],
                allowDeselect=False,
                size="xs",
            ),
            whole("n", "Items", 24, 1000, 2),
            dmc.Select(
                id=f"{name}-task-split",
                label="Split",
                value=given.get("split") if given.get("split") in SPLITS else "validation",
                data=[{"value": one, "label": one} for one in SPLITS],
                allowDeselect=False,
                size="xs",
            ),
            whole("controls", "Controls", 0, 100, 0),
            whole("seed", "Seed", 0, 2**31 - 1, 0),
            dmc.Checkbox(
                id=f"{name}-task-drift",
                label="Drift",
                checked=given.get("drift") != "no",
                size="xs",
                className="task-drift",
            ),
        ],
        className="task-line",
    )


def question(task: str) -> str:
    """Return what a task asks."""
    return f"{task}: {TASKS[task]}" if task in TASKS else ""


# -- what came of it -------------------------------------------------------------------------------------------------


def rows(document: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of an evaluation with their values: one neutral row, which stands for all."""
    values, out, calm = document["values"], [], False
    for row in document["rows"]:
        neutral = row["kind"] == "neutral"
        if neutral and calm:
            continue
        calm = calm or neutral
        value = document.get("neutral") if neutral else values.get(row["method"])
        out.append({**row, "value": value, "neutral": neutral})
    table = frame(out)
    return table.sort_values("value", kind="stable", na_position="first").reset_index(drop=True)


def drawn(document: dict[str, Any]) -> go.Figure | None:
    """Return the figure of a sweep on a task; None for a method alone."""
    try:
        return task_curve(rows(document), document["range"]["field"]) if document["range"] else None
    except DataError:
        return None


def shown(document: dict[str, Any]) -> html.Div:
    """Return an evaluation as ``headscope.app.steering_sweeps.judge`` keeps it."""
    trial = document["trial"]
    field = document["range"]["field"] if document["range"] else ""
    caption = f"Dotted: the untouched model on the same items. {question(trial['task']).capitalize()}"
    return html.Div(
        [
            figure(FIGURE, drawn(document), caption=caption, file="task", label=f"{trial['task']} over {field}"),
            _table(rows(document)),
            html.P(
                "Gain: in accuracy, paired, with its 95 % interval. Constrained: the likeliest candidate is taken, so "
                "that every answer is valid; beside it the untouched model so constrained. Drift: perplexity of "
                "neutral text against the base.",
                className="soft small",
            ),
            html.Ul([html.Li(note) for note in document["notes"]], className="report-notes"),
            html.P(["Full report: ", *links(document["report"])], className="small"),
        ],
        className="sweep-shown",
        **{"data-title": f"{trial['task']} over {field}"},
    )


_COLUMNS = {
    "accuracy": "accuracy",
    "valid": "valid",
    "accuracy_among_valid": "among valid",
    "constrained": "constrained",
    "constrained_baseline": "base constr.",
}


def _table(table: pd.DataFrame) -> html.Div:
    controls = "controls" in table and bool(table["controls"].fillna(0).any())
    names = ["", *_COLUMNS.values(), "gain", *(["controls", "p"] if controls else []), "length", "drift"]
    head = html.Tr([html.Th(name, scope="col", className="" if not name else "number") for name in names])
    body = [_row({str(name): value for name, value in row.items()}, controls) for row in table.to_dict("records")]
    made = html.Table([html.Thead(head), html.Tbody(body)], className="table judged")
    return html.Div(made, className="table-box", tabIndex=0, role="region", **{"aria-label": "What the task found"})


def _row(row: dict[str, Any], controls: bool) -> html.Tr:
    base, neutral = row["kind"] == "base", row["kind"] == "neutral"
    name = "without" if base else "neutral" if neutral else str(row["method"])
    cells = [html.Td(_share(row.get(column)), className="number") for column in _COLUMNS]
    cells.append(_gain(row) if row["kind"] == "method" else html.Td("0" if neutral else "", className="number soft"))
    if controls:
        drawn = row.get("controls") or 0
        cells += [
            html.Td(signed(f"{row['control_gain']:+.3f}") if drawn == drawn and drawn else "", className="number"),
            html.Td(p_value(row["p_value"]) if drawn == drawn and drawn else "", className="number"),
        ]
    drift = row.get("perplexity_ratio")
    shift = "" if drift is None or drift != drift or base or neutral else f"×{number(drift)}"
    cells += [html.Td(_share(row.get("length"), 1), className="number"), html.Td(shift, className="number")]
    return html.Tr([html.Th(name, scope="row"), *cells], className="" if row["kind"] == "method" else "calm")


def _gain(row: dict[str, Any]) -> html.Td:
    measure = next((one for one in ("accuracy", "constrained", "logprob") if _known(row.get(f"{one}_gain"))), None)
    if measure is None:
        return html.Td(MISSING, className="number")
    gain, low, high = (row.get(f"{measure}_gain{end}") for end in ("", "_low", "_high"))
    bounds = f" [{low:+.2f}, {high:+.2f}]" if _known(low) and _known(high) else ""
    sure = "up" if _known(low) and float(str(low)) > 0 else "down" if _known(high) and float(str(high)) < 0 else ""
    kind = f"number {sure}".strip()
    return html.Td([html.Strong(signed(f"{gain:+.3f}")), html.Span(signed(bounds), className="soft")], className=kind)


def _known(value: Any) -> bool:
    return value is not None and value == value


def _share(value: Any, places: int = 3) -> str:
    return f"{value:.{places}f}" if _known(value) else MISSING
