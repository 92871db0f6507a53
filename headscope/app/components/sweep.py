"""Sweeping a strength on the prompt: what to vary, and what came of it as a figure and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
import pandas as pd
from dash import html

from headscope.app.components.figure import figure
from headscope.app.components.method_asked import edit_files
from headscope.app.components.method_fields import MAIN, VALUED, fields_of
from headscope.app.components.trouble import notice
from headscope.app.steering_sweeps import STRENGTH
from headscope.errors import CheckpointError, DataError
from headscope.interventions.search import GRIDS
from headscope.report.numbers import MISSING, fixed, signed
from headscope.report.strength import continuation_curve
from headscope.report.tokens import visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from headscope.app.desk import Desk

FIGURE = "steer-sweep-figure"


def settings(desk: Desk, name: str, method: str, file: str | None, given: Mapping[str, Any]) -> html.Div:
    """Return the controls: which number, its values, a text to measure beside."""
    options = choices(desk, method, file)
    known = [option["value"] for option in options]
    asked = str(given.get("sweep") or "")
    chosen = asked if asked in known else known[0] if known else None
    values = given.get("values") or (values_of(method, chosen) if chosen else "")
    return html.Div(
        [
            dmc.Select(
                id=f"{name}-sweep-field",
                label="Vary",
                value=chosen,
                data=options,
                allowDeselect=False,
                placeholder="no number to vary",
                size="xs",
                className="sweep-field",
            ),
            dmc.TextInput(
                id=f"{name}-sweep-values",
                label="Values, separated by commas",
                value=values,
                size="xs",
                className="sweep-values",
            ),
            _ranges(name),
        ],
        className="sweep-line",
    )


def _ranges(name: str) -> html.Details:
    def box(part: str, label: str, value: Any, **more: Any) -> dmc.NumberInput:
        return dmc.NumberInput(
            id=f"{name}-range-{part}", label=label, value=value, size="xs", hideControls=True, **more
        )

    inside = html.Div(
        [
            box("low", "From", 0.01),
            box("high", "To", 1),
            box("count", "Values", 6, min=2, max=40, allowDecimal=False),
            dmc.Select(
                id=f"{name}-range-scale",
                label="Steps",
                value="log",
                data=[{"value": "log", "label": "even factors"}, {"value": "linear", "label": "even differences"}],
                allowDeselect=False,
                size="xs",
                comboboxProps={"withinPortal": False},  # a click outside the menu would close it
            ),
            dmc.Button("Fill in", id=f"{name}-range-fill", size="xs", variant="default"),
        ],
        className="menu-list sweep-range",
    )
    return html.Details([html.Summary("Range"), inside], className="menu")


def target_box(name: str, value: str) -> dmc.TextInput:
    """Return the control for a text whose probability is measured at each value."""
    return dmc.TextInput(
        id=f"{name}-target",
        label="Target text, if any: how likely each value makes it",
        placeholder="such as “ La vie”, with the space before it",
        value=value,
        size="xs",
        className="sweep-target",
    )


def choices(desk: Desk, method: str, file: str | None) -> list[dict[str, str]]:
    """Return the numbers that can be varied, the strength first."""
    if method in VALUED:
        names = [field.name for field in fields_of(method) if field.kind == "number" and not field.placeholder]
        names.sort(key=lambda one: one != MAIN.get(method))
        return [{"value": one, "label": one} for one in names]
    if file is None or file not in {one.file for one in edit_files(desk)}:
        return []
    from headscope.interventions.base import Method
    from headscope.interventions.store import load
    from headscope.interventions.strength import strength

    try:
        last = load(desk.workspace.existing(file, (".json",)))[-1]
    except (CheckpointError, DataError, IndexError):
        return []
    main = strength(last) if isinstance(last, Method) else None
    return [] if main is None else [{"value": STRENGTH, "label": f"{main[0]} of {type(last).__name__}"}]


def values_of(method: str, field: str) -> str:
    """Return values to begin with: the usual ones, or some around the default."""
    usual = GRIDS.get(field, ()) if method in ("pasta", "act", "zerotuning", "spotlight", "temperature") else ()
    if not usual and method in VALUED:
        default = next((float(one.default or 1) for one in fields_of(method) if one.name == field), 1.0)
        most = 1.0 if 0 < default <= 1 and method == "var" else math.inf
        usual = tuple(min(default * factor, most) for factor in (0.25, 0.5, 1, 1.5, 2))
    elif not usual:
        usual = (0.25, 0.5, 1.0, 2.0, 4.0)
    return ", ".join(f"{value:g}" for value in dict.fromkeys(usual))


# -- what came of it -------------------------------------------------------------------------------------------------


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return kept rows as a table; what is missing is NaN again."""
    table = pd.DataFrame(rows)
    text = ("text", "neutral", "method", "kind", "p_measure")
    return table.assign(**{name: pd.to_numeric(table[name]) for name in table.columns if name not in text})


def drawn(document: dict[str, Any]) -> go.Figure | None:
    """Return the figure of a sweep; None if no row has a value."""
    try:
        return continuation_curve(frame(document["rows"]), document["range"]["field"])
    except DataError:
        return None


def shown(document: dict[str, Any]) -> html.Div:
    """Return a sweep as ``headscope.app.steering_sweeps.sweep`` keeps it."""
    field, rows = document["range"]["field"], document["rows"]
    notes = [notice(text, kind="warning") for text in document["notes"]]
    caption = (
        f"Gains: how much likelier a text is at each {field} than without the edit. Hollow: the neutral value, where "
        "all must be 0."
    )
    return html.Div(
        [*notes, figure(FIGURE, drawn(document), caption=caption, file="strength", label=f"Gains and KL over {field}"),
         _table(field, rows, document)],
        className="sweep-shown",
        **{"data-title": f"Strength: {field}"},
    )  # fmt: skip


def _table(field: str, rows: list[dict[str, Any]], document: dict[str, Any]) -> html.Div:
    target = "target_gain" in rows[0]
    names = [field, "gain", "base gain", *(["target gain", "target log p"] if target else []), "KL"]
    names += ["parts at", "tokens", "repeats", "text"]
    head = html.Tr([html.Th(name, scope="col", className="" if name == "text" else "number") for name in names])
    base = html.Tr(
        [
            html.Th("without", scope="row", className="number"),
            *(html.Td(className="number") for _ in names[1:-3]),
            html.Td(document["base_length"], className="number"),
            html.Td(className="number"),
            html.Td(_words(document["base_text"]), className="swept-text soft"),
        ]
    )
    body = [_row(row, target, document["base_length"]) for row in rows]
    table = html.Table([html.Thead(head), html.Tbody([base, *body])], className="table swept")
    label = "What came of each value"
    return html.Div(table, className="table-box", tabIndex=0, role="region", **{"aria-label": label})


def _row(row: dict[str, Any], target: bool, most: int) -> html.Tr:
    value = "neutral" if row["value"] is None else f"{row['value']:g}" + (" (neutral)" if row["neutral"] else "")
    numbers = [_signed(row["gain"]), _signed(row["base_gain"])]
    numbers += [_signed(row["target_gain"]), _fixed(row["target_logprob"])] if target else []
    numbers += [
        html.Td(fixed(row["kl"]), className="number"),
        html.Td(MISSING if row["diverges"] is None else int(row["diverges"]) + 1, className="number"),
        html.Td(row["length"], className="number"),
        html.Td(f"{100 * row['repetition']:.0f} %", className="number"),
    ]
    text = html.Td(_words(row["text"]), className="swept-text", title=row["text"])
    return html.Tr(
        [html.Th(value, scope="row", className="number"), *numbers, text], className="calm" if row["neutral"] else ""
    )


def _words(text: str) -> str:
    return visible(text) if text else "(nothing)"


def _signed(value: float | None) -> html.Td:
    if value is None:
        return html.Td(MISSING, className="number")
    kind = "number up" if value > 0.005 else "number down" if value < -0.005 else "number soft"
    return html.Td("0" if value == 0 else signed(f"{value:+.2f}"), className=kind)


def _fixed(value: float | None) -> html.Td:
    return html.Td(MISSING if value is None else signed(f"{value:.2f}"), className="number")
