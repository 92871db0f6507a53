"""Two continuations of a prompt side by side: where they part, and how each token's probability moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dash import html

from headscope.app.components.method_fields import MAIN, VALUED, about, fields_of, text_of
from headscope.app.components.trouble import notice
from headscope.interventions.registry import METHODS
from headscope.report import continuations as report
from headscope.report.continuations import SIDES
from headscope.report.numbers import number, plural, signed

_HINT = html.Span("Point at a token for its numbers; arrow keys move.", className="soft")


def shown(document: dict[str, Any]) -> html.Div:
    """Return a comparison as ``headscope.app.steering.compare`` keeps it."""
    scale = scale_of(document)
    sides = [_side(document, side, scale) for side in SIDES]
    return html.Div(
        [
            *_notes(document),
            html.P(sentence(document), className="steer-sentence"),
            html.Div(sides, className="sides"),
            html.Div(
                [_legend(scale), html.Div(_HINT, id="steer-read", className="token-read", role="status")],
                className="token-line",
            ),
            _table(document),
        ],
        className="steer-texts",
    )


def scale_of(document: dict[str, Any]) -> float:
    """Return how many nats the full colour stands for."""
    return report.scale_of(*((document[side]["base"], document[side]["steered"]) for side in SIDES))


def _notes(document: dict[str, Any]) -> list[Any]:
    notes = [notice(text, kind="warning") for text in document["notes"]]
    if not document["changed"]:
        text = (
            "No log-probability of any token moved: at this strength, on these heads and this prompt it does nothing."
        )
        notes.insert(0, notice(text, title="The edit changed nothing. ", kind="warning"))
    return notes


def sentence(document: dict[str, Any]) -> list[Any]:
    """Say where the texts part, and by how much either state preferred its own token there."""
    base, steered, at = document["base"], document["steered"], document["diverges"]
    kl = f" KL of the first token: {number(document['kl'])} nats."
    if at is None:
        if not document["changed"]:
            return ["Both texts are the same, to the last bit."]
        return ["Both texts are the same; what moved are the probabilities.", kl]
    where = f"The texts part at token {at + 1} of {max(len(base['tokens']), len(steered['tokens']))}."
    if at >= min(len(base["tokens"]), len(steered["tokens"])):
        return [where, " There one of them has ended.", kl]
    before = base["base"][at] - steered["base"][at]
    after = steered["steered"][at] - base["steered"][at]
    return [
        where,
        " Without the edit ",
        html.Q(_quoted(base["tokens"][at])),
        f" leads there by {_nats(before)}; under it ",
        html.Q(_quoted(steered["tokens"][at])),
        f" leads by {_nats(after)}.",
        kl,
    ]


def _quoted(token: str) -> str:
    return report.shown(token).strip()


def _nats(value: float) -> str:
    return f"{value:.2f} nats"


def _side(document: dict[str, Any], side: str, scale: float) -> html.Section:
    part, at = document[side], document["diverges"]
    drawn = report.marks(part["tokens"], part["base"], part["steered"], at, scale)
    tokens: list[Any] = []
    for step, mark in enumerate(drawn):
        if step == at:
            tokens.append(_parting())
        tokens += _token(mark, step, side)
    if at is not None and at == len(part["tokens"]):
        tokens += [_parting(), html.Span("ends", className="soft")]
    if not tokens:
        tokens = [html.Span("Nothing: the model ended its text at once.", className="soft")]
    before, after = sum(part["base"]), sum(part["steered"])
    gain = after - before
    return html.Section(
        [
            html.Div(
                [
                    html.H2(SIDES[side], id=f"steer-{side}-title"),
                    html.Span(
                        [
                            html.Span(
                                [_gained(gain), " nats"],
                                className="side-gain",
                                title="Gain of this text under the edit",
                            ),
                            html.Span(f"log p {_fixed(before)} → {_fixed(after)}", className="soft small"),
                        ],
                        className="side-total",
                    ),
                ],
                className="side-head",
            ),
            html.P(
                tokens,
                className="tokens",
                role="group",
                **{"aria-labelledby": f"steer-{side}-title", "data-side": side},
            ),
        ],
        className="side",
    )


def _parting() -> html.Span:
    return html.Span(
        "▸", className="parting", role="img", title="Here the texts part", **{"aria-label": "here the texts part"}
    )


def _token(mark: report.Mark, step: int, side: str) -> list[Any]:
    kind = "tok up" if mark.share > 0 else "tok down" if mark.share < 0 else "tok"
    data: dict[str, Any] = {
        "data-step": step,
        "data-base": f"{mark.base:.4f}",
        "data-steered": f"{mark.steered:.4f}",
        "aria-label": f"{mark.text}: {spoken(mark.base, mark.steered)}",
    }
    made = html.Span(
        mark.text,
        className=f"{kind} common" if mark.common else kind,
        # One of them can be reached by Tab, the others by the arrow keys.
        tabIndex=0 if step == 0 else -1,
        role="img",
        style={"--m": f"{abs(mark.share):.3f}"},
        id=f"steer-{side}-{step}",
        **data,
    )
    return [made, html.Br()] if mark.ends else [made]


def spoken(base: float, steered: float) -> str:
    """Return a token's numbers in words."""
    return f"log p {_fixed(base)} without, {_fixed(steered)} under the edit, {_fixed(steered - base, '+')} nats"


def _gained(value: float) -> html.Strong:
    kind = "up" if value > 0.005 else "down" if value < -0.005 else ""
    return html.Strong(_fixed(value, "+"), className=kind)


def _fixed(value: float, sign: str = "") -> str:
    if not math.isfinite(value):
        return "−∞" if value < 0 else "∞" if value > 0 else ""
    return signed(f"{0.0 if abs(value) < 0.005 else value:{sign if abs(value) >= 0.005 else ''}.2f}")


def _legend(scale: float) -> html.Div:
    return html.Div(
        [
            html.Span(f"−{scale:.1f}", className="legend-end"),
            html.Span(className="legend-bar"),
            html.Span(f"+{scale:.1f} nats", className="legend-end"),
            html.Span("how much likelier the edit makes each token", className="soft"),
        ],
        className="legend",
    )


def _table(document: dict[str, Any]) -> html.Details:
    """Return the numbers behind the colours: a row for each step."""
    heads = ["", *(name for _ in SIDES for name in ("token", "log p", "edited", "change"))]
    top = html.Tr(
        [
            html.Th("step", rowSpan=2, scope="col", className="number"),
            *(html.Th(title, colSpan=4, scope="colgroup", className="group") for title in SIDES.values()),
        ]
    )
    second = html.Tr([html.Th(name, scope="col", className="" if name == "token" else "number") for name in heads[1:]])
    steps = max(len(document[side]["tokens"]) for side in SIDES)
    rows = [_row(document, step) for step in range(steps)]
    last = html.Tr(
        [html.Th("all", scope="row", className="number"), *(cell for side in SIDES for cell in _sums(document[side]))]
    )
    table = html.Table([html.Thead([top, second]), html.Tbody(rows), html.Tfoot(last)], className="table steps")
    return html.Details(
        [
            html.Summary("Every token in numbers"),
            html.Div(
                table,
                className="steps-box",
                tabIndex=0,
                role="region",
                **{"aria-label": "Log-probability of every token"},
            ),
        ],
        open=True,
        className="steps-fold",
    )


def _row(document: dict[str, Any], step: int) -> html.Tr:
    cells: list[Any] = [html.Th(step + 1, scope="row", className="number")]
    for side in SIDES:
        part = document[side]
        if step >= len(part["tokens"]):
            cells += [html.Td("", colSpan=4)]
            continue
        base, steered = part["base"][step], part["steered"][step]
        cells += [html.Td(report.shown(part["tokens"][step]), className="token"), *_numbers(base, steered)]
    kind = "parts" if step == document["diverges"] else ""
    return html.Tr(cells, className=kind, **{"data-step": step})


def _numbers(base: float, steered: float) -> list[html.Td]:
    gain = steered - base
    kind = "number up" if gain > 0.005 else "number down" if gain < -0.005 else "number soft"
    return [
        html.Td(_fixed(base), className="number"),
        html.Td(_fixed(steered), className="number"),
        html.Td(_fixed(gain, "+"), className=kind),
    ]


def _sums(part: dict[str, Any]) -> list[html.Td]:
    count = html.Td(plural(len(part["tokens"]), "token"), className="soft")
    return [count, *_numbers(sum(part["base"]), sum(part["steered"]))]


def summary(methods: Sequence[dict[str, Any]], prompt_tokens: int | None, on: str = "") -> str:
    """Return the methods of a comparison in a line: heads, and what differs from the defaults or is about regions."""
    told = " + ".join(_method(dict(facts)) for facts in methods)
    prompt = f"prompt of {prompt_tokens:,} tokens" if prompt_tokens is not None else ""
    return " · ".join(part for part in (told, prompt, on) if part)


def _method(facts: dict[str, Any]) -> str:
    name, heads = str(facts.pop("name", "edit")), facts.pop("heads", None)
    usual = {field.name: field.default for field in fields_of(name)} if name in VALUED else {}
    words = [about(name).label if name in METHODS else name]
    words += [f"{key} {_short(value)}" for key, value in facts.items() if _counts(key, value, usual)]
    if heads:
        words.append("all heads" if heads == "all" else plural(len(heads), "head"))
    return " · ".join(words)


def _counts(key: str, value: Any, usual: dict[str, str]) -> bool:
    if value in (None, "", [], ()) or key == "active":
        return False
    return key in MAIN.values() or text_of(value) != usual.get(key)


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value[:6])) + (" …" if len(value) > 6 else "")
    return f"{value:g}" if isinstance(value, float) else str(value)
