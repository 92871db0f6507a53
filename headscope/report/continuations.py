"""Two continuations of a prompt as a piece of HTML for notebooks: the same marks as in the application."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headscope.report.numbers import signed
from headscope.report.palette import DARK, LIGHT
from headscope.report.tokens import visible

LEAST = 1.0
"""Nats at which the colour of a difference is full, or more where a difference is larger: rounding stays pale."""
SIDES = {"base": "Without the edit", "steered": "Under the edit"}


@dataclass(frozen=True)
class Mark:
    """A token of a continuation as it is drawn.

    Parameters
    ----------
    text
        What is read, with blanks and line ends made visible.
    base, steered
        Its log-probability in both states.
    share
        How full its colour is, from −1 (less likely under the edit) to 1.
    common
        Whether it stands before the place where the texts part.
    ends
        Whether it ends a line.
    """

    text: str
    base: float
    steered: float
    share: float
    common: bool
    ends: bool


def scale_of(*pairs: tuple[Sequence[float], Sequence[float]]) -> float:
    """Return how many nats the full colour stands for, given both texts' log-probabilities in both states."""
    moved = [abs(b - a) for base, steered in pairs for a, b in zip(base, steered, strict=True)]
    return max([LEAST, *(value for value in moved if math.isfinite(value))])


def marks(
    tokens: Sequence[str], base: Sequence[float], steered: Sequence[float], diverges: int | None, scale: float
) -> list[Mark]:
    """Return the marks of one text."""
    out = []
    for step, (token, before, after) in enumerate(zip(tokens, base, steered, strict=True)):
        moved = float(after - before)
        share = max(-1.0, min(1.0, moved / scale)) if math.isfinite(moved) else 0.0
        common = diverges is not None and step < diverges
        out.append(Mark(shown(token), float(before), float(after), share, common, token.endswith("\n")))
    return out


def shown(token: str) -> str:
    r"""Return a token's text; one of blanks alone is drawn.

    >>> shown(" the"), shown(" "), shown("\n")
    (' the', '␣', '↵')
    """
    text = visible(token)
    return text.replace(" ", "␣") if not text.strip() else text


def fragment(found: Any) -> str:
    """Return a ``Comparison`` as HTML without scripts: both texts side by side."""
    parts = {side: getattr(found, side) for side in SIDES}
    scale = scale_of(*((part.base, part.steered) for part in parts.values()))
    columns = []
    for side, title in SIDES.items():
        part = parts[side]
        drawn = marks(part.tokens, part.base, part.steered, found.diverges, scale)
        pieces = [_token(mark) for mark in drawn]
        if found.diverges is not None and found.diverges <= len(pieces):
            pieces.insert(found.diverges, '<b class="hs-part" title="Here the texts part">▸</b>')
        gain = signed(f"{part.gain:+.2f}")
        head = f'<div class="hs-head"><b>{title}</b><span>{gain} nats under the edit</span></div>'
        columns.append(f'<div>{head}<p class="hs-text">{"".join(pieces) or "(nothing)"}</p></div>')
    where = "The texts are the same." if found.diverges is None else f"The texts part at token {found.diverges + 1}."
    if not found.changed:
        where = "The edit changed nothing: no log-probability of any token moved."
    foot = f"{where} KL of the first token: {found.kl:.3g} nats. Full colour: {scale:.1f} nats."
    sides = f'<div class="hs-sides">{"".join(columns)}</div>'
    return f'<div class="hs-continuations"><style>{_style()}</style>{sides}<p class="hs-foot">{foot}</p></div>'


def _token(mark: Mark) -> str:
    kind = "hs-up" if mark.share > 0 else "hs-down" if mark.share < 0 else "hs-flat"
    moved = signed(f"{mark.steered - mark.base:+.2f}")
    title = signed(f"log p {mark.base:.2f} → {mark.steered:.2f}") + f" ({moved} nats)"
    width = f"{2 + 6 * abs(mark.share):.1f}px"
    text = f'<span class="{kind}" style="--m:{100 * abs(mark.share):.0f}%;--w:{width}" title="{title}">'
    return f"{text}{html.escape(mark.text)}</span>{'<br>' if mark.ends else ''}"


def _style() -> str:
    def colours(palette: dict[str, str]) -> str:
        return "".join(
            f"--{name}:{palette[name]};" for name in ("ink", "soft", "line", "accent", "warm", "band", "gold")
        )

    base = ".hs-continuations"
    return (
        f"{base}{{{colours(LIGHT)}color:var(--ink);font:15px/1.4 system-ui,sans-serif}}"
        f"@media (prefers-color-scheme:dark){{{base}{{{colours(DARK)}}}}}"
        f"{base} .hs-sides{{display:grid;grid-template-columns:1fr 1fr;gap:1.75rem}}"
        f"{base} .hs-head{{display:flex;justify-content:space-between;border-bottom:1px solid var(--line)}}"
        f"{base} .hs-text{{line-height:2.1;white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0}}"
        f"{base} .hs-foot{{font-size:12px;color:var(--soft)}}{base} .hs-part{{color:var(--gold);padding:0 .15em}}"
        f"{base} .hs-text span{{padding-bottom:.4em;border-right:1px solid transparent;--c:var(--band);"
        "background:linear-gradient(var(--c),var(--c)) 0 100%/100% var(--w) no-repeat}"
        f"{base} .hs-text .hs-up{{--c:color-mix(in oklab,var(--accent) calc(25% + .75*var(--m)),var(--band))}}"
        f"{base} .hs-text .hs-down{{--c:color-mix(in oklab,var(--warm) calc(25% + .75*var(--m)),var(--band))}}"
    )
