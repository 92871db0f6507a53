"""What the page shows, as a notebook cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def cell(
    root: Path, file: str | None, heads: Sequence[str], *, beside: Sequence[str] = (), colour: str = "score"
) -> str:
    """Return Python that makes the same figures from the same files.

    Parameters
    ----------
    root
        The workspace.
    file
        The open ranking.
    heads
        Those that are picked, such as ``"18.6"``.
    beside
        Rankings that it is compared with.
    colour
        Column that the map is coloured by.
    """
    lines = ["import headscope as hs", ""]
    if file is None:
        return "\n".join([*lines, 'scores = hs.probes.find("induction")', ""])
    lines.append(f"scores = hs.probes.HeadScores.load({str(root / file)!r})")
    if beside:
        for i, name in enumerate(beside):
            other = "other" if len(beside) == 1 else f"other{i + 1}"
            lines += [
                f"{other} = hs.probes.HeadScores.load({str(root / name)!r})",
                f"found = hs.compare(scores, {other})",
                "print(found.statement)",
                "found.plot().show()",
            ]
        return "\n".join([*lines, "found.overlaps", ""])
    column = "" if colour == "score" else f"column={colour!r}"
    lines.append(f"scores.plot({column}).show()")
    if heads:
        pairs = ", ".join(f"({layer}, {head})" for layer, _, head in (one.partition(".") for one in heads))
        lines += [f"heads = [{pairs}]", "scores.ranked().set_index(['layer', 'head']).loc[heads]"]
    else:
        lines.append("scores.ranked().head(20)")
    return "\n".join([*lines, ""])
