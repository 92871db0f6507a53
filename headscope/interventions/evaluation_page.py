"""An evaluation as one HTML file that opens offline."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from headscope.files import write_text
from headscope.interventions.findings import only_validity
from headscope.report import blocks, words
from headscope.report.blocks import Block, Cell, Page, Part, Section
from headscope.report.html import render
from headscope.report.numbers import MISSING, fixed, number, p_value, signed
from headscope.report.palette import LIGHT
from headscope.report.style import finish

if TYPE_CHECKING:
    from headscope.interventions.evaluation import Evaluation

_TITLES = {
    "accuracy": "accuracy",
    "accuracy_among_valid": "among valid",
    "constrained": "constrained",
}
"""Gains that are drawn, in the order in which they stand below each other."""
_COLOURS = {"accuracy": "accent", "accuracy_among_valid": "gold", "constrained": "warm"}


def write_page(found: Evaluation, path: Path) -> Path:
    """Write the report of an evaluation.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    return write_text(path, render(page(found)))


def page(found: Evaluation) -> Page:
    """Return what the report says."""
    source = found.provenance
    task, model = source.get("data", {}).get("name", "task"), source.get("model", {}).get("name", "model")
    made: list[tuple[str, str, list[Block]]] = [
        ("gains", "Gains", _gains(found)),
        ("validity", "Valid answers and right ones", _validity(found)),
        ("labels", "Which labels are given", _labels(found)),
        ("text", "Length, certainty and neutral text", _text(found)),
        ("controls", "Controls", _controls(found)),
        ("provenance", "Provenance", [blocks.Facts(tuple(words.provenance_rows(source)))]),
    ]
    opening = Section("evaluation-summary", "", (blocks.Tiles(tuple(_tiles(found))),))
    sections = tuple(Section(f"evaluation-{name}", title, tuple(parts)) for name, title, parts in made if parts)
    part = Part("evaluation", f"{task} on {model}", _headline(found), (opening, *sections), found.notes)
    day = str(source.get("created", ""))[:10]
    return Page(f"Steering on {task}", " · ".join(filter(None, (str(model), day))), (part,))


def gains_figure(found: Evaluation) -> go.Figure:
    """Draw each method's paired gains with their intervals, its controls as dots."""
    methods = found.table[found.table["kind"] == "method"]
    names = [html.escape(name) for name in methods["method"]]
    shown = [name for name in _TITLES if methods[f"{name}_gain"].notna().any()]
    figure = go.Figure()
    place = {name: i for i, name in enumerate(methods["method"])}
    dots = found.controls.dropna(subset=["constrained_gain"]) if len(found.controls) else found.controls
    if len(dots):
        figure.add_scatter(
            x=dots["constrained_gain"].astype(float),
            y=[place[name] + 0.32 for name in dots["method"]],
            mode="markers",
            name="controls, constrained",
            marker={"size": 5, "color": LIGHT["grey"], "opacity": 0.6},
            hovertemplate="control %{x:+.3f}<extra></extra>",
        )
    for n, measure in enumerate(shown):
        value = methods[f"{measure}_gain"]
        figure.add_scatter(
            x=value,
            y=[i + 0.2 * (n - (len(shown) - 1) / 2) for i in range(len(methods))],
            mode="markers",
            name=_TITLES[measure],
            marker={"size": 8, "color": LIGHT[_COLOURS[measure]]},
            error_x={
                "array": (methods[f"{measure}_gain_high"] - value).fillna(0).clip(lower=0),
                "arrayminus": (value - methods[f"{measure}_gain_low"]).fillna(0).clip(lower=0),
                "color": LIGHT[_COLOURS[measure]],
                "thickness": 1.5,
                "width": 0,
            },
            text=names,
            hovertemplate="%{text}: %{x:+.3f}<extra>" + _TITLES[measure] + "</extra>",
        )
    figure.add_vline(x=0, line={"color": LIGHT["soft"], "width": 1, "dash": "dot"})
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6])
    figure.update_xaxes(title_text="gain over the untouched model, 95 % interval")
    return finish(figure, "", 110 + 64 * max(1, len(names)))


def _headline(found: Evaluation) -> str:
    methods = found.table[found.table["kind"] == "method"]
    primary = _primary(found)
    what = {"constrained": "label-constrained accuracy", "logprob": "log-probability of the right answer"}
    name = what.get(primary, primary)
    if methods.empty:
        return "The model as it is, with no method beside it."
    up = methods[methods[f"{primary}_gain_low"] > 0].to_dict("records")
    alone = [str(row["method"]) for row in up if primary == "accuracy" and only_validity(row)]
    real = [str(row["method"]) for row in up if str(row["method"]) not in alone]
    text = f"{_raise(real, name)}. " if real else f"No method raises {name} by better answers. " if alone else ""
    if alone:
        text += f"{_raise(alone, name)} only because more answers are valid."
    return text.strip() or f"No method raises {name}: every interval holds 0 or lies below it."


def _raise(names: Sequence[str], what: str) -> str:
    return f"{words.joined(names)} {'raises' if len(names) == 1 else 'raise'} {what}"


def _primary(found: Evaluation) -> str:
    base = found.table.iloc[0]
    return next((name for name in ("accuracy", "constrained") if base[name] == base[name]), "logprob")


def _tiles(found: Evaluation) -> list[tuple[str, str]]:
    base = found.table.iloc[0]
    tiles = [(number(int(base["n"])), "items"), (number(found.items["source"].nunique()), "sources")]
    for name, label in (("accuracy", "accuracy of the base"), ("valid", "of its answers valid")):
        tiles += [(fixed(base[name]), label)] if base[name] == base[name] else []
    if base["constrained"] == base["constrained"]:
        tiles.append((fixed(base["constrained"]), "accuracy of the base, constrained to the candidates"))
    return tiles


def _gains(found: Evaluation) -> list[Block]:
    rows = found.table[found.table["kind"] == "method"]
    if rows.empty:
        return []
    out: list[Block] = []
    if any(rows[f"{name}_gain"].notna().any() for name in _TITLES):
        caption = "Paired differences to the untouched model. Dots are controls, which are compared constrained."
        out.append(blocks.Picture(gains_figure(found), caption))
    columns = ["method", *(f"{title} gain" for title in _TITLES.values()), "p", "control gain", "of", "logprob gain"]
    cells = [
        (
            Cell(str(row["method"]), str(row["method"])),
            *(_gain(row, name) for name in _TITLES),
            Cell(p_value(row["p_value"]), _value(row["p_value"])),
            _fixed(row["control_gain"]),
            Cell(f"{row['controls']} controls, {row['p_measure']}" if row["controls"] else MISSING, None),
            _gain(row, "logprob"),
        )
        for row in rows.to_dict("records")
    ]
    caption = "Gains with 95 % intervals; p is the share of controls, the method among them, that gain as much."
    return [*out, _table(columns, cells, caption, left=("method", "of"))]


def _validity(found: Evaluation) -> list[Block]:
    names = ("accuracy", "valid", "accuracy_among_valid", "constrained", "constrained_baseline")
    columns = ("method", "accuracy", "valid", "among valid", "constrained", "base constrained")
    cells = [
        (Cell(str(row["method"]), str(row["method"])), *(_with_interval(row, name) for name in names))
        for row in found.table.to_dict("records")
    ]
    caption = (
        "Accuracy that rises with validity alone is no better choice of answers. Constrained: the likeliest candidate "
        "is taken, so every answer is valid; the last column is the untouched model so constrained."
    )
    return [_table(columns, cells, caption)]


def _labels(found: Evaluation) -> list[Block]:
    if found.labels.empty:
        return []
    names = [name for name in found.table.columns if str(name).startswith("prior_")]
    shown = found.table.loc[found.table["kind"] != "neutral", ["method", *names]]
    shown = shown.rename(columns={name: str(name).removeprefix("prior_").replace("_", " vs ") for name in names})
    caption = "Total variation distance of the labels given from the right ones (gold) and from the base’s."
    parts = found.labels[~found.labels["method"].str.endswith(", neutral")]
    return [blocks.table(shown, caption), blocks.table(parts, "Shares and recall of each label", folded=True)]


def _text(found: Evaluation) -> list[Block]:
    rows = found.table[found.table["kind"] != "neutral"]
    names = ("length", "entropy", "logprob", "logprob_among")
    columns = ("method", "length", "entropy", "logprob", "among candidates", "perplexity", "× base", "drift")
    cells = [
        (
            Cell(str(row["method"]), str(row["method"])),
            *(_fixed(row[name], 2 if name == "length" else 3) for name in names),
            Cell(number(row["perplexity"]), _value(row["perplexity"])),
            Cell(number(row["perplexity_ratio"]), _value(row["perplexity_ratio"])),
            _bounds(row["drift"], row["drift_low"], row["drift_high"], sign=True),
        )
        for row in rows.to_dict("records")
    ]
    caption = (
        "Tokens of written answers; entropy of the first answer token and log-probability of the right answer in nats; "
        "perplexity of neutral text behind the task’s prompts, and its drift in nats per token."
    )
    return [_table(columns, cells, caption)]


def _controls(found: Evaluation) -> list[Block]:
    if found.controls.empty:
        return []
    frame = found.controls.dropna(axis=1, how="all")
    return [blocks.table(frame, "Each control: what stood in place of the method’s heads or direction", folded=True)]


def _table(
    columns: Sequence[str], rows: Sequence[tuple[Cell, ...]], caption: str, left: Sequence[str] = ("method",)
) -> blocks.Table:
    return blocks.Table(tuple(columns), tuple(name not in left for name in columns), tuple(rows), caption)


def _gain(row: Any, name: str) -> Cell:
    return _bounds(row[f"{name}_gain"], row[f"{name}_gain_low"], row[f"{name}_gain_high"], sign=True)


def _with_interval(row: Any, name: str) -> Cell:
    if f"{name}_low" not in row:
        return _fixed(row[name])
    return _bounds(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _bounds(value: Any, low: Any, high: Any, *, sign: bool = False) -> Cell:
    if value != value:
        return Cell(MISSING, None)
    text = signed(f"{value:+.3f}" if sign else f"{value:.3f}")
    return Cell(text if low != low else f"{text} [{signed(f'{low:.3f}')}, {signed(f'{high:.3f}')}]", float(value))


def _fixed(value: Any, places: int = 3) -> Cell:
    return Cell(fixed(value, places), _value(value))


def _value(value: Any) -> float | None:
    return None if value != value else float(value)
