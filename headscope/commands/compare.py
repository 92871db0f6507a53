"""``headscope compare``: how far two rankings agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.commands.console import JsonOption, emit, interval, out, table

if TYPE_CHECKING:
    from headscope.report.compare import Comparison

MOVERS = 5


def compare(
    a: Annotated[Path, typer.Argument(help="Scores as .parquet, .json or .csv.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Scores to set beside them.", show_default=False)],
    report: Annotated[
        Path | None, typer.Option(help="Also write a report of both to this HTML file.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Set two rankings side by side: correlation, shared heads against chance, heads that moved.

    Two probes of one model, or one probe of two models.

    [dim]Examples:[/dim]

      headscope compare runs/a/retrieval.parquet runs/a/induction.parquet

      headscope compare before.parquet after.parquet --report both.html
    """
    from headscope.probes.scores import HeadScores
    from headscope.report.compare import compare as side_by_side

    found = side_by_side(HeadScores.load(a), HeadScores.load(b))
    written = found.report(report) if report else None
    if json:
        emit({**found.to_dict(), "report": written})
        return
    _show(found)
    if written:
        out().print(f"Report: {written}", soft_wrap=True)


def _show(found: Comparison) -> None:
    console = out()
    console.print(f"[bold]{found.a}[/bold] beside [bold]{found.b}[/bold]")
    console.print(found.statement)
    for name, correlation in found.correlations.items():
        console.print(f"  {name.capitalize()} {interval(correlation.value, correlation.low, correlation.high)}")
    if not found.overlaps.empty:
        shared = table(
            "set", "heads", "shared", "by chance", "p", title="Shared heads", right=("shared", "by chance", "p")
        )
        for row in found.overlaps.to_dict("records"):
            sizes = f"{row['size_a']} and {row['size_b']}"
            shared.add_row(row["set"], sizes, str(row["shared"]), f"{row['expected']:.1f}", f"{row['p_value']:.2g}")
        console.print(shared)
    if not found.movers.empty:
        moved = table("head", found.a, found.b, "ranks", title="Farthest apart", right=(found.a, found.b))
        for row in found.movers.head(MOVERS).to_dict("records"):
            ranks = f"{row['rank_a']} and {row['rank_b']}"
            moved.add_row(f"L{row['layer']}H{row['head']}", f"{row['score_a']:.3f}", f"{row['score_b']:.3f}", ranks)
        console.print(moved)
