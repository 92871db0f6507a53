"""A ranking of heads as one small HTML page for a notebook: a map of all heads, and the table that it leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import RequestError
from headscope.report import blocks, palette, sections, words
from headscope.report import page as common
from headscope.report.html import environment, resource
from headscope.report.numbers import fixed, head_name, interval, number, p_value
from headscope.report.view.html import THEMES, Theme

if TYPE_CHECKING:
    from headscope.probes.scores import HeadScores

_STEPS = 33
_CELL = (20, 17)
_LEFT, _TOP, _FOOT = 30, 8, 52
_STYLE = """
body.alone { display: block; max-width: none; padding: .9rem 1rem 1rem; background: var(--panel); }
.alone h1 { font-size: 1.15rem; margin: 0; } .alone .prose { color: var(--soft); font-size: .92rem; }
.scroll-map { overflow-x: auto; }
.map { display: block; max-width: none; font-size: 10px; }
.map text { fill: var(--soft); dominant-baseline: central; } .map .middle { text-anchor: middle; }
.map .end { text-anchor: end; } .map [data-head] { cursor: pointer; } .map [data-head]:hover { stroke: var(--ink); }
.map .none { fill: var(--wash); }
.map .selected { fill: none; stroke: var(--warm); stroke-width: 1.6; pointer-events: none; }
"""


@dataclass(frozen=True)
class _Map:
    """A drawing of layers × heads: sizes, labels, cells and legend."""

    width: int
    height: int
    cell: tuple[int, int]
    labels: list[dict[str, Any]]
    legend: list[dict[str, Any]]
    cells: list[dict[str, Any]]


def scores_page(scores: HeadScores, *, column: str = "score", theme: Theme = "auto") -> str:
    """Return a ranking as a whole HTML page.

    Parameters
    ----------
    column
        Numeric column of the table to colour the map by.
    theme
        Colours: of the reader's system, or always light or dark.

    Raises
    ------
    HeadscopeError
        If there is no such column, or it holds text.
    RequestError
        If there is no such theme.
    """
    if theme not in THEMES:
        raise RequestError(f"theme={theme!r}: choose 'auto', 'light' or 'dark'.")
    (table,) = sections.all_heads(scores, "all")
    assert isinstance(table, blocks.Heads)
    grid = scores.map(column)
    script = common.safe_script(resource("tables.js"))
    colours = palette.css() if theme == "auto" else palette.css_of_scheme()
    measure = "score" if column == "score" else column.replace("_", " ")
    caption = f"Every cell is a head, coloured by {measure}; those outlined are selected. Choose one to find its row."
    text = (
        environment()
        .get_template("heads.html.j2")
        .render(
            theme=theme,
            policy=common.policy([script]),
            style=colours + _ramp(theme, diverging=_low(grid) < 0) + resource("report.css") + _STYLE,
            script=script,
            title=f"{words.title_of(scores)} of {words.model_of(scores)}",
            headline=words.headline(scores),
            caption=caption,
            map=_map(scores, column, grid),
            table=table,
            notes=[str(note) for note in scores.provenance.get("notes", ()) or ()],
        )
    )
    return text.lstrip()


def _low(grid: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.nanmin(grid)) if np.isfinite(grid).any() else 0.0


def _map(scores: HeadScores, column: str, grid: np.ndarray[Any, np.dtype[np.float64]]) -> _Map:
    layers, heads = grid.shape
    wide, tall = _CELL
    high = float(np.nanmax(grid)) if np.isfinite(grid).any() else 1.0
    bound = max(-_low(grid), high)
    low, high = (-bound, bound) if _low(grid) < 0 else (0.0, high or 1.0)
    cells = []
    for row in scores.table.to_dict("records"):
        value = row[column]
        known = value == value
        about = f"{head_name(row['layer'], row['head'])}  {column.replace('_', ' ')} {number(value)}"
        if column == "score" and row["ci_low"] == row["ci_low"]:
            about += f", 95\u202f% {interval(row['ci_low'], row['ci_high'])}"
        if row["p_value"] == row["p_value"]:
            about += f", p {p_value(row['p_value'])}"
        cells.append(
            {
                "x": _LEFT + row["layer"] * wide,
                "y": _TOP + row["head"] * tall,
                "colour": round((value - low) / (high - low) * (_STEPS - 1)) if known else None,
                "name": head_name(row["layer"], row["head"]),
                "about": about,
                "selected": bool(row["selected"]),
            }
        )
    bottom = _TOP + heads * tall
    labels = [_label(_LEFT - 5, _TOP + (head + 0.5) * tall, head, "end") for head in range(heads)]
    every = 1 if layers <= 40 else 5
    labels += [_label(_LEFT + (n + 0.5) * wide - 1, bottom + 8, n, "middle") for n in range(0, layers, every)]
    labels.append(_label(_LEFT, bottom + 22, "layers across, heads down", ""))
    across = max(_LEFT + layers * wide, _LEFT + 300)
    start, step = across - 200, 5
    legend = [{"x": start + i * step, "y": bottom + 18, "width": step, "colour": i} for i in range(_STEPS)]
    ends = [(start, fixed(low, 2)), (start + _STEPS * step, fixed(high, 2))]
    labels += [_label(x, bottom + 34, text, "middle") for x, text in ends]
    return _Map(across + 14, bottom + _FOOT, (wide - 1, tall - 1), labels, legend, cells)


def _label(x: float, y: float, text: Any, kind: str) -> dict[str, Any]:
    return {"x": round(x, 1), "y": round(y, 1), "text": text, "kind": kind}


def _ramp(theme: Theme, *, diverging: bool) -> str:
    """Write the steps of the map's colours as custom properties."""
    light, dark = (
        (palette.DIVERGING_LIGHT, palette.DIVERGING_DARK) if diverging else (palette.RAMP_LIGHT, palette.RAMP_DARK)
    )
    if theme != "auto":
        return f":root{{{_steps(dark if theme == 'dark' else light)}}}"
    return f":root{{{_steps(light)}}}@media screen and (prefers-color-scheme:dark){{:root{{{_steps(dark)}}}}}"


def _steps(colours: tuple[str, ...]) -> str:
    stops = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours])
    places = np.linspace(0, len(colours) - 1, _STEPS)
    mixed = (
        np.stack([np.interp(places, range(len(colours)), stops[:, c]) for c in range(3)], axis=1).round().astype(int)
    )
    return "".join(f"--c{i}:#{r:02x}{g:02x}{b:02x};" for i, (r, g, b) in enumerate(mixed.tolist()))
