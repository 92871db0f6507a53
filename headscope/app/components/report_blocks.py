"""Blocks of a report as parts of a page: the same sentences, figures and tables, in the page's own style."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from dash import html

from headscope.app.components.figure import figure
from headscope.report import blocks
from headscope.report.blocks import Block, Section
from headscope.report.tokens import Reading


def shown(sections: Sequence[Section], group: str, *, file: str = "figure", level: int = 2) -> list[Any]:
    """Return the sections of a report.

    Parameters
    ----------
    group
        Their figures have the ids ``{"figure": group, "index": i}``: register them once with ``MATCH`` as index.
    file
        Beginning of the names of exported figures.
    level
        Of the headings.
    """
    numbers = itertools.count()
    made = []
    for section in sections:
        heading = [(html.H2 if level == 2 else html.H3)(section.title)] if section.title else []
        parts = [_block(block, group, f"{file}-{section.id}", numbers) for block in section.blocks]
        made.append(html.Section([*heading, *parts], className="report-section", **{"data-title": section.title}))
    return made


def _block(block: Block, group: str, file: str, numbers: Iterator[int]) -> Any:
    if isinstance(block, blocks.Text):
        return html.P(block.text, className="prose")
    if isinstance(block, blocks.Picture):
        name = {"figure": group, "index": next(numbers)}
        side = "half" if block.half else ""
        return figure(name, block.figure, caption=block.caption, file=file, class_name=side)
    if isinstance(block, blocks.Table):
        return table(block)
    if isinstance(block, blocks.Tiles):
        return tiles(block.rows)
    if isinstance(block, blocks.Facts):
        return html.Dl(
            [html.Div([html.Dt(name), html.Dd(value)]) for name, value in block.rows], className="report-facts"
        )
    if isinstance(block, blocks.Chips):
        return html.Div(
            [html.H3(block.label), html.Ul([html.Li(name) for name in block.names])], className="report-chips"
        )
    if isinstance(block, blocks.Code):
        return html.Div([html.H3(block.label), html.Pre(html.Code(block.text), tabIndex="0")], className="report-code")
    if isinstance(block, blocks.Claims):
        return html.Ol([_claim(row) for row in block.rows], className="report-claims")
    if isinstance(block, blocks.Readings):
        return _readings(block)
    return None  # the ranked heads, which the page shows as its own table


def tiles(rows: Sequence[tuple[str, str]]) -> html.Dl:
    """Return a few large numbers, each with what it is."""
    return html.Dl(
        [html.Div([html.Dt(label), html.Dd(value)]) for value, label in rows], className="report-tiles"
    )  # fmt: skip


def table(block: blocks.Table) -> html.Div | html.Details:
    """Return a table with its caption; one that a report folds is folded here too."""
    head = html.Thead(
        html.Tr(
            [
                html.Th(name, scope="col", className="number" if numeric else None)
                for name, numeric in zip(block.columns, block.numeric, strict=True)
            ]
        )
    )
    body = html.Tbody(
        [
            html.Tr(
                [
                    html.Td(cell.text, className="number" if numeric else None)
                    for cell, numeric in zip(row, block.numeric, strict=True)
                ]
            )
            for row in block.rows
        ]
    )
    more = [html.P(f"{block.left_out} more rows are in the file.", className="soft small")] if block.left_out else []
    scroll = html.Div(
        html.Table([head, body]),
        className="report-scroll",
        tabIndex="0",
        role="region",
        **{"aria-label": block.caption},
    )
    if block.folded:
        return html.Details([html.Summary(block.caption), scroll, *more], className="report-table")
    return html.Div([html.P(block.caption, className="soft small"), scroll, *more], className="report-table")


def _claim(row: Any) -> html.Li:
    evidence = [html.P(row["evidence"], className="soft")] if row["evidence"] else []
    return html.Li(
        [
            html.P(row["claim"], className="claim"),
            html.P(html.Strong(row["verdict"]), className=f"verdict {row['tone']}"),
            html.Div([html.P(row["answer"]), *evidence]),
        ]
    )


def _readings(block: blocks.Readings) -> html.Div:
    by_sample = itertools.groupby(sorted(block.readings, key=lambda one: one.sample), key=lambda one: one.sample)
    found = [
        html.Details([html.Summary(str(sample)), *(_reading(one) for one in group)], open=i == 0)
        for i, (sample, group) in enumerate(by_sample)
    ]
    note = "The stronger the shade, the more attention. Long stretches without weight are folded."
    return html.Div([html.P(note, className="soft small"), *found], className="report-readings")


def _reading(reading: Reading) -> html.Div:
    rows = []
    for row in reading.rows:
        best = [
            part
            for piece in row.top
            for part in (html.Code(piece.text), html.Span(f" at {piece.position}, {piece.weight:.2f}  "))
        ]
        head = html.P(
            [
                html.Strong(f"L{reading.layer}H{reading.head}"),
                html.Span(f" at {row.query} ", className="soft"),
                html.Code(row.query_token),
                html.Span(" reads " if best else ""),
                *best,
            ]
        )
        pieces = [
            html.Span(f" {piece.count} tokens ", className="gap")
            if hasattr(piece, "count")
            else html.Span(piece.text, className="token", style={"--w": piece.shade}, title=f"{piece.weight:.3f}")
            for piece in row.pieces
        ]
        rows += [head, html.P(pieces, className="context", dir="ltr")]
    return html.Div(rows)
