"""Which heads a file holds in full where it cannot hold all."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headscope.errors import RequestError
from headscope.kernels.dispatch import compute
from headscope.kernels.rows import Wants

if TYPE_CHECKING:
    from headscope.report.view.source import View

_QUERIES = 32
_OWN = ("bos", "system", "generated")
_LOW = 0.1
"""A region that gets less than this of every head's attention is too faint to be shown first."""

Pair = tuple[int, int]


def checked(counts: Sequence[int], heads: Iterable[Pair] | None, layers: Iterable[int] | None) -> list[Pair] | None:
    """Return the heads that were asked for, each once, in order; None if none were.

    Raises
    ------
    RequestError
        If there is no such head or layer, or the list is empty.
    """
    if heads is None and layers is None:
        return None
    asked: list[Pair] = []
    for pair in heads or ():
        try:
            layer, head = (int(part) for part in pair)
        except (TypeError, ValueError):
            raise RequestError(f"heads= takes pairs (layer, head), as [(5, 3)]; got {pair!r}.") from None
        if not (0 <= layer < len(counts) and 0 <= head < counts[layer]):
            here = f"heads 0 to {counts[layer] - 1}" if 0 <= layer < len(counts) and counts[layer] else "no heads"
            raise RequestError(
                f"There is no head ({layer}, {head}) to look at: layers run from 0 to {len(counts) - 1}, and layer "
                f"{layer} has {here}."
            )
        asked.append((layer, head))
    for layer in layers or ():
        if not (0 <= layer < len(counts) and counts[layer]):
            raise RequestError(f"Layer {layer} has no heads to look at: layers run from 0 to {len(counts) - 1}.")
        asked += [(int(layer), head) for head in range(counts[layer])]
    if not asked:
        raise RequestError("heads= and layers= name no head: leave them out for as many as fit.")
    return list(dict.fromkeys(asked))


def best_heads(view: View) -> list[Pair]:
    """Return all heads, the most telling first.

    The head that attends most to each region that the prompt names comes first, then the head with the clearest
    pattern; then the second of each, and so on. A pattern is clear by the mean, over 32 queries from the whole prompt,
    of the largest weight on any key but the first.
    """
    pairs = [(layer, head) for layer, count in enumerate(view.meta()["heads"]) for head in range(count)]
    rankings = [{pair: float(view.stat(name)[pair]) for pair in pairs} for name in telling(view)]
    rankings.append({pair: _clear(view, *pair) for pair in pairs})
    ranked = [_ranked(pairs, values) for values in rankings]
    return list(dict.fromkeys(itertools.chain.from_iterable(zip(*ranked, strict=True))))


def telling(view: View) -> list[str]:
    """Return statistics of the regions that the prompt names, the smallest region first.

    Regions that every prompt has, and those that are most of it, tell little about a head.
    """
    known = {stat["name"] for stat in view.meta()["stats"]}
    sizes = {f"mass:{name}": len(found) for name, found in view.prompt.regions.items() if name not in _OWN}
    named = [name for name, size in sizes.items() if name in known and 2 * size <= view.length]
    return sorted(named, key=lambda name: sizes[name])


def first(view: View, order: Sequence[Pair]) -> dict[str, Any]:
    """Return what to show first: the first of these heads, coloured by the smallest region that shows."""
    seen = [name for name in telling(view) if float(np.nanmax(view.stat(name))) >= _LOW]
    state: dict[str, Any] = {"stat": seen[0]} if seen else {}
    if order:
        state["layer"], state["head"] = order[0]
    return state


def _ranked(pairs: Sequence[Pair], values: dict[Pair, float]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (-values[pair] if values[pair] == values[pair] else np.inf, pair))


def _clear(view: View, layer: int, head: int) -> float:
    if view.length < 2:
        return 0.0
    one, _ = view.call(layer, head)
    queries = np.unique(np.linspace(1, view.length - 1, _QUERIES).round().astype(int))
    found = compute(one, Wants(rows=True), torch.from_numpy(queries)[None].to(one.q.device)).rows
    assert found is not None
    return float(found[0, 0, :, 1:].amax(-1).mean())
