"""Control heads: as many as were removed, from the same layers, and none of them removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from headscope.errors import HeadscopeError

Head = tuple[int, int]


@dataclass(frozen=True)
class Control:
    """One set of control heads.

    Parameters
    ----------
    heads
        (layer, head) pairs, sorted.
    from_selected
        How many of them pass the probe's rule: their layer had no other heads left.
    from_other_layers
        How many stand in another layer than the head that they are a control for: its layer had no heads left.
    """

    heads: tuple[Head, ...]
    from_selected: int = 0
    from_other_layers: int = 0


def draw_controls(
    removed: Collection[Head],
    heads: Collection[Head],
    count: int,
    *,
    selected: Collection[Head] = (),
    seed: int = 0,
) -> list[Control]:
    """Draw ``count`` different control sets that match ``removed`` layer by layer and share no head with it.

    Heads of the same layer that do not pass the probe's rule come first, then others of the same layer, then heads
    of the nearest layers. A larger ``count`` continues the same sequence.

    Parameters
    ----------
    removed
        Heads whose removal is tested.
    heads
        All heads of the model.
    selected
        Heads that pass the probe's rule, which a control avoids where its layer allows.

    Returns
    -------
    Fewer than ``count`` sets if there are no more different ones.

    Raises
    ------
    HeadscopeError
        If there are not as many other heads as were removed.
    """
    taken = set(removed)
    if len(set(heads) - taken) < len(taken):
        raise HeadscopeError(
            f"Removing {len(taken)} of {len(set(heads))} heads leaves too few others for disjoint controls: "
            f"choose k of at most {len(set(heads)) // 2}."
        )
    rng = np.random.default_rng([seed, len(taken)])
    found: dict[tuple[Head, ...], Control] = {}
    for _ in range(50 * count):  # far more than needed to meet every set where there are few
        if len(found) == count:
            break
        control = _draw(taken, heads, set(selected), rng)
        found.setdefault(control.heads, control)
    return list(found.values())


def _draw(taken: set[Head], heads: Collection[Head], selected: set[Head], rng: np.random.Generator) -> Control:
    free = sorted(set(heads) - taken)
    wanted = Counter(layer for layer, _ in taken)
    chosen: set[Head] = set()
    for layer, number in sorted(wanted.items()):
        here = [head for head in free if head[0] == layer]
        chosen |= set(_first(number, [_outside(here, selected), _inside(here, selected)], rng))
    have = Counter(layer for layer, _ in chosen)
    borrowed = 0
    for layer, number in sorted(wanted.items()):
        left = [head for head in free if head not in chosen]
        # Nearest layers first; in each, heads that do not pass the rule first.
        tiers = [part(near, selected) for near in _by_distance(left, layer) for part in (_outside, _inside)]
        extra = _first(number - have[layer], tiers, rng)
        chosen |= set(extra)
        borrowed += len(extra)
    return Control(tuple(sorted(chosen)), len(chosen & selected), borrowed)


def _first(number: int, tiers: Sequence[Sequence[Head]], rng: np.random.Generator) -> list[Head]:
    """Draw from the first tier that has any left, then from the next."""
    drawn: list[Head] = []
    for tier in tiers:
        if number <= len(drawn):
            break
        drawn += [tier[i] for i in rng.permutation(len(tier))[: number - len(drawn)]]
    return drawn


def _by_distance(heads: Sequence[Head], layer: int) -> list[list[Head]]:
    layers = sorted({head[0] for head in heads}, key=lambda other: (abs(other - layer), other))
    return [[head for head in heads if head[0] == other] for other in layers]


def _outside(heads: Sequence[Head], selected: set[Head]) -> list[Head]:
    return [head for head in heads if head not in selected]


def _inside(heads: Sequence[Head], selected: set[Head]) -> list[Head]:
    return [head for head in heads if head in selected]
