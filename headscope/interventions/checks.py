"""What the methods on attention check of their fields, and which layers they stand on when all heads are meant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from headscope.errors import RequestError
from headscope.interventions.base import Heads, resolve

Keys = tuple[str | int, ...]
"""Names of regions, and token positions."""


def as_heads(heads: Any, kind: str) -> Heads:
    """Return ``"all"``, or (layer, head) pairs as integers, in order, each once.

    Raises
    ------
    RequestError
        If it is neither, or there is no pair.
    """
    if isinstance(heads, str):
        if heads != "all":
            raise RequestError(f"{kind}(heads={heads!r}): pass (layer, head) pairs, or 'all'.")
        return "all"
    try:
        pairs = tuple(sorted({(int(layer), int(head)) for layer, head in heads}))
    except (TypeError, ValueError) as error:
        raise RequestError(f"{kind}(heads={heads!r}): pass (layer, head) pairs, or 'all'.") from error
    if not pairs:
        raise RequestError(f"{kind} names no head: pass heads=[(layer, head), …], or 'all'.")
    return pairs


def as_keys(given: Any, kind: str, field: str) -> Keys:
    """Return region names and token positions as a tuple, each once.

    Raises
    ------
    RequestError
        If there is none, or one is neither a name nor a position.
    """
    keys = (given,) if isinstance(given, (str, int)) else tuple(given)
    if not keys or "" in keys:
        raise RequestError(f"{kind}({field}={given!r}) is empty: name a region of the prompt, or token positions.")
    wrong = [
        key for key in keys if not isinstance(key, str) and (isinstance(key, bool) or not hasattr(key, "__index__"))
    ]
    if wrong:
        raise RequestError(f"{kind}({field}=…): {wrong[0]!r} is neither the name of a region nor a token position.")
    return tuple(dict.fromkeys(key if isinstance(key, str) else int(key) for key in keys))


def as_layers(layers: Any, kind: str) -> tuple[int, ...] | None:
    """Return layers as integers in order, each once; None stays.

    Raises
    ------
    RequestError
        If there is none.
    """
    if layers is None:
        return None
    found = tuple(sorted({int(layer) for layer in ((layers,) if isinstance(layers, int) else layers)}))
    if not found:
        raise RequestError(f"{kind}(layers=()) names no layer: leave it out for the default, or name some.")
    return found


def number(
    kind: str, field: str, value: Any, low: float = 0.0, high: float = math.inf, *, above: bool = False
) -> float:
    """Return ``value`` as a finite number from ``low`` (or, with ``above``, above it) to ``high``.

    Raises
    ------
    RequestError
        If it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not (math.isfinite(found) and found <= high and (found > low if above else found >= low)):
        least = f"above {low:g}" if above else f"of at least {low:g}"
        most = f" and at most {high:g}" if math.isfinite(high) else ""
        raise RequestError(f"{kind}({field}={value!r}): give a finite number {least}{most}.")
    return found


def on(
    heads: Heads,
    model: Any,
    kind: str,
    *,
    layers: Sequence[int] | None = None,
    skip: Iterable[int] = (),
    stack: str | None = None,
) -> tuple[tuple[int, int], ...]:
    """Return the heads that a method acts on.

    Parameters
    ----------
    layers
        Layers that ``heads="all"`` means; named pairs of other layers are left out. By default named pairs are all
        kept, and ``"all"`` means all layers but ``skip``, where −1 is the last.

    Raises
    ------
    RequestError
        If no head is left, or a layer is not in the model.
    """
    found = model.sites.stack(stack)
    if layers is None:
        left_out = {max(found) + 1 + layer if layer < 0 else layer for layer in skip}
        chosen = [layer for layer in found if heads != "all" or layer not in left_out]
        if not chosen:
            raise RequestError(
                f"{kind} leaves out layers {sorted(left_out)} of the {len(found)} that this model has, so that none is "
                "left: name heads=, or layers=."
            )
    else:
        missing = [layer for layer in layers if layer not in found]
        if missing:
            raise RequestError(
                f"{kind}(layers=…): there is no layer {missing[0]}; this model has {min(found)} to {max(found)}."
            )
        chosen = list(layers)
    if not isinstance(heads, str):
        heads = tuple(pair for pair in heads if layers is None or pair[0] in layers)
        if not heads:
            raise RequestError(f"{kind}: none of heads= lies in layers={list(chosen)}.")
        return heads
    return resolve(heads, model, layers=chosen, stack=stack)  # type: ignore[return-value]
