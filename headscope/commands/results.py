"""What ``headscope rank`` leaves behind: files, a table for people, a document for machines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.commands.console import interval, out, table

if TYPE_CHECKING:
    from headscope.probes.scores import HeadScores


def write(scores: dict[str, HeadScores], folder: Path) -> dict[str, Path]:
    """Write each probe's tables and one report; return the paths by probe, and the report's."""
    from headscope.report.html import write_combined

    for name, found in scores.items():
        for suffix in (".parquet", ".json", ".csv"):
            found.save(folder / f"{name}{suffix}")
    report = write_combined(list(scores.values()), folder / "report.html")
    return {**{name: folder / f"{name}.parquet" for name in scores}, "report": report}


def show(scores: dict[str, HeadScores], files: dict[str, Path], top: int) -> None:
    """Print the best heads of each probe, what their removal did, what limits them, and where everything is."""
    from rich.padding import Padding
    from rich.text import Text

    console = out()
    for name, found in scores.items():
        console.print(f"[bold]{name}[/bold]: {len(found.selected)} of {len(found)} heads pass")
        shown = table("head", "score (95 %)", "null", "p", "passes", right=("null", "p"))
        for layer, head in found.top(top):
            row = found.head(layer, head)
            shown.add_row(
                f"L{layer}H{head}",
                interval(row["score"], row["ci_low"], row["ci_high"]),
                interval(row["null_mean"], math.nan, math.nan),
                f"{row['p_value']:.2g}" if row["p_value"] == row["p_value"] else "–",
                "yes" if row["selected"] else "",
            )
        if shown.row_count:
            console.print(shown)
        for line in removals(found):
            console.print(Padding(line, (0, 0, 0, 2)))
        for note in found.provenance.get("notes", []):
            console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))
        console.print()
    console.print(f"Report: {files['report']}", soft_wrap=True)


def removals(scores: HeadScores) -> list[str]:
    """Say what removing the most heads did to each metric, beside the controls."""
    dose = scores.details.get("dose")
    lines: list[str] = []
    for metric, part in [] if dose is None else dose.groupby("metric", sort=False):
        k = part["k"].max()
        values = {kind: group["value"] for kind, group in part[part["k"].isin((0, k))].groupby("kind")}
        p = part.loc[(part["k"] == k) & (part["kind"] == "top"), "p_value"].iloc[0]
        low, high = values["control"].min(), values["control"].max()
        lines.append(
            f"Without the top {k}: {metric} {values['base'].iloc[0]:.3f} → {values['top'].iloc[0]:.3f}; "
            f"without {k} others {low:.3f} to {high:.3f} ({len(values['control'])} control sets, p = {p:.2g})"
        )
    return lines


def document(scores: dict[str, HeadScores], files: dict[str, Path], top: int) -> dict[str, Any]:
    """Return the same facts as ``show`` for machines."""
    return {
        "model": next(iter(scores.values())).provenance.get("model"),
        "report": files["report"],
        "probes": {
            name: {
                "scores": files[name],
                "heads": len(found),
                "selected": found.selected,
                "top": [found.head(layer, head) for layer, head in found.top(top)],
                "removal": removals(found),
                "notes": found.provenance.get("notes", []),
            }
            for name, found in scores.items()
        },
    }
