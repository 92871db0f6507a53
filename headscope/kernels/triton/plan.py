"""What the planning of all launches shares: a plan, the arguments every kernel has, and what is kept between calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.triton.arguments import base, blocks, dense, extras
from headscope.kernels.triton.call import Call

Made = TypeVar("Made")

_COMMON: Any = WeakIdKeyDictionary()
"""Arguments of attention calls that are going on: several kernels may serve one call."""


@dataclass(frozen=True)
class Weighing:
    """Rows that weigh groups of keys: the second pass under edits, and whatever reads the edited pattern.

    Parameters
    ----------
    groups
        Group of each key, padded (B, H or 1, Tk + …), uint8.
    table
        Logarithm in base 2 of each row's weight of each group, (B, H, n, COUNT), float32.
    """

    groups: Tensor
    table: Tensor

    @staticmethod
    def arguments(weighing: Weighing | None) -> dict[str, Any]:
        """Return what kernels take."""
        groups = None if weighing is None else weighing.groups
        return {
            "Groups": groups, **blocks("groups", groups), "LogWeights": None if weighing is None else weighing.table,
            "COUNT": 0 if weighing is None else weighing.table.shape[-1],
        }  # fmt: skip


Planned = tuple[list[Call], Callable[[], Any]]
"""Launches in their order, and what reads the result off once they have run."""


def run(planned: Planned) -> Any:
    """Launch what was planned and return its result."""
    calls, finish = planned
    for call in calls:
        call.run()
    return finish()


def common(inp: AttentionInputs) -> dict[str, Any]:
    """Return the arguments that every kernel has, worked out once for each call."""
    if inp not in _COMMON:
        _COMMON[inp] = {**base(inp), **extras(inp)}
    return _COMMON[inp]  # type: ignore[no-any-return]


def kept(store: Any, x: Tensor, slot: tuple[Any, ...], make: Callable[[], Made]) -> Made:
    """Return what is made of a tensor, once for as long as it lives and nobody writes into it.

    ``store`` is a WeakIdKeyDictionary. Inference tensors do not tell whether they were written into: nothing is kept.
    """
    if x.is_inference():
        return make()
    version, known = store.get(x, (None, {}))
    if version != x._version:
        known = {}
        store[x] = x._version, known
    if slot not in known:
        known[slot] = make()
    found: Made = known[slot]
    return found


def rows(inp: AttentionInputs, positions: Tensor | None) -> Tensor:
    """Return the queries at some positions (B, n), all by default."""
    if positions is None:
        return dense(inp.q)
    index = positions.long()[:, None, :, None].expand(inp.batch, inp.heads, -1, inp.q.shape[-1])
    return inp.q.gather(2, index)


def count(inp: AttentionInputs, positions: Tensor | None) -> int:
    """Return how many queries there are at some positions."""
    return inp.tq if positions is None else positions.shape[1]
