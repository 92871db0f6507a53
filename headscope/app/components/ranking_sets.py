"""Head sets on a page: saved from what is picked, combined, renamed, deleted and brought back."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dash import html

from headscope.app.components.copy import copy_button
from headscope.app.components.heads import FOLDER, head_sets
from headscope.errors import HeadscopeError, RequestError
from headscope.probes.head_sets import HeadSet
from headscope.probes.scores import HeadScores
from headscope.report.agreement import overlap
from headscope.report.numbers import head_name, number, p_value, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headscope.app.desk import Desk

TRASH = ".app/trash"
WAYS = {"union": "Either", "intersection": "Both", "difference": "Only the first"}
SIGNS = {"union": "∪", "intersection": "∩", "difference": "∖"}


def load(desk: Desk, file: str) -> HeadSet:
    """Return a set of the workspace.

    Raises
    ------
    RequestError, DataError
        If the file is not there, or is none.
    """
    return HeadSet.load(desk.workspace.existing(file, (".json",)))


def save(desk: Desk, name: str, heads: Sequence[tuple[int, int]], scores: HeadScores, source: str) -> str:
    """Save picked heads under a name and return the file.

    Raises
    ------
    RequestError
        If nothing is picked, the name will not do, or there is a set of that name.
    """
    if not heads:
        raise RequestError("No head is picked: choose some in the table or on the map.")
    return keep(desk, HeadSet.of(name.strip(), scores, heads, source=source))


def keep(desk: Desk, made: HeadSet) -> str:
    """Write a new set and return its file; a set that is there is never replaced.

    Raises
    ------
    RequestError
        If the name will not do, or there is a set of that name.
    """
    if not made.name:
        raise RequestError("Give the set a name.")
    path = desk.workspace.new(FOLDER, made.name, ".json")
    if path.exists():
        raise RequestError(
            f"There is a head set called {made.name!r} already: choose another name, or delete it first."
        )
    made.save(path)
    return f"{FOLDER}/{path.name}"


def rename(desk: Desk, file: str, name: str) -> str:
    """Give a set another name and return its new file."""
    found = load(desk, file)
    if name.strip() == found.name:
        return file
    made = keep(desk, replace(found, name=name.strip()))
    desk.workspace.path(file).unlink()
    return made


def delete(desk: Desk, file: str) -> None:
    """Put a set aside, so that ``restore`` can bring it back."""
    path = desk.workspace.existing(file, (".json",))
    aside = desk.workspace.path(f"{TRASH}/{file}")
    aside.parent.mkdir(parents=True, exist_ok=True)
    path.replace(aside)


def restore(desk: Desk, file: str) -> None:
    """Bring back a set that was deleted.

    Raises
    ------
    RequestError
        If it is not there, or another set has taken its name.
    """
    aside = desk.workspace.path(f"{TRASH}/{file}")
    path = desk.workspace.path(file)
    if not aside.is_file():
        raise RequestError(f"{file} cannot be brought back: it is gone.")
    if path.exists():
        raise RequestError(f"{file} cannot be brought back: another set has its name by now.")
    aside.replace(path)


def of_ranking(found: HeadSet, scores: HeadScores) -> None:
    """Refuse a set whose heads are not those of the open ranking's model.

    Raises
    ------
    RequestError
        If the ranking is of other weights, or of another shape.
    """
    model = scores.provenance.get("model", {})
    prints = {found.fingerprint, model.get("fingerprint")} - {None}
    if len(prints) > 1 or (found.shape is not None and found.shape != scores.shape):
        raise RequestError(
            f"{found.name!r} holds heads of {found.model!r}, and the open ranking is of {model.get('name')!r}: open "
            "one of the same model first."
        )


def combined(desk: Desk, file: str, other: str, way: str, name: str = "") -> HeadSet:
    """Return the combination of two sets.

    Raises
    ------
    RequestError
        If they are of different models, or there is no such way.
    """
    if way not in WAYS:
        raise RequestError(f"Sets are combined by {', '.join(WAYS)}, not by {way!r}.")
    a, b = load(desk, file), load(desk, other)
    made: HeadSet = getattr(a, way)(b, name.strip() or _joined(a.name, b.name, way))
    return made


def shared(a: HeadSet, b: HeadSet) -> str:
    """Say how many heads two sets share, beside what chance would.

    Raises
    ------
    RequestError
        If they are of different models.
    """
    both = a.intersection(b)
    text = f"{a.name} ({len(a)}) and {b.name} ({len(b)}) share {plural(len(both), 'head')}"
    shape = a.shape or b.shape
    if shape is None or not a.heads or not b.heads:
        return f"{text}."
    found = overlap(a.heads, b.heads, shape[0] * shape[1])
    return (
        f"{text}; two random sets of these sizes share {number(found.expected)} on average "
        f"(p = {p_value(found.p_value)})."
    )


def python(desk: Desk, file: str) -> str:
    """Return Python that has the heads."""
    return f'hs.probes.HeadSet.load("{desk.workspace.root / file}").heads'


def argument(desk: Desk, file: str) -> str:
    """Return the option of the command line that takes the heads."""
    return f"--heads {shlex.quote(str(desk.workspace.root / file))}"


def items(desk: Desk, current: str | None) -> list[Any]:
    """Return the list of saved sets as buttons; the current one is marked."""
    made = []
    for file, name in head_sets(desk).items():
        try:
            found = load(desk, file)
        except HeadscopeError:
            continue
        made.append(
            html.Button(
                [
                    html.Span(name, className="ranking-name"),
                    html.Span(number(len(found)), className="ranking-count"),
                    html.Span(
                        html.Span(" · ".join(part for part in (found.model, found.source) if part)),
                        className="ranking-line",
                    ),
                ],
                id={"head-set": file},
                type="button",
                className="ranking-item open" if file == current else "ranking-item",
                **({"aria-current": "true"} if file == current else {}),
            )
        )
    return made or [
        html.P("None saved yet. Pick heads in the table or on the map, and save them.", className="soft small")
    ]


def card(desk: Desk, file: str) -> list[Any]:
    """Return what is said of one set: where it comes from, its heads, and where they are used."""
    found = load(desk, file)
    first = found.heads[0] if found.heads else (0, 0)
    facts = [
        f"{plural(len(found), 'head')} of {found.model or 'a model that is not named'}",
        f"from {found.source}" if found.source else "",
        found.created[:16].replace("T", " ") + " UTC" if found.created else "",
    ]
    chips = [html.Li(head_name(*pair)) for pair in found.heads]
    lines = {"python": ("Python", python(desk, file)), "argument": ("Command line", argument(desk, file))}
    return [
        html.H2(found.name),
        html.P(" · ".join(part for part in facts if part), className="soft small"),
        *([html.P(found.note, className="prose")] if found.note else []),
        html.Ul(chips, className="chips", **{"aria-label": "Heads"}),
        html.P(
            [
                html.A("Open in Explore", href=f"/explore?head={first[0]}.{first[1]}", **{"data-explore": ""}),
                " · ",
                html.A("Use in Steer", href=f"/steer?heads={quote(file)}"),
            ]
        ),
        *(
            html.Div(
                [
                    html.Span(label, className="soft small"),
                    html.Code(text, id=f"rank-set-{key}"),
                    copy_button(f"rank-set-{key}", "Copy", look="quiet"),
                ],
                className="copy-line",
            )
            for key, (label, text) in lines.items()
        ),
    ]


def _joined(a: str, b: str, way: str) -> str:
    word = {"union": "or", "intersection": "and", "difference": "without"}[way]
    return f"{a} {word} {b}"[:80]
