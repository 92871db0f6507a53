"""Attention rows as text: every token shaded by its weight, a long context folded around where the weight lies."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pandas as pd

_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}
# Zero-width joiners and variation selectors hold emoji together; every other invisible character is named.
_KEPT = {"\u200c", "\u200d", "\ufe0e", "\ufe0f"}
COVER = 0.9
PEAKS = 10
AROUND = 5
LEAST = 0.005


@dataclass(frozen=True)
class Token:
    """One key: its text made visible, position, weight, and the shade to draw it in (0 to 1)."""

    text: str
    position: int
    weight: float
    shade: float


@dataclass(frozen=True)
class Gap:
    """Keys left out: how many, the weight known to lie on them, and whether that is the weight of them all."""

    count: int
    weight: float
    exact: bool


@dataclass(frozen=True)
class Row:
    """The attention of one head at one query."""

    query: int
    query_token: str
    pieces: tuple[Token | Gap, ...]
    top: tuple[Token, ...]


@dataclass(frozen=True)
class Reading:
    """What one head read in one sample."""

    sample: str
    layer: int
    head: int
    rows: tuple[Row, ...]


def visible(token: Any) -> str:
    r"""Return a token's text with spaces, line breaks and invisible characters made visible.

    Markers of byte-pair and SentencePiece vocabularies for a leading space and for a line break are resolved.

    >>> visible("Ġcode\n"), visible("\u202eabc"), visible("\x00")
    (' code↵', '‹U+202E›abc', '␀')
    """
    text = "" if token is None or token != token else str(token)
    if text[:1] in ("Ġ", "▁"):
        text = " " + text[1:]
    if text and not text.strip("Ċ"):
        text = "\n" * len(text)
    return "".join(map(_visible, text)) or "∅"


def clean(text: str) -> str:
    """Drop what no HTML file may hold: control characters other than line breaks and tabs, and lone surrogates."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs") else "\ufffd" for char in text
    )


def readings(samples: pd.DataFrame, *, limit: int = 25, queries: int = 4) -> tuple[list[Reading], int]:
    """Group rows of ``details["samples"]`` into readings.

    Parameters
    ----------
    samples
        Columns sample, layer, head, query, query_token, key, key_token, weight; one row per key.
    limit, queries
        Readings, and queries of each, to keep; queries with the least weight on position 0 come first, because
        a head at rest says nothing.

    Returns
    -------
    readings, left_out
        In the order of the table, and the number of readings beyond ``limit``.
    """
    found: list[Reading] = []
    groups = samples.groupby(["sample", "layer", "head"], sort=False)
    for name, part in groups:
        if len(found) == limit:
            break
        resting = part[part["key"] == 0].groupby("query")["weight"].sum()
        order = sorted(part["query"].unique(), key=lambda query: (float(resting.get(query, 0.0)), query))[:queries]
        rows = tuple(_row(part[part["query"] == query]) for query in sorted(order))
        sample, layer, head = cast("tuple[str, int, int]", name)
        found.append(Reading(visible(sample), int(layer), int(head), rows))
    return found, groups.ngroups - len(found)


def _row(part: pd.DataFrame) -> Row:
    part = part.dropna(subset=["weight"]).sort_values("key")
    keys = [int(key) for key in part["key"]]
    weights = [float(weight) for weight in part["weight"]]
    tokens = [
        Token(visible(text), key, weight, round(math.sqrt(min(1.0, max(0.0, weight))), 3))
        for text, key, weight in zip(part["key_token"], keys, weights, strict=True)
    ]
    best = sorted(tokens, key=lambda token: (-token.weight, token.position))
    peaks: list[Token] = []
    for token in best[:PEAKS]:
        if peaks and (sum(peak.weight for peak in peaks) >= COVER * sum(weights) or token.weight < LEAST):
            break
        peaks.append(token)
    # What follows the first token says nothing about why a head rests there.
    reach = {peak.position: AROUND if peak.position else 2 for peak in peaks}
    shown = {key for at, around in reach.items() for key in range(at - around, at + around + 1)}
    query = int(part["query"].iloc[0]) if len(part) else -1
    pieces = tuple(_pieces([token for token in tokens if token.position in shown], tokens, query))
    word = visible(part["query_token"].iloc[0]) if len(part) else ""
    return Row(query, word, pieces, tuple(token for token in best[:3] if token.weight >= LEAST))


def _pieces(shown: list[Token], tokens: list[Token], query: int) -> Iterator[Token | Gap]:
    place = 0
    for token in [*shown, None]:
        end = token.position if token else max(query + 1, place)
        # Two or three tokens take less room than the sign that they are left out, if they are known.
        if end > place:
            hidden = [other for other in tokens if place <= other.position < end]
            if len(hidden) == end - place <= 3:
                yield from hidden
            else:
                yield Gap(end - place, sum(other.weight for other in hidden), len(hidden) == end - place)
        if token:
            yield token
            place = token.position + 1


def _visible(char: str) -> str:
    if char in _MARKS:
        return _MARKS[char]
    if char in _KEPT:
        return char
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"‹U+{code:04X}›"
    return char
