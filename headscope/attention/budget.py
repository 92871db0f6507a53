"""How much memory a run will take, said before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterable

import psutil

from headscope.attention import requests as ask
from headscope.attention.collect import Collector
from headscope.attention.plan import dimensions
from headscope.attention.sites import Sites
from headscope.errors import MemoryBudgetError

_CHEAPER = {
    ask.Pattern: "Pooled() for an overview, Rows(queries=…) for some rows, QK() to look at any tile later",
    ask.Rows: "fewer queries=, fewer layers= or heads=, or TopKeys(n) for the largest weights",
    ask.Weighted: "fewer channels in x, queries=, or layers=",
    ask.HeadOutput: "queries= (for example 'last'), layers= or heads=",
    ask.Residual: "queries= (for example 'last') or layers=",
    ask.MlpActivation: "queries= (for example 'last') or layers=",
    ask.QK: "layers=",
}


def readable(size: float) -> str:
    """Return bytes as text: ``1.5 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def available() -> int:
    """Bytes that a run may take: ``HEADSCOPE_MEMORY_LIMIT`` (bytes), else nine tenths of what is free."""
    limit = os.environ.get("HEADSCOPE_MEMORY_LIMIT")
    return int(limit) if limit else int(psutil.virtual_memory().available * 0.9)


def size(collector: Collector, sites: Sites, batch: int, tq: int, tk: int) -> int:
    """Return the bytes of a request's result."""
    request = collector.request
    if isinstance(request, ask.QK):
        found = sites.by_stack[collector.stack]
        width = {layer: found[layer].output_weight().shape[1] for layer in collector.layers}
        return sum(
            4 * batch * (found[layer].heads * tq + found[layer].kv_heads * tk) * width[layer]
            for layer in collector.layers
        )
    site = next(iter(sites.by_stack[collector.stack].values()))
    queries = tq if request.queries is None else _count(request.queries, tq)
    widths: dict[str, int] = {
        "batch": batch,
        "head": site.heads,
        "query": queries,
        "key": tk,
        "region": len(getattr(request, "regions", ())),
        "group": len(getattr(request, "groups", None) or ()),
        "rank": 3 * getattr(request, "n", 1),
        "row": getattr(request, "rows", 1),
        "col": getattr(request, "cols", 1),
        "channel": request.x.shape[-1] if isinstance(request, ask.Weighted) else 1,
        "slot": request.keys.shape[-1] if isinstance(request, ask.Lookup) else 1,
        "dim": site.output_weight().shape[1 if isinstance(request, ask.HeadOutput) else 2],
        "unit": site.mlp_width(),
    }
    total = 4 * (len(collector.layers) if collector.pairs is None else len(collector.pairs))
    for dim in dimensions(request):
        if not (dim == "head" and collector.pairs is not None):
            total *= widths[dim]
    return total


def _count(queries: ask.Queries, tq: int) -> int:
    if isinstance(queries, str):
        return 1 if queries == "last" else tq
    if isinstance(queries, slice):
        return len(range(tq)[queries])
    return 1 if isinstance(queries, int) else len(queries or ())


def check(asked: Iterable[tuple[Collector, int, int]], sites: Sites, batch: int, tokens: int, base: int) -> int:
    """Return the bytes that a run will take at its peak.

    Parameters
    ----------
    asked
        Each request with its numbers of queries and keys.
    tokens
        Length of the input, for the message.
    base
        Bytes that the run takes with nothing captured.

    Raises
    ------
    MemoryBudgetError
        If the results cannot fit, naming the largest request and what to ask instead.
    """
    sizes = {collector: size(collector, sites, batch, tq, tk) for collector, tq, tk in asked}
    for collector, taken in sizes.items():
        request = collector.request
        if isinstance(request, ask.Pattern) and taken > request.limit:
            raise MemoryBudgetError(
                f"Pattern() of {len(collector.layers)} layers on {tokens} tokens takes {readable(taken)}, "
                f"above its limit of {readable(request.limit)}. Ask for {_CHEAPER[ask.Pattern]}, "
                "or raise Pattern(limit=…)."
            )
    total, room = base + sum(sizes.values()), available()
    if total <= room:
        return total
    worst = max(sizes, key=lambda c: sizes[c], default=None)
    if worst is None or base > room:
        raise MemoryBudgetError(
            f"Running {batch} × {tokens} tokens takes about {readable(base)}, more than the {readable(room)} there is, "
            "before anything is captured. Use a shorter prompt, a smaller batch, or logits='last'."
        )
    cheaper = _CHEAPER.get(type(worst.request), "fewer layers=, heads= or queries=")
    raise MemoryBudgetError(
        f"{type(worst.request).__name__}() takes {readable(sizes[worst])} of {readable(total)} in all, more than the "
        f"{readable(room)} there is. Ask for {cheaper}."
    )
