"""The numbers of a view as tables, for CSV."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from headscope.errors import RequestError, nearest

if TYPE_CHECKING:
    from headscope.report.view.source import View


def heads_frame(view: View) -> pd.DataFrame:
    """Return one row per head, with a column per statistic."""
    meta = view.meta()
    layers, heads = np.array([(at, head) for at, n in enumerate(meta["heads"]) for head in range(n)]).T
    columns = {stat["name"]: view.stat(stat["name"])[layers, heads] for stat in meta["stats"]}
    return pd.DataFrame({"layer": layers, "head": heads, **columns})


def row_frame(view: View, *, layer: int, head: int, query: int) -> pd.DataFrame:
    """Return one row per key with what a query attends to."""
    return pd.DataFrame(_named(view, "key", np.arange(view.length)) | {"weight": view.row(layer, head, query)})


def column_frame(view: View, *, layer: int, head: int, key: int) -> pd.DataFrame:
    """Return one row per query with how much it attends to a key."""
    return pd.DataFrame(_named(view, "query", np.arange(view.length)) | {"weight": view.column(layer, head, key)})


def tile_frame(
    view: View,
    *,
    layer: int,
    head: int,
    level: int = 0,
    row: int = 0,
    col: int = 0,
    reduce: Literal["mean", "max"] = "max",
) -> pd.DataFrame:
    """Return one row per cell of a tile; above level 0 a cell reaches up to the ends given, exclusive."""
    cells = view.tile(layer, head, level, row, col, reduce)
    side = view.meta()["tile"]
    queries, keys = (
        np.repeat(row * side + np.arange(cells.shape[0]), cells.shape[1]) << level,
        np.tile(col * side + np.arange(cells.shape[1]), cells.shape[0]) << level,
    )
    table = _named(view, "query", queries) | _named(view, "key", keys)
    if level:
        table |= {f"{name}_end": np.minimum(at + (1 << level), view.length) for name, at in
                  (("query", queries), ("key", keys))}  # fmt: skip
    return pd.DataFrame(table | {"weight": cells.ravel()})


def neuron_frame(view: View, *, layer: int, head: int, query: int, key: int) -> pd.DataFrame:
    """Return one row per dimension of a pair of query and key, with the running sum of their product."""
    found = view.neuron(layer, head, query, key)
    table = {name: found[name] for name in ("q", "k", "product")}
    return pd.DataFrame({"dim": np.arange(len(found["q"])), **table, "sum": np.cumsum(found["product"])})


FRAMES: dict[str, Callable[..., pd.DataFrame]] = {
    "heads": heads_frame,
    "row": row_frame,
    "column": column_frame,
    "tile": tile_frame,
    "neuron": neuron_frame,
}
"""Tables by name."""


def frame(view: View, kind: str, **where: Any) -> pd.DataFrame:
    """Return one of ``FRAMES``.

    Raises
    ------
    RequestError
        If there is no such table, or it does not take what ``where`` says.
    """
    if kind not in FRAMES:
        raise RequestError(f"A view has no table {kind!r}.{nearest(kind, FRAMES)}")
    try:
        inspect.signature(FRAMES[kind]).bind(view, **where)
    except TypeError as error:
        raise RequestError(f"The table {kind!r} does not take {', '.join(where) or 'nothing'}: {error}.") from error
    return FRAMES[kind](view, **where)


def _named(view: View, name: str, positions: Any) -> dict[str, Any]:
    tokens = np.array(view.prompt.tokens, dtype=object)
    return {name: positions, f"{name}_token": tokens[positions]}
