"""The result of an evaluation: one row for each method, the items and controls behind it, and what they say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headscope.files import atomic, write_text

FORMAT = "headscope.evaluation/1"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Methods on a task.

    Attributes
    ----------
    table
        One row for the base, each method, and each method at neutral strength; see ``docs/evaluation.md``.
    items
        One row for each item and row of ``table``.
    labels
        One row for each label and row of ``table``: shares among right, constrained and written answers. Empty where
        items do not share their labels.
    controls
        One row for each control of each method.
    notes
        What the numbers say, in words, and what a reader must know.
    provenance
        Model, task, methods, versions, machine.
    """

    table: pd.DataFrame
    items: pd.DataFrame
    labels: pd.DataFrame
    controls: pd.DataFrame
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        task = self.provenance.get("data", {}).get("name")
        count = int((self.table["kind"] == "method").sum())
        return f"Evaluation({task!r}, {int(self.table['n'].iloc[0])} items, {count} methods)"

    def save(self, folder: str | Path) -> list[Path]:
        """Write all tables as Parquet and CSV, everything but the items as JSON, and a report of one HTML file.

        Raises
        ------
        OutputError
            If the folder cannot be written.
        """
        from headscope.interventions.evaluation_page import write_page

        folder = Path(folder)
        files = []
        for name in ("table", "items", "labels", "controls"):
            frame: pd.DataFrame = getattr(self, name)
            path = folder / f"{'methods' if name == 'table' else name}.parquet"
            with atomic(path) as temporary:
                frame.to_parquet(temporary, index=False)
            files += [path, write_text(path.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n"))]
        text = json.dumps(self.document(), indent=1, ensure_ascii=False, allow_nan=False)
        files.append(write_text(folder / "evaluation.json", text + "\n"))
        files.append(write_page(self, folder / "report.html"))
        return files

    def document(self) -> dict[str, Any]:
        """Return everything but the items as JSON values; numbers that JSON does not know are None."""
        return {
            "format": FORMAT,
            "methods": _records(self.table),
            "labels": _records(self.labels),
            "controls": _records(self.controls),
            "notes": list(self.notes),
            "provenance": _plain(self.provenance),
        }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [_plain(record) for record in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
