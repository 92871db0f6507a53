"""Rankings side by side on a page: how far they agree, set against chance."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import html

from headscope.app.components.ranking_files import Ranking, read
from headscope.app.components.report_blocks import shown, tiles
from headscope.report.agreement import labels
from headscope.report.comparing import agreement_section, comparison_part
from headscope.report.numbers import fixed, head_name, interval

if TYPE_CHECKING:
    from headscope.app.desk import Desk
    from headscope.probes.scores import HeadScores
    from headscope.report.compare import Comparison

GROUP = "rank-compare"
"""Group of the ids of the figures."""
MOST = 8
"""Rankings that are compared at once."""
COLUMNS, ROWS = 5, 16
"""Of the table of what heads score elsewhere."""


def controls(known: Sequence[Ranking], chosen: Sequence[str]) -> html.Div:
    """Return the field that chooses what stands beside the open ranking."""
    return html.Div(
        dmc.MultiSelect(
            id="rank-with",
            label="Compare with",
            description="One gives a scatter of all heads; several give a matrix of agreement.",
            placeholder="Choose rankings" if not chosen else None,
            data=options(known),
            value=list(chosen),
            searchable=True,
            clearable=True,
            hidePickedOptions=True,
            maxValues=MOST - 1,
            size="xs",
            nothingFoundMessage="No such ranking",
        ),
        className="compare-controls",
    )


def options(known: Sequence[Ranking]) -> list[dict[str, str]]:
    """Return rankings as the options of a field."""
    return [
        {"value": ranking.file, "label": f"{ranking.probe} · {ranking.model or 'unnamed model'} · {ranking.label}"}
        for ranking in known
    ]


def compared(desk: Desk, file: str | None, beside: Sequence[str]) -> Any:
    """Return what the comparison of the open ranking with others says.

    Raises
    ------
    DataError
        If a file holds no scores.
    RequestError
        If a file is not there.
    """
    others = [name for name in dict.fromkeys(beside) if name != file][: MOST - 1]
    if not file:
        return empty("Open a ranking first: choose one on the left.")
    if not others:
        return empty("Choose what to compare it with: another probe of the same model, or the same probe of another.")
    scores = [read(desk, name) for name in (file, *others)]
    body = _pair(*scores) if len(scores) == 2 else _many(scores)
    named = [
        f"{name}: {file}" for name, file in zip(labels(scores), (file, *others), strict=True) if name.endswith(")")
    ]
    return [html.P(" · ".join(named), className="soft small"), body] if named else body


def elsewhere(desk: Desk, file: str, heads: Sequence[tuple[int, int]], known: Sequence[Ranking]) -> Any:
    """Return a table of what heads score in every ranking of the same model; None if there is but one.

    Parameters
    ----------
    file
        A ranking; its model is meant, and its best heads if ``heads`` is empty.
    known
        All rankings of the workspace.
    """
    here = read(desk, file)
    others = [(one, read(desk, one.file)) for one in known if one.file != file and one.shape == here.shape]
    same = [(one, scores) for one, scores in others if _model(scores) == _model(here)][:COLUMNS]
    if not same:
        return None
    shown_heads = list(heads)[:ROWS] or here.top(10)
    opened = next((one.label for one in known if one.file == file), "")
    names = [(here.probe, opened, file), *((one.probe, one.label, one.file) for one, _ in same)]
    head = [html.Th("head", scope="col")] + [
        html.Th([name, html.Span(label, className="label")], scope="col", title=title, className="number")
        for name, label, title in names
    ]
    columns = [_places(scores) for scores in (here, *(scores for _, scores in same))]
    body = [
        html.Tr([html.Th(head_name(*pair), scope="row"), *(_place(column.get(pair)) for column in columns)])
        for pair in shown_heads
    ]
    what = "The picked heads" if heads else "The best heads"
    more = f", the first {ROWS} of {len(heads)}" if len(heads) > ROWS else ""
    model = here.provenance.get("model", {}).get("name") or "this model"
    return html.Div(
        [
            html.H3(f"{what} in all rankings of {model}{more}"),
            html.P("Rank and score; bold where the head passes.", className="soft small"),
            html.Div(
                html.Table([html.Thead(html.Tr(head)), html.Tbody(body)]),
                className="report-scroll",
                tabIndex="0",
                role="region",
                **{"aria-label": "Heads in all rankings"},
            ),
        ],
        className="elsewhere",
    )


def _model(scores: HeadScores) -> Any:
    model = scores.provenance.get("model", {})
    return model.get("fingerprint") or model.get("name")


@lru_cache(maxsize=32)
def _places(scores: HeadScores) -> dict[tuple[int, int], tuple[int, float, bool]]:
    ranked = scores.ranked().dropna(subset=["score"])
    rows = zip(ranked["layer"], ranked["head"], ranked["score"], ranked["selected"], strict=True)
    return {
        (int(layer), int(head)): (rank, float(score), bool(selected))
        for rank, (layer, head, score, selected) in enumerate(rows, start=1)
    }


def _place(found: tuple[int, float, bool] | None) -> html.Td:
    if found is None:
        return html.Td("–", className="number soft")
    rank, score, passes = found
    value = html.Strong(fixed(score)) if passes else html.Span(fixed(score))
    return html.Td([html.Span(f"#{rank} ", className="soft small"), value], className="number")


def empty(text: str) -> html.P:
    """Return what a tab shows while it has nothing to show."""
    return html.P(text, className="soft empty")


@lru_cache(maxsize=16)
def comparison(a: HeadScores, b: HeadScores) -> Comparison:
    """Compare two rankings; the same two are not compared twice, because the intervals take a while."""
    from headscope.report.compare import compare

    return compare(a, b)


def _pair(a: HeadScores, b: HeadScores) -> html.Div:
    found = comparison(a, b)
    part = comparison_part(found)
    sections = [section for section in part.sections if not section.id.startswith("provenance")]
    return html.Div(
        [
            html.P(part.headline, className="headline"),
            *shown(sections, GROUP, file="compare"),
        ],
        className="report-body",
        **{"data-title": part.title},
    )


def _many(scores: Sequence[HeadScores]) -> html.Div:
    section = agreement_section(scores)
    if section is None:
        names = ", ".join(labels(scores))
        return html.Div(
            empty(
                f"None of these can be compared head by head ({names}): the models have different heads, or no head "
                "has a score. Compare two at a time: then their course over depth is set side by side."
            )
        )
    first, *others = labels(scores)
    numbers = []
    for name, other in zip(others, scores[1:], strict=True):
        found = comparison(scores[0], other)
        rho = found.correlations["spearman"]
        if found.matched:
            said = f"Spearman’s ρ of {first} and {name} {interval(rho.low, rho.high)}".strip()
        else:
            said = f"Spearman’s ρ of {first} and {name} over depth alone: the heads differ"
        numbers.append((fixed(rho.value), said))
    return html.Div(
        [tiles(numbers), *shown([section], GROUP, file="agreement")],
        className="report-body",
        **{"data-title": section.title},
    )
