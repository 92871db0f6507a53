"""Templates: text with named places, and where in the finished text each fill went."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from headscope.errors import PromptError, nearest

Span: TypeAlias = tuple[int, int]
"""Characters [start, end) of a text."""

RESERVED = ("all", "bos", "generated", "last", "rest", "system")
"""Names of regions that headscope itself gives a meaning."""


class Template:
    """Text with ``{name}`` places and what goes into them, for a fill that has regions of its own.

    Parameters
    ----------
    text
        The template; literal braces are doubled, ``{{`` and ``}}``.
    fills
        See ``Fill``.

    Examples
    --------
    >>> text, spans = render("Note: {needle}", {"needle": Template("the code is {answer}.", answer="7421")})
    >>> spans["needle"], spans["answer"]
    ([(6, 23)], [(18, 22)])
    """

    def __init__(self, text: str, **fills: Fill) -> None:
        self.text = text
        self.fills = fills


Fill: TypeAlias = "str | Template | Sequence[str | Template]"
"""What goes into a place: text, text with inner places, or one of those for each time the name occurs."""


def render(template: str, fills: Mapping[str, Fill]) -> tuple[str, dict[str, list[Span]]]:
    """Put ``fills`` into ``template``; return the text and the character spans of every name.

    Spans come from the places of the template, never from a search, so a fill that occurs elsewhere in the text does
    not matter. A name that occurs twice has two spans. Fills are literal: braces in them mean nothing.

    Raises
    ------
    PromptError
        If braces are unbalanced, a place has no fill, a fill has no place or no text, or a name is reserved.
    """
    names = _places(template)
    _check_names(template, names, fills)
    parts: list[str] = []
    spans: dict[str, list[Span]] = {}
    length = 0
    queues = {name: _texts(name, fills[name], sum(n == name for _, n in names)) for name in fills}
    for literal, name in names:
        parts.append(literal)
        length += len(literal)
        if name is None:
            continue
        fill = queues[name].pop(0)
        text, inner = render(fill.text, fill.fills) if isinstance(fill, Template) else (fill, {})
        for key, values in inner.items():
            spans.setdefault(key, []).extend((start + length, end + length) for start, end in values)
        if text:
            spans.setdefault(name, []).append((length, length + len(text)))
        parts.append(text)
        length += len(text)
    for name in fills:
        if name not in spans:
            raise PromptError(f"The fill for {{{name}}} is empty, so its region would be too. Give it text.")
    return "".join(parts), spans


def _places(template: str) -> list[tuple[str, str | None]]:
    """Split a template into (literal text, name of the place after it)."""
    hint = "Double braces that are meant literally: {{ and }}."
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PromptError(f"The template cannot be read: {error}. {hint}") from error
    for _, name, spec, conversion in pieces:
        if name is not None and (not name.isidentifier() or spec or conversion):
            shown = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise PromptError(f"{{{shown}}} in the template is no place: a place is one plain name. {hint}")
    return [(literal, name) for literal, name, _, _ in pieces]


def _check_names(template: str, names: list[tuple[str, str | None]], fills: Mapping[str, Fill]) -> None:
    wanted = [name for _, name in names if name is not None]
    for name in wanted:
        if name not in fills:
            raise PromptError(
                f"The template has a place {{{name}}} but no fill of that name was given.{nearest(name, fills)}"
            )
    for name in fills:
        if name not in wanted:
            raise PromptError(f"The fill {name!r} has no place {{{name}}} in the template.{nearest(name, wanted)}")
        check_name(name)


def check_name(name: str) -> None:
    """Raise ``PromptError`` if a region may not be called ``name``."""
    if name in RESERVED:
        raise PromptError(f"A region cannot be called {name!r}: headscope gives that name a meaning. Choose another.")


def _texts(name: str, fill: Fill, places: int) -> list[str | Template]:
    """Return what goes into each of a name's places."""
    if isinstance(fill, (str, Template)):
        return [fill] * places
    given: Any = fill
    if not isinstance(given, Sequence) or not all(isinstance(item, (str, Template)) for item in given):
        raise PromptError(
            f"The fill for {{{name}}} is no text: {given!r:.60}. Give text, a Template, or a list of them."
        )
    if len(fill) != places:
        raise PromptError(f"The fill for {{{name}}} lists {len(fill)} texts, but the name occurs {places} times.")
    return list(fill)
